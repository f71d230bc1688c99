/* Ways to die. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

static __attribute__((noinline)) int overflow_stack(volatile char *above) {
    volatile char frame[8000];
    frame[0] = above ? above[0] : 1;
    return overflow_stack(frame) + frame[0];
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
    volatile int zero = 0;
    wreck();
    if (!strcmp(kind, "null"))
        *(volatile char *)NULL = 1;
    else if (!strcmp(kind, "abort"))
        abort();
    else if (!strcmp(kind, "divide"))
        zero = 1 / zero;
    else if (!strcmp(kind, "invalid"))
        __builtin_trap();
    else if (!strcmp(kind, "stack"))
        overflow_stack(NULL);
    else if (!strcmp(kind, "data"))
        jump(arena + 123);
    else if (!strcmp(kind, "nowhere"))
        jump((void *)0x123456789000);
    else if (!strcmp(kind, "noncanonical"))
        jump((void *)0x4141414141414141);
    else if (!strcmp(kind, "free"))
        free(arena + 16);
    else if (!strcmp(kind, "readonly"))
        *(volatile char *)(fence + 3 * PAGE) = 1;
}
