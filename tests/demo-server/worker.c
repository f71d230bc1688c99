/* The event loop: each worker has its own epoll instance and its own connections. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

#define EVENTS 64

static void watch(struct worker *worker, int fd, void *tag)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = tag};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        perror("demo-server: epoll_ctl");
        exit(1);
    }
}

void worker_init(struct worker *worker)
{
    worker->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
    worker->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
    if (worker->epoll_fd < 0 || worker->wake_fd < 0) {
        perror("demo-server: epoll_create1 or eventfd");
        exit(1);
    }
    pthread_mutex_init(&worker->queue_lock, NULL);
    watch(worker, worker->wake_fd, &worker->wake_fd);
}

void worker_serve_listener(struct worker *worker)
{
    watch(worker, server.listen_fd, &server.listen_fd);
    watch(worker, server.stop_fd, &server.stop_fd);
}

void worker_hand_over(struct worker *worker, int fd)
{
    struct handover *item = xmalloc(sizeof *item);
    *item = (struct handover){.fd = fd};
    pthread_mutex_lock(&worker->queue_lock);
    *(worker->queue_last ? &worker->queue_last->next : &worker->queue_first) = item;
    worker->queue_last = item;
    pthread_mutex_unlock(&worker->queue_lock);
    uint64_t one = 1;
    if (write(worker->wake_fd, &one, sizeof one) < 0)
        perror("demo-server: eventfd");
}

static struct handover *take_handover(struct worker *worker)
{
    pthread_mutex_lock(&worker->queue_lock);
    struct handover *item = worker->queue_first;
    if (item != NULL) {
        worker->queue_first = item->next;
        if (worker->queue_first == NULL)
            worker->queue_last = NULL;
    }
    pthread_mutex_unlock(&worker->queue_lock);
    return item;
}

static void on_wake(struct worker *worker)
{
    uint64_t count;
    if (read(worker->wake_fd, &count, sizeof count) < 0)
        return;
    for (struct handover *item; (item = take_handover(worker)) != NULL; free(item))
        connection_open(worker, item->fd);
}

static void on_accept(struct worker *worker)
{
    for (;;) {
        int fd = accept4(server.listen_fd, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
        if (fd >= 0) {
            connection_open(worker, fd);
        } else if (errno != EINTR && errno != ECONNABORTED) {
            if (errno == EMFILE || errno == ENFILE)
                usleep(10000); /* the connection stays in the backlog until a descriptor is free */
            return;
        }
    }
}

void worker_run(struct worker *worker)
{
    struct epoll_event events[EVENTS];
    while (!atomic_load(&server.stopping)) {
        int count = epoll_wait(worker->epoll_fd, events, EVENTS, -1);
        for (int i = 0; i < count; i++) {
            void *tag = events[i].data.ptr;
            if (tag == &worker->wake_fd)
                on_wake(worker);
            else if (tag == &server.listen_fd)
                on_accept(worker);
            else if (tag == &server.stop_fd)
                atomic_store(&server.stopping, true);
            else
                connection_event(tag, events[i].events);
        }
    }
}

void worker_destroy(struct worker *worker)
{
    for (struct handover *item; (item = take_handover(worker)) != NULL; free(item))
        close(item->fd);
    while (worker->connections != NULL)
        connection_close(worker->connections);
    close(worker->wake_fd);
    close(worker->epoll_fd);
}
