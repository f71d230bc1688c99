/* The shared key-value store. */
#include "store.h"

#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define INITIAL_BUCKETS 8

/* FNV-1a. */
uint64_t hash_bytes(uint64_t seed, const void *bytes, size_t len)
{
    const unsigned char *p = bytes;
    uint64_t hash = seed ^ UINT64_C(0xcbf29ce484222325);
    for (size_t i = 0; i < len; i++)
        hash = (hash ^ p[i]) * UINT64_C(0x100000001b3);
    return hash;
}

uint64_t entry_checksum(const struct entry *entry)
{
    return hash_bytes(hash_bytes(1, entry->key, entry->key_len), entry->value, entry->value_len);
}

void store_init(struct store *store)
{
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &store->stripes[i];
        *stripe = (struct stripe){.bucket_count = INITIAL_BUCKETS};
        pthread_mutex_init(&stripe->lock, NULL);
        stripe->buckets = calloc(INITIAL_BUCKETS, sizeof *stripe->buckets);
        if (stripe->buckets == NULL)
            abort();
    }
    atomic_init(&store->entries, 0);
    atomic_init(&store->bytes, 0);
}

static void entry_free(struct entry *entry)
{
    free(entry->value);
    free(entry);
}

void store_free(struct store *store)
{
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &store->stripes[i];
        for (struct entry *entry = stripe->newest, *older; entry != NULL; entry = older) {
            older = entry->older;
            entry_free(entry);
        }
        free(stripe->buckets);
        pthread_mutex_destroy(&stripe->lock);
    }
}

static void recency_unlink(struct stripe *stripe, struct entry *entry)
{
    *(entry->newer ? &entry->newer->older : &stripe->newest) = entry->older;
    *(entry->older ? &entry->older->newer : &stripe->oldest) = entry->newer;
}

static void recency_push(struct stripe *stripe, struct entry *entry)
{
    entry->newer = NULL;
    entry->older = stripe->newest;
    *(stripe->newest ? &stripe->newest->newer : &stripe->oldest) = entry;
    stripe->newest = entry;
}

/* Where the entry's address is, or would be, kept in its chain. */
static struct entry **find_slot(struct stripe *stripe, uint64_t hash, const char *key, size_t key_len)
{
    struct entry **slot = &stripe->buckets[hash & (stripe->bucket_count - 1)];
    while (*slot != NULL) {
        struct entry *entry = *slot;
        if (entry->hash == hash && entry->key_len == key_len && memcmp(entry->key, key, key_len) == 0)
            break;
        slot = &entry->chain;
    }
    return slot;
}

static void stripe_grow(struct stripe *stripe)
{
    size_t count = stripe->bucket_count * 2;
    struct entry **buckets = calloc(count, sizeof *buckets);
    if (buckets == NULL)
        return; /* longer chains are only slower */
    for (struct entry *entry = stripe->newest; entry != NULL; entry = entry->older) {
        struct entry **slot = &buckets[entry->hash & (count - 1)];
        entry->chain = *slot;
        *slot = entry;
    }
    free(stripe->buckets);
    stripe->buckets = buckets;
    stripe->bucket_count = count;
}

/* The stripe of a key, locked; the hash too, as every caller needs it. */
static struct stripe *lock_stripe(struct store *store, const char *key, size_t key_len, uint64_t *hash)
{
    *hash = hash_bytes(0, key, key_len);
    struct stripe *stripe = &store->stripes[(*hash >> 32) % STRIPES];
    pthread_mutex_lock(&stripe->lock);
    return stripe;
}

static void account(struct store *store, struct stripe *stripe, size_t entries, size_t bytes)
{
    /* Unsigned wrap-around makes the same code add and subtract. */
    stripe->entries += entries;
    stripe->bytes += bytes;
    atomic_fetch_add(&store->entries, entries);
    atomic_fetch_add(&store->bytes, bytes);
}

/* The entry of a key, made the newest of its stripe; created empty if there was none. */
static struct entry *find_or_create(struct store *store, struct stripe *stripe, uint64_t hash, const char *key)
{
    size_t key_len = strlen(key);
    struct entry *entry = *find_slot(stripe, hash, key, key_len);
    if (entry != NULL) {
        recency_unlink(stripe, entry);
        recency_push(stripe, entry);
        return entry;
    }
    if (stripe->entries >= stripe->bucket_count)
        stripe_grow(stripe);
    entry = xmalloc(sizeof *entry + key_len);
    *entry = (struct entry){.hash = hash, .key_len = key_len};
    memcpy(entry->key, key, key_len);
    *find_slot(stripe, hash, key, key_len) = entry;
    recency_push(stripe, entry);
    account(store, stripe, 1, key_len);
    return entry;
}

static void replace_value(struct store *store, struct stripe *stripe, struct entry *entry, const char *value,
                          size_t value_len)
{
    char *copy = xmalloc(value_len ? value_len : 1);
    memcpy(copy, value, value_len);
    account(store, stripe, 0, value_len - entry->value_len);
    free(entry->value);
    entry->value = copy;
    entry->value_len = value_len;
    entry->checksum = entry_checksum(entry);
}

void store_set(struct store *store, const char *key, const char *value, size_t value_len)
{
    uint64_t hash;
    struct stripe *stripe = lock_stripe(store, key, strlen(key), &hash);
    replace_value(store, stripe, find_or_create(store, stripe, hash, key), value, value_len);
    pthread_mutex_unlock(&stripe->lock);
}

enum store_result store_get(struct store *store, const char *key, struct buffer *out)
{
    uint64_t hash;
    size_t key_len = strlen(key);
    struct stripe *stripe = lock_stripe(store, key, key_len, &hash);
    struct entry *entry = *find_slot(stripe, hash, key, key_len);
    if (entry != NULL) {
        recency_unlink(stripe, entry);
        recency_push(stripe, entry);
        buffer_append(out, "$", 1);
        buffer_append(out, entry->value, entry->value_len);
        buffer_append(out, "\n", 1);
    }
    pthread_mutex_unlock(&stripe->lock);
    return entry != NULL ? STORE_OK : STORE_MISSING;
}

enum store_result store_del(struct store *store, const char *key)
{
    uint64_t hash;
    size_t key_len = strlen(key);
    struct stripe *stripe = lock_stripe(store, key, key_len, &hash);
    struct entry **slot = find_slot(stripe, hash, key, key_len);
    struct entry *entry = *slot;
    if (entry != NULL) {
        *slot = entry->chain;
        recency_unlink(stripe, entry);
        account(store, stripe, (size_t)-1, -(key_len + entry->value_len));
        entry_free(entry);
    }
    pthread_mutex_unlock(&stripe->lock);
    return entry != NULL ? STORE_OK : STORE_MISSING;
}

/* A whole value as a signed decimal number. */
static bool parse_number(const char *text, size_t len, int64_t *number)
{
    char digits[32];
    if (len == 0 || len >= sizeof digits)
        return false;
    memcpy(digits, text, len);
    digits[len] = '\0';
    char *end;
    errno = 0;
    *number = strtoll(digits, &end, 10);
    return errno == 0 && end == digits + len;
}

enum store_result store_incr(struct store *store, const char *key, int64_t by, int64_t *result)
{
    enum store_result outcome = STORE_OK;
    uint64_t hash;
    size_t key_len = strlen(key);
    struct stripe *stripe = lock_stripe(store, key, key_len, &hash);
    struct entry *entry = *find_slot(stripe, hash, key, key_len);
    *result = 0;
    if (entry != NULL && !parse_number(entry->value, entry->value_len, result)) {
        outcome = STORE_NOT_A_NUMBER;
    } else if (__builtin_add_overflow(*result, by, result)) {
        outcome = STORE_TOO_LARGE;
    } else {
        char digits[32];
        int len = snprintf(digits, sizeof digits, "%" PRId64, *result);
        replace_value(store, stripe, find_or_create(store, stripe, hash, key), digits, (size_t)len);
    }
    pthread_mutex_unlock(&stripe->lock);
    return outcome;
}

enum store_result store_append(struct store *store, const char *key, const char *tail, size_t tail_len,
                               size_t *result)
{
    uint64_t hash;
    size_t key_len = strlen(key);
    struct stripe *stripe = lock_stripe(store, key, key_len, &hash);
    struct entry *entry = *find_slot(stripe, hash, key, key_len);
    size_t old_len = entry != NULL ? entry->value_len : 0;
    bool fits = tail_len <= MAX_VALUE - old_len;
    if (fits) {
        entry = find_or_create(store, stripe, hash, key);
        entry->value = xrealloc(entry->value, old_len + tail_len + 1);
        memcpy(entry->value + old_len, tail, tail_len);
        entry->value_len = *result = old_len + tail_len;
        entry->checksum = entry_checksum(entry);
        account(store, stripe, 0, tail_len);
    }
    pthread_mutex_unlock(&stripe->lock);
    return fits ? STORE_OK : STORE_TOO_LARGE;
}

size_t store_count_prefix(struct store *store, const char *prefix)
{
    size_t len = strlen(prefix), count = 0;
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &store->stripes[i];
        pthread_mutex_lock(&stripe->lock);
        for (struct entry *entry = stripe->newest; entry != NULL; entry = entry->older)
            count += entry->key_len >= len && memcmp(entry->key, prefix, len) == 0;
        pthread_mutex_unlock(&stripe->lock);
    }
    return count;
}
