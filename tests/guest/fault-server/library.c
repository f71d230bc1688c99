/* What glibc and the compiler find out by themselves. */
#undef _FORTIFY_SOURCE
#define _FORTIFY_SOURCE 2
#include "faults.h"

#include <assert.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void *volatile hidden;
static volatile unsigned long length = 64;

static void failed_assert(void) { assert(length == 1); }

static void double_free(void)
{
    hidden = malloc(100);
    free(hidden);
    free(hidden);
}

static void double_free_large(void)
{
    hidden = malloc(5000);
    void *keep = malloc(5000);
    free(hidden);
    free(hidden);
    free(keep);
}

static void free_invalid(void)
{
    char *chunk = malloc(100);
    hidden = chunk + 8;
    free(hidden);
}

/* The size of the chunk behind is overwritten. */
static void heap_overflow(void)
{
    hidden = malloc(2000);
    void *next = malloc(2000);
    void *last = malloc(2000);
    memset(hidden, 0x41, 2000 - 2000 % 16 + 16);
    free(next);
    free(last);
}

static void corrupt_top(void)
{
    hidden = malloc(24);
    memset(hidden, 0xff, 32);
    for (int i = 0; i < 1000; i++)
        hidden = malloc(100000);
}

__attribute__((noinline, optimize("no-tree-dse"))) static void fill(char *target)
{
    for (unsigned long i = 0; i < length; i++)
        ((volatile char *)target)[i] = 0x42;
}
__attribute__((noinline)) static void stack_smash(void)
{
    char small[16];
    fill(small);
    hidden = NULL;
}

static char eight[8];
static void fortify(void)
{
    hidden = memset(eight, 1, length);
}
static void fortify_string(void)
{
    static const char text[] = "longer than eight bytes";
    hidden = strcpy(eight, length ? text : "");
}

const struct fault library_faults[] = {
    {"assert", failed_assert},
    {"double-free", double_free},
    {"double-free-large", double_free_large},
    {"free-invalid", free_invalid},
    {"heap-overflow", heap_overflow},
    {"corrupt-top", corrupt_top},
    {"stack-smash", stack_smash},
    {"fortify", fortify},
    {"fortify-string", fortify_string},
    {NULL, NULL},
};
