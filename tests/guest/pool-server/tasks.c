/* What a client may ask for. */
#include "pool.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int *volatile nowhere = (int *)16;

static void crash(void)
{
    *nowhere = 1;
}

static void run_add(struct task *task)
{
    long value = table_add(task->key, task->amount, NULL);
    snprintf(task->reply, sizeof task->reply, "%lu %ld\n", task->sequence, value);
    answer(task);
}

static void run_check(struct task *task)
{
    const char *result = table_is_consistent() ? "consistent" : "broken";
    snprintf(task->reply, sizeof task->reply, "%lu %s\n", task->sequence, result);
    answer(task);
}

static void run_null(struct task *task)
{
    task->reply[0] = 0;
    *nowhere = 1;
}

static void run_abort(struct task *task)
{
    char *copy = malloc(32);
    if (copy)
        memset(copy, (int)task->sequence, 32);
    abort();
}

/* Dies in the middle of an update of the table, with the lock held. */
static void run_locked(struct task *task)
{
    table_add(task->key, task->amount, crash);
}

/* Dies when everything is done. */
static void run_late(struct task *task)
{
    run_add(task);
    *nowhere = 1;
}

static void run_jump(struct task *task)
{
    void (*volatile bad)(struct task *) = (void (*)(struct task *))8;
    bad(task);
}

static const struct {
    const char *verb;
    void (*run)(struct task *);
} verbs[] = {
    {"add", run_add},     {"check", run_check},   {"null", run_null}, {"abort", run_abort},
    {"late", run_late},   {"locked", run_locked}, {"jump", run_jump}, {"finish", run_add},
};

bool task_prepare(struct task *task)
{
    for (unsigned i = 0; i < sizeof verbs / sizeof *verbs; i++)
        if (strcmp(task->verb, verbs[i].verb) == 0)
            task->run = verbs[i].run;
    return task->run != NULL;
}
