/* Chooses and executes the operations of a request. */
#include "guest.h"

#include <pthread.h>
#include <stdio.h>
#include <string.h>

static const struct operation *const tables[] = {
    memory_operations,     info_operations,   read_operations,     mapping_operations,
    descriptor_operations, signal_operations, boundary_operations, external_operations,
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

void expect(struct run *run, int holds, const char *what) {
    if (!holds && run->violations++ == 0)
        snprintf(run->first_violation, sizeof run->first_violation, "%s", what);
}

enum { CHOICE = 256 };

static uint64_t first_state(uint64_t seed, uint32_t i) { return seed * 0x2545f4914f6cdd1dull + i; }

/* The operations that may be drawn; stays the same for the same arguments. */
static size_t choose(unsigned sets, const char *only, const struct operation **into) {
    size_t count = 0;
    for (size_t i = 0; i < sizeof tables / sizeof *tables; i++)
        for (const struct operation *op = tables[i]; op->name; op++)
            if (*only ? strcmp(op->name, only) == 0 : (op->set & sets) != 0)
                if (count < CHOICE)
                    into[count++] = op;
    return count;
}

void run_operations(struct run *run, uint64_t seed, uint32_t from, uint32_t to, unsigned sets,
                    const char *only) {
    const struct operation *choice[CHOICE];
    size_t count = choose(sets, only, choice);
    for (uint32_t i = from; i < to && count; i++) {
        run->rng = first_state(seed, i);
        const struct operation *op = choice[below(run, count)];
        /* The operations share their tables and buffers; those that may wait use neither. */
        int exclusive = !(op->set & (SET_BOUNDARY | SET_EXTERNAL)), alone = run->alone;
        if (exclusive) {
            pthread_mutex_lock(&lock);
            run->alone = 1;
        }
        op->execute(run);
        if (exclusive) {
            run->alone = alone;
            pthread_mutex_unlock(&lock);
        }
    }
}

size_t list_operations(char *into, size_t room, uint64_t seed, uint32_t from, uint32_t to, unsigned sets,
                       const char *only) {
    const struct operation *choice[CHOICE];
    size_t count = choose(sets, only, choice), used = 0;
    for (uint32_t i = from; i < to && count && used < room; i++) {
        uint64_t rng = first_state(seed, i);
        used += (size_t)snprintf(into + used, room - used, "%s ", choice[next_random(&rng) % count]->name);
    }
    return used < room ? used : room;
}
