/* Reads that take something away, which an abandon gives back. */
#include "effects.h"

#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/uio.h>

#define READ(call, how) static long call##_##how(void)

static char bytes[4096];

READ(read, pipe) { return syscall(SYS_read, pipe_fd[0], bytes, 5) == 5 && !memcmp(bytes, "the b", 5) ? 0 : -1; }
READ(read, pipe_twice) {
    return syscall(SYS_read, pipe_fd[0], bytes, 2) == 2 && syscall(SYS_read, pipe_fd[0], bytes, 3) == 3 ? 0 : -1;
}
READ(read, pair) {
    /* Two reads, each of which sees what comes next. */
    if (syscall(SYS_read, pair_fd[1], bytes, 2) != 2 || syscall(SYS_read, pair_fd[1], bytes + 2, 2) != 2)
        return -1;
    return bytes[2] == bytes[0] + 2 ? 0 : -1;
}
READ(read, eventfd) { return syscall(SYS_read, sum_fd, bytes, 8); }
READ(read, semaphore) { return syscall(SYS_read, semaphore_fd, bytes, 8); }
READ(read, timerfd) { return syscall(SYS_read, ticking_fd, bytes, 8); }
READ(read, file) { return syscall(SYS_read, data_fd, bytes, 123); }
READ(readv, file) {
    struct iovec parts[2] = {{bytes, 10}, {bytes + 100, 20}};
    return syscall(SYS_readv, data_fd, parts, 2);
}
READ(readv, pipe) {
    struct iovec part = {bytes, 4};
    return syscall(SYS_readv, pipe_fd[0], &part, 1);
}
READ(preadv2, current) {
    struct iovec part = {bytes, 30};
    return syscall(SYS_preadv2, data_fd, &part, 1, -1l, 0l, 0);
}
READ(recvfrom, pair) { return syscall(SYS_recvfrom, pair_fd[1], bytes, 1, MSG_DONTWAIT, NULL, NULL); }
READ(recvfrom, peek) { return syscall(SYS_recvfrom, pair_fd[1], bytes, 1, MSG_PEEK, NULL, NULL); }
READ(recvmsg, pair) {
    struct iovec part = {bytes, 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return syscall(SYS_recvmsg, pair_fd[1], &message, 0);
}
static long receive_file(int flags, int cloexec) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control;
    struct iovec part = {bytes, 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    int fd;
    if (syscall(SYS_recvmsg, rights_pair[1], &message, flags) != 3 || memcmp(bytes, "abc", 3) ||
        message.msg_controllen != CMSG_SPACE(sizeof(int)) || control.header.cmsg_type != SCM_RIGHTS)
        return -1;
    memcpy(&fd, CMSG_DATA(&control.header), sizeof fd);
    if (flags != MSG_PEEK && read(rights_pair[1], bytes, 2) != 2)
        return -1;
    return fcntl(fd, F_GETFD) == cloexec && pread(fd, bytes, 10, 0) == 10 ? 0 : -1;
}
READ(recvmsg, rights) { return receive_file(0, 0); }
READ(recvmsg, rights_cloexec) { return receive_file(MSG_CMSG_CLOEXEC, FD_CLOEXEC); }
READ(recvmsg, rights_peek) { return receive_file(MSG_PEEK, 0); }
READ(getdents, directory) { return syscall(SYS_getdents, dir_fd, bytes, 40); }
READ(getdents64, directory) { return syscall(SYS_getdents64, dir_fd, bytes, 40); }

#define ROW(call, how) {#call, #how, 0, call##_##how}
const struct effect reading_effects[] = {
    ROW(read, pipe), ROW(read, pipe_twice), ROW(read, pair), ROW(read, eventfd), ROW(read, semaphore), ROW(read, timerfd),
    ROW(read, file), ROW(readv, file), ROW(readv, pipe), ROW(preadv2, current), ROW(recvfrom, pair),
    {"recvfrom", "peek", INVISIBLE, recvfrom_peek}, ROW(recvmsg, pair), ROW(recvmsg, rights), ROW(recvmsg, rights_cloexec), ROW(recvmsg, rights_peek),
    ROW(getdents, directory),
    ROW(getdents64, directory),
    {0},
};
