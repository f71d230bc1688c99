/* Ways to die. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

/* Without an end, but the compiler must not know. */
static volatile int deep = 1;

static __attribute__((noinline)) int overflow_stack(int depth) {
    volatile char frame[8000];
    frame[0] = (char)depth;
    return deep ? overflow_stack(depth + 1) + frame[0] : frame[1];
}

/* Something that malloc never returned. */
static void free_arena(void) {
    void *volatile chunk = arena + 16;
    memset(arena, 0, 16);
    free(chunk);
}

static void jump(void *to) { ((void (*)(void))to)(); }

/* What the other clients would notice, if it stayed. */
static void wreck(void) {
    for (size_t i = 0; i < CONNECTIONS; i++) {
        memset(&connections[i].model, 0x5a, 100);
        connections[i].filled = 1;
    }
}

void crash(const char *kind) {
    volatile int some = 1000, zero = 0;
    wreck();
    if (!strcmp(kind, "null"))
        *(volatile char *)NULL = 1;
    else if (!strcmp(kind, "abort"))
        abort();
    else if (!strcmp(kind, "divide"))
        some = some / zero;
    else if (!strcmp(kind, "invalid"))
        __builtin_trap();
    else if (!strcmp(kind, "stack"))
        overflow_stack(0);
    else if (!strcmp(kind, "data"))
        jump(arena + 123);
    else if (!strcmp(kind, "nowhere"))
        jump((void *)0x123456789000);
    else if (!strcmp(kind, "noncanonical"))
        jump((void *)0x4141414141414141);
    else if (!strcmp(kind, "free"))
        free_arena();
    else if (!strcmp(kind, "readonly"))
        *(volatile char *)(fence + 3 * PAGE) = 1;
    /* Neither known nor deadly. */
    die(kind);
}
