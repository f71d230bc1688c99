/*
 * lock_server PORT: a thread for each connection, and tables that all threads share.
 *
 * A request is a line, and so is its reply. Every table has an invariant that `check` verifies:
 *
 *     bank   accounts under a mutex that lies on the same page; their sum is constant
 *     list   a doubly linked list of malloc'ed nodes under a mutex
 *     pairs  under a read-write lock; both halves of each pair add up to PAIR
 *     queue  a bounded ring under a mutex, with condition variables
 *     hits   an atomic counter of the requests that were answered
 *
 * `slow-X MS` does X with a sleep in the middle of its critical section, `crash-X MS` crashes after that
 * sleep instead of finishing, `die-X MS` crashes after X is complete and its lock released, `within-X MS` does
 * so while it holds the pairs for reading, all the time.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum { ACCOUNTS = 32, BALANCE = 1000, PAIRS = 32, PAIR = 500, ROOM = 8, LINE = 256 };

static struct {
    pthread_mutex_t lock;
    long balance[ACCOUNTS];
} bank = {.lock = PTHREAD_MUTEX_INITIALIZER};

struct node {
    struct node *next, *prev;
    long key;
    char padding[40];
};

static struct {
    pthread_mutex_t lock;
    struct node head;
    long count;
} list = {.lock = PTHREAD_MUTEX_INITIALIZER};

static struct {
    pthread_rwlock_t lock;
    long low[PAIRS], high[PAIRS];
} pairs = {.lock = PTHREAD_RWLOCK_INITIALIZER};

static struct {
    pthread_mutex_t lock;
    pthread_cond_t filled, drained;
    long items[ROOM];
    unsigned first, count;
} queue = {
    .lock = PTHREAD_MUTEX_INITIALIZER, .filled = PTHREAD_COND_INITIALIZER, .drained = PTHREAD_COND_INITIALIZER};

static atomic_long hits;
static _Thread_local char scratch[16384];

/* What a request wants in the middle: to sleep, to burn processor time, and then to crash. */
struct middle {
    long sleep_ms, spin_ms;
    int crash;
};

static void crash(void) {
    *(volatile int *)8 = 1;
}

static void burn(long ms) {
    struct timespec now, end;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &end);
    end.tv_sec += ms / 1000;
    end.tv_nsec += ms % 1000 * 1000000;
    do {
        for (volatile int i = 0; i < 100000; i++)
            ;
        clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    } while (now.tv_sec < end.tv_sec || (now.tv_sec == end.tv_sec && now.tv_nsec < end.tv_nsec));
}

static void pass(const struct middle *middle) {
    if (middle->spin_ms)
        burn(middle->spin_ms);
    if (middle->sleep_ms)
        usleep((useconds_t)middle->sleep_ms * 1000);
    if (middle->crash)
        crash();
}

static void transfer(unsigned random, const struct middle *middle) {
    unsigned from = random % ACCOUNTS, to = random / ACCOUNTS % ACCOUNTS;
    pthread_mutex_lock(&bank.lock);
    bank.balance[from] -= 7;
    pass(middle);
    bank.balance[to] += 7;
    pthread_mutex_unlock(&bank.lock);
}

/* Looks at an account without the lock. */
static void glance(unsigned random) {
    (void)*(volatile long *)&bank.balance[random % ACCOUNTS];
}

static void list_add(long key, const struct middle *middle) {
    pthread_mutex_lock(&list.lock);
    struct node *node = malloc(sizeof *node);
    node->key = key;
    node->next = list.head.next;
    list.head.next = node;
    pass(middle);
    node->prev = &list.head;
    node->next->prev = node;
    list.count++;
    pthread_mutex_unlock(&list.lock);
}

/* Removes one node with `key`; whether there was one. */
static int list_remove(long key) {
    int found = 0;
    pthread_mutex_lock(&list.lock);
    for (struct node *node = list.head.next; node != &list.head; node = node->next) {
        if (node->key == key) {
            node->prev->next = node->next;
            node->next->prev = node->prev;
            list.count--;
            free(node);
            found = 1;
            break;
        }
    }
    pthread_mutex_unlock(&list.lock);
    return found;
}

static void pair_write(unsigned random, const struct middle *middle) {
    unsigned at = random % PAIRS;
    pthread_rwlock_wrlock(&pairs.lock);
    pairs.low[at] += 3;
    pass(middle);
    pairs.high[at] -= 3;
    pthread_rwlock_unlock(&pairs.lock);
}

static long pair_read(unsigned random, const struct middle *middle) {
    unsigned at = random % PAIRS;
    pthread_rwlock_rdlock(&pairs.lock);
    long sum = pairs.low[at] + pairs.high[at];
    pass(middle);
    pthread_rwlock_unlock(&pairs.lock);
    return sum;
}

static void put(long item, const struct middle *middle) {
    pthread_mutex_lock(&queue.lock);
    while (queue.count == ROOM)
        pthread_cond_wait(&queue.drained, &queue.lock);
    queue.items[(queue.first + queue.count) % ROOM] = item;
    pass(middle);
    queue.count++;
    pthread_cond_signal(&queue.filled);
    pthread_mutex_unlock(&queue.lock);
}

static long take(const struct middle *middle) {
    pthread_mutex_lock(&queue.lock);
    while (!queue.count)
        pthread_cond_wait(&queue.filled, &queue.lock);
    long item = queue.items[queue.first];
    queue.items[queue.first] = 0;
    pass(middle);
    queue.first = (queue.first + 1) % ROOM;
    queue.count--;
    pthread_cond_signal(&queue.drained);
    pthread_mutex_unlock(&queue.lock);
    return item;
}

static int locked(pthread_mutex_t *lock) {
    struct timespec limit;
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 10;
    return pthread_mutex_timedlock(lock, &limit) == 0;
}

/* What is wrong with the tables; "" if nothing is. */
static void check(char *problem, size_t room) {
    struct timespec limit;
    *problem = 0;
    if (!locked(&bank.lock)) {
        snprintf(problem, room, "the bank stays locked by %d", bank.lock.__data.__owner);
        return;
    }
    long sum = 0;
    for (int i = 0; i < ACCOUNTS; i++)
        sum += bank.balance[i];
    pthread_mutex_unlock(&bank.lock);
    if (sum != ACCOUNTS * BALANCE)
        snprintf(problem, room, "the accounts add up to %ld", sum);
    if (!locked(&list.lock)) {
        snprintf(problem, room, "the list stays locked by %d", list.lock.__data.__owner);
        return;
    }
    long count = 0;
    for (struct node *node = list.head.next; node != &list.head && count <= list.count; node = node->next) {
        if (node->next->prev != node || node->prev->next != node)
            snprintf(problem, room, "the list is broken at its node %ld", count);
        count++;
    }
    if (count != list.count)
        snprintf(problem, room, "the list has %ld nodes and says %ld", count, list.count);
    pthread_mutex_unlock(&list.lock);
    clock_gettime(CLOCK_REALTIME, &limit);
    limit.tv_sec += 10;
    if (pthread_rwlock_timedwrlock(&pairs.lock, &limit)) {
        snprintf(problem, room, "the pairs stay locked by %d: %x, %x, %x, %x", pairs.lock.__data.__cur_writer,
                 pairs.lock.__data.__readers, pairs.lock.__data.__writers,
                 pairs.lock.__data.__wrphase_futex, pairs.lock.__data.__writers_futex);
        return;
    }
    for (int i = 0; i < PAIRS; i++)
        if (pairs.low[i] + pairs.high[i] != PAIR)
            snprintf(problem, room, "pair %d adds up to %ld", i, pairs.low[i] + pairs.high[i]);
    pthread_rwlock_unlock(&pairs.lock);
    if (!locked(&queue.lock)) {
        snprintf(problem, room, "the queue stays locked by %d", queue.lock.__data.__owner);
        return;
    }
    for (unsigned i = 0; i < ROOM; i++) {
        int inside = (i + ROOM - queue.first) % ROOM < queue.count;
        if (inside != (queue.items[i] != 0))
            snprintf(problem, room, "slot %u of the queue is %ld, with %u from %u", i, queue.items[i],
                     queue.count, queue.first);
    }
    pthread_mutex_unlock(&queue.lock);
}

static void serve(char *line, char *reply, size_t room) {
    char verb[32] = "", *what = verb;
    long number = 0, argument = 0;
    struct middle middle = {0}, after = {0};
    int within = 0;
    sscanf(line, "%31s %ld %ld", verb, &argument, &number);
    snprintf(reply, room, "ok");
    if (!strncmp(verb, "slow-", 5)) {
        middle.sleep_ms = argument;
        what += 5;
    } else if (!strncmp(verb, "crash-", 6)) {
        middle.sleep_ms = argument;
        middle.crash = 1;
        what += 6;
    } else if (!strncmp(verb, "spin-", 5)) {
        middle.spin_ms = argument;
        middle.crash = 1;
        what += 5;
    } else if (!strncmp(verb, "die-", 4)) {
        after.sleep_ms = argument;
        after.crash = 1;
        what += 4;
    } else if (!strncmp(verb, "within-", 7)) {
        after.sleep_ms = argument;
        after.crash = within = 1;
        what += 7;
    } else {
        number = argument;
    }
    if (within)
        pthread_rwlock_rdlock(&pairs.lock);
    if (!strcmp(what, "transfer"))
        transfer((unsigned)number, &middle);
    else if (!strcmp(what, "add"))
        list_add(number, &middle);
    else if (!strcmp(what, "remove"))
        snprintf(reply, room, "%d", list_remove(number));
    else if (!strcmp(what, "write"))
        pair_write((unsigned)number, &middle);
    else if (!strcmp(what, "read"))
        snprintf(reply, room, "%ld", pair_read((unsigned)number, &middle));
    else if (!strcmp(what, "glance"))
        glance((unsigned)number);
    else if (!strcmp(what, "put"))
        put(number, &middle);
    else if (!strcmp(what, "take"))
        snprintf(reply, room, "%ld", take(&middle));
    else if (!strcmp(what, "own")) {
        memset(scratch, (int)number, sizeof scratch);
        pass(&middle);
        snprintf(reply, room, "%d", scratch[100]);
    } else if (!strcmp(what, "level"))
        snprintf(reply, room, "%u", queue.count);
    else if (!strcmp(what, "hits"))
        snprintf(reply, room, "%ld", atomic_load(&hits));
    else if (!strcmp(what, "peek"))
        snprintf(reply, room, "%d", scratch[100]);
    else if (!strcmp(what, "check")) {
        check(reply, room);
        if (!*reply)
            snprintf(reply, room, "ok");
    } else
        snprintf(reply, room, "what?");
    pass(&after);
    atomic_fetch_add(&hits, 1);
}

static void *converse(void *argument) {
    int fd = (int)(long)argument;
    char line[LINE], reply[LINE];
    size_t filled = 0;
    for (;;) {
        ssize_t n = read(fd, line + filled, sizeof line - 1 - filled);
        if (n <= 0)
            break;
        filled += (size_t)n;
        line[filled] = 0;
        char *end;
        while ((end = strchr(line, '\n'))) {
            *end = 0;
            serve(line, reply, sizeof reply - 1);
            strcat(reply, "\n");
            if (write(fd, reply, strlen(reply)) < 0)
                break;
            filled -= (size_t)(end + 1 - line);
            memmove(line, end + 1, filled + 1);
        }
        if (filled == sizeof line - 1)
            break;
    }
    close(fd);
    return NULL;
}

static void stop(int number) {
    (void)number;
    _exit(0);
}

int main(int argc, char **argv) {
    if (argc != 2) {
        fprintf(stderr, "usage: lock_server PORT\n");
        return 2;
    }
    signal(SIGTERM, stop);
    signal(SIGPIPE, SIG_IGN);
    list.head.next = list.head.prev = &list.head;
    for (int i = 0; i < ACCOUNTS; i++)
        bank.balance[i] = BALANCE;
    for (int i = 0; i < PAIRS; i++)
        pairs.high[i] = PAIR;
    int fd = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)atoi(argv[1]))};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 64)) {
        perror("listen");
        return 1;
    }
    for (;;) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0)
            continue;
        pthread_attr_t attributes;
        pthread_t thread;
        pthread_attr_init(&attributes);
        pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
        pthread_attr_setstacksize(&attributes, 256 << 10);
        if (pthread_create(&thread, &attributes, converse, (void *)(long)connection))
            close(connection);
        pthread_attr_destroy(&attributes);
    }
}
