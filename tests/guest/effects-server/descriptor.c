/* Descriptors: made, closed, changed. */
#include "effects.h"

#include <fcntl.h>
#include <linux/openat2.h>
#include <mqueue.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/ioctl.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <termios.h>

#define FD(call, how) static long call##_##how(void)

FD(close, file) {
    int fd = open("data", O_RDONLY);
    return fd < 0 ? -1 : syscall(SYS_close, spare_fd) || fcntl(spare_fd, F_GETFD) != -1 ? -1 : 0;
}
FD(close_range, some) { return syscall(SYS_close_range, semaphore_fd, semaphore_fd, 0); }
FD(close_range, cloexec) { return syscall(SYS_close_range, 3, 20, 4); }
FD(dup, file) { return syscall(SYS_dup, data_fd); }
FD(dup2, free) { return syscall(SYS_dup2, data_fd, 200); }
FD(dup2, open) { return syscall(SYS_dup2, data_fd, sum_fd); }
FD(dup2, watched) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 77};
    if (syscall(SYS_dup2, data_rw_fd, ready_count_fd) < 0 || syscall(SYS_dup2, counter_fd, ready_count_fd) < 0)
        return -1;
    return epoll_ctl(spare_epoll, EPOLL_CTL_ADD, ready_count_fd, &event);
}
FD(dup2, closed) { return close(memory_fd) || syscall(SYS_dup2, data_fd, memory_fd) < 0 ? -1 : 0; }
FD(dup3, open) { return syscall(SYS_dup3, data_fd, spare_timer, O_CLOEXEC); }
FD(fcntl, cloexec) { return syscall(SYS_fcntl, data_rw_fd, F_SETFD, 0); }
FD(fcntl, flags) { return syscall(SYS_fcntl, dir_fd, F_SETFL, O_NONBLOCK); }
FD(fcntl, dup) { return syscall(SYS_fcntl, data_fd, F_DUPFD_CLOEXEC, 100); }
FD(fcntl, owner) { return syscall(SYS_fcntl, tcp_pair[0], F_SETOWN, getpid()); }
FD(fcntl, signal) { return syscall(SYS_fcntl, tcp_pair[0], F_SETSIG, SIGUSR1); }
FD(fcntl, pipe_size) { return syscall(SYS_fcntl, quiet_pipe[0], F_SETPIPE_SZ, 1 << 17); }
static long record(int fd, int command, short type, long start, long len) {
    struct flock lock = {.l_type = type, .l_whence = SEEK_SET, .l_start = start, .l_len = len};
    return syscall(SYS_fcntl, fd, command, &lock);
}
FD(fcntl, lock) { return record(record_fd, F_SETLK, F_WRLCK, 100, 50); }
FD(fcntl, lock_part) { return record(record_fd, F_SETLKW, F_RDLCK, 120, 10); }
FD(fcntl, lock_more) { return record(record_fd, F_SETLK, F_WRLCK, 90, 100); }
FD(fcntl, unlock) { return record(record_fd, F_SETLK, F_UNLCK, 110, 0); }
FD(fcntl, lock_open) { return record(other_lock_fd, F_OFD_SETLK, F_WRLCK, 0, 0); }
FD(fcntl, unlock_open) { return record(other_lock_fd, F_OFD_SETLK, F_UNLCK, 5, 5); }
FD(flock, shared) { return syscall(SYS_flock, lock_fd, LOCK_SH); }
FD(flock, exclusive) { return syscall(SYS_flock, lock_fd, LOCK_EX | LOCK_NB); }
FD(flock, weaker) { return syscall(SYS_flock, lock_fd, LOCK_SH); }
FD(flock, none) { return syscall(SYS_flock, lock_fd, LOCK_UN); }
/* One for each request that is undone, by its name. */
static long request(int fd, unsigned long number, int value) { return syscall(SYS_ioctl, fd, number, &value); }
FD(ioctl, fionbio) { return request(tcp_pair[0], FIONBIO, 1); }
FD(ioctl, fioasync) { return request(pair_fd[0], FIOASYNC, 1); }
FD(ioctl, fioclex) { return syscall(SYS_ioctl, master_fd, FIOCLEX); }
FD(ioctl, fionclex) { return syscall(SYS_ioctl, master_fd, FIONCLEX); }
FD(ioctl, fiosetown) { return request(udp_fd, FIOSETOWN, getpid()); }
FD(ioctl, siocspgrp) { return request(tcp_pair[0], SIOCSPGRP, -getpgrp()); }
FD(ioctl, tiocpkt) { return request(master_fd, TIOCPKT, 1); }
FD(ioctl, tiocsptlck) { return request(master_fd, TIOCSPTLCK, 0); }
FD(ioctl, tiocgptpeer) { return syscall(SYS_ioctl, master_fd, TIOCGPTPEER, O_RDWR | O_NOCTTY); }
/* The settings as the kernel has them, in 44 bytes; the first 36 are those of before. */
static long settings(unsigned long get, unsigned long set, unsigned bits) {
    unsigned value[11];
    if (syscall(SYS_ioctl, master_fd, get, value))
        return -1;
    value[3] ^= bits;
    return syscall(SYS_ioctl, master_fd, set, value);
}
FD(ioctl, tcsets) { return settings(TCGETS, TCSETS, ECHO); }
FD(ioctl, tcsets2) { return settings(0x802c542a, 0x402c542b, ISIG); }
FD(ioctl, tcseta) {
    unsigned short value[9];
    if (syscall(SYS_ioctl, master_fd, TCGETA, value))
        return -1;
    value[3] ^= ICANON;
    return syscall(SYS_ioctl, master_fd, TCSETA, value);
}
FD(pipe, two) {
    int pair[2];
    return syscall(SYS_pipe, pair);
}
FD(pipe2, two) {
    int pair[2];
    return syscall(SYS_pipe2, pair, O_CLOEXEC);
}
FD(socketpair, two) {
    int pair[2];
    return syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, pair);
}
FD(memfd_create, one) { return syscall(SYS_memfd_create, "m", 0); }
FD(open, file) { return syscall(SYS_open, "data", O_RDWR, 0); }
FD(openat, file) { return syscall(SYS_openat, dir_fd, "two", O_RDONLY, 0); }
FD(openat2, file) {
    struct open_how how = {.flags = O_RDONLY};
    return syscall(SYS_openat2, dir_fd, "two", &how, sizeof how);
}
FD(inotify_init, one) { return syscall(SYS_inotify_init); }
FD(inotify_init1, one) { return syscall(SYS_inotify_init1, O_NONBLOCK); }
FD(inotify_add_watch, another) { return syscall(SYS_inotify_add_watch, inotify_fd, "directory", IN_CREATE); }
FD(inotify_add_watch, changed) { return syscall(SYS_inotify_add_watch, inotify_fd, "data", IN_ATTRIB); }
FD(epoll_create, one) { return syscall(SYS_epoll_create, 1); }
FD(epoll_create1, one) { return syscall(SYS_epoll_create1, 0); }
static long interest(int operation, int fd, uint32_t events) {
    struct epoll_event event = {.events = events, .data.u64 = events};
    return syscall(SYS_epoll_ctl, spare_epoll, operation, fd, &event);
}
FD(epoll_ctl, add) { return interest(EPOLL_CTL_ADD, quiet_pipe[0], EPOLLIN); }
FD(epoll_ctl, mod) { return interest(EPOLL_CTL_MOD, quiet_pipe[0], EPOLLIN | EPOLLET); }
FD(epoll_ctl, del) { return interest(EPOLL_CTL_DEL, quiet_pipe[0], 0); }
FD(eventfd, one) { return syscall(SYS_eventfd, 1); }
FD(eventfd2, one) { return syscall(SYS_eventfd2, 1, EFD_NONBLOCK); }
/* SIGHUP and SIGQUIT; SIGINT and SIGQUIT. */
static const unsigned long other_signals = 5, third_signals = 6;
FD(signalfd, one) { return syscall(SYS_signalfd, -1, &other_signals, 8); }
FD(signalfd, changed) { return syscall(SYS_signalfd, signals_fd, &other_signals, 8); }
FD(signalfd4, one) { return syscall(SYS_signalfd4, -1, &other_signals, 8, SFD_CLOEXEC); }
FD(signalfd4, changed) { return syscall(SYS_signalfd4, signals_fd, &third_signals, 8, 0); }
FD(timerfd_create, one) { return syscall(SYS_timerfd_create, CLOCK_MONOTONIC, 0); }
FD(timerfd_settime, armed) {
    struct itimerspec setting = {{3, 0}, {8000, 0}};
    return syscall(SYS_timerfd_settime, ticking_fd, 0, &setting, NULL);
}
FD(timerfd_settime, disarmed) {
    struct itimerspec setting = {0}, old;
    return syscall(SYS_timerfd_settime, ticking_fd, 0, &setting, &old);
}
FD(mq_getsetattr, nonblocking) {
    struct mq_attr attributes = {.mq_flags = O_NONBLOCK}, old;
    return syscall(SYS_mq_getsetattr, queue_fd, &attributes, &old);
}
FD(socket, tcp) { return syscall(SYS_socket, AF_INET, SOCK_STREAM, 0); }
static long option(int fd, int level, int name, int value) {
    return syscall(SYS_setsockopt, fd, level, name, &value, sizeof value);
}
FD(setsockopt, keepalive) { return option(tcp_pair[0], SOL_SOCKET, SO_KEEPALIVE, 1); }
FD(setsockopt, idle) { return option(tcp_pair[0], IPPROTO_TCP, TCP_KEEPIDLE, 77); }
FD(setsockopt, buffer) { return option(udp_fd, SOL_SOCKET, SO_RCVBUF, 30000); }
FD(pidfd_open, self) { return syscall(SYS_pidfd_open, getpid(), 0); }
FD(lseek, file) { return syscall(SYS_lseek, data_fd, 4321l, SEEK_SET); }

#define ROW(call, how) {#call, #how, 0, call##_##how}
const struct effect descriptor_effects[] = {
    ROW(close_range, cloexec), ROW(dup, file), ROW(dup2, free), ROW(dup2, open), ROW(dup2, watched),
    ROW(dup2, closed), ROW(dup3, open), ROW(fcntl, cloexec), ROW(fcntl, flags), ROW(fcntl, dup), ROW(fcntl, owner),
    ROW(fcntl, signal), ROW(fcntl, pipe_size), ROW(fcntl, lock), ROW(fcntl, lock_part), ROW(fcntl, lock_more),
    ROW(fcntl, unlock), ROW(fcntl, lock_open), ROW(fcntl, unlock_open), ROW(flock, shared), ROW(flock, exclusive),
    ROW(flock, weaker), ROW(flock, none), ROW(ioctl, fionbio), ROW(ioctl, fioasync), ROW(ioctl, fioclex),
    ROW(ioctl, fionclex), ROW(ioctl, fiosetown), ROW(ioctl, siocspgrp), ROW(ioctl, tcsets), ROW(ioctl, tcsets2),
    ROW(ioctl, tcseta), ROW(ioctl, tiocpkt), ROW(ioctl, tiocsptlck), ROW(ioctl, tiocgptpeer), ROW(pipe, two), ROW(pipe2, two), ROW(socketpair, two),
    ROW(memfd_create, one), ROW(open, file), ROW(openat, file), ROW(openat2, file), ROW(inotify_init, one),
    ROW(inotify_init1, one), ROW(inotify_add_watch, another), ROW(inotify_add_watch, changed), ROW(epoll_create, one),
    ROW(epoll_create1, one), ROW(epoll_ctl, add), ROW(epoll_ctl, mod), ROW(epoll_ctl, del), ROW(eventfd, one),
    ROW(eventfd2, one), ROW(signalfd, one), ROW(signalfd, changed), ROW(signalfd4, one), ROW(signalfd4, changed),
    ROW(timerfd_create, one), ROW(timerfd_settime, armed), ROW(timerfd_settime, disarmed),
    ROW(mq_getsetattr, nonblocking), ROW(socket, tcp), ROW(setsockopt, keepalive), ROW(setsockopt, idle),
    ROW(setsockopt, buffer), ROW(pidfd_open, self), ROW(lseek, file), ROW(close, file), ROW(close_range, some),
    {0},
};
