/* Writes by the program itself. */
#include "guest.h"

#include <stdlib.h>
#include <string.h>

static void write_byte(struct run *run) { *place(run, 1) ^= (char)(1 + below(run, 255)); }

static void write_words(struct run *run) {
    for (int i = 0; i < 20; i++) {
        uint64_t word = next_random(&run->rng);
        memcpy(place(run, sizeof word), &word, sizeof word);
    }
}

static void fill(struct run *run) {
    size_t len = 1 + below(run, 3 * PAGE);
    memset(arena + below(run, arena_len / 2 - len), (int)below(run, 256), len);
}

static void fill_zero(struct run *run) {
    size_t len = 1 + below(run, PAGE);
    memset(arena + below(run, arena_len / 2 - len), 0, len);
}

/* More pages than the monitor keeps unprotected. */
static void scatter(struct run *run) {
    uint64_t pages = 1 + below(run, 150);
    for (uint64_t i = 0; i < pages; i++)
        arena[below(run, arena_len)] ^= 0x55;
}

static void copy_within(struct run *run) {
    size_t len = 1 + below(run, 2 * PAGE);
    memmove(arena + below(run, arena_len - len), arena + below(run, arena_len - len), len);
}

/* Leaves the state of the x87 and SSE units changed as well. */
static void use_float(struct run *run) {
    double x = (double)below(run, 1000);
    for (int i = 0; i < 10; i++)
        x = x * 1.5 + 1.0 / (x + 1.0);
    memcpy(place(run, sizeof x), &x, sizeof x);
}

static void change_other_models(struct run *run) {
    /* Taken back by the same steps in reverse would be visible to a client: write, and write back. */
    struct connection *other = &connections[below(run, CONNECTIONS)];
    uint64_t *word = &other->model.words[below(run, MODEL_WORDS)];
    uint64_t old = *word;
    *(volatile uint64_t *)word = ~old;
    *(volatile uint64_t *)word = old;
}

#define CHUNKS 96
static char *chunks[CHUNKS];
static size_t chunk_len[CHUNKS];

static size_t chunk_size(struct run *run) {
    switch (below(run, 8)) {
    case 0:
        return (128ul << 10) + below(run, 256ul << 10); /* by mmap */
    case 1:
    case 2:
        return 1 + below(run, 20000);
    default:
        return 1 + below(run, 400);
    }
}

static void touch_chunk(struct run *run, size_t i) {
    if (!chunks[i])
        return;
    chunks[i][0] = (char)i;
    chunks[i][chunk_len[i] - 1] = (char)i;
    chunks[i][below(run, chunk_len[i])] = (char)i;
}

static void allocate(struct run *run) {
    size_t i = below(run, CHUNKS);
    free(chunks[i]);
    chunk_len[i] = chunk_size(run);
    chunks[i] = one_in(run, 2) ? malloc(chunk_len[i]) : calloc(1, chunk_len[i]);
    touch_chunk(run, i);
}

static void reallocate(struct run *run) {
    size_t i = below(run, CHUNKS), len = chunk_size(run);
    char *moved = realloc(chunks[i], len);
    if (moved) {
        chunks[i] = moved;
        chunk_len[i] = len;
    }
    touch_chunk(run, i);
}

static void release(struct run *run) {
    size_t i = below(run, CHUNKS);
    free(chunks[i]);
    chunks[i] = NULL;
}

static void allocate_and_release(struct run *run) {
    size_t len = chunk_size(run);
    char *chunk = malloc(len);
    if (chunk)
        scribble(run, chunk, len < PAGE ? len : PAGE);
    free(chunk);
}

static __attribute__((noinline)) int deeper(struct run *run, int depth) {
    volatile char frame[2000];
    frame[below(run, sizeof frame)] = 1;
    return depth ? deeper(run, depth - 1) + frame[0] : frame[1];
}

static void use_stack(struct run *run) { deeper(run, (int)below(run, 30)); }

const struct operation memory_operations[] = {
    {"write_byte", SET_MEMORY, write_byte},
    {"write_words", SET_MEMORY, write_words},
    {"fill", SET_MEMORY, fill},
    {"fill_zero", SET_MEMORY, fill_zero},
    {"scatter", SET_MEMORY, scatter},
    {"copy_within", SET_MEMORY, copy_within},
    {"use_float", SET_MEMORY, use_float},
    {"change_other_models", SET_MEMORY, change_other_models},
    {"allocate", SET_MEMORY, allocate},
    {"reallocate", SET_MEMORY, reallocate},
    {"release", SET_MEMORY, release},
    {"allocate_and_release", SET_MEMORY, allocate_and_release},
    {"use_stack", SET_MEMORY, use_stack},
    {0},
};
