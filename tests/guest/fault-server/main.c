/* A server whose requests commit faults.
 *
 * fault-server PORT WORKERS [HANDLER]         serves lines on 127.0.0.1; no workers: one thread does all; a crash handler
 *                                             exits, returns, aborts, faults, waits or unlinks
 * fault-server --commit NAME [thread]         commits one fault, to see what it comes to without a server
 * fault-server --list                         names of the faults
 * fault-server --pointers                     what system calls answer to wild pointers
 *
 * add N       adds to the connection's sum: "sum COUNT SUM"
 * state       what must be the same before and after a fault, ended by a line "."
 * pointers    as above, in a request; the answer is "done"
 * hang NAME   commits the fault without more ado
 * commit NAME makes a mess, sends a part of an answer, and commits the fault; "survived" if it had no effect */
#include "faults.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#define CONNECTIONS 200
#define WORKERS 8

struct connection {
    unsigned long count, sum;
    unsigned used;
    char input[200];
};

static struct connection connections[CONNECTIONS];

static void say(int fd, const char *text)
{
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        return;
}

static void serve_line(int fd, struct connection *connection, const char *line)
{
    static __thread char answer[64 << 10];
    unsigned long number;
    if (sscanf(line, "add %lu", &number) == 1) {
        connection->count++;
        connection->sum += number;
        snprintf(answer, sizeof answer, "sum %lu %lu\n", connection->count, connection->sum);
        say(fd, answer);
    } else if (strcmp(line, "state") == 0) {
        describe_state(answer, sizeof answer - 3);
        strcat(answer, ".\n");
        say(fd, answer);
    } else if (strcmp(line, "pointers") == 0) {
        wild_pointers();
        say(fd, "done\n");
    } else if (strncmp(line, "commit ", 7) == 0) {
        make_a_mess();
        say(fd, "a part of");
        commit_fault(line + 7);
        say(fd, "survived\n");
    } else if (strncmp(line, "hang ", 5) == 0) {
        commit_fault(line + 5);
        say(fd, "survived\n");
    } else {
        say(fd, "what?\n");
    }
}

static void drop(int fd)
{
    memset(&connections[fd], 0, sizeof connections[fd]);
    close(fd);
}

static void serve(int fd)
{
    struct connection *connection = &connections[fd];
    unsigned room = sizeof connection->input - connection->used;
    ssize_t n = read(fd, connection->input + connection->used, room);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0 || (size_t)n == room) {
        drop(fd);
        return;
    }
    connection->used += n;
    char *end;
    while ((end = memchr(connection->input, '\n', connection->used))) {
        *end = 0;
        serve_line(fd, connection, connection->input);
        connection->used -= end + 1 - connection->input;
        memmove(connection->input, end + 1, connection->used);
    }
}

static int listener = -1;
static int pollers[WORKERS + 1];
static int workers;

static void watch(int poller, int fd)
{
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
}

static void accept_one(void)
{
    static int turn;
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    if (fd < 0)
        return;
    if (fd >= CONNECTIONS) {
        close(fd);
        return;
    }
    int yes = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &yes, sizeof yes);
    watch(pollers[workers ? 1 + turn++ % workers : 0], fd);
}

static void *serve_all(void *poller)
{
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(*(int *)poller, events, 16, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd == listener)
                accept_one();
            else
                serve(events[i].data.fd);
        }
    }
    return NULL;
}

static const char *handler_does;

static void crash_handler(int signal, siginfo_t *info, void *context)
{
    (void)info, (void)context;
    static const char text[] = "the crash handler has run\n";
    if (write(2, text, sizeof text - 1) < 0 || signal < 0)
        abort();
    if (strcmp(handler_does, "returns") == 0)
        return;
    if (strcmp(handler_does, "aborts") == 0)
        abort();
    if (strcmp(handler_does, "faults") == 0)
        *(volatile int *)24 = 1;
    if (strcmp(handler_does, "waits") == 0)
        pause();
    if (strcmp(handler_does, "unlinks") == 0)
        unlink("no-such-file");
    _exit(99);
}

static void *commit_in_thread(void *name)
{
    commit_fault(name);
    return NULL;
}

static int commit_alone(const char *name, int in_thread)
{
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    alarm(20);
    if (in_thread) {
        pthread_t thread;
        pthread_create(&thread, NULL, commit_in_thread, (void *)name);
        pthread_join(thread, NULL);
    } else {
        commit_fault(name);
    }
    puts("survived");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 2 && strcmp(argv[1], "--commit") == 0)
        return commit_alone(argv[2], argc > 3);
    if (argc > 1 && strcmp(argv[1], "--list") == 0)
        return list_faults(), 0;
    if (argc > 1 && strcmp(argv[1], "--pointers") == 0)
        return wild_pointers(), 0;
    if (argc < 3)
        return 2;
    workers = atoi(argv[2]);
    if (workers < 0 || workers > WORKERS)
        return 2;
    if (argc > 3) {
        handler_does = argv[3];
        struct sigaction action = {.sa_sigaction = crash_handler, .sa_flags = SA_SIGINFO};
        static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP};
        for (unsigned i = 0; i < sizeof signals / sizeof signals[0]; i++)
            sigaction(signals[i], &action, NULL);
    }
    prepare_state();

    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    int yes = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons(atoi(argv[1])),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    for (int i = 0; i <= workers; i++)
        pollers[i] = epoll_create1(EPOLL_CLOEXEC);
    for (int i = 1; i <= workers; i++) {
        pthread_t thread;
        pthread_create(&thread, NULL, serve_all, &pollers[i]);
    }
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 100) != 0) {
        perror("fault-server");
        return 1;
    }
    watch(pollers[0], listener);
    serve_all(&pollers[0]);
}
