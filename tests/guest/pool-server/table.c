#include "pool.h"

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long entries[KEYS], mirror[KEYS], total;

long table_add(unsigned key, long amount, void (*midway)(void))
{
    pthread_mutex_lock(&mutex);
    entries[key % KEYS] += amount;
    total += amount;
    if (midway)
        midway();
    mirror[key % KEYS] -= amount;
    long value = entries[key % KEYS];
    pthread_mutex_unlock(&mutex);
    return value;
}

bool table_is_consistent(void)
{
    pthread_mutex_lock(&mutex);
    long sum = 0;
    bool good = true;
    for (int i = 0; i < KEYS; i++) {
        sum += entries[i];
        good = good && entries[i] == -mirror[i];
    }
    good = good && sum == total;
    pthread_mutex_unlock(&mutex);
    return good;
}
