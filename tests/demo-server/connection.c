/* One client's connection: input to lines, lines to replies, replies to the socket.
 *
 * A connection with unsent replies is not read until they are gone, so a client that pipelines without
 * reading cannot make the server hold more than HIGH_WATER bytes plus one reply for it. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server.h"

#define READ_SIZE (16 * 1024)
#define HIGH_WATER (256 * 1024)

void connection_open(struct worker *worker, int fd)
{
    /* A reply is one write: held back for the client's delayed acknowledgement, it would be 40 ms late. */
    setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &(int){1}, sizeof(int));
    struct connection *connection = xmalloc(sizeof *connection);
    *connection = (struct connection){.worker = worker, .fd = fd, .interest = EPOLLIN};
    struct epoll_event event = {.events = connection->interest, .data.ptr = connection};
    if (epoll_ctl(worker->epoll_fd, EPOLL_CTL_ADD, fd, &event) < 0) {
        perror("demo-server: epoll_ctl");
        close(fd);
        free(connection);
        return;
    }
    pthread_rwlock_rdlock(&server.world);
    connection->session = session_open(&server.registry);
    connection->next = worker->connections;
    if (connection->next != NULL)
        connection->next->prev = connection;
    worker->connections = connection;
    worker->connection_count++;
    pthread_rwlock_unlock(&server.world);
}

void connection_close(struct connection *connection)
{
    struct worker *worker = connection->worker;
    pthread_rwlock_rdlock(&server.world);
    *(connection->prev ? &connection->prev->next : &worker->connections) = connection->next;
    if (connection->next != NULL)
        connection->next->prev = connection->prev;
    worker->connection_count--;
    session_close(&server.registry, connection->session);
    pthread_rwlock_unlock(&server.world);
    close(connection->fd);
    buffer_free(&connection->in);
    buffer_free(&connection->out);
    free(connection);
}

/* Executes complete lines until there are none, or there is enough to send first. */
static void process_lines(struct connection *connection)
{
    struct buffer *in = &connection->in;
    while (!connection->closing && buffer_pending(in) > 0 && buffer_pending(&connection->out) < HIGH_WATER) {
        char *line = in->data + in->start;
        char *newline = memchr(line, '\n', buffer_pending(in));
        if (newline == NULL) {
            if (buffer_pending(in) > MAX_LINE) {
                buffer_printf(&connection->out, "-ERR line too long\n");
                connection->closing = true;
            }
            return;
        }
        size_t len = (size_t)(newline - line);
        *newline = '\0';
        if (len > 0 && line[len - 1] == '\r')
            line[len - 1] = '\0';
        command_execute(connection, line, strlen(line));
        buffer_consume(in, (size_t)(newline - line) + 1);
    }
}

/* Sends what the socket takes. False: the connection is gone. */
static bool flush(struct connection *connection)
{
    struct buffer *out = &connection->out;
    while (buffer_pending(out) > 0) {
        ssize_t sent = write(connection->fd, out->data + out->start, buffer_pending(out));
        if (sent > 0)
            buffer_consume(out, (size_t)sent);
        else if (sent < 0 && errno == EAGAIN)
            return true;
        else if (sent == 0 || errno != EINTR)
            return false;
    }
    if (out->capacity > HIGH_WATER)
        buffer_free(out);
    return true;
}

static bool set_interest(struct connection *connection, unsigned events)
{
    if (connection->interest == events)
        return true;
    struct epoll_event event = {.events = events, .data.ptr = connection};
    connection->interest = events;
    return epoll_ctl(connection->worker->epoll_fd, EPOLL_CTL_MOD, connection->fd, &event) == 0;
}

/* Sends and executes in turns until one of them has to wait. False: close the connection. */
static bool advance(struct connection *connection)
{
    size_t unread, replies;
    do {
        if (!flush(connection))
            return false;
        if (buffer_pending(&connection->out) > 0)
            return set_interest(connection, EPOLLOUT);
        unread = buffer_pending(&connection->in);
        process_lines(connection);
        replies = buffer_pending(&connection->out);
    } while (replies > 0 || buffer_pending(&connection->in) < unread);
    return !connection->closing && set_interest(connection, EPOLLIN);
}

void connection_event(struct connection *connection, unsigned events)
{
    bool alive = true;
    if (connection->interest == EPOLLIN) {
        char *room = buffer_reserve(&connection->in, READ_SIZE);
        ssize_t got = read(connection->fd, room, READ_SIZE);
        if (got > 0)
            connection->in.end += (size_t)got;
        else
            alive = got < 0 && (errno == EAGAIN || errno == EINTR);
    } else if (events & (EPOLLERR | EPOLLHUP)) {
        alive = false; /* nobody is left to read the replies */
    }
    if (!alive || !advance(connection))
        connection_close(connection);
}
