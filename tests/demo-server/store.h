/* The shared key-value store: a hash table in stripes, each under its own mutex.
 *
 * Every entry is in two structures of its stripe, a hash chain and a recency list, and carries a
 * checksum of its key and value, so that a stray write or half an update is found by `CHECK`. */
#ifndef DEMO_STORE_H
#define DEMO_STORE_H

#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "buffer.h"

#define STRIPES 16
#define MAX_KEY 128
#define MAX_VALUE (1024 * 1024)

struct entry {
    struct entry *chain;         /* next in the hash chain */
    struct entry *newer, *older; /* recency list */
    uint64_t hash;
    uint64_t checksum; /* of key and value */
    char *value;       /* value_len bytes, not terminated */
    size_t value_len;
    size_t key_len;
    char key[];
};

struct stripe {
    pthread_mutex_t lock; /* guards everything below */
    struct entry **buckets;
    size_t bucket_count; /* a power of two */
    struct entry *newest, *oldest;
    size_t entries;
    size_t bytes; /* keys and values */
};

struct store {
    struct stripe stripes[STRIPES];
    /* Redundant totals: CHECK compares them with the sums over the stripes. */
    atomic_size_t entries;
    atomic_size_t bytes;
};

enum store_result { STORE_OK, STORE_MISSING, STORE_NOT_A_NUMBER, STORE_TOO_LARGE };

void store_init(struct store *store);
void store_free(struct store *store);

void store_set(struct store *store, const char *key, const char *value, size_t value_len);
/* Appends the value to `out` between `$` and a newline. */
enum store_result store_get(struct store *store, const char *key, struct buffer *out);
enum store_result store_del(struct store *store, const char *key);
/* A missing key counts as 0. */
enum store_result store_incr(struct store *store, const char *key, int64_t by, int64_t *result);
/* A missing key counts as empty; `result` is the new length. */
enum store_result store_append(struct store *store, const char *key, const char *tail, size_t tail_len,
                               size_t *result);
size_t store_count_prefix(struct store *store, const char *prefix);

uint64_t hash_bytes(uint64_t seed, const void *bytes, size_t len);
uint64_t entry_checksum(const struct entry *entry);

#endif
