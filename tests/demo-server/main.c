/* demo-server: a small multi-user key-value server with planted bugs. See README.md for its protocol. */
#include <errno.h>
#include <getopt.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include "server.h"

struct server server;

static void usage(FILE *to)
{
    fputs("usage: demo-server [--port N | --unix PATH] [-t WORKERS]\n"
          "  -p, --port N      listen on 127.0.0.1:N (default 0: the kernel chooses)\n"
          "  -u, --unix PATH   listen on a Unix socket instead\n"
          "  -t, --threads N   N worker threads (default: one event loop in the main thread)\n",
          to);
}

static void die(const char *what)
{
    fprintf(stderr, "demo-server: %s: %s\n", what, strerror(errno));
    exit(1);
}

static unsigned long parse_count(const char *text, unsigned long max)
{
    char *end;
    errno = 0;
    unsigned long n = strtoul(text, &end, 10);
    if (errno != 0 || end == text || *end != '\0' || n > max) {
        fprintf(stderr, "demo-server: not a number up to %lu: %s\n", max, text);
        exit(2);
    }
    return n;
}

static int listen_tcp(unsigned long port)
{
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    int on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {
        .sin_family = AF_INET,
        .sin_port = htons((in_port_t)port),
        .sin_addr.s_addr = htonl(INADDR_LOOPBACK),
    };
    socklen_t len = sizeof address;
    if (bind(fd, (struct sockaddr *)&address, len) < 0)
        die("bind");
    if (listen(fd, 128) < 0)
        die("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &len) < 0)
        die("getsockname");
    printf("listening on %u\n", (unsigned)ntohs(address.sin_port));
    return fd;
}

static int listen_unix(const char *path)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) {
        errno = ENAMETOOLONG;
        die(path);
    }
    memcpy(address.sun_path, path, strlen(path));
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (fd < 0)
        die("socket");
    unlink(path);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) < 0)
        die(path);
    if (listen(fd, 128) < 0)
        die("listen");
    printf("listening on %s\n", path);
    return fd;
}

static void on_stop_signal(int signal)
{
    (void)signal;
    int saved = errno;
    uint64_t one = 1;
    ssize_t ignored = write(server.stop_fd, &one, sizeof one);
    (void)ignored;
    errno = saved;
}

static void install_signals(void)
{
    struct sigaction stop = {.sa_handler = on_stop_signal, .sa_flags = SA_RESTART};
    struct sigaction ignore = {.sa_handler = SIG_IGN};
    sigaction(SIGTERM, &stop, NULL);
    sigaction(SIGINT, &stop, NULL);
    sigaction(SIGPIPE, &ignore, NULL);
}

static void *worker_main(void *worker)
{
    worker_run(worker);
    return NULL;
}

/* The main thread of a server with workers: accepts, and deals connections out in turn. */
static void accept_for_workers(void)
{
    size_t turn = 0;
    struct pollfd watched[] = {
        {.fd = server.listen_fd, .events = POLLIN},
        {.fd = server.stop_fd, .events = POLLIN},
    };
    for (;;) {
        if (poll(watched, 2, -1) < 0) {
            if (errno == EINTR)
                continue;
            die("poll");
        }
        if (watched[1].revents != 0)
            return;
        int fd = accept4(server.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0)
            worker_hand_over(&server.workers[turn++ % server.worker_count], fd);
        else if (errno == EMFILE || errno == ENFILE)
            usleep(10000); /* the connection stays in the backlog until a descriptor is free */
    }
}

static void run_with_workers(size_t count)
{
    server.worker_count = count;
    for (size_t i = 0; i < count; i++) {
        worker_init(&server.workers[i]);
        int error = pthread_create(&server.workers[i].thread, NULL, worker_main, &server.workers[i]);
        if (error != 0) {
            errno = error;
            die("pthread_create");
        }
    }
    accept_for_workers();
    atomic_store(&server.stopping, true);
    for (size_t i = 0; i < count; i++) {
        uint64_t one = 1;
        if (write(server.workers[i].wake_fd, &one, sizeof one) < 0)
            die("eventfd");
        pthread_join(server.workers[i].thread, NULL);
        worker_destroy(&server.workers[i]);
    }
}

static void run_alone(void)
{
    server.worker_count = 1;
    worker_init(&server.workers[0]);
    worker_serve_listener(&server.workers[0]);
    worker_run(&server.workers[0]);
    worker_destroy(&server.workers[0]);
}

int main(int argc, char **argv)
{
    static const struct option options[] = {
        {"port", required_argument, NULL, 'p'}, {"unix", required_argument, NULL, 'u'},
        {"threads", required_argument, NULL, 't'}, {"help", no_argument, NULL, 'h'}, {NULL, 0, NULL, 0},
    };
    unsigned long port = 0, threads = 0;
    const char *path = NULL;
    for (int option; (option = getopt_long(argc, argv, "p:u:t:h", options, NULL)) != -1;) {
        switch (option) {
        case 'p': port = parse_count(optarg, 65535); break;
        case 'u': path = optarg; break;
        case 't': threads = parse_count(optarg, MAX_WORKERS); break;
        case 'h': usage(stdout); return 0;
        default: usage(stderr); return 2;
        }
    }
    if (optind < argc) {
        usage(stderr);
        return 2;
    }

    pthread_rwlockattr_t attributes;
    pthread_rwlockattr_init(&attributes);
    /* A CHECK must not wait for ever behind a stream of commands. */
    pthread_rwlockattr_setkind_np(&attributes, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
    pthread_rwlock_init(&server.world, &attributes);
    pthread_rwlockattr_destroy(&attributes);
    store_init(&server.store);
    registry_init(&server.registry);
    server.stop_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (server.stop_fd < 0)
        die("eventfd");
    install_signals();
    server.listen_fd = path != NULL ? listen_unix(path) : listen_tcp(port);
    fflush(stdout);

    if (threads > 0)
        run_with_workers(threads);
    else
        run_alone();

    close(server.listen_fd);
    if (path != NULL)
        unlink(path);
    store_free(&server.store);
    return 0;
}
