/* System calls that tell something: the kernel writes a structure, and nothing else changes. */
#include "guest.h"

#include <asm/prctl.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define OP(name) static void name(struct run *run)

static const char *path(struct run *run) {
    static const char *const paths[] = {"data", "directory", "link", "/proc/self/exe", "missing", "/"};
    return paths[below(run, 6)];
}

static int any_fd(struct run *run) {
    const int fds[] = {data_fd, dir_fd, counter_fd, spare_epoll, tcp_pair[0], run->connection->fd, 0, -1, 999};
    return fds[below(run, sizeof fds / sizeof *fds)];
}

OP(do_getrusage) { syscall(SYS_getrusage, RUSAGE_SELF, out(run, 144)); }
OP(do_times) { syscall(SYS_times, out(run, 32)); }
OP(do_sysinfo) { syscall(SYS_sysinfo, out(run, 112)); }
OP(do_uname) { syscall(SYS_uname, out(run, 390)); }
OP(do_clock_gettime) { syscall(SYS_clock_gettime, below(run, 12), out(run, 16)); }
OP(do_clock_getres) { syscall(SYS_clock_getres, below(run, 12), out(run, 16)); }
OP(do_gettimeofday) { syscall(SYS_gettimeofday, out(run, 16), one_in(run, 2) ? NULL : out(run, 8)); }
OP(do_time) { syscall(SYS_time, out(run, 8)); }
OP(do_getcpu) { syscall(SYS_getcpu, out(run, 4), out(run, 4), NULL); }
OP(do_getcwd) { syscall(SYS_getcwd, out(run, 300), below(run, 301)); }
OP(do_getrandom) {
    size_t len = below(run, 3 * PAGE);
    syscall(SYS_getrandom, out(run, len), len, 0);
}
OP(do_getgroups) { syscall(SYS_getgroups, 32, out(run, 128)); }
OP(do_getresuid) { syscall(SYS_getresuid, out(run, 4), out(run, 4), out(run, 4)); }
OP(do_getresgid) { syscall(SYS_getresgid, out(run, 4), out(run, 4), out(run, 4)); }
OP(do_capget) {
    uint32_t *header = (uint32_t *)place(run, 8);
    header[0] = one_in(run, 4) ? 0x19980330 : 0x20080522;
    header[1] = 0;
    syscall(SYS_capget, header, out(run, 24));
}
OP(do_getrlimit) { syscall(SYS_getrlimit, below(run, 16), out(run, 16)); }
OP(do_prlimit) { syscall(SYS_prlimit64, 0, below(run, 16), NULL, out(run, 16)); }
OP(do_getaffinity) { syscall(SYS_sched_getaffinity, 0, 8 * (1 + below(run, 128)), out(run, 1024)); }
OP(do_getparam) { syscall(SYS_sched_getparam, 0, out(run, 4)); }
OP(do_getattr) { syscall(SYS_sched_getattr, 0, out(run, 56), 48 + 8 * below(run, 2), 0); }
OP(do_rr_interval) { syscall(SYS_sched_rr_get_interval, 0, out(run, 16)); }
OP(do_getitimer) { syscall(SYS_getitimer, below(run, 3), out(run, 32)); }
OP(do_timerfd_gettime) { syscall(SYS_timerfd_gettime, spare_timer, out(run, 32)); }
OP(do_robust_list) { syscall(SYS_get_robust_list, 0, out(run, 8), out(run, 8)); }
OP(do_mincore) { syscall(SYS_mincore, arena, 64 * PAGE, out(run, 64)); }
OP(do_fs_base) { syscall(SYS_arch_prctl, one_in(run, 2) ? ARCH_GET_FS : ARCH_GET_GS, out(run, 8)); }
OP(do_get_name) { syscall(SYS_prctl, PR_GET_NAME, out(run, 16), 0, 0, 0); }
OP(do_get_pdeathsig) { syscall(SYS_prctl, PR_GET_PDEATHSIG, out(run, 4), 0, 0, 0); }

OP(do_fstat) { syscall(SYS_fstat, any_fd(run), out(run, 144)); }
OP(do_stat) { syscall(SYS_stat, path(run), out(run, 144)); }
OP(do_lstat) { syscall(SYS_lstat, path(run), out(run, 144)); }
OP(do_fstatat) {
    if (one_in(run, 2))
        syscall(SYS_newfstatat, dir_fd, "one", out(run, 144), 0);
    else
        syscall(SYS_newfstatat, any_fd(run), "", out(run, 144), AT_EMPTY_PATH);
}
OP(do_statx) { syscall(SYS_statx, AT_FDCWD, path(run), 0, STATX_BASIC_STATS, out(run, 256)); }
OP(do_statfs) { syscall(SYS_statfs, path(run), out(run, 120)); }
OP(do_fstatfs) { syscall(SYS_fstatfs, any_fd(run), out(run, 120)); }
OP(do_readlink) {
    size_t len = 1 + below(run, 200);
    if (one_in(run, 2))
        syscall(SYS_readlink, path(run), out(run, len), len);
    else
        syscall(SYS_readlinkat, AT_FDCWD, path(run), out(run, len), len);
}
OP(do_listxattr) { syscall(SYS_listxattr, path(run), out(run, 100), 100); }
OP(do_getxattr) { syscall(SYS_fgetxattr, data_fd, "user.none", out(run, 100), 100); }

static void *length(struct run *run, uint32_t value) {
    if (one_in(run, 8))
        return bad(run, 4);
    char *at = place(run, 4);
    __builtin_memcpy(at, &value, sizeof value);
    return at;
}
OP(do_getsockopt) {
    static const int options[][2] = {
        {SOL_SOCKET, SO_RCVBUF}, {SOL_SOCKET, SO_ERROR}, {SOL_SOCKET, SO_LINGER}, {SOL_SOCKET, SO_RCVTIMEO},
        {SOL_SOCKET, SO_PEERCRED}, {IPPROTO_TCP, TCP_INFO}, {IPPROTO_TCP, TCP_NODELAY},
        {IPPROTO_TCP, TCP_CONGESTION}, {IPPROTO_IP, IP_TTL}, {SOL_SOCKET, 9999},
    };
    const int *option = options[below(run, sizeof options / sizeof *options)];
    uint32_t len = (uint32_t)below(run, 260);
    syscall(SYS_getsockopt, any_fd(run), option[0], option[1], out(run, len), length(run, len));
}
OP(do_getsockname) { syscall(SYS_getsockname, any_fd(run), out(run, 28), length(run, 1 + below(run, 28))); }
OP(do_getpeername) { syscall(SYS_getpeername, any_fd(run), out(run, 28), length(run, 1 + below(run, 28))); }
OP(do_fionread) { syscall(SYS_ioctl, any_fd(run), FIONREAD, out(run, 4)); }
OP(do_tcgets) { syscall(SYS_ioctl, any_fd(run), TCGETS, out(run, 36)); }

OP(do_old_signal_stack) { syscall(SYS_sigaltstack, NULL, out(run, 24)); }
OP(do_old_action) { syscall(SYS_rt_sigaction, 1 + below(run, 64), NULL, out(run, 32), 8); }
OP(do_old_mask) { syscall(SYS_rt_sigprocmask, 0, NULL, out(run, 8), 8); }
OP(do_pending) { syscall(SYS_rt_sigpending, out(run, 8), 8); }
OP(do_wake_op) {
    uint32_t *first = (uint32_t *)((uintptr_t)place(run, 8) & ~3ul);
    uint32_t *second = (uint32_t *)((uintptr_t)out(run, 4) & ~3ul);
    syscall(SYS_futex, first, FUTEX_WAKE_OP, 1, 1, second, FUTEX_OP(FUTEX_OP_ADD, 7, FUTEX_OP_CMP_EQ, 0));
}
/* Reaches into the address space of a process: must not be carried out. */
OP(do_process_vm) {
    struct iovec to = {place(run, 64), 64}, from = {arena, 64};
    expect(run, syscall(SYS_process_vm_readv, getpid(), &to, 1, &from, 1, 0) < 0, "process_vm_readv");
}

#define ROW(name) {#name, SET_READ, do_##name}
const struct operation info_operations[] = {
    ROW(getrusage), ROW(times), ROW(sysinfo), ROW(uname), ROW(clock_gettime), ROW(clock_getres),
    ROW(gettimeofday), ROW(time), ROW(getcpu), ROW(getcwd), ROW(getrandom), ROW(getgroups), ROW(getresuid),
    ROW(getresgid), ROW(capget), ROW(getrlimit), ROW(prlimit), ROW(getaffinity), ROW(getparam), ROW(getattr),
    ROW(rr_interval), ROW(getitimer), ROW(timerfd_gettime), ROW(robust_list), ROW(mincore),
    ROW(fs_base), ROW(get_name), ROW(get_pdeathsig), ROW(fstat), ROW(stat), ROW(lstat), ROW(fstatat),
    ROW(statx), ROW(statfs), ROW(fstatfs), ROW(readlink), ROW(listxattr), ROW(getxattr), ROW(getsockopt),
    ROW(getsockname), ROW(getpeername), ROW(fionread), ROW(tcgets), ROW(old_signal_stack), ROW(old_action),
    ROW(old_mask), ROW(pending), ROW(wake_op), ROW(process_vm),
    {0},
};
