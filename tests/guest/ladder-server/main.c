// A server for the rungs of the ladder. It has threads of several kinds and state of every kind that a restart
// in place has to give back. usage: ladder-server PORT [crash-at-start]
//
// A connection sends lines: "count" counts, "state" tells what there is, "check" says whether everything is as
// at the start, "change" changes all of it, "crash" crashes, "tick" makes the background thread crash once at
// its next tick, "poison" leaves something on which whoever disconnects next trips, "exit-thread" ends a thread.
// The background thread also crashes for as long as there is a file "bomb" in the working directory.
#include "server.h"

#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

struct user {
    int fd;
    struct user *next;
};

static int listener, epoll;
static int count;
static volatile int tick_bomb, leave;
static struct user *users;

static void *ticker(void *unused)
{
    (void)unused;
    pthread_setname_np(pthread_self(), "ticker");
    for (;;) {
        nanosleep(&(struct timespec){ .tv_nsec = 10 * 1000 * 1000 }, NULL);
        if (tick_bomb || access("bomb", F_OK) == 0)
            *(volatile int *)0x10 = 1;
    }
    return NULL;
}

static void *leaver(void *unused)
{
    (void)unused;
    while (!leave)
        nanosleep(&(struct timespec){ .tv_nsec = 5 * 1000 * 1000 }, NULL);
    return NULL;
}

static int open_descriptors(void)
{
    int n = 0;
    for (int fd = 0; fd < 1024; fd++)
        n += fcntl(fd, F_GETFD) >= 0;
    return n;
}

static void drop(int fd)
{
    for (struct user **at = &users; *at; at = &(*at)->next)
        if ((*at)->fd == fd) {
            struct user *gone = *at;
            *at = gone->next;
            free(gone);
            break;
        }
    close(fd);
}

static void serve(int fd)
{
    char line[128] = "", reply[256] = "?\n";
    ssize_t n = read(fd, line, sizeof line - 1);
    if (n <= 0) {
        drop(fd);
        return;
    }
    line[strcspn(line, "\n")] = 0;
    if (strcmp(line, "count") == 0) {
        snprintf(reply, sizeof reply, "%d\n", ++count);
    } else if (strcmp(line, "state") == 0) {
        struct stat status;
        fstat(listener, &status);
        snprintf(reply, sizeof reply, "count=%d pid=%d inode=%lu fds=%d\n", count, getpid(),
                 (unsigned long)status.st_ino, open_descriptors());
    } else if (strcmp(line, "check") == 0) {
        snprintf(reply, sizeof reply, "%s\n", check_state());
    } else if (strcmp(line, "change") == 0) {
        count = 1000;
        change_state();
        snprintf(reply, sizeof reply, "changed\n");
    } else if (strcmp(line, "crash") == 0) {
        *(volatile int *)8 = 1;
    } else if (strcmp(line, "tick") == 0) {
        tick_bomb = 1;
        snprintf(reply, sizeof reply, "ok\n");
    } else if (strcmp(line, "poison") == 0) {
        users->next = (struct user *)0x18;
        snprintf(reply, sizeof reply, "ok\n");
    } else if (strcmp(line, "exit-thread") == 0) {
        leave = 1;
        snprintf(reply, sizeof reply, "ok\n");
    }
    if (write(fd, reply, strlen(reply)) < 0)
        drop(fd);
}

static void add(int fd)
{
    struct user *user = malloc(sizeof *user);
    *user = (struct user){ .fd = fd, .next = users };
    users = user;
    struct epoll_event event = { .events = EPOLLIN, .data.fd = fd };
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
}

int main(int argc, char **argv)
{
    if (argc < 2)
        return 2;
    if (argc > 2)
        *(volatile int *)0 = 1;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 64))
        return 1;
    epoll = epoll_create1(0);
    struct epoll_event event = { .events = EPOLLIN, .data.fd = listener };
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    // After listen, as Redis does.
    make_state();
    pthread_t thread;
    pthread_create(&thread, NULL, ticker, NULL);
    pthread_create(&thread, NULL, leaver, NULL);
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(epoll, events, 16, -1);
        for (int i = 0; i < n; i++) {
            if (events[i].data.fd != listener) {
                serve(events[i].data.fd);
                continue;
            }
            int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
            if (fd >= 0)
                add(fd);
        }
    }
}
