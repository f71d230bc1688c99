/* Requests that never end, or take all memory. */
#include "faults.h"

#include <limits.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static void spin(void)
{
    for (volatile unsigned long i = 0;; i++)
        ;
}

static void spin_calls(void)
{
    for (;;)
        syscall(SYS_getppid);
}

static void spin_yield(void)
{
    for (;;)
        sched_yield();
}

/* A connection attempt cannot be undone: what comes after it can, up to it. */
static void spin_after_connect(void)
{
    struct sockaddr_in nobody = {.sin_family = AF_INET, .sin_port = htons(1), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    connect(fd, (struct sockaddr *)&nobody, sizeof nobody);
    close(fd);
    spin();
}

static void sleep_long(void) { sleep(10000); }

static void wait_futex(void)
{
    static int word;
    for (;;)
        syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
}

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static void lock_twice(void)
{
    pthread_mutex_lock(&mutex);
    pthread_mutex_lock(&mutex);
}

static void eat_heap(void)
{
    for (;;) {
        char *block = malloc(64 << 10);
        if (block == NULL)
            abort();
        memset(block, 1, 64 << 10);
    }
}

static void eat_brk(void)
{
    for (;;) {
        char *block = sbrk(1 << 20);
        if (block == (void *)-1)
            abort();
        memset(block, 1, 1 << 20);
    }
}

static void eat_mappings(void)
{
    for (;;) {
        char *block = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            abort();
        memset(block, 1, 4 << 20);
    }
}

/* What is unmapped is kept until the request has ended. */
static void eat_unmapped(void)
{
    for (;;) {
        char *block = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        if (block == MAP_FAILED)
            abort();
        memset(block, 1, 4 << 20);
        munmap(block, 4 << 20);
    }
}

/* The host touches the pages. */
static void eat_populated(void)
{
    for (;;) {
        char *block = mmap(NULL, 4 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
        if (block == MAP_FAILED)
            abort();
        block[0] = 1;
    }
}

const struct fault limit_faults[] = {
    {"spin", spin},
    {"spin-calls", spin_calls},
    {"spin-yield", spin_yield},
    {"spin-after-connect", spin_after_connect},
    {"sleep", sleep_long},
    {"wait-futex", wait_futex},
    {"lock-twice", lock_twice},
    {"eat-heap", eat_heap},
    {"eat-brk", eat_brk},
    {"eat-mappings", eat_mappings},
    {"eat-unmapped", eat_unmapped},
    {"eat-populated", eat_populated},
    {NULL, NULL},
};
