/* A bad pointer in a system call is EFAULT, for every call as on Linux. */
#include "faults.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static int null, zero, pair[2], pipes[2], timer, event, poller;
static struct timespec soon = {0, 1000};
static char bytes[64];

#define CALL(name, ...)                                                                                               \
    {                                                                                                                 \
        errno = 0;                                                                                                    \
        long result = syscall(SYS_##name, __VA_ARGS__);                                                               \
        printf("%s %s: %s\n", where, #name, result < 0 ? strerrorname_np(errno) : "done");                            \
    }

static void calls(const char *where, void *bad)
{
    struct iovec good_then_bad[2] = {{bytes, 4}, {bad, 4}};
    struct iovec only_bad[1] = {{bad, 8}};
    struct msghdr message = {.msg_iov = only_bad, .msg_iovlen = 1};
    struct msghdr no_vector = {.msg_iov = bad, .msg_iovlen = 1};
    struct epoll_event interest = {.events = EPOLLIN};

    if (write(pair[1], "0123456789", 10) != 10 || write(pipes[1], "0123456789", 10) != 10)
        return;
    CALL(read, zero, bad, 8)
    CALL(read, pipes[0], bad, 8)
    CALL(pread64, zero, bad, 8, 0)
    CALL(write, pipes[1], bad, 8)
    CALL(readv, zero, only_bad, 1)
    CALL(readv, zero, bad, 1)
    CALL(writev, pipes[1], only_bad, 1)
    CALL(writev, null, bad, 1)
    CALL(writev, pipes[1], good_then_bad + 1, 1)
    CALL(open, bad, O_RDONLY)
    CALL(openat, AT_FDCWD, bad, O_RDONLY)
    CALL(stat, bad, bytes)
    CALL(stat, "/", bad)
    CALL(fstat, null, bad)
    CALL(newfstatat, AT_FDCWD, "/", bad, 0)
    CALL(statx, AT_FDCWD, "/", 0, 0xfff, bad)
    CALL(access, bad, 0)
    CALL(readlink, "/proc/self/exe", bad, 64)
    CALL(readlink, bad, bytes, 64)
    CALL(getcwd, bad, 64)
    CALL(pipe, bad)
    CALL(pipe2, bad, 0)
    CALL(uname, bad)
    CALL(getrlimit, RLIMIT_CORE, bad)
    CALL(prlimit64, 0, RLIMIT_CORE, NULL, bad)
    CALL(getrusage, RUSAGE_SELF, bad)
    CALL(sysinfo, bad)
    CALL(times, bad)
    CALL(clock_gettime, CLOCK_PROCESS_CPUTIME_ID, bad)
    CALL(clock_getres, CLOCK_MONOTONIC, bad)
    CALL(nanosleep, bad, NULL)
    CALL(clock_nanosleep, CLOCK_MONOTONIC, 0, bad, NULL)
    CALL(rt_sigaction, SIGUSR1, bad, NULL, 8)
    CALL(rt_sigaction, SIGUSR1, NULL, bad, 8)
    CALL(rt_sigprocmask, SIG_BLOCK, bad, NULL, 8)
    CALL(rt_sigprocmask, SIG_BLOCK, NULL, bad, 8)
    CALL(rt_sigpending, bad, 8)
    CALL(sigaltstack, bad, NULL)
    CALL(sigaltstack, NULL, bad)
    CALL(futex, bad, 1 /* FUTEX_WAKE */, 1, NULL, NULL, 0)
    CALL(futex, bad, 0 /* FUTEX_WAIT */, 1, &soon, NULL, 0)
    CALL(futex, bytes, 0, 0, bad, NULL, 0)
    CALL(epoll_ctl, poller, EPOLL_CTL_ADD, pair[0], bad)
    CALL(epoll_ctl, poller, EPOLL_CTL_ADD, pair[0], &interest)
    CALL(epoll_wait, poller, bad, 4, 0)
    CALL(poll, bad, 1, 0)
    CALL(select, 4, bad, NULL, NULL, NULL)
    CALL(recvfrom, pair[0], bad, 8, MSG_DONTWAIT, NULL, NULL)
    CALL(sendto, pair[0], bad, 8, MSG_DONTWAIT, NULL, 0)
    CALL(sendmsg, pair[0], bad, MSG_DONTWAIT)
    CALL(sendmsg, pair[0], &message, MSG_DONTWAIT)
    CALL(sendmsg, pair[0], &no_vector, MSG_DONTWAIT)
    CALL(recvmsg, pair[0], bad, MSG_DONTWAIT)
    CALL(recvmsg, pair[0], &no_vector, MSG_DONTWAIT)
    CALL(socketpair, AF_UNIX, SOCK_STREAM, 0, bad)
    CALL(getsockname, pair[0], bad, bad)
    CALL(getsockopt, pair[0], SOL_SOCKET, SO_TYPE, bad, bad)
    CALL(setsockopt, pair[0], SOL_SOCKET, SO_RCVBUF, bad, 4)
    CALL(timerfd_settime, timer, 0, bad, NULL)
    CALL(timerfd_gettime, timer, bad)
    CALL(write, event, bad, 8)
    CALL(getrandom, bad, 16, 0)
    CALL(gettimeofday, bad, NULL)
    CALL(sched_getaffinity, 0, 8, bad)
    /* What is left of the ten bytes. */
    if (read(pipes[0], bytes, sizeof bytes) < 0 || read(pair[0], bytes, sizeof bytes) < 0)
        return;
    CALL(epoll_ctl, poller, EPOLL_CTL_DEL, pair[0], NULL)
}

void wild_pointers(void)
{
    null = open("/dev/null", O_RDWR);
    zero = open("/dev/zero", O_RDONLY);
    event = eventfd(1, EFD_NONBLOCK);
    poller = epoll_create1(0);
    timer = (int)syscall(SYS_timerfd_create, CLOCK_MONOTONIC, 0);
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair) != 0 || pipe2(pipes, O_NONBLOCK) != 0)
        return;
    char *gone = mmap(NULL, 8192, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    calls("inaccessible", gone);
    munmap(gone, 8192);
    calls("unmapped", gone);
    calls("low", (void *)0x10);
    calls("monitor", (void *)0x600000003000);
    calls("far", (void *)0x7f0000000000);
    calls("noncanonical", (void *)0x8000000000000000);
    calls("kernel", (void *)0xffffffff81000000);
    calls("highest", (void *)~0UL);
    close(null), close(zero), close(event), close(poller), close(timer);
    close(pair[0]), close(pair[1]), close(pipes[0]), close(pipes[1]);
}
