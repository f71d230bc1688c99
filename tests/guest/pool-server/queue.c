#include "pool.h"

#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/eventfd.h>
#include <unistd.h>

enum queue_kind queue_kind = CONDVAR;

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t filled;
    struct task *head, **tail;
    unsigned long put, taken;
    sem_t semaphore;
    int eventfd;
    int pipe[2];
} queue = {.mutex = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .tail = &queue.head};

static void must(bool good)
{
    if (!good)
        abort();
}

void queue_open(void)
{
    must(sem_init(&queue.semaphore, 0, 0) == 0);
    queue.eventfd = eventfd(0, EFD_SEMAPHORE);
    must(queue.eventfd >= 0 && pipe(queue.pipe) == 0);
}

void queue_put(struct task *task)
{
    if (queue_kind == PIPE) {
        must(write(queue.pipe[1], &task, sizeof task) == sizeof task);
        return;
    }
    pthread_mutex_lock(&queue.mutex);
    task->next = NULL;
    *queue.tail = task;
    queue.tail = &task->next;
    queue.put++;
    if (queue_kind == CONDVAR || queue_kind == BATCH)
        pthread_cond_signal(&queue.filled);
    pthread_mutex_unlock(&queue.mutex);
    uint64_t one = 1;
    if (queue_kind == SEMAPHORE)
        must(sem_post(&queue.semaphore) == 0);
    if (queue_kind == EVENTFD)
        must(write(queue.eventfd, &one, sizeof one) == sizeof one);
}

static struct task *pop(void)
{
    struct task *task = queue.head;
    queue.head = task->next;
    if (!queue.head)
        queue.tail = &queue.head;
    queue.taken++;
    return task;
}

struct task *queue_take(void)
{
    struct task *task;
    uint64_t count;
    if (queue_kind == PIPE) {
        must(read(queue.pipe[0], &task, sizeof task) == sizeof task);
        task->next = NULL;
        return task;
    }
    if (queue_kind == SEMAPHORE)
        while (sem_wait(&queue.semaphore) != 0)
            ;
    if (queue_kind == EVENTFD)
        must(read(queue.eventfd, &count, sizeof count) == sizeof count);
    pthread_mutex_lock(&queue.mutex);
    if (queue_kind == CONDVAR || queue_kind == BATCH)
        while (!queue.head)
            pthread_cond_wait(&queue.filled, &queue.mutex);
    if (queue_kind == BATCH) {
        task = queue.head;
        queue.head = NULL;
        queue.tail = &queue.head;
    } else {
        task = pop();
        task->next = NULL;
    }
    pthread_mutex_unlock(&queue.mutex);
    return task;
}
