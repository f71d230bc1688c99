/* The line protocol: parses one line, runs it, appends its reply. README.md lists the commands. */
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#include "server.h"

/* A command's words: the key is the first argument, the rest is taken as it is, spaces included. */
struct request {
    struct connection *connection;
    struct session *session;
    struct buffer *out;
    char *key;
    char *rest;
    size_t rest_len;
};

static void reply_ok(struct request *r)
{
    session_count_write(&server.registry, r->session);
    buffer_printf(r->out, "+OK\n");
}

static void do_login(struct request *r)
{
    if (strlen(r->key) >= MAX_NAME) {
        buffer_printf(r->out, "-ERR name too long\n");
        return;
    }
    session_login(&server.registry, r->session, r->key);
    buffer_printf(r->out, "+HELLO %s\n", r->key);
}

static void do_set(struct request *r)
{
    store_set(&server.store, r->key, r->rest, r->rest_len);
    reply_ok(r);
}

static void do_get(struct request *r)
{
    if (store_get(&server.store, r->key, r->out) == STORE_MISSING)
        buffer_printf(r->out, "_\n");
}

static void do_del(struct request *r)
{
    bool found = store_del(&server.store, r->key) == STORE_OK;
    if (found)
        session_count_write(&server.registry, r->session);
    buffer_printf(r->out, ":%d\n", found);
}

static void do_incr(struct request *r)
{
    int64_t value;
    switch (store_incr(&server.store, r->key, 1, &value)) {
    case STORE_OK:
        session_count_write(&server.registry, r->session);
        buffer_printf(r->out, ":%" PRId64 "\n", value);
        break;
    case STORE_NOT_A_NUMBER:
        buffer_printf(r->out, "-ERR not a number\n");
        break;
    default:
        buffer_printf(r->out, "-ERR overflow\n");
    }
}

static void do_append(struct request *r)
{
    size_t len;
    if (store_append(&server.store, r->key, r->rest, r->rest_len, &len) != STORE_OK) {
        buffer_printf(r->out, "-ERR value too large\n");
        return;
    }
    session_count_write(&server.registry, r->session);
    buffer_printf(r->out, ":%zu\n", len);
}

static void do_keys(struct request *r)
{
    buffer_printf(r->out, ":%zu\n", store_count_prefix(&server.store, r->key));
}

static void do_whoami(struct request *r)
{
    pthread_mutex_lock(&server.registry.lock);
    buffer_printf(r->out, "+name=%s commands=%" PRIu64 " writes=%" PRIu64 " history=%zu\n", r->session->name,
                  r->session->commands, r->session->writes, r->session->history_len);
    pthread_mutex_unlock(&server.registry.lock);
}

static void do_history(struct request *r)
{
    pthread_mutex_lock(&server.registry.lock);
    buffer_printf(r->out, "*%zu\n", r->session->history_len);
    for (struct history_item *item = r->session->oldest; item != NULL; item = item->next)
        buffer_printf(r->out, "$%s\n", item->text);
    pthread_mutex_unlock(&server.registry.lock);
}

static void do_stats(struct request *r)
{
    struct registry *registry = &server.registry;
    pthread_mutex_lock(&registry->lock);
    buffer_printf(r->out, "+sessions=%zu opened=%" PRIu64 " commands=%" PRIu64 " writes=%" PRIu64, registry->count,
                  registry->last_id, registry->commands, registry->writes);
    pthread_mutex_unlock(&registry->lock);
    buffer_printf(r->out, " entries=%zu bytes=%zu workers=%zu\n", atomic_load(&server.store.entries),
                  atomic_load(&server.store.bytes), server.worker_count);
}

static void do_quit(struct request *r)
{
    buffer_printf(r->out, "+BYE\n");
    r->connection->closing = true;
}

static void do_check(struct request *r)
{
    /* CHECK needs the world for itself, and commands run with it held for reading. */
    pthread_rwlock_unlock(&server.world);
    check_invariants(r->out);
    pthread_rwlock_rdlock(&server.world);
}

static void do_crash(struct request *r)
{
    if (strcmp(r->key, "list") == 0)
        bug_list(r->out);
    else if (!bug_trigger(r->key))
        buffer_printf(r->out, "-ERR no such bug\n");
    else
        buffer_printf(r->out, "-ERR the bug did not bite\n");
}

enum { KEY = 1, VALUE = 2, LOGIN = 4 };

static const struct command {
    const char *name;
    int needs;
    void (*run)(struct request *);
} commands[] = {
    {"LOGIN", KEY, do_login},
    {"SET", KEY | VALUE | LOGIN, do_set},
    {"GET", KEY | LOGIN, do_get},
    {"DEL", KEY | LOGIN, do_del},
    {"INCR", KEY | LOGIN, do_incr},
    {"APPEND", KEY | VALUE | LOGIN, do_append},
    {"KEYS", LOGIN, do_keys},
    {"WHOAMI", LOGIN, do_whoami},
    {"HISTORY", LOGIN, do_history},
    {"STATS", 0, do_stats},
    {"CHECK", 0, do_check},
    {"CRASH", KEY, do_crash},
    {"QUIT", 0, do_quit},
};

static const struct command *find_command(const char *name)
{
    for (size_t i = 0; i < sizeof commands / sizeof *commands; i++)
        if (strcasecmp(commands[i].name, name) == 0)
            return &commands[i];
    return NULL;
}

/* Cuts the next word off `*text`; what follows its one space stays. */
static char *cut_word(char **text)
{
    char *word = *text;
    char *space = strchr(word, ' ');
    if (space != NULL)
        *space = '\0';
    *text = space != NULL ? space + 1 : word + strlen(word);
    return word;
}

static void run(struct request *r, char *line, size_t len)
{
    char *end = line + len;
    const struct command *command = find_command(cut_word(&line));
    r->key = cut_word(&line);
    r->rest = line;
    r->rest_len = (size_t)(end - line);
    if (command == NULL)
        buffer_printf(r->out, "-ERR unknown command\n");
    else if (((command->needs & KEY) && *r->key == '\0') || ((command->needs & VALUE) && r->rest_len == 0))
        buffer_printf(r->out, "-ERR missing argument\n");
    else if (strlen(r->key) > MAX_KEY)
        buffer_printf(r->out, "-ERR key too long\n");
    else if ((command->needs & LOGIN) && r->session->name[0] == '\0')
        buffer_printf(r->out, "-ERR LOGIN first\n");
    else
        command->run(r);
}

void command_execute(struct connection *connection, char *line, size_t len)
{
    struct request request = {.connection = connection, .session = connection->session, .out = &connection->out};
    pthread_rwlock_rdlock(&server.world);
    session_count_command(&server.registry, connection->session, line);
    run(&request, line, len);
    pthread_rwlock_unlock(&server.world);
}
