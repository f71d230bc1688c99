/* CHECK: verifies every invariant of the shared structures while no command is running. */
#include <errno.h>
#include <inttypes.h>
#include <stdarg.h>
#include <stdio.h>
#include <time.h>

#include "server.h"

#define QUIET_TIMEOUT_S 3

struct report {
    size_t failures;
    char first[160]; /* the first failure; the others are only counted */
};

__attribute__((format(printf, 3, 4))) static void expect(struct report *report, bool ok, const char *format, ...)
{
    if (ok)
        return;
    if (report->failures++ == 0) {
        va_list args;
        va_start(args, format);
        vsnprintf(report->first, sizeof report->first, format, args);
        va_end(args);
    }
}

/* Nobody is inside a command, so nobody may hold a mutex. True: it was free, and is now ours. */
static bool expect_free(struct report *report, pthread_mutex_t *lock, const char *name, size_t index)
{
    int error = pthread_mutex_trylock(lock);
    expect(report, error == 0, "mutex %s[%zu] is held", name, index);
    return error == 0;
}

static void check_stripe(struct report *report, const struct stripe *stripe, size_t index)
{
    size_t chained = 0, listed = 0, backward = 0, bytes = 0;
    for (size_t i = 0; i < stripe->bucket_count; i++)
        for (struct entry *e = stripe->buckets[i]; e != NULL && chained <= stripe->entries; e = e->chain) {
            chained++;
            expect(report, (e->hash & (stripe->bucket_count - 1)) == i, "stripe %zu: entry in a wrong bucket", index);
        }
    for (struct entry *e = stripe->newest; e != NULL && listed <= stripe->entries; e = e->older) {
        listed++;
        bytes += e->key_len + e->value_len;
        expect(report, e->hash == hash_bytes(0, e->key, e->key_len), "stripe %zu: wrong hash", index);
        expect(report, e->checksum == entry_checksum(e), "stripe %zu: wrong checksum of %.*s", index,
               e->key_len < 64 ? (int)e->key_len : 64, e->key);
    }
    for (struct entry *e = stripe->oldest; e != NULL && backward <= stripe->entries; e = e->newer)
        backward++;
    expect(report, chained == stripe->entries, "stripe %zu: %zu chained, %zu counted", index, chained, stripe->entries);
    expect(report, listed == stripe->entries, "stripe %zu: %zu listed, %zu counted", index, listed, stripe->entries);
    expect(report, backward == stripe->entries, "stripe %zu: %zu listed backwards, %zu counted", index, backward,
           stripe->entries);
    expect(report, bytes == stripe->bytes, "stripe %zu: %zu bytes, %zu counted", index, bytes, stripe->bytes);
}

static void check_store(struct report *report, struct store *store)
{
    size_t entries = 0, bytes = 0;
    for (size_t i = 0; i < STRIPES; i++) {
        struct stripe *stripe = &store->stripes[i];
        bool locked = expect_free(report, &stripe->lock, "stripe", i);
        check_stripe(report, stripe, i);
        entries += stripe->entries;
        bytes += stripe->bytes;
        if (locked)
            pthread_mutex_unlock(&stripe->lock);
    }
    expect(report, entries == atomic_load(&store->entries), "%zu entries, %zu in total", entries,
           atomic_load(&store->entries));
    expect(report, bytes == atomic_load(&store->bytes), "%zu bytes, %zu in total", bytes, atomic_load(&store->bytes));
}

static void check_session(struct report *report, const struct session *session)
{
    size_t items = 0;
    const struct history_item *last = NULL;
    for (const struct history_item *i = session->oldest; i != NULL && items <= MAX_HISTORY; i = i->next) {
        items++;
        last = i;
    }
    expect(report, session->checksum == session_checksum(session), "session %" PRIu64 ": wrong checksum", session->id);
    expect(report, items == session->history_len, "session %" PRIu64 ": %zu remembered, %zu counted", session->id, items,
           session->history_len);
    expect(report, last == session->newest, "session %" PRIu64 ": wrong end of history", session->id);
}

static void check_registry(struct report *report, struct registry *registry)
{
    bool locked = expect_free(report, &registry->lock, "registry", 0);
    size_t count = 0, connections = 0;
    uint64_t commands = registry->retired_commands, writes = registry->retired_writes;
    const struct session *prev = NULL;
    for (const struct session *s = registry->first; s != NULL && count <= registry->count; prev = s, s = s->next) {
        count++;
        commands += s->commands;
        writes += s->writes;
        expect(report, s->prev == prev, "session %" PRIu64 ": wrong back link", s->id);
        check_session(report, s);
    }
    for (size_t i = 0; i < server.worker_count; i++)
        connections += server.workers[i].connection_count;
    expect(report, count == registry->count, "%zu sessions, %zu counted", count, registry->count);
    expect(report, connections == registry->count, "%zu connections, %zu sessions", connections, registry->count);
    expect(report, commands == registry->commands, "%" PRIu64 " commands, %" PRIu64 " counted", commands,
           registry->commands);
    expect(report, writes == registry->writes, "%" PRIu64 " writes, %" PRIu64 " counted", writes, registry->writes);
    if (locked)
        pthread_mutex_unlock(&registry->lock);
}

void check_invariants(struct buffer *out)
{
    struct timespec deadline;
    clock_gettime(CLOCK_REALTIME, &deadline);
    deadline.tv_sec += QUIET_TIMEOUT_S;
    if (pthread_rwlock_timedwrlock(&server.world, &deadline) != 0) {
        buffer_printf(out, "-FAIL the world lock is held\n");
        return;
    }
    struct report report = {0};
    check_store(&report, &server.store);
    check_registry(&report, &server.registry);
    size_t entries = atomic_load(&server.store.entries), sessions = server.registry.count;
    pthread_rwlock_unlock(&server.world);
    if (report.failures == 0)
        buffer_printf(out, "+OK entries=%zu sessions=%zu\n", entries, sessions);
    else
        buffer_printf(out, "-FAIL %zu: %s\n", report.failures, report.first);
}
