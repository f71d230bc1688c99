/* Threads: mutexes, condition variables, thread-local storage, many short lives. What it prints does
   not depend on the order in which threads run. */
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { WORKERS = 8, ITEMS = 20000, SHORT = 1000 };

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, drained = PTHREAD_COND_INITIALIZER;
static int queue[64], head, tail;
static long sums[WORKERS], counted;
static atomic_long spins;
static __thread long mine;

static void put(int item)
{
    pthread_mutex_lock(&lock);
    while (tail - head == 64)
        pthread_cond_wait(&drained, &lock);
    queue[tail++ % 64] = item;
    pthread_cond_signal(&filled);
    pthread_mutex_unlock(&lock);
}

static int take(void)
{
    pthread_mutex_lock(&lock);
    while (tail == head)
        pthread_cond_wait(&filled, &lock);
    int item = queue[head++ % 64];
    pthread_cond_signal(&drained);
    pthread_mutex_unlock(&lock);
    return item;
}

static void *worker(void *arg)
{
    long ident = (intptr_t)arg;
    int item;
    while ((item = take()) > 0) {
        mine += item;
        atomic_fetch_add(&spins, 1);
        char *block = malloc((size_t)item % 500 + 1);
        memset(block, item, (size_t)item % 500 + 1);
        free(block);
    }
    sums[ident] = mine;
    return arg;
}

static void *brief(void *arg)
{
    mine += 1;
    pthread_mutex_lock(&lock);
    counted += mine;
    pthread_mutex_unlock(&lock);
    return arg;
}

static void *exits(void *arg)
{
    pthread_exit(arg);
}

int main(void)
{
    pthread_t threads[WORKERS];
    long sum = 0;
    for (long i = 0; i < WORKERS; i++)
        if (pthread_create(&threads[i], NULL, worker, (void *)i))
            return 1;
    for (int i = 1; i <= ITEMS; i++)
        put(i);
    for (int i = 0; i < WORKERS; i++)
        put(0);
    for (long i = 0; i < WORKERS; i++) {
        void *result;
        if (pthread_join(threads[i], &result) || result != (void *)i)
            return 2;
        sum += sums[i];
    }
    printf("sum %ld, items %ld, main's own %ld\n", sum, atomic_load(&spins), mine);
    for (int i = 0; i < SHORT; i++) {
        pthread_t thread;
        if (pthread_create(&thread, NULL, brief, NULL) || pthread_join(thread, NULL))
            return 3;
    }
    printf("short lives %ld\n", counted);
    pthread_t thread;
    void *result;
    if (pthread_create(&thread, NULL, exits, &counted) || pthread_join(thread, &result))
        return 4;
    printf("exit value %s\n", result == &counted ? "handed over" : "lost");
    /* Detached threads, waited for by count. */
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    counted = 0;
    for (int i = 0; i < 50; i++)
        if (pthread_create(&thread, &attributes, brief, NULL))
            return 5;
    for (;;) {
        pthread_mutex_lock(&lock);
        long done = counted;
        pthread_mutex_unlock(&lock);
        if (done == 50)
            break;
        sched_yield();
    }
    puts("detached 50");
    /* The last thread ends the process, not the first. */
    if (pthread_create(&thread, &attributes, brief, NULL))
        return 6;
    fflush(stdout);
    pthread_exit(NULL);
}
