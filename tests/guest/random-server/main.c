/*
 * random-server [-t THREADS] [-m MEGABYTES] PORT
 *
 * Serves records of REQUEST_LEN bytes of text on 127.0.0.1:
 *
 *     RUN seed from to sets end only    executes operations [from, to) of a seed, drawn from the classes
 *                                       `sets` (or the one named `only`, if that is not "-"), and then does
 *                                       what `end` says: "reply" with the sum of the connection's model and
 *                                       the number of violated expectations, "none" to wait for the next
 *                                       record, anything else is a way to crash
 *     STATE                             the kernel's view of the process
 *     NAMES seed from to sets end only  the names of the operations that RUN would execute
 *
 * A reply is one line; to STATE and NAMES, the line is the length of the text that follows.
 */
#include "guest.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

void mapping_init(void);
void signals_init(void);

enum { WAIT_MS = 500, STACK = 512 << 10 };

struct connection connections[CONNECTIONS];

static struct worker workers[WORKERS];
static int worker_count = 1;
static int listening;
static char *text;
static const size_t text_room = 1 << 18;
static volatile sig_atomic_t stopping;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void die(const char *what) {
    perror(what);
    exit(1);
}

static void stop(int number) {
    (void)number;
    stopping = 1;
}

static void send_all(struct run *run, int fd, char *bytes, size_t len) {
    while (len) {
        struct iovec part = {bytes, len};
        struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
        ssize_t n;
        switch (below(run, 4)) {
        case 0:
            n = write(fd, bytes, len);
            break;
        case 1:
            n = writev(fd, &part, 1);
            break;
        case 2:
            n = sendmsg(fd, &message, MSG_NOSIGNAL);
            break;
        default:
            n = send(fd, bytes, len, MSG_NOSIGNAL);
        }
        if (n < 0 && errno == EAGAIN) {
            struct pollfd entry = {fd, POLLOUT, 0};
            poll(&entry, 1, 1000);
        } else if (n < 0) {
            return;
        } else {
            bytes += n;
            len -= (size_t)n;
        }
    }
}

static void send_text(struct run *run, int fd, size_t len) {
    char line[32];
    int n = snprintf(line, sizeof line, "%zu\n", len);
    send_all(run, fd, line, (size_t)n);
    send_all(run, fd, text, len);
}

static void execute(struct run *run) {
    struct connection *connection = run->connection;
    unsigned long seed;
    unsigned from, to, sets;
    char verb[8], end[16], only[32], line[128];
    connection->request[REQUEST_LEN - 1] = 0;
    if (!strncmp(connection->request, "STATE", 5)) {
        send_text(run, connection->fd, describe_state(text, text_room));
        return;
    }
    if (sscanf(connection->request, "%7s %lu %u %u %u %15s %31s", verb, &seed, &from, &to, &sets, end, only) !=
        7) {
        fprintf(stderr, "not a request: %s\n", connection->request);
        exit(1);
    }
    const char *name = strcmp(only, "-") ? only : "";
    if (!strcmp(verb, "NAMES")) {
        send_text(run, connection->fd, list_operations(text, text_room, seed, from, to, sets, name));
        return;
    }
    model_step(&connection->model, seed, to - from);
    run_operations(run, seed, from, to, sets, name);
    if (!strcmp(end, "none"))
        return;
    if (strcmp(end, "reply"))
        crash(end);
    int n = snprintf(line, sizeof line, "ok %016lx %u %s\n", model_sum(&connection->model), run->violations,
                     run->violations ? run->first_violation : "-");
    send_all(run, connection->fd, line, (size_t)n);
}

static void hang_up(struct connection *connection) {
    int fd = connection->fd;
    pthread_mutex_lock(&lock);
    connection->fd = -1;
    pthread_mutex_unlock(&lock);
    close(fd);
}

/* Reads what is still missing of the record, by a random call into a random place. */
static ssize_t receive(struct run *run) {
    struct connection *connection = run->connection;
    size_t len = REQUEST_LEN - connection->filled;
    char *at = place(run, len);
    ssize_t n;
    switch (next_random(&run->worker->rng) % 4) {
    case 0:
        n = read(connection->fd, at, len);
        break;
    case 1:
        n = recv(connection->fd, at, len, 0);
        break;
    case 2: {
        struct iovec parts[2] = {{at, len / 2}, {at + len / 2, len - len / 2}};
        n = readv(connection->fd, parts, 2);
        break;
    }
    default: {
        /* Not at a random place: it might overlap the message. */
        static _Thread_local char bytes[REQUEST_LEN];
        at = bytes;
        struct iovec part = {at, len};
        struct msghdr *message = (struct msghdr *)place(run, sizeof *message);
        memset(message, 0, sizeof *message);
        message->msg_iov = &part;
        message->msg_iovlen = 1;
        n = recvmsg(connection->fd, message, 0);
    }
    }
    if (n > 0)
        memcpy(connection->request + connection->filled, at, (size_t)n);
    return n;
}

static void serve(struct worker *worker, struct connection *connection) {
    char stack[6 * PAGE];
    struct run run = {.connection = connection, .worker = worker, .stack = stack, .stack_len = sizeof stack};
    run.alone = worker_count == 1;
    run.rng = next_random(&worker->rng);
    ssize_t n = receive(&run);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0) {
        hang_up(connection);
        return;
    }
    connection->filled += (uint32_t)n;
    if (connection->filled < REQUEST_LEN)
        return;
    connection->filled = 0;
    execute(&run);
}

static void adopt(struct worker *worker, int fd) {
    struct connection *connection = NULL;
    pthread_mutex_lock(&lock);
    for (int i = 0; i < CONNECTIONS && !connection; i++)
        if (connections[i].fd < 0)
            connection = &connections[i];
    if (connection)
        connection->fd = fd;
    pthread_mutex_unlock(&lock);
    if (!connection) {
        close(fd);
        return;
    }
    connection->filled = 0;
    model_init(&connection->model, 1);
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = connection};
    if (epoll_ctl(worker->epoll, EPOLL_CTL_ADD, fd, &event))
        die("epoll_ctl");
}

static void accept_all(struct run *run) {
    static int turn;
    for (;;) {
        struct sockaddr *address = (struct sockaddr *)place(run, 16);
        socklen_t *len = (socklen_t *)place(run, 4);
        *len = 16;
        int fd = accept4(listening, address, len, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd < 0)
            return;
        adopt(&workers[turn++ % worker_count], fd);
    }
}

/*
 * Waits for a connection by one of the calls there are for it, but not for ever: a signal may have come just
 * before.
 */
static void await(struct worker *worker) {
    struct pollfd entry = {worker->epoll, POLLIN, 0};
    struct timespec time = {0, WAIT_MS * 1000000};
    struct timeval limit = {0, WAIT_MS * 1000};
    fd_set set;
    switch (next_random(&worker->rng) % 4) {
    case 0:
        poll(&entry, 1, WAIT_MS);
        break;
    case 1:
        ppoll(&entry, 1, &time, NULL);
        break;
    case 2:
        FD_ZERO(&set);
        FD_SET(worker->epoll, &set);
        select(worker->epoll + 1, &set, NULL, NULL, &limit);
        break;
    }
}

static void *work(void *argument) {
    struct worker *worker = argument;
    while (!stopping) {
        char stack[2 * PAGE];
        struct run run = {.worker = worker, .stack = stack, .stack_len = sizeof stack};
        run.alone = worker_count == 1;
        await(worker);
        run.rng = next_random(&worker->rng);
        int room = 1 + (int)below(&run, 4);
        struct epoll_event *events = (struct epoll_event *)place(&run, (size_t)room * sizeof *events);
        struct epoll_event copy[4];
        int n = epoll_wait(worker->epoll, events, room, WAIT_MS);
        if (n > 0)
            memcpy(copy, events, (size_t)n * sizeof *events);
        for (int i = 0; i < n; i++) {
            if (copy[i].data.ptr)
                serve(worker, copy[i].data.ptr);
            else
                accept_all(&run);
        }
    }
    return NULL;
}

static void listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1;
    listening = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 64))
        die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    epoll_ctl(workers[0].epoll, EPOLL_CTL_ADD, listening, &event);
}

/* The first thread only waits for SIGTERM, which the others block; theirs are small stacks. */
static void start_threads(void) {
    sigset_t set;
    pthread_attr_t attributes;
    sigemptyset(&set);
    sigaddset(&set, SIGTERM);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, STACK);
    for (int i = 0; i < worker_count; i++) {
        pthread_t thread;
        if (pthread_create(&thread, &attributes, work, &workers[i]))
            die("thread");
    }
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
    while (!stopping)
        poll(NULL, 0, WAIT_MS);
}

int main(int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "t:m:")) != -1;) {
        if (option == 't')
            worker_count = atoi(optarg);
        else if (option == 'm')
            arena_len = (size_t)atoi(optarg) << 20;
    }
    if (worker_count < 1 || worker_count > WORKERS || !arena_len || optind != argc - 1) {
        fprintf(stderr, "usage: random-server [-t THREADS] [-m MEGABYTES] PORT\n");
        return 2;
    }
    /* What the server has inherited may change without it. */
    syscall(SYS_close_range, 3, ~0u, 0);
    struct sigaction action = {.sa_handler = stop};
    sigaction(SIGTERM, &action, NULL);
    for (int i = 0; i < CONNECTIONS; i++)
        connections[i].fd = -1;
    place_init();
    descriptors_init();
    mapping_init();
    signals_init();
    text = mmap(NULL, text_room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    for (int i = 0; i < worker_count; i++)
        workers[i] = (struct worker){epoll_create1(EPOLL_CLOEXEC), (uint64_t)i};
    listen_on(atoi(argv[argc - 1]));
    if (worker_count == 1)
        work(&workers[0]);
    else
        start_threads();
    /* The other threads end with the process. */
    exit(0);
}
