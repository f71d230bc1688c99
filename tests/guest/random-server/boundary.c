/*
 * Calls that ask for work without waiting for it: each ends the domain that makes it. Those that change what
 * the kernel knows are among the external ones.
 */
#include "guest.h"

#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static struct timespec *no_time(struct run *run) {
    struct timespec *time = (struct timespec *)place(run, sizeof *time);
    memset(time, 0, sizeof *time);
    return time;
}

static void do_poll(struct run *run) {
    struct pollfd *entries = (struct pollfd *)place(run, 4 * sizeof *entries);
    const int fds[] = {counter_fd, tcp_pair[1], quiet_pipe[0], 999};
    for (int i = 0; i < 4; i++)
        entries[i] = (struct pollfd){.fd = fds[i], .events = POLLIN};
    if (one_in(run, 2))
        syscall(SYS_poll, entries, 4, 0);
    else
        syscall(SYS_ppoll, entries, 4, no_time(run), NULL, 8);
}

static void do_select(struct run *run) {
    fd_set *sets[3];
    for (int i = 0; i < 3; i++) {
        sets[i] = one_in(run, 4) ? NULL : (fd_set *)place(run, sizeof(fd_set));
        if (sets[i]) {
            memset(sets[i], 0, sizeof(fd_set));
            FD_SET(counter_fd, sets[i]);
            FD_SET(tcp_pair[1], sets[i]);
        }
    }
    struct timespec *time = no_time(run);
    if (one_in(run, 2))
        syscall(SYS_select, tcp_pair[1] + 1, sets[0], sets[1], sets[2], time);
    else
        syscall(SYS_pselect6, tcp_pair[1] + 1, sets[0], sets[1], sets[2], time, NULL);
}

static void do_epoll_wait(struct run *run) {
    int room = 1 + (int)below(run, 400);
    void *events = out(run, (size_t)room * sizeof(struct epoll_event));
    if (one_in(run, 2))
        syscall(SYS_epoll_wait, spare_epoll, events, room, 0);
    else
        syscall(SYS_epoll_pwait, spare_epoll, events, room, 0, NULL, 8);
}

static void do_accept(struct run *run) {
    uint32_t *len = (uint32_t *)place(run, 4);
    *len = 16;
    syscall(SYS_accept4, idle_listener, out(run, 16), len, 0);
}

static void receive_stream(struct run *run) {
    size_t len = below(run, 20);
    syscall(SYS_recvfrom, tcp_pair[1], place(run, len), len, MSG_DONTWAIT, NULL, NULL);
}

/*
 * So that there is always something to peek at, but never so much that the kernel keeps a part of it back: that would
 * come at any time.
 */
static void send_stream(struct run *run) {
    enum { ENOUGH = 32 << 10 };
    char bytes[PAGE];
    size_t len = below(run, sizeof bytes);
    int waiting = 0;
    if (ioctl(tcp_pair[1], FIONREAD, &waiting) || waiting > ENOUGH)
        return;
    memset(bytes, 'q', sizeof bytes);
    syscall(SYS_sendto, tcp_pair[0], bytes, len, MSG_DONTWAIT, NULL, 0);
}

static void receive_datagram(struct run *run) {
    struct sockaddr_in own;
    socklen_t own_len = sizeof own;
    if (getsockname(udp_fd, (struct sockaddr *)&own, &own_len) == 0 && own.sin_port)
        sendto(udp_fd, "datagram", 8, 0, (struct sockaddr *)&own, sizeof own);
    uint32_t *len = (uint32_t *)place(run, 4);
    *len = 16;
    syscall(SYS_recvfrom, udp_fd, out(run, 100), 100, 0, out(run, 16), len);
}

static void wait_for_signal(struct run *run) {
    uint64_t set = 1ull << 50;
    syscall(SYS_rt_sigtimedwait, &set, out(run, 128), no_time(run), 8);
}

static void wait_for_child(struct run *run) {
    syscall(SYS_wait4, -1, out(run, 4), WNOHANG, out(run, 144));
}

const struct operation boundary_operations[] = {
    {"poll", SET_BOUNDARY, do_poll},
    {"select", SET_BOUNDARY, do_select},
    {"epoll_wait", SET_BOUNDARY, do_epoll_wait},
    {"accept", SET_BOUNDARY, do_accept},
    {"receive_stream", SET_EXTERNAL, receive_stream},
    {"send_stream", SET_EXTERNAL, send_stream},
    {"receive_datagram", SET_EXTERNAL, receive_datagram},
    {"wait_for_signal", SET_BOUNDARY, wait_for_signal},
    {"wait_for_child", SET_EXTERNAL, wait_for_child},
    {0},
};
