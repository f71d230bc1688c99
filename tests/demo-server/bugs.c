/* The planted bugs, one per `CRASH` name.
 *
 * Each does at run time what the real mistake does. Pointers, lengths and divisors go through volatile
 * variables and functions are not inlined, so that no optimisation level may reason the bug away. */
#include <assert.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>

#include "server.h"

#define BUG static __attribute__((noinline)) void

static struct session *volatile no_session = NULL;
static volatile int zero = 0;

/* A session that was never looked up. */
BUG null_read(void)
{
    volatile uint64_t seen = no_session->commands;
    (void)seen;
}

/* A pointer overwritten with garbage. */
BUG wild_write(void)
{
    volatile uintptr_t garbage = UINT64_C(0x5a5a5a5a5a50);
    *(volatile uint64_t *)garbage = 1;
}

/* Writes past a block into the header of the next one, which free() finds. The size is above what the
 * thread cache takes: blocks in it are not checked. */
BUG heap_overflow(void)
{
    char *volatile block = malloc(1400);
    char *volatile neighbour = malloc(1400);
    if (block == NULL || neighbour == NULL)
        abort();
    volatile size_t too_long = malloc_usable_size(block) + 2 * sizeof(size_t);
    volatile char *bytes = block;
    for (size_t i = 0; i < too_long; i++)
        bytes[i] = 'A';
    free(block);
    free(neighbour);
}

BUG double_free(void)
{
    void *volatile block = malloc(48);
    free(block);
    free(block);
}

/* Copies more than the array holds: the stack protector finds it on return. */
BUG stack_smash(void)
{
    char name[16];
    volatile char *bytes = name;
    volatile size_t too_long = sizeof name + 128;
    for (size_t i = 0; i < too_long; i++)
        bytes[i] = 'A';
}

BUG div_zero(void)
{
    volatile int average = 100 / zero;
    (void)average;
}

BUG failed_assertion(void)
{
    assert(zero == 1 && "a planted assertion");
}

BUG call_abort(void)
{
    abort();
}

/* A call through an overwritten function pointer. */
BUG jump_garbage(void)
{
    volatile uintptr_t garbage = UINT64_C(0x4141414141f0);
    ((void (*)(void))garbage)();
}

BUG write_rodata(void)
{
    static const char constant[] = "demo-server constant";
    volatile uintptr_t address = (uintptr_t)constant;
    *(volatile char *)address = 'D';
}

/* Spoils a large part of the shared state with every lock held, as a request that goes wrong half-way
 * through a big update does, and then faults. Undoing this takes much more than skipping an instruction. */
BUG mess(void)
{
    pthread_mutex_lock(&server.registry.lock);
    for (size_t i = 0; i < STRIPES; i++)
        pthread_mutex_lock(&server.store.stripes[i].lock);

    for (struct session *s = server.registry.first; s != NULL; s = s->next) {
        memset(s->name, 'X', sizeof s->name - 1);
        s->commands = s->writes = 0;
        s->newest = s->oldest;
        s->history_len = 77;
    }
    server.registry.commands += 1000;
    server.registry.count = 0;

    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &server.store.stripes[i];
        for (struct entry *e = stripe->newest; e != NULL; e = e->older) {
            memset(e->value, '!', e->value_len);
            e->chain = NULL;
            e->newer = e;
        }
        stripe->oldest = stripe->newest;
        stripe->entries = i;
        /* Allocator state as well: one block is leaked and a live one is released. */
        char *leaked = xmalloc(4000);
        memset(leaked, 'L', 4000);
        free(stripe->buckets);
        stripe->buckets = (struct entry **)leaked;
    }
    atomic_store(&server.store.entries, 0);
    no_session->commands = 1;
}

static const struct bug {
    const char *name;
    void (*run)(void);
} bugs[] = {
    {"null-read", null_read},
    {"wild-write", wild_write},
    {"heap-overflow", heap_overflow},
    {"double-free", double_free},
    {"stack-smash", stack_smash},
    {"div-zero", div_zero},
    {"assert", failed_assertion},
    {"abort", call_abort},
    {"jump-garbage", jump_garbage},
    {"write-rodata", write_rodata},
    {"mess", mess},
};

void bug_list(struct buffer *out)
{
    size_t count = sizeof bugs / sizeof *bugs;
    buffer_printf(out, "*%zu\n", count);
    for (size_t i = 0; i < count; i++)
        buffer_printf(out, "$%s\n", bugs[i].name);
}

bool bug_trigger(const char *name)
{
    for (size_t i = 0; i < sizeof bugs / sizeof *bugs; i++)
        if (strcmp(bugs[i].name, name) == 0) {
            bugs[i].run();
            return true;
        }
    return false;
}
