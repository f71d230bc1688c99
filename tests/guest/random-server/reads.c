/* System calls that bring bytes from files, sockets and counters into memory. */
#include "guest.h"

#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static size_t some(struct run *run) {
    return one_in(run, 4) ? below(run, 5 * PAGE) : below(run, 300);
}

static void do_read(struct run *run) {
    size_t len = some(run);
    syscall(SYS_read, data_fd, out(run, len), len);
}

static void do_pread(struct run *run) {
    size_t len = some(run);
    syscall(SYS_pread64, data_fd, out(run, len), len, below(run, 70000));
}

static int vector(struct run *run, struct iovec *parts) {
    int count = 1 + (int)below(run, 4);
    for (int i = 0; i < count; i++) {
        parts[i].iov_len = some(run);
        parts[i].iov_base = out(run, parts[i].iov_len);
    }
    return count;
}

static void do_readv(struct run *run) {
    struct iovec parts[4];
    int count = vector(run, parts);
    syscall(SYS_readv, data_fd, parts, count);
}

static void do_preadv(struct run *run) {
    struct iovec parts[4];
    int count = vector(run, parts);
    if (one_in(run, 2))
        syscall(SYS_preadv, data_fd, parts, count, below(run, 70000), 0);
    else
        syscall(SYS_preadv2, data_fd, parts, count, below(run, 70000), 0, 0);
}

/* Position -1 stands for the file's own, which moves. */
static void do_preadv2_moving(struct run *run) {
    struct iovec parts[4];
    int count = vector(run, parts);
    syscall(SYS_preadv2, data_fd, parts, count, -1, -1, 0);
}

/* A file whose pages are the destination as well. */
static void read_what_is_mapped(struct run *run) {
    syscall(SYS_pread64, data_rw_fd, out(run, 3 * PAGE), 3 * PAGE, below(run, 4) * PAGE);
}

static void read_counter(struct run *run) {
    syscall(SYS_read, one_in(run, 2) ? sum_fd : semaphore_fd, place(run, 8), 8);
}

/* The count is taken although it cannot be delivered. */
static void read_counter_badly(struct run *run) { syscall(SYS_read, semaphore_fd, out(run, 8), 8); }

static void peek(struct run *run) {
    size_t len = some(run);
    int fd = one_in(run, 2) ? run->connection->fd : tcp_pair[1];
    int flags = MSG_PEEK | MSG_DONTWAIT;
    switch (below(run, 3)) {
    case 0:
        syscall(SYS_recvfrom, fd, out(run, len), len, flags, NULL, NULL);
        return;
    case 1: {
        uint32_t *room = (uint32_t *)place(run, 4);
        *room = 28;
        syscall(SYS_recvfrom, fd, out(run, len), len, flags, out(run, 28), room);
        return;
    }
    default: {
        struct iovec parts[4];
        struct msghdr *message = (struct msghdr *)place(run, sizeof *message);
        memset(message, 0, sizeof *message);
        message->msg_iovlen = (size_t)vector(run, parts);
        message->msg_iov = parts;
        message->msg_name = one_in(run, 2) ? NULL : out(run, 28);
        message->msg_namelen = 28;
        syscall(SYS_recvmsg, fd, message, flags);
    }
    }
}

/*
 * TCP_ZEROCOPY_RECEIVE carries an address in its value, at which the kernel writes. The layout is that of
 * struct tcp_zerocopy_receive in linux/tcp.h, which cannot be included together with netinet/tcp.h.
 */
static void zerocopy_receive(struct run *run) {
    struct {
        uint64_t address;
        uint32_t length, recv_skip_hint, inq;
        int32_t err;
        uint64_t copybuf_address;
        int32_t copybuf_len;
        uint32_t flags;
    } value = {.address = (uint64_t)arena, .length = PAGE};
    /* Room for all that is waiting: only then does the kernel copy. */
    enum { OPTION = 35, ROOM = 4 * PAGE };
    value.copybuf_address = (uint64_t)place(run, ROOM);
    value.copybuf_len = ROOM;
    socklen_t len = sizeof value;
    syscall(SYS_getsockopt, tcp_pair[1], IPPROTO_TCP, OPTION, &value, &len);
}

const struct operation read_operations[] = {
    {"read", SET_READ, do_read},
    {"pread", SET_READ, do_pread},
    {"readv", SET_READ, do_readv},
    {"preadv", SET_READ, do_preadv},
    {"preadv2_moving", SET_READ, do_preadv2_moving},
    {"read_what_is_mapped", SET_READ, read_what_is_mapped},
    {"read_counter", SET_READ, read_counter},
    {"read_counter_badly", SET_READ, read_counter_badly},
    {"peek", SET_READ, peek},
    {"zerocopy_receive", SET_READ, zerocopy_receive},
    {0},
};
