/* The whole server's shared state, the connections and the threads that serve them.
 *
 * Lock order: server.world, then registry.lock, then the stripes' locks in ascending order. */
#ifndef DEMO_SERVER_H
#define DEMO_SERVER_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>

#include "buffer.h"
#include "session.h"
#include "store.h"

#define MAX_LINE (64 * 1024)
#define MAX_WORKERS 64

struct worker;

struct connection {
    struct connection *prev, *next; /* the worker's connections */
    struct worker *worker;
    struct session *session;
    int fd;
    unsigned interest; /* epoll events registered */
    bool closing;      /* close as soon as the replies are sent */
    struct buffer in, out;
};

/* An accepted connection on its way to a worker. */
struct handover {
    struct handover *next;
    int fd;
};

struct worker {
    pthread_t thread;
    int epoll_fd;
    int wake_fd; /* an eventfd: look at the queue and at server.stopping */
    pthread_mutex_t queue_lock;
    struct handover *queue_first, *queue_last;
    struct connection *connections; /* touched by this worker only, under server.world */
    size_t connection_count;
};

struct server {
    /* Held for reading by whatever changes shared state (a command, a connection coming or going), for
     * writing by CHECK: a CHECK sees no half-done work, so any mutex still held then is a leaked one. */
    pthread_rwlock_t world;
    struct store store;
    struct registry registry;
    struct worker workers[MAX_WORKERS];
    size_t worker_count;
    int listen_fd;
    int stop_fd; /* an eventfd, written by the signal handler */
    atomic_bool stopping;
};

extern struct server server;

/* worker.c */
void worker_init(struct worker *worker);
/* Makes the worker's own loop accept connections and watch stop_fd (no other threads then). */
void worker_serve_listener(struct worker *worker);
void worker_run(struct worker *worker);
void worker_hand_over(struct worker *worker, int fd);
void worker_destroy(struct worker *worker);

/* connection.c */
void connection_open(struct worker *worker, int fd);
void connection_close(struct connection *connection);
void connection_event(struct connection *connection, unsigned events);

/* command.c: one line without its newline, terminated by NUL; the reply goes to connection->out. */
void command_execute(struct connection *connection, char *line, size_t len);

/* check.c: appends `+OK ...` or `-FAIL ...`. The caller must not hold server.world. */
void check_invariants(struct buffer *out);

/* bugs.c */
void bug_list(struct buffer *out);
/* Does not return when there is a bug of that name, except by misfortune. */
bool bug_trigger(const char *name);

#endif
