/* Per-user sessions. */
#include "session.h"

#include <stdlib.h>
#include <string.h>

#include "store.h"

void registry_init(struct registry *registry)
{
    *registry = (struct registry){0};
    pthread_mutex_init(&registry->lock, NULL);
}

uint64_t session_checksum(const struct session *session)
{
    return hash_bytes(session->id, session->name, strlen(session->name));
}

struct session *session_open(struct registry *registry)
{
    struct session *session = xmalloc(sizeof *session);
    pthread_mutex_lock(&registry->lock);
    *session = (struct session){.id = ++registry->last_id, .next = registry->first};
    session->checksum = session_checksum(session);
    if (session->next != NULL)
        session->next->prev = session;
    registry->first = session;
    registry->count++;
    pthread_mutex_unlock(&registry->lock);
    return session;
}

void session_close(struct registry *registry, struct session *session)
{
    pthread_mutex_lock(&registry->lock);
    *(session->prev ? &session->prev->next : &registry->first) = session->next;
    if (session->next != NULL)
        session->next->prev = session->prev;
    registry->count--;
    registry->retired_commands += session->commands;
    registry->retired_writes += session->writes;
    pthread_mutex_unlock(&registry->lock);

    for (struct history_item *item = session->oldest, *next; item != NULL; item = next) {
        next = item->next;
        free(item);
    }
    free(session);
}

void session_login(struct registry *registry, struct session *session, const char *name)
{
    pthread_mutex_lock(&registry->lock);
    strncpy(session->name, name, sizeof session->name - 1);
    session->checksum = session_checksum(session);
    pthread_mutex_unlock(&registry->lock);
}

void session_count_command(struct registry *registry, struct session *session, const char *line)
{
    size_t len = strnlen(line, MAX_HISTORY_TEXT);
    struct history_item *item = xmalloc(sizeof *item + len + 1);
    item->next = NULL;
    memcpy(item->text, line, len);
    item->text[len] = '\0';

    pthread_mutex_lock(&registry->lock);
    session->commands++;
    registry->commands++;
    *(session->newest ? &session->newest->next : &session->oldest) = item;
    session->newest = item;
    struct history_item *dropped = NULL;
    if (session->history_len == MAX_HISTORY) {
        dropped = session->oldest;
        session->oldest = dropped->next;
    } else {
        session->history_len++;
    }
    pthread_mutex_unlock(&registry->lock);
    free(dropped);
}

void session_count_write(struct registry *registry, struct session *session)
{
    pthread_mutex_lock(&registry->lock);
    session->writes++;
    registry->writes++;
    pthread_mutex_unlock(&registry->lock);
}
