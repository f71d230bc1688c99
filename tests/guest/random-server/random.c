/* Pseudo-random numbers: SplitMix64, which the client computes as well. */
#include "guest.h"

uint64_t next_random(uint64_t *state) {
    uint64_t z = *state += 0x9e3779b97f4a7c15ull;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
    return z ^ (z >> 31);
}

uint64_t below(struct run *run, uint64_t limit) { return next_random(&run->rng) % limit; }

int one_in(struct run *run, uint64_t n) { return below(run, n) == 0; }
