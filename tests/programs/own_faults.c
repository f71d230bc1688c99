/* A program that handles its own faults, outside of any client's request; with a PORT, in each request. */
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <ucontext.h>
#include <unistd.h>

#include "serve.h"

static sigjmp_buf back;
static char *page, *alternate;
static volatile int on_alternate, seen, code;
static void *volatile address;

static void jump(int number, siginfo_t *info, void *context)
{
    char here;
    (void)context;
    seen = number;
    code = info->si_code;
    address = info->si_addr;
    on_alternate = &here >= alternate && &here < alternate + 65536;
    siglongjmp(back, 1);
}

/* Makes the page accessible and lets the instruction run again: what garbage collectors do. */
static void mend(int number, siginfo_t *info, void *context)
{
    (void)context;
    seen = number;
    address = info->si_addr;
    mprotect(page, 4096, PROT_READ | PROT_WRITE);
}

/* Skips the two bytes of `ud2`. */
static void skip(int number, siginfo_t *info, void *context)
{
    (void)info;
    seen = number;
    ((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP] += 2;
}

static void handle(int number, void (*handler)(int, siginfo_t *, void *), int flags)
{
    struct sigaction action = {.sa_sigaction = handler, .sa_flags = SA_SIGINFO | flags};
    sigaction(number, &action, NULL);
}

static int overflow(int depth)
{
    volatile char frame[4096];
    frame[0] = (char)depth;
    return depth > (1 << 20) ? depth : overflow(depth + 1) + frame[0];
}

static void handle_all(FILE *out)
{
    setvbuf(out, NULL, _IOLBF, 0);
    page = mmap(NULL, 4096, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    alternate = malloc(65536);
    stack_t stack = {.ss_sp = alternate, .ss_size = 65536};
    sigaltstack(&stack, NULL);

    handle(SIGSEGV, jump, SA_ONSTACK);
    if (!sigsetjmp(back, 1))
        *(volatile char *)8 = 1;
    fprintf(out, "null write: signal %d code %d address %p, on the alternate stack: %d\n", seen, code,
           address, on_alternate);
    if (!sigsetjmp(back, 1))
        *(volatile char *)page = 1;
    fprintf(out, "forbidden write: code %d, address %s\n", code, address == page ? "right" : "wrong");
    if (!sigsetjmp(back, 1))
        overflow(1);
    fprintf(out, "stack overflow: signal %d, on the alternate stack: %d\n", seen, on_alternate);

    handle(SIGSEGV, mend, 0);
    *(volatile char *)(page + 5) = 77;
    fprintf(out, "mended: %d, address %s\n", page[5], address == page + 5 ? "right" : "wrong");

    handle(SIGILL, skip, 0);
    __asm__ volatile("ud2");
    fprintf(out, "illegal instruction skipped: signal %d\n", seen);

    handle(SIGFPE, jump, 0);
    volatile int seven = 7, zero = 0;
    if (!sigsetjmp(back, 1))
        fprintf(out, "%d\n", seven / zero);
    fprintf(out, "division: signal %d code %d\n", seen, code);

    handle(SIGBUS, jump, 0);
    FILE *file = tmpfile();
    char *beyond = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fileno(file), 0);
    if (!sigsetjmp(back, 1))
        *(volatile char *)(beyond + 4096) = 1;
    fprintf(out, "past the end of a file: signal %d, address %s\n", seen,
           address == beyond + 4096 ? "right" : "wrong");

    handle(SIGTRAP, jump, 0);
    if (!sigsetjmp(back, 1))
        __asm__ volatile("int3");
    fprintf(out, "breakpoint: signal %d\n", seen);
}

static int serve(int fd)
{
    char byte;
    if (read(fd, &byte, 1) != 1)
        return 0;
    FILE *out = fdopen(dup(fd), "w");
    handle_all(out);
    fclose(out);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1 && atoi(argv[1]) != 0)
        return serve_all(argv[1], serve);
    handle_all(stdout);

    handle(SIGABRT, jump, 0);
    if (!sigsetjmp(back, 1))
        abort();
    printf("abort: signal %d\n", seen);

    if (argc > 1 && !strcmp(argv[1], "die")) {
        signal(SIGSEGV, SIG_DFL);
        *(volatile char *)8 = 1;
    }
    return 0;
}
