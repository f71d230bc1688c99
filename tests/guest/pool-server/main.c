/*
 * pool-server PORT WORKERS QUEUE REPLIES
 *
 * QUEUE is condvar, batch, eventfd, pipe or semaphore. REPLIES is worker (the worker writes to the connection) or
 * io (it hands the task back to the thread that reads).
 *
 * A request is a line "VERB SEQUENCE KEY AMOUNT", its answer "SEQUENCE VALUE". "finish" crashes the thread that
 * reads, when the task comes back.
 */
#include "pool.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

bool io_replies;

static pthread_mutex_t connections = PTHREAD_MUTEX_INITIALIZER;
static int epoll;

static struct {
    pthread_mutex_t mutex;
    struct task *head;
    int eventfd;
} done = {.mutex = PTHREAD_MUTEX_INITIALIZER};

static void must(bool good, const char *what)
{
    if (!good) {
        perror(what);
        exit(1);
    }
}

static void send_reply(struct task *task)
{
    size_t len = strlen(task->reply);
    if (write(task->connection->fd, task->reply, len) != (ssize_t)len)
        return; /* The client is gone: the read will tell. */
}

void answer(struct task *task)
{
    if (!io_replies) {
        send_reply(task);
        return;
    }
    pthread_mutex_lock(&connections);
    task->connection->pending++;
    pthread_mutex_unlock(&connections);
    pthread_mutex_lock(&done.mutex);
    struct task *result = malloc(sizeof *result);
    must(result, "malloc");
    *result = *task;
    result->next = done.head;
    done.head = result;
    pthread_mutex_unlock(&done.mutex);
    uint64_t one = 1;
    must(write(done.eventfd, &one, sizeof one) == sizeof one, "eventfd");
}

/* The connection is closed when nobody needs it any more. */
static void release(struct connection *connection, int tasks, bool closed)
{
    pthread_mutex_lock(&connections);
    connection->pending -= tasks;
    connection->closed |= closed;
    bool last = connection->closed && connection->pending == 0;
    pthread_mutex_unlock(&connections);
    if (last) {
        close(connection->fd);
        free(connection);
    }
}

static void run_list(struct task *task)
{
    while (task) {
        struct task *next = task->next;
        struct connection *connection = task->connection;
        task->run(task);
        free(task);
        release(connection, 1, false);
        task = next;
    }
}

static void *work(void *unused)
{
    for (;;) {
        struct task *task = queue_take();
        run_list(task);
    }
    return unused;
}

__attribute__((noinline)) static void complete(struct task *task)
{
    if (strcmp(task->verb, "finish") == 0)
        *(volatile int *)24 = 1;
    send_reply(task);
}

static void complete_all(void)
{
    uint64_t count;
    if (read(done.eventfd, &count, sizeof count) != sizeof count)
        return;
    pthread_mutex_lock(&done.mutex);
    struct task *task = done.head;
    done.head = NULL;
    pthread_mutex_unlock(&done.mutex);
    while (task) {
        struct task *next = task->next;
        struct connection *connection = task->connection;
        complete(task);
        free(task);
        release(connection, 1, false);
        task = next;
    }
}

static bool request(struct connection *connection, char *line)
{
    struct task *task = calloc(1, sizeof *task);
    must(task, "calloc");
    task->connection = connection;
    int fields = sscanf(line, "%15s %lu %u %ld", task->verb, &task->sequence, &task->key, &task->amount);
    if (fields < 2 || !task_prepare(task)) {
        free(task);
        return false;
    }
    pthread_mutex_lock(&connections);
    connection->pending++;
    pthread_mutex_unlock(&connections);
    queue_put(task);
    return true;
}

/* Reads and queues; false when the connection has ended. */
static bool serve(struct connection *connection)
{
    for (;;) {
        char *end = connection->buffer + connection->used;
        ssize_t n = read(connection->fd, end, sizeof connection->buffer - 1 - connection->used);
        if (n <= 0)
            return n < 0 && (errno == EAGAIN || errno == EINTR);
        connection->used += n;
        connection->buffer[connection->used] = 0;
        char *line = connection->buffer, *newline;
        while ((newline = strchr(line, '\n'))) {
            *newline = 0;
            if (!request(connection, line))
                return false;
            line = newline + 1;
        }
        connection->used -= line - connection->buffer;
        memmove(connection->buffer, line, connection->used + 1);
    }
}

static void watch(int fd, void *what)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    must(epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event) == 0, "epoll_ctl");
}

static void accept_one(int listener)
{
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK), one = 1;
    if (fd < 0)
        return;
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    struct connection *connection = calloc(1, sizeof *connection);
    must(connection, "calloc");
    connection->fd = fd;
    watch(fd, connection);
}

static int listen_on(int port)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(port), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    must(bind(listener, (struct sockaddr *)&address, sizeof address) == 0, "bind");
    must(listen(listener, 256) == 0, "listen");
    return listener;
}

static void choose(const char *queue, const char *replies)
{
    static const char *const names[] = {"condvar", "batch", "eventfd", "pipe", "semaphore"};
    bool known = false;
    for (int i = 0; i < 5; i++)
        if (strcmp(queue, names[i]) == 0) {
            queue_kind = i;
            known = true;
        }
    io_replies = strcmp(replies, "io") == 0;
    must(known, "queue");
}

int main(int argc, char **argv)
{
    must(argc == 5, "usage: pool-server PORT WORKERS QUEUE REPLIES");
    choose(argv[3], argv[4]);
    queue_open();
    epoll = epoll_create1(0);
    done.eventfd = eventfd(0, EFD_NONBLOCK);
    watch(done.eventfd, &done);
    for (int i = 0; i < atoi(argv[2]); i++) {
        pthread_t thread;
        must(pthread_create(&thread, NULL, work, NULL) == 0, "pthread_create");
    }
    int listener = listen_on(atoi(argv[1]));
    watch(listener, &listener);
    for (;;) {
        struct epoll_event events[64];
        int n = epoll_wait(epoll, events, 64, -1);
        for (int i = 0; i < n; i++) {
            void *what = events[i].data.ptr;
            if (what == &listener)
                accept_one(listener);
            else if (what == &done)
                complete_all();
            else if (!serve(what)) {
                struct connection *connection = what;
                epoll_ctl(epoll, EPOLL_CTL_DEL, connection->fd, NULL);
                release(connection, 0, true);
            }
        }
    }
}
