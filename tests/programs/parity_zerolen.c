// Calls of length zero with NULL or unmapped pointers: natively most succeed with 0.
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <sys/syscall.h>
#include <sys/epoll.h>
#include <unistd.h>
#include <poll.h>
#define T(e) do { errno = 0; long r = (long)(e); printf("%-60s = %ld %s\n", #e, r, r < 0 ? strerrorname_np(errno) : ""); fflush(stdout); } while (0)
int main(void) {
    char name[] = "/tmp/zerolenXXXXXX"; int f = mkstemp(name); unlink(name);
    write(f, "abc", 3);
    int p[2], s[2], d[2]; pipe(p); socketpair(AF_UNIX, SOCK_STREAM, 0, s); socketpair(AF_UNIX, SOCK_DGRAM, 0, d);
    int z = open("/dev/null", O_RDWR);
    void *bad[] = { NULL, (void *)0x1000, (void *)0x7f0000000000, (void *)-4096L };
    for (int i = 0; i < 4; i++) {
        void *b = bad[i]; struct iovec v = { b, 0 }; struct msghdr m = { .msg_iov = &v, .msg_iovlen = 1 }, m0 = { .msg_iov = b, .msg_iovlen = 0 };
        printf("pointer %p\n", b);
        T(pwrite(f, b, 0, 0)); T(write(f, b, 0)); T(read(f, b, 0)); T(pread(f, b, 0, 0));
        T(write(p[1], b, 0)); T(write(z, b, 0)); T(read(z, b, 0));
        T(writev(f, &v, 1)); T(readv(f, &v, 1)); T(pwritev(f, &v, 1, 0)); T(preadv(f, &v, 1, 0)); T(writev(f, b, 0)); T(readv(f, b, 0));
        T(write(s[0], b, 0)); T(send(s[0], b, 0, 0)); T(sendmsg(s[0], &m, 0)); T(sendmsg(s[0], &m0, 0));
        T(send(s[0], "x", 1, 0)); T(recv(s[1], b, 0, MSG_DONTWAIT)); T(read(s[1], b, 0)); T(recvmsg(s[1], &m, MSG_DONTWAIT));
        T(send(d[0], b, 0, 0)); T(recv(d[1], b, 0, MSG_DONTWAIT)); T(sendmsg(d[0], &m0, 0)); T(recvmsg(d[1], &m0, MSG_DONTWAIT));
        T(getrandom(b, 0, 0)); T(poll(b, 0, 0)); T(syscall(SYS_getgroups, 0, b)); T(syscall(SYS_mincore, 0x400000, 0, b));
        T(fsync(f));
    }
    return 0;
}
