/* Per-user sessions: one per connection, from accept to disconnect. */
#ifndef DEMO_SESSION_H
#define DEMO_SESSION_H

#include <pthread.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define MAX_NAME 32
#define MAX_HISTORY 32      /* commands remembered per session */
#define MAX_HISTORY_TEXT 64 /* bytes remembered per command */

struct history_item {
    struct history_item *next;
    char text[];
};

struct session {
    struct session *prev, *next;
    uint64_t id;
    char name[MAX_NAME]; /* empty until LOGIN */
    uint64_t checksum;   /* of id and name */
    uint64_t commands;
    uint64_t writes;
    struct history_item *oldest, *newest;
    size_t history_len;
};

struct registry {
    pthread_mutex_t lock; /* guards everything below, and the contents of every session */
    struct session *first;
    size_t count;
    uint64_t last_id;
    /* Redundant totals: CHECK compares them with the live sessions plus the retired ones. */
    uint64_t commands, writes;
    uint64_t retired_commands, retired_writes;
};

void registry_init(struct registry *registry);

struct session *session_open(struct registry *registry);
void session_close(struct registry *registry, struct session *session);
void session_login(struct registry *registry, struct session *session, const char *name);
/* Counts a command and remembers its text. */
void session_count_command(struct registry *registry, struct session *session, const char *line);
void session_count_write(struct registry *registry, struct session *session);

uint64_t session_checksum(const struct session *session);

#endif
