/* What a faulted request must leave as it was. */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <fenv.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define NODES 500
#define DESCRIPTORS 200

struct node {
    struct node *next;
    unsigned long value;
    char filler[40];
};

static struct node *list;
static unsigned long table[3000];
static char *mapped;
static __thread unsigned long of_thread = 17;

void prepare_state(void)
{
    for (unsigned long i = 0; i < NODES; i++) {
        struct node *node = malloc(sizeof *node);
        node->next = list;
        node->value = i * 2654435761;
        list = node;
    }
    for (unsigned long i = 0; i < sizeof table / sizeof table[0]; i++)
        table[i] = i * i;
    mapped = mmap(NULL, 1 << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(mapped, 5, 1 << 20);
}

struct text {
    char *at, *end;
};

__attribute__((format(printf, 2, 3))) static void put(struct text *text, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    int n = vsnprintf(text->at, text->end - text->at, format, args);
    va_end(args);
    if (n > 0)
        text->at += n < text->end - text->at ? n : text->end - text->at - 1;
}

static unsigned long sum(const void *from, unsigned long len, unsigned long sum)
{
    for (unsigned long i = 0; i < len; i++)
        sum = (sum << 5 | sum >> 59) ^ ((const unsigned char *)from)[i];
    return sum;
}

static void put_memory(struct text *text)
{
    unsigned long nodes = 0, count = 0;
    for (struct node *node = list; node; node = node->next, count++)
        nodes = sum(&node->value, sizeof node->value, nodes);
    put(text, "list %lu %lx\n", count, nodes);
    put(text, "table %lx\n", sum(table, sizeof table, 0));
    put(text, "mapped %lx\n", sum(mapped, 1 << 20, 0));
    put(text, "thread %lu\n", of_thread);
    put(text, "heap %zu %zu\n", mallinfo2().uordblks, mallinfo2().hblkhd);
    put(text, "brk %p\n", sbrk(0));
}

static void put_descriptors(struct text *text)
{
    for (int fd = 0; fd < DESCRIPTORS; fd++) {
        int flags = fcntl(fd, F_GETFD), status = fcntl(fd, F_GETFL);
        struct stat stat;
        if (flags >= 0 && fstat(fd, &stat) == 0)
            put(text, "fd %d %x %x %o %ld\n", fd, flags, status, stat.st_mode & S_IFMT, (long)lseek(fd, 0, SEEK_CUR));
    }
}

static void put_signals(struct text *text)
{
    sigset_t blocked, pending;
    pthread_sigmask(SIG_BLOCK, NULL, &blocked);
    sigpending(&pending);
    for (int signal = 1; signal < 32; signal++) {
        struct sigaction action;
        if (sigaction(signal, NULL, &action) != 0)
            continue;
        put(text, "signal %d %p %x%s%s\n", signal, (void *)action.sa_sigaction, action.sa_flags,
            sigismember(&blocked, signal) ? " blocked" : "", sigismember(&pending, signal) ? " pending" : "");
    }
    stack_t stack;
    sigaltstack(NULL, &stack);
    put(text, "altstack %p %zu %x\n", stack.ss_sp, stack.ss_size, stack.ss_flags);
}

static void put_processor(struct text *text)
{
    unsigned long flags, self;
    unsigned cs, ds, es, fs, gs, ss;
    __asm__("pushfq\n\tpop %0" : "=r"(flags));
    __asm__("mov %%fs:0, %0" : "=r"(self));
    __asm__("mov %%cs, %0" : "=r"(cs));
    __asm__("mov %%ds, %0" : "=r"(ds));
    __asm__("mov %%es, %0" : "=r"(es));
    __asm__("mov %%fs, %0" : "=r"(fs));
    __asm__("mov %%gs, %0" : "=r"(gs));
    __asm__("mov %%ss, %0" : "=r"(ss));
    /* Trap, direction, I/O privilege, nested task, alignment, identification. */
    put(text, "flags %lx\n", flags & 0x247500);
    put(text, "code %x stack %x self %lx\n", cs, ss, self);
    put(text, "selectors %x %x %x %x\n", ds, es, fs, gs);
    unsigned mxcsr;
    unsigned short control;
    __asm__("stmxcsr %0" : "=m"(mxcsr));
    __asm__("fnstcw %0" : "=m"(control));
    /* Without the flags of exceptions that have been. */
    put(text, "vector %x x87 %x rounding %d\n", mxcsr & ~0x3fu, control, fegetround());
}

static void put_mappings(struct text *text)
{
    int fd = open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
    char part[4096];
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0;)
        put(text, "%.*s", (int)n, part);
    close(fd);
}

void describe_state(char *text, unsigned long size)
{
    struct text to = {text, text + size};
    put_memory(&to);
    put_descriptors(&to);
    put_signals(&to);
    put_processor(&to);
    put_mappings(&to);
}

static void nothing(int signal) { (void)signal; }

void make_a_mess(void)
{
    for (int i = 0; i < 50; i++) {
        struct node *node = calloc(1, sizeof *node);
        node->next = list;
        list = node;
    }
    for (unsigned long i = 0; i < sizeof table / sizeof table[0]; i += 7)
        table[i] = ~table[i];
    memset(mapped + 5000, 6, 500000);
    of_thread = 18;
    memset(malloc(300000), 7, 300000);
    memset(malloc(30000), 7, 30000);

    int fd = open("/dev/null", O_RDWR);
    dup(fd);
    fcntl(fd, F_SETFD, FD_CLOEXEC);
    eventfd(3, 0);
    int ends[2];
    if (pipe(ends) == 0 && write(ends[1], "x", 1) == 1)
        close(0);

    memset(mmap(NULL, 1 << 16, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0), 8, 1 << 16);
    munmap(mapped + (512 << 10), 64 << 10);
    mprotect(mapped + (700 << 10), 4096, PROT_READ);

    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, SIGHUP);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    signal(SIGHUP, nothing);
    signal(SIGWINCH, SIG_IGN);
    fesetround(FE_UPWARD);
    errno = 0;
}
