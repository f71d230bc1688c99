/* State of a connection that its client can compute as well: three pages that every request changes. */
#include "guest.h"

void model_init(struct model *model, uint64_t seed) {
    for (size_t i = 0; i < MODEL_WORDS; i++)
        model->words[i] = next_random(&seed);
}

void model_step(struct model *model, uint64_t seed, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) {
        uint64_t *word = &model->words[next_random(&seed) % MODEL_WORDS];
        *word = *word * 6364136223846793005ull + next_random(&seed);
    }
}

uint64_t model_sum(const struct model *model) {
    uint64_t sum = 0;
    for (size_t i = 0; i < MODEL_WORDS; i++)
        sum = (sum << 7 | sum >> 57) ^ model->words[i];
    return sum;
}
