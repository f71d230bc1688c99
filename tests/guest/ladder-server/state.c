// Mappings, descriptors, signals and threads, as they are at the start and as a request changes them.
#include "server.h"

#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

enum { PAGE = 4096, PAGES = 16, SIZE = PAGES * PAGE };

static unsigned char *unmapped, *narrowed, *discarded, *shared, *untouched, *replaced;
static int file, second, event, timer, pair[2], channel[2], idle;
static char *heap;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t woken = PTHREAD_COND_INITIALIZER;
static int wake_ups, handed_over, handed;

// Waits for a word that never comes, unless a request sends it.
static void *waiter(void *unused)
{
    (void)unused;
    pthread_mutex_lock(&lock);
    for (;;) {
        pthread_cond_wait(&woken, &lock);
        wake_ups++;
    }
    return NULL;
}

// Waits in a read.
static void *reader(void *unused)
{
    (void)unused;
    char byte;
    while (read(channel[0], &byte, 1) == 1)
        __atomic_add_fetch(&handed_over, 1, __ATOMIC_SEQ_CST);
    return NULL;
}

static unsigned char *map(int value, int flags)
{
    unsigned char *memory = mmap(NULL, SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | flags, -1, 0);
    if (memory == MAP_FAILED)
        abort();
    if (value)
        memset(memory, value, SIZE);
    return memory;
}

static void on_signal(int number)
{
    (void)number;
}

void make_state(void)
{
    unmapped = map(1, MAP_PRIVATE);
    narrowed = map(2, MAP_PRIVATE);
    discarded = map(3, MAP_PRIVATE);
    shared = map(4, MAP_SHARED);
    replaced = map(5, MAP_PRIVATE);
    untouched = map(0, MAP_PRIVATE);
    file = open("/etc/group", O_RDONLY);
    second = open("/etc/passwd", O_RDONLY);
    lseek(file, 100, SEEK_SET);
    event = eventfd(3, EFD_NONBLOCK);
    timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    idle = open("/dev/null", O_RDWR);
    if (pipe2(pair, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_STREAM, 0, channel))
        abort();
    heap = malloc(100);
    strcpy(heap, "as it was");
    pthread_t thread;
    pthread_create(&thread, NULL, waiter, NULL);
    pthread_create(&thread, NULL, reader, NULL);
}

static void *passer_by(void *unused)
{
    (void)unused;
    pause();
    return NULL;
}

void change_state(void)
{
    unmapped[5] = 99;
    munmap(unmapped, SIZE);
    // Something else where it was, in part.
    unsigned char *other = mmap(unmapped + PAGE, PAGE, PROT_READ | PROT_WRITE,
                                MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memset(other, 77, PAGE);
    // And again: what goes now reaches into what went before.
    munmap(replaced, SIZE / 2);
    memset(mmap(replaced, SIZE / 2, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0), 78,
           SIZE / 2);
    munmap(replaced, SIZE);
    memset(narrowed, 66, PAGE);
    mprotect(narrowed, SIZE, PROT_NONE);
    memset(discarded + PAGE, 55, PAGE);
    madvise(discarded, SIZE / 2, MADV_DONTNEED);
    memset(shared, 44, SIZE);
    mmap(replaced, SIZE, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    memset(untouched, 33, SIZE);
    map(22, MAP_PRIVATE);
    char bytes[64];
    if (read(file, bytes, sizeof bytes) < 0)
        abort();
    // Closed, and its number taken by something else.
    close(second);
    dup2(open("/dev/zero", O_RDONLY), idle);
    eventfd_write(event, 9);
    timerfd_settime(timer, 0, &(struct itimerspec){ .it_value.tv_sec = 100 }, NULL);
    if (write(pair[1], "left over", 9) < 0 || write(channel[1], "x", 1) < 0)
        abort();
    fcntl(pair[0], F_SETFL, 0);
    for (int i = 0; i < 5; i++)
        eventfd(0, 0);
    strcpy(heap, "changed");
    for (int i = 0; i < 100; i++)
        if (!malloc(3000))
            abort();
    sbrk(1 << 20);
    signal(SIGUSR1, on_signal);
    fesetround(FE_UPWARD);
    pthread_t thread;
    pthread_create(&thread, NULL, passer_by, NULL);
    pthread_mutex_lock(&lock);
    pthread_cond_signal(&woken);
    pthread_mutex_unlock(&lock);
    handed = 1;
}

static int is_filled(const unsigned char *memory, int value)
{
    for (int i = 0; i < SIZE; i++)
        if (memory[i] != value)
            return 0;
    return 1;
}

const char *check_state(void)
{
    struct itimerspec setting;
    struct sigaction action;
    eventfd_t value = 0;
    char byte;
    const char *what = NULL;
    if (!is_filled(unmapped, 1))
        what = "what was unmapped";
    else if (!is_filled(narrowed, 2))
        what = "what was protected";
    else if (!is_filled(discarded, 3))
        what = "what was discarded";
    else if (!is_filled(shared, 4))
        what = "shared memory";
    else if (!is_filled(replaced, 5))
        what = "what was replaced";
    else if (!is_filled(untouched, 0))
        what = "memory that was zero";
    else if (strcmp(heap, "as it was") != 0)
        what = "the heap";
    else if (lseek(file, 0, SEEK_CUR) != 100)
        what = "an offset";
    else if (read(second, &byte, 1) != 1 || byte != 'r' || lseek(second, 0, SEEK_SET) != 0)
        what = "a closed file";
    else if (read(idle, &byte, 1) != 0)
        what = "a replaced descriptor";
    else if (eventfd_read(event, &value) || value != 3 || eventfd_write(event, 3))
        what = "an eventfd";
    else if (timerfd_gettime(timer, &setting) || setting.it_value.tv_sec)
        what = "a timerfd";
    else if (!(fcntl(pair[0], F_GETFL) & O_NONBLOCK) || read(pair[0], &byte, 1) != -1 || errno != EAGAIN)
        what = "a pipe";
    else if (sigaction(SIGUSR1, NULL, &action) || action.sa_handler != SIG_DFL)
        what = "a signal handler";
    else if (fegetround() != FE_TONEAREST)
        what = "the rounding mode";
    else if (handed || wake_ups || handed_over)
        what = "the other threads";
    return what ? what : "ok";
}
