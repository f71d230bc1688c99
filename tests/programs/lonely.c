/* A server whose faults belong to no client. Usage: lonely PORT WHEN
 *   start      before it listens          ready        after it listens, before any request
 *   thread     in a background thread     timer        when a wait times out
 *   reload     in the handler of SIGHUP   reload-loop  in the main loop after SIGHUP
 *   shutdown   in the handler of SIGTERM
 * The thread and the timer fault once a client has said "go". Every message is answered with "ok". */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

static const char *when;
static int wake_up;
static volatile sig_atomic_t reload, armed;

static int is(const char *name) {
    return !strcmp(when, name);
}

static void crash(void) {
    *(volatile int *)8 = 1;
}

static void *background(void *unused) {
    unsigned long long n;
    while (read(wake_up, &n, sizeof n) == sizeof n) {
        if (is("thread")) crash();
    }
    return unused;
}

static void on_signal(int signal) {
    if (signal == SIGHUP && is("reload")) crash();
    if (signal == SIGHUP) reload = 1;
    if (signal == SIGTERM && is("shutdown")) crash();
    if (signal == SIGTERM) _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 3) return 2;
    when = argv[2];
    if (is("start")) crash();
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 16)) return 1;
    if (is("ready")) crash();
    struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGHUP, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    wake_up = eventfd(0, 0);
    /* Signals are for the main loop. */
    sigset_t all, none;
    sigfillset(&all);
    pthread_sigmask(SIG_BLOCK, &all, &none);
    pthread_t thread;
    pthread_create(&thread, NULL, background, NULL);
    pthread_sigmask(SIG_SETMASK, &none, NULL);
    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listener};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    for (;;) {
        int n = epoll_wait(epoll, &event, 1, 20);
        if (reload) {
            reload = 0;
            if (is("reload-loop")) crash();
        }
        if (n == 0 && armed && is("timer")) crash();
        if (n != 1) continue;
        if (event.data.fd == listener) {
            int fd = accept(listener, NULL, NULL);
            struct epoll_event client = {.events = EPOLLIN, .data.fd = fd};
            epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &client);
            continue;
        }
        char text[16] = {0};
        if (read(event.data.fd, text, sizeof text - 1) <= 0) {
            close(event.data.fd);
            continue;
        }
        if (!strncmp(text, "go", 2)) {
            armed = 1;
            unsigned long long one = 1;
            if (write(wake_up, &one, sizeof one) != sizeof one) return 1;
        }
        if (write(event.data.fd, "ok", 2) != 2) perror("write");
    }
}
