/* Where operations write to, and where they let the kernel write to: every kind of memory a program has. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

size_t arena_len = 64ul << 20;
const size_t fence_len = 16 * PAGE;
char *arena, *fence;

static char in_data[6 * PAGE] = {1, 2, 3};
static char in_bss[6 * PAGE];
static _Thread_local char in_thread[2 * PAGE];
static char *on_heap;
static const size_t heap_len = 5 * PAGE + 100;
/* Pages of the upper half of the arena are handed out once, so that they have never been touched. */
static uint32_t fresh_page;

/* Readable and writable, and what stands beside it: nothing, no access, read-only. */
static const int fence_protection[16] = {
    PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ, PROT_READ | PROT_WRITE, -1,
    PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_NONE, PROT_READ | PROT_WRITE, PROT_READ,
    PROT_READ | PROT_WRITE, -1, PROT_READ | PROT_WRITE, PROT_READ | PROT_WRITE, PROT_READ,
};

void place_init(void) {
    arena = mmap(NULL, arena_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    fence = mmap(NULL, fence_len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    on_heap = malloc(heap_len);
    if (arena == MAP_FAILED || fence == MAP_FAILED || !on_heap)
        die("memory");
    for (size_t i = 0; i < 16; i++) {
        char *page = fence + i * PAGE;
        memset(page, 0x40 + (int)i, PAGE);
        if (fence_protection[i] == -1 ? munmap(page, PAGE) : mprotect(page, PAGE, fence_protection[i]))
            die("fence");
    }
}

static char *in_area(struct run *run, char *area, size_t area_len, size_t len) {
    if (len > area_len)
        return in_area(run, arena, arena_len / 2, len);
    size_t offset = below(run, area_len - len + 1);
    switch (below(run, 3)) {
    case 0:
        offset &= ~(size_t)15;
        break;
    case 1: { /* Across a page boundary, counted from the address. */
        uintptr_t boundary = ((uintptr_t)area + offset + PAGE) & ~(PAGE - 1);
        uintptr_t at = boundary - 1 - below(run, len ? (len < PAGE ? len : PAGE) : 1);
        if (at >= (uintptr_t)area && at + len <= (uintptr_t)area + area_len)
            return (char *)at;
        break;
    }
    }
    return area + offset;
}

static char *fresh(struct run *run, size_t len) {
    size_t pages = (len + 2 * PAGE - 1) / PAGE;
    size_t half = arena_len / 2 / PAGE;
    if (fresh_page + pages > half)
        fresh_page = 0;
    char *at = arena + arena_len / 2 + fresh_page * PAGE;
    fresh_page += (uint32_t)pages;
    return at + below(run, PAGE);
}

static char *own_place(struct run *run, size_t len) {
    if (len <= sizeof in_thread && one_in(run, 2))
        return in_area(run, in_thread, sizeof in_thread, len);
    return in_area(run, run->stack, run->stack_len, len);
}

char *place(struct run *run, size_t len) {
    if (!run->alone)
        return own_place(run, len);
    switch (below(run, 8)) {
    case 0:
        return fresh(run, len);
    case 1:
        return in_area(run, in_data, sizeof in_data, len);
    case 2:
        return in_area(run, in_bss, sizeof in_bss, len);
    case 3:
        return in_area(run, in_thread, sizeof in_thread, len);
    case 4:
        return in_area(run, on_heap, heap_len, len);
    case 5:
        return in_area(run, run->stack, run->stack_len, len);
    default:
        return in_area(run, arena, arena_len / 2, len);
    }
}

void *bad(struct run *run, size_t len) {
    static const uintptr_t nowhere[] = {8, PAGE, 0x7fffffffe000, 0x5000000000 - 8, 0x800000000000,
                                        0xffff888000000000, ~0ul - 7, 0x100000};
    if (one_in(run, 3))
        return (void *)nowhere[below(run, sizeof nowhere / sizeof *nowhere)];
    /* Begins in one page of the fence and may end in the next. */
    return fence + below(run, 15) * PAGE + PAGE - below(run, len < PAGE ? len + 1 : PAGE);
}

void *out(struct run *run, size_t len) {
    return one_in(run, 8) ? bad(run, len) : place(run, len);
}

void scribble(struct run *run, char *at, size_t len) {
    for (size_t i = 0; i < len; i++)
        at[i] = (char)next_random(&run->rng);
}
