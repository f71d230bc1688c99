/* Output to peers, to files, and what makes it durable. */
#include "effects.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>

#define OUT(call, how) static long call##_##how(void)

static char bytes[3000];

OUT(write, tcp) { return syscall(SYS_write, tcp_pair[1], bytes, 100); }
OUT(write, file) { return syscall(SYS_write, lock_fd, "12345", 5); }
OUT(write, append) { return syscall(SYS_write, log_fd, "a line\n", 7); }
OUT(write, pipe) { return syscall(SYS_write, quiet_pipe[1], "abc", 3); }
OUT(write, pair) { return syscall(SYS_write, pair_fd[1], "abc", 3); }
OUT(write, records) {
    /* Two records, which the peer has to find as two. */
    return syscall(SYS_write, record_pair[0], "one", 3) < 0 ? -1 : syscall(SYS_write, record_pair[0], "two!", 4);
}
OUT(write, eventfd) {
    uint64_t one = 1;
    return syscall(SYS_write, counter_fd, &one, 8);
}
OUT(writev, tcp) {
    struct iovec parts[2] = {{bytes, 10}, {bytes + 20, 30}};
    return syscall(SYS_writev, tcp_pair[1], parts, 2);
}
OUT(writev, file) {
    struct iovec parts[2] = {{"ab", 2}, {"cd", 2}};
    return syscall(SYS_writev, lock_fd, parts, 2);
}
OUT(sendfile, offset) {
    off_t at = 100;
    return syscall(SYS_sendfile, tcp_pair[1], open_fd, &at, 500);
}
OUT(sendfile, current) { return syscall(SYS_sendfile, tcp_pair[1], open_fd, NULL, 500); }
OUT(sendto, tcp) { return syscall(SYS_sendto, tcp_pair[1], bytes, 200, MSG_NOSIGNAL, NULL, 0); }
OUT(sendto, more) { return syscall(SYS_sendto, tcp_pair[1], bytes, 200, MSG_MORE, NULL, 0); }
OUT(sendto, pair) { return syscall(SYS_sendto, pair_fd[1], "xyz", 3, 0, NULL, 0); }
OUT(sendto, datagram) { return syscall(SYS_sendto, udp_pair[0], "xyz", 3, 0, NULL, 0); }
OUT(sendto, udp) {
    struct sockaddr_in to = {.sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    return syscall(SYS_sendto, udp_fd, "xyz", 3, 0, &to, sizeof to);
}
OUT(sendmsg, tcp) {
    struct iovec part = {bytes, 300};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
    return syscall(SYS_sendmsg, tcp_pair[1], &message, 0);
}
OUT(sendmsg, rights) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec part = {bytes, 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    memcpy(CMSG_DATA(&control.header), &open_fd, sizeof open_fd);
    return syscall(SYS_sendmsg, pair_fd[1], &message, 0);
}
OUT(sendmmsg, datagrams) {
    struct iovec parts[2] = {{"one", 3}, {"three", 5}};
    struct mmsghdr messages[2] = {{.msg_hdr = {.msg_iov = &parts[0], .msg_iovlen = 1}},
                                  {.msg_hdr = {.msg_iov = &parts[1], .msg_iovlen = 1}}};
    long sent = syscall(SYS_sendmmsg, udp_pair[0], messages, 2, 0);
    return sent == 2 && messages[1].msg_len == 5 ? 0 : -1;
}
OUT(shutdown, pair) { return syscall(SYS_shutdown, closing_pair[0], SHUT_WR); }
OUT(pwrite64, file) { return syscall(SYS_pwrite64, lock_fd, "pwrite", 6, 50l); }
OUT(pwrite64, longer) { return syscall(SYS_pwrite64, lock_fd, "pwrite", 6, 20000l); }
OUT(pwritev, file) {
    struct iovec parts[2] = {{"AB", 2}, {"CD", 2}};
    return syscall(SYS_pwritev, lock_fd, parts, 2, 70l, 0l);
}
OUT(pwritev2, file) {
    struct iovec part = {"EF", 2};
    return syscall(SYS_pwritev2, lock_fd, &part, 1, 80l, 0l, 0);
}
OUT(pwritev2, current) {
    struct iovec part = {"GH", 2};
    return syscall(SYS_pwritev2, lock_fd, &part, 1, -1l, 0l, 0);
}
OUT(fsync, file) { return write_append() < 0 ? -1 : syscall(SYS_fsync, log_fd); }
OUT(fdatasync, file) { return write_append() < 0 ? -1 : syscall(SYS_fdatasync, log_fd); }
OUT(sync, all) { return write_append() < 0 ? -1 : syscall(SYS_sync); }
OUT(syncfs, file) { return write_append() < 0 ? -1 : syscall(SYS_syncfs, log_fd); }
OUT(sync_file_range, file) { return write_append() < 0 ? -1 : syscall(SYS_sync_file_range, log_fd, 0l, 0l, 2); }
OUT(msync, shared) {
    shared[7]++;
    return syscall(SYS_msync, shared, PAGE, MS_SYNC);
}

/* What a request sees of its own writes does not make them real. */
/* Of what shares its inode with the one that is written to, and with everything else that has no name. */
OUT(fstat, anonymous) {
    uint64_t one = 1;
    struct stat info;
    return write(counter_fd, &one, 8) == 8 && fstat(spare_epoll, &info) == 0 ? 0 : -1;
}
OUT(fstat, own) {
    struct stat before, after;
    int fails = fstat(lock_fd, &before) || pwrite(lock_fd, "more", 4, before.st_size) != 4 || fstat(lock_fd, &after);
    return fails || after.st_size != before.st_size + 4 ? -1 : 0;
}
OUT(lseek, own) {
    off_t at = lseek(lock_fd, 0, SEEK_CUR);
    int fails = write(lock_fd, "written", 7) != 7 || lseek(lock_fd, 0, SEEK_CUR) != at + 7;
    return fails || lseek(lock_fd, -1, SEEK_END) < 0 || write(lock_fd, "ab", 2) != 2 ? -1 : 0;
}
OUT(read, own) {
    char back[8] = "";
    int fails = pwrite(lock_fd, "to be read", 10, 200) != 10 || lseek(lock_fd, 203, SEEK_SET) != 203;
    return fails || read(lock_fd, back, 7) != 7 || memcmp(back, "be read", 7) ? -1 : 0;
}

#define ROW(call, how) {#call, #how, 0, call##_##how}
const struct effect output_effects[] = {
    ROW(write, tcp), ROW(write, file), ROW(write, append), ROW(write, pipe), ROW(write, pair), ROW(write, records),
    ROW(write, eventfd), ROW(writev, tcp), ROW(writev, file), ROW(sendfile, offset), ROW(sendfile, current), ROW(sendto, tcp),
    {"sendto", "more", INVISIBLE, sendto_more}, ROW(sendto, pair), ROW(sendto, datagram), {"sendto", "udp", INVISIBLE, sendto_udp},
    ROW(sendmsg, tcp), ROW(sendmsg, rights), ROW(sendmmsg, datagrams), ROW(shutdown, pair),
    ROW(pwrite64, file), ROW(pwrite64, longer), ROW(pwritev, file), ROW(pwritev2, file), ROW(pwritev2, current),
    ROW(fsync, file), ROW(fdatasync, file), ROW(sync, all), ROW(syncfs, file), ROW(sync_file_range, file),
    ROW(msync, shared), ROW(fstat, own), ROW(fstat, anonymous), ROW(lseek, own), ROW(read, own),
    {0},
};
