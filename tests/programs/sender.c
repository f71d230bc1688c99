/*
 * sender PORT
 *
 * A server that sends much. One line is one request:
 *
 *     big N      sends N bytes, waiting for room, and closes
 *     shut N     likewise, but shuts the sending half down
 *     edge N     sends N bytes without blocking, told by edge-triggered events when there is room, and closes
 *     crash N    sends N bytes and crashes
 *     late LINE  sends "late", and only then writes the line to the file "log"
 *     records    sends two records to itself
 *     record     tells what the first of them is
 *     ping       answers
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { MOST = 64, EDGE = 1 << 20 };

static int epoll, log_fd, records[2];
static long left[MOST], sent[MOST];
static char pattern[64 << 10];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void put(int fd, const char *text) {
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        perror("send");
}

/* Sends until all is sent or there is no room. Byte i of the stream is i modulo 251. */
static void push(int fd) {
    while (left[fd] > 0) {
        long at = sent[fd] % 251;
        size_t len = sizeof pattern - 251;
        if ((long)len > left[fd])
            len = (size_t)left[fd];
        ssize_t n = send(fd, pattern + at, len, MSG_NOSIGNAL);
        if (n < 0)
            return;
        sent[fd] += n;
        left[fd] -= n;
    }
}

static void begin(int fd, const char *line) {
    left[fd] = atol(strchr(line, ' ') + 1);
    sent[fd] = 0;
    push(fd);
}

static void serve(int fd, char *line) {
    char record[64] = "";
    line[strcspn(line, "\n")] = 0;
    if (!strncmp(line, "big", 3)) {
        begin(fd, line);
        close(fd);
    } else if (!strncmp(line, "shut", 4)) {
        begin(fd, line);
        shutdown(fd, SHUT_WR);
    } else if (!strncmp(line, "edge", 4)) {
        struct epoll_event event = {.events = EPOLLOUT | EPOLLET, .data.fd = fd + EDGE};
        fcntl(fd, F_SETFL, O_NONBLOCK);
        epoll_ctl(epoll, EPOLL_CTL_MOD, fd, &event);
        begin(fd, line);
        if (!left[fd])
            close(fd);
    } else if (!strncmp(line, "crash", 5)) {
        begin(fd, line);
        *(volatile int *)0 = 1;
    } else if (!strncmp(line, "late", 4)) {
        put(fd, "late\n");
        if (write(log_fd, line, strlen(line)) < 0)
            perror("log");
    } else if (!strcmp(line, "records")) {
        if (send(records[0], "one", 3, 0) != 3 || send(records[0], "three", 5, 0) != 5)
            perror("records");
        put(fd, "sent\n");
    } else if (!strcmp(line, "record")) {
        ssize_t n = recv(records[1], record, sizeof record - 2, MSG_DONTWAIT);
        record[n > 0 ? n : 0] = '\n';
        put(fd, record);
    } else {
        put(fd, "pong\n");
    }
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2)
        return 2;
    for (size_t i = 0; i < sizeof pattern; i++)
        pattern[i] = (char)(i % 251);
    epoll = epoll_create1(0);
    log_fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, records) || log_fd < 0 ||
        bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 16))
        die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
    while (epoll_wait(epoll, &event, 1, -1) == 1) {
        char line[256];
        int fd = event.data.fd;
        if (fd == listening) {
            event.data.fd = accept(listening, NULL, NULL);
            if (event.data.fd >= MOST)
                die("too many connections");
            epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
        } else if (fd >= EDGE) {
            push(fd - EDGE);
            if (!left[fd - EDGE])
                close(fd - EDGE);
        } else {
            ssize_t n = read(fd, line, sizeof line - 1);
            line[n > 0 ? n : 0] = 0;
            if (n > 0)
                serve(fd, line);
            else
                close(fd);
        }
    }
    return 0;
}
