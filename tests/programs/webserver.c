/* A small HTTP server with bugs: one thread, epoll, and a parser that keeps the bytes of an unfinished request
 * for each connection. Usage: webserver PORT [BYTES], where BYTES is how much it reads at a time. */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <malloc.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct connection {
    int fd;
    int armed;          /* the next request crashes */
    char *request;      /* what has arrived of it */
    size_t length, room;
    size_t owed;        /* bytes of a large reply that are still to be sent */
};

static int epoll_fd;
static size_t chunk = 1 << 20;
static long connections, parser_bytes, served;
static int good = 42;
static int *volatile item = &good;

static void watch(struct connection *c, int operation, unsigned events) {
    struct epoll_event event = {.events = events, .data.ptr = c};
    epoll_ctl(epoll_fd, operation, c->fd, &event);
}

static void forget(struct connection *c) {
    watch(c, EPOLL_CTL_DEL, 0);
    close(c->fd);
    connections--;
    parser_bytes -= (long)c->room;
    free(c->request);
    free(c);
}

static void reply(struct connection *c, const char *body) {
    char text[1024];
    int n = snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n%s", strlen(body), body);
    served++;
    if (write(c->fd, text, (size_t)n) != n) perror("write");
}

/* Sends as much of a large reply as there is room for. */
static void send_owed(struct connection *c) {
    static char bytes[64 << 10];
    memset(bytes, 'x', sizeof bytes);
    while (c->owed > 0) {
        ssize_t n = write(c->fd, bytes, c->owed < sizeof bytes ? c->owed : sizeof bytes);
        if (n < 0 && errno == EAGAIN) {
            watch(c, EPOLL_CTL_MOD, EPOLLIN | EPOLLOUT);
            return;
        }
        if (n < 0) return;
        c->owed -= (size_t)n;
    }
    watch(c, EPOLL_CTL_MOD, EPOLLIN);
}

static void crash(void) {
    *(volatile int *)8 = 1;
}

static int is(const struct connection *c, const char *path) {
    size_t n = strlen(path);
    return !strncmp(c->request, "GET ", 4) && !strncmp(c->request + 4, path, n) && c->request[4 + n] == ' ';
}

static void serve(struct connection *c) {
    char text[256];
    if (c->armed || is(c, "/crash")) crash();
    if (is(c, "/abort")) abort();
    if (is(c, "/arm")) c->armed = 1;
    if (is(c, "/poison")) item = (int *)16;
    if (is(c, "/mend")) item = &good;
    if (is(c, "/half")) {
        const char start[] = "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nhalf of it";
        if (write(c->fd, start, sizeof start - 1) < 0) perror("write");
        /* A look at whether the client is still there: what was sent has left. */
        char byte;
        if (recv(c->fd, &byte, 1, 0) < 0 && errno == EAGAIN) crash();
        return;
    }
    if (is(c, "/large")) {
        c->owed = 32 << 20;
        snprintf(text, sizeof text, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\n\r\n", c->owed);
        if (write(c->fd, text, strlen(text)) < 0) perror("write");
        send_owed(c);
    } else if (is(c, "/item")) {
        snprintf(text, sizeof text, "item %d", *item);
        reply(c, text);
    } else if (is(c, "/stats")) {
        snprintf(text, sizeof text, "connections %ld parser %ld heap %zu served %ld", connections, parser_bytes,
                 mallinfo2().uordblks, served);
        reply(c, text);
    } else {
        reply(c, "hello");
    }
}

/* Serves the requests that are complete, and keeps the rest. */
static void parse(struct connection *c) {
    char *end;
    while (c->length > 0 && (end = memmem(c->request, c->length, "\r\n\r\n", 4))) {
        size_t n = (size_t)(end - c->request) + 4;
        serve(c);
        memmove(c->request, c->request + n, c->length - n);
        c->length -= n;
    }
    if (c->length > 0) return;
    free(c->request);
    parser_bytes -= (long)c->room;
    c->request = NULL;
    c->room = 0;
}

/* Whether more may be there. */
static int receive(struct connection *c) {
    if (c->length == c->room) {
        size_t more = c->room ? c->room : 4096;
        c->request = realloc(c->request, c->room + more);
        c->room += more;
        parser_bytes += (long)more;
    }
    size_t most = c->room - c->length < chunk ? c->room - c->length : chunk;
    ssize_t n = read(c->fd, c->request + c->length, most);
    if (n < 0 && errno == EAGAIN && c->length > 0) {
        parse(c);
        return 0;
    }
    if (n < 0 && errno == EAGAIN) return 0;
    if (n <= 0) {
        forget(c);
        return 0;
    }
    c->length += (size_t)n;
    if ((size_t)n == chunk) return 1;
    parse(c);
    return 0;
}

static void welcome(int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
    if (fd < 0) return;
    struct connection *c = calloc(1, sizeof *c);
    c->fd = fd;
    connections++;
    watch(c, EPOLL_CTL_ADD, EPOLLIN);
}

int main(int argc, char **argv) {
    if (argc < 2) return 2;
    if (argc > 2) chunk = (size_t)atoi(argv[2]);
    signal(SIGPIPE, SIG_IGN);
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 128)) {
        perror("listen");
        return 1;
    }
    epoll_fd = epoll_create1(0);
    struct epoll_event listening = {.events = EPOLLIN};
    epoll_ctl(epoll_fd, EPOLL_CTL_ADD, listener, &listening);
    for (;;) {
        struct epoll_event events[16];
        int n = epoll_wait(epoll_fd, events, 16, -1);
        for (int i = 0; i < n; i++) {
            struct connection *c = events[i].data.ptr;
            if (!c) {
                welcome(listener);
            } else if (events[i].events == EPOLLOUT) {
                send_owed(c);
            } else {
                while (receive(c)) {
                }
            }
        }
    }
}
