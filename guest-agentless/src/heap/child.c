/* A process whose heap the tests look at: does as it is told, one command a line, and stands still at "s". */
#define _GNU_SOURCE
#include <malloc.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { SLOTS = 4096, THREADS = 4 };

static char *slots[SLOTS];

static struct worker {
    sem_t go, done;
    char operation;
    unsigned long slot, size;
    pthread_t thread;
} workers[THREADS];

static void operate(char operation, unsigned long slot, unsigned long size)
{
    switch (operation) {
    case 'm':
        free(slots[slot]);
        slots[slot] = malloc(size);
        memset(slots[slot], 0xa5, size);
        break;
    case 'c':
        free(slots[slot]);
        slots[slot] = calloc(1, size);
        break;
    case 'r':
        slots[slot] = realloc(slots[slot], size);
        break;
    case 'a':
        free(slots[slot]);
        slots[slot] = memalign(256, size);
        break;
    case 'f':
        free(slots[slot]);
        slots[slot] = NULL;
        break;
    case 'd': /* free, but remember it */
        free(slots[slot]);
        break;
    case 'x':
        malloc_trim(0);
        break;
    case 'k':
        if (sbrk(4096) == (void *)-1)
            abort();
        break;
    }
}

static void *work(void *argument)
{
    struct worker *worker = argument;
    for (;;) {
        sem_wait(&worker->go);
        operate(worker->operation, worker->slot, worker->size);
        sem_post(&worker->done);
    }
}

static void say(unsigned long a, unsigned long b)
{
    char line[64];
    int len = snprintf(line, sizeof line, "%lx %lx\n", a, b);
    if (write(1, line, len) != len)
        _exit(1);
}

/* "operation thread slot number": everything in decimal. */
static void command(char *line)
{
    char operation = line[0];
    char *at = line + 1;
    unsigned long thread = strtoul(at, &at, 10), slot = strtoul(at, &at, 10) % SLOTS, size = strtoul(at, &at, 10);
    struct worker *worker = &workers[thread % THREADS];
    if (operation == 's') {
        say(0, 0);
    } else if (operation == 'p') {
        say((uintptr_t)slots[slot], malloc_usable_size(slots[slot]));
    } else if (operation == 'b') {
        say(thread == 0 ? pthread_self() : worker->thread, 0);
    } else if (thread == 0) {
        operate(operation, slot, size);
    } else {
        if (worker->thread == 0) {
            sem_init(&worker->go, 0, 0);
            sem_init(&worker->done, 0, 0);
            if (pthread_create(&worker->thread, NULL, work, worker) != 0)
                _exit(1);
        }
        worker->operation = operation;
        worker->slot = slot;
        worker->size = size;
        sem_post(&worker->go);
        while (sem_wait(&worker->done) != 0)
            ;
    }
}

int main(void)
{
    static char buffer[1 << 16];
    size_t len = 0;
    for (;;) {
        ssize_t n = read(0, buffer + len, sizeof buffer - len);
        if (n <= 0)
            return 0;
        len += n;
        char *start = buffer, *end;
        while ((end = memchr(start, '\n', buffer + len - start)) != NULL) {
            *end = '\0';
            command(start);
            start = end + 1;
        }
        len -= start - buffer;
        memmove(buffer, start, len);
    }
}
