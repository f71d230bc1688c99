/* A server in which one thread reads and others execute. */
#ifndef POOL_H
#define POOL_H

#include <pthread.h>
#include <stdbool.h>

struct connection {
    int fd;
    int used;
    char buffer[1024];
    /* Tasks that are queued or being executed; with `closed` under `connections`. */
    int pending;
    bool closed;
};

struct task {
    struct task *next;
    struct connection *connection;
    void (*run)(struct task *);
    unsigned long sequence;
    unsigned key;
    long amount;
    char verb[16];
    char reply[64];
};

/* How tasks get to the workers, and how replies get out. */
enum queue_kind { CONDVAR, BATCH, EVENTFD, PIPE, SEMAPHORE };
extern enum queue_kind queue_kind;
extern bool io_replies;

/* queue.c */
void queue_open(void);
void queue_put(struct task *task);
/* One task, or with BATCH all that there are. */
struct task *queue_take(void);

/* table.c: entries, a mirror of each, and their total, under one mutex. */
enum { KEYS = 256 };
long table_add(unsigned key, long amount, void (*midway)(void));
bool table_is_consistent(void);

/* tasks.c */
bool task_prepare(struct task *task);

/* main.c: answers a task, whose work ends with that. */
void answer(struct task *task);

#endif
