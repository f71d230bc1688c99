/*
 * A server whose requests damage the heap without a sound, as real bugs do: overflows, writes to freed memory,
 * double frees. A request is a line, a reply is a line.
 *
 *     heap-server PORT WORKERS     WORKERS 0: one event loop in the main thread
 */
#include <arpa/inet.h>
#include <errno.h>
#include <malloc.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { SLOTS = 4096, WORKERS = 16 };

struct slot {
    char *data;
    size_t size;
};

struct connection {
    int fd;
    unsigned long requests;
};

static struct slot slots[SLOTS];
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int epolls[WORKERS + 1];

/* Keeps the compiler from reasoning about what is freed and how large things are. */
static void *volatile hidden;

static void *hide(void *pointer)
{
    hidden = pointer;
    return hidden;
}

static int is_intact(const struct slot *slot, unsigned long index)
{
    for (size_t i = 0; i < slot->size; i++)
        if (slot->data[i] != (char)(index + i))
            return 0;
    return 1;
}

static void set(struct slot *slot, unsigned long index, size_t size)
{
    free(slot->data);
    slot->data = malloc(size);
    slot->size = size;
    for (size_t i = 0; i < size; i++)
        slot->data[i] = (char)(index + i);
}

/* Uses the heap without keeping anything. */
static void churn(unsigned long seed)
{
    void *some[32] = {0};
    for (int i = 0; i < 200; i++) {
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        unsigned long size = (seed >> 33) % ((seed >> 60) == 0 ? 40000 : 700) + 1;
        unsigned at = seed >> 48 & 31;
        if ((seed >> 56 & 3) == 0) {
            some[at] = realloc(some[at], size);
            continue;
        }
        free(some[at]);
        some[at] = (seed >> 58 & 1) != 0 ? malloc(size) : calloc(1, size);
        memset(some[at], 0x5a, size);
    }
    for (int i = 0; i < 32; i++)
        free(some[i]);
}

static const char *execute(const char *command, unsigned long index, unsigned long number)
{
    struct slot *slot = &slots[index % SLOTS];
    char *data = hide(slot->data);
    if (strcmp(command, "set") == 0) {
        set(slot, index, number);
    } else if (strcmp(command, "get") == 0) {
        return is_intact(slot, index) ? "ok" : "spoilt";
    } else if (strcmp(command, "del") == 0) {
        free(slot->data);
        *slot = (struct slot){0};
    } else if (strcmp(command, "churn") == 0) {
        churn(number);
    } else if (strcmp(command, "overflow") == 0) {
        memset(data + malloc_usable_size(data), 'A', number);
    } else if (strcmp(command, "nul") == 0) {
        data[malloc_usable_size(data)] = '\0';
    } else if (strcmp(command, "drop") == 0) {
        free(data); /* and keeps the pointer */
        slot->size = 0;
    } else if (strcmp(command, "stale") == 0) {
        memset(data, 'A', number);
    } else if (strcmp(command, "twice") == 0) {
        for (volatile char *key = data + 8; key < data + 16; key++)
            *key = 0; /* what glibc would notice it by */
        free(data);
    } else {
        return "what?";
    }
    return "ok";
}

static void serve(struct connection *connection)
{
    char line[512], reply[64], command[16] = "";
    unsigned long index = 0, number = 0;
    ssize_t len = read(connection->fd, line, sizeof line - 1);
    if (len <= 0) {
        close(connection->fd);
        free(connection);
        return;
    }
    line[len] = '\0';
    connection->requests++;
    sscanf(line, "%15s %lu %lu", command, &index, &number);
    pthread_mutex_lock(&lock);
    const char *result = execute(command, index, number);
    pthread_mutex_unlock(&lock);
    int n = snprintf(reply, sizeof reply, "%s\n", result);
    if (write(connection->fd, reply, n) != n)
        shutdown(connection->fd, SHUT_RDWR);
}

static void watch(int epoll, int fd, void *data)
{
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = data};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

static void *work(void *argument)
{
    int epoll = *(int *)argument;
    struct epoll_event events[16];
    for (;;) {
        int n = epoll_wait(epoll, events, 16, -1);
        for (int i = 0; i < n; i++)
            serve(events[i].data.ptr);
    }
    return NULL;
}

static void accept_one(int listener, int workers)
{
    static unsigned next;
    int fd = accept(listener, NULL, NULL);
    if (fd < 0)
        return;
    struct connection *connection = calloc(1, sizeof *connection);
    connection->fd = fd;
    watch(epolls[workers == 0 ? 0 : 1 + next++ % workers], fd, connection);
}

int main(int argc, char **argv)
{
    int port = argc > 1 ? atoi(argv[1]) : 0, workers = argc > 2 ? atoi(argv[2]) : 0, one = 1;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0) {
        perror("heap-server");
        return 1;
    }
    for (int i = 0; i <= workers && i <= WORKERS; i++) {
        pthread_t thread;
        epolls[i] = epoll_create1(0);
        if (i > 0)
            pthread_create(&thread, NULL, work, &epolls[i]);
    }
    watch(epolls[0], listener, NULL);
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(epolls[0], events, 16, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.ptr == NULL)
                accept_one(listener, workers);
            else
                serve(events[i].data.ptr);
        }
    }
}
