/* Accesses that the mappings do not allow, and stacks that end. */
#include "faults.h"

#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

static volatile char sink;

static void null_read(void) { sink = *(volatile char *)8; }
static void null_write(void) { *(volatile char *)8 = 1; }
static void wild_read(void) { sink = *(volatile char *)0x123456789000; }
static void wild_write(void) { *(volatile char *)0x123456789000 = 1; }
/* Where the monitor keeps its own pages. */
static void monitor_read(void) { sink = *(volatile char *)0x600000003000; }
static void monitor_write(void) { *(volatile char *)0x600000003000 = 1; }
static void kernel_read(void) { sink = *(volatile char *)0xffffffff81000000; }
static void kernel_write(void) { *(volatile char *)0xffffffff81000000 = 1; }
static void write_protected(void) { *(volatile char *)"a constant" = 1; }
static void noncanonical_read(void) { sink = *(volatile char *)0x8000000000000123; }
static void noncanonical_write(void) { *(volatile char *)0x8000000000000123 = 1; }

static void call(unsigned long address)
{
    void (*volatile function)(void) = (void (*)(void))address;
    function();
}

static unsigned char code_as_data[16] = {0xc3};

static void execute_null(void) { call(0); }
static void execute_data(void) { call((unsigned long)code_as_data); }
static void execute_noncanonical(void) { call(0x8000000000000123); }
static void execute_kernel(void) { call(0xffffffff81000000); }

static void execute_stack(void)
{
    volatile unsigned char code[16] = {0xc3};
    call((unsigned long)code);
}

static void execute_heap(void)
{
    unsigned char *code = malloc(64);
    code[0] = 0xc3;
    call((unsigned long)code);
}

/* A mapping of a file that has become shorter. */
static volatile char *shortened;
__attribute__((constructor)) static void shorten(void)
{
    int fd = memfd_create("short", 0);
    if (ftruncate(fd, 8192) != 0)
        return;
    shortened = mmap(NULL, 8192, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (ftruncate(fd, 0) != 0)
        return;
    close(fd);
}
static void bus_error(void) { sink = shortened[4096]; }
static void bus_error_write(void) { shortened[4097] = 1; }

/* Frames of ordinary functions until there is no room. */
static volatile int depth_limit = 1 << 30;
__attribute__((noinline)) static int deeper(int depth)
{
    volatile char frame[200];
    memset((char *)frame, depth, sizeof frame);
    return depth == depth_limit ? 0 : deeper(depth + 1) + frame[depth % 200];
}
static void stack_recursion(void) { sink = (char)deeper(0); }

/* One frame that is larger than what is left: the stack pointer is beyond before anything is touched. */
__attribute__((noinline)) static void stack_huge_frame(void)
{
    pthread_attr_t attributes;
    void *lowest;
    size_t size;
    if (pthread_getattr_np(pthread_self(), &attributes) != 0
        || pthread_attr_getstack(&attributes, &lowest, &size) != 0)
        return;
    __asm__ volatile("mov %%rsp, %%rbx\n\t"
                     "mov %0, %%rsp\n\t"
                     "movb $1, 1000(%%rsp)\n\t"
                     "mov %%rbx, %%rsp"
                     :
                     : "r"((char *)lowest - 3000)
                     : "rbx", "memory");
}

/* Pushes until the stack pointer itself is in the guard. */
__attribute__((noinline)) static void stack_pushes(void)
{
    __asm__ volatile("1: push %%rax\n\tjmp 1b" ::: "memory");
}

/* Calls, whose return addresses the processor pushes. */
__attribute__((noinline)) static void stack_calls(void)
{
    __asm__ volatile("1: call 1b" ::: "memory");
}

/* The stack pointer leads nowhere. */
static void stack_lost(void)
{
    __asm__ volatile("mov $0x1000, %%rsp\n\tpush %%rax" ::: "memory");
}
static void stack_noncanonical(void)
{
    __asm__ volatile("movabs $0x8000000000001000, %%rsp\n\tpush %%rax" ::: "memory");
}

const struct fault memory_faults[] = {
    {"null-read", null_read},
    {"null-write", null_write},
    {"wild-read", wild_read},
    {"wild-write", wild_write},
    {"monitor-read", monitor_read},
    {"monitor-write", monitor_write},
    {"kernel-read", kernel_read},
    {"kernel-write", kernel_write},
    {"write-protected", write_protected},
    {"noncanonical-read", noncanonical_read},
    {"noncanonical-write", noncanonical_write},
    {"execute-null", execute_null},
    {"execute-data", execute_data},
    {"execute-stack", execute_stack},
    {"execute-heap", execute_heap},
    {"execute-noncanonical", execute_noncanonical},
    {"execute-kernel", execute_kernel},
    {"bus-error", bus_error},
    {"bus-error-write", bus_error_write},
    {"stack-recursion", stack_recursion},
    {"stack-huge-frame", stack_huge_frame},
    {"stack-pushes", stack_pushes},
    {"stack-calls", stack_calls},
    {"stack-lost", stack_lost},
    {"stack-noncanonical", stack_noncanonical},
    {NULL, NULL},
};
