// A server whose requests try to reach the memory of whoever runs it. The port is the argument.
//
// `calls ADDRESS` makes system calls with pointers to ADDRESS and answers with the names of those that
// succeeded; `sweep ADDRESS` makes every system call with it as every argument; `read|write|run ADDRESS`
// accesses it directly; `fs ADDRESS` makes it the thread pointer and writes through GS;
// `parent` looks for the parent's memory in a child; `thread ADDRESS` ends a thread whose exit the kernel notes at ADDRESS; `port`
// writes to an I/O port; `crash` crashes; `fd N` uses descriptor N in every way; anything else is echoed.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "serve.h"

static char answer[8192];

static void succeeded(const char *what)
{
	size_t length = strlen(answer);
	snprintf(answer + length, sizeof answer - length, "%s ", what);
}

#define TRY(name, ...)                                                                                       \
	do {                                                                                                 \
		if (syscall(__VA_ARGS__) >= 0)                                                               \
			succeeded(name);                                                                     \
	} while (0)

static void calls(unsigned long at)
{
	int pipes[2], pair[2], file = open("/proc/self/exe", O_RDONLY);
	if (pipe2(pipes, O_NONBLOCK) || socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair))
		return;
	if (write(pipes[1], "abcdefgh", 8) != 8 || write(pair[1], "abcdefgh", 8) != 8)
		return;
	unsigned long start = at & ~4095ul;
	struct iovec inner = {(void *)at, 8};
	struct msghdr message = {.msg_iov = &inner, .msg_iovlen = 1};
	struct msghdr outer = {.msg_iov = (void *)at, .msg_iovlen = 1};
	struct msghdr named = {.msg_name = (void *)at, .msg_namelen = 16, .msg_iov = &inner, .msg_iovlen = 0};
	struct msghdr control = {.msg_control = (void *)at, .msg_controllen = 64};
	// With something to tell, so that the kernel has to write.
	int epoll = epoll_create1(0);
	struct epoll_event ready = {.events = EPOLLIN | EPOLLOUT};
	syscall(SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, pipes[1], &ready);

	TRY("read", SYS_read, file, at, 8);
	TRY("read-pipe", SYS_read, pipes[0], at, 8);
	TRY("read-socket", SYS_read, pair[0], at, 8);
	TRY("write", SYS_write, pipes[1], at, 8);
	TRY("write-socket", SYS_write, pair[0], at, 8);
	TRY("pread64", SYS_pread64, file, at, 8, 0);
	TRY("readv", SYS_readv, file, &inner, 1);
	TRY("readv-array", SYS_readv, file, at, 1);
	TRY("writev", SYS_writev, pipes[1], &inner, 1);
	TRY("preadv", SYS_preadv, file, &inner, 1, 0, 0);
	TRY("recvfrom", SYS_recvfrom, pair[0], at, 8, MSG_DONTWAIT, 0, 0);
	TRY("recvfrom-address", SYS_recvfrom, pair[0], answer, 0, MSG_DONTWAIT, at, at);
	TRY("recvmsg", SYS_recvmsg, pair[0], &message, MSG_DONTWAIT);
	TRY("recvmsg-header", SYS_recvmsg, pair[0], at, MSG_DONTWAIT);
	TRY("recvmsg-array", SYS_recvmsg, pair[0], &outer, MSG_DONTWAIT);
	TRY("sendmsg", SYS_sendmsg, pair[0], &message, MSG_DONTWAIT);
	TRY("sendmsg-name", SYS_sendmsg, pair[0], &named, MSG_DONTWAIT);
	TRY("sendmsg-control", SYS_sendmsg, pair[0], &control, MSG_DONTWAIT);
	TRY("sendto", SYS_sendto, pair[0], at, 8, MSG_DONTWAIT, 0, 0);
	TRY("stat", SYS_newfstatat, AT_FDCWD, "/", at, 0);
	TRY("fstat", SYS_fstat, file, at);
	TRY("statx", SYS_statx, AT_FDCWD, "/", 0, 0xfff, at);
	TRY("getcwd", SYS_getcwd, at, 64);
	TRY("readlink", SYS_readlink, "/proc/self/exe", at, 8);
	TRY("getdents64", SYS_getdents64, open("/", O_RDONLY), at, 4096);
	TRY("open-path", SYS_openat, AT_FDCWD, at, O_RDONLY);
	TRY("clock_gettime", SYS_clock_gettime, 0, at);
	TRY("gettimeofday", SYS_gettimeofday, at, 0);
	TRY("nanosleep", SYS_nanosleep, at, 0);
	TRY("uname", SYS_uname, at);
	TRY("sysinfo", SYS_sysinfo, at);
	TRY("times", SYS_times, at);
	TRY("getrandom", SYS_getrandom, at, 8, 0);
	TRY("getrusage", SYS_getrusage, 0, at);
	TRY("prlimit64", SYS_prlimit64, 0, 7, 0, at);
	TRY("getsockname", SYS_getsockname, pair[0], at, at);
	TRY("getsockopt", SYS_getsockopt, pair[0], SOL_SOCKET, SO_TYPE, at, at);
	TRY("setsockopt", SYS_setsockopt, pair[0], SOL_SOCKET, SO_RCVBUF, at, 4);
	TRY("socketpair", SYS_socketpair, AF_UNIX, SOCK_STREAM, 0, at);
	TRY("pipe2", SYS_pipe2, at, 0);
	TRY("poll", SYS_poll, at, 1, 0);
	TRY("ppoll", SYS_ppoll, at, 1, at, at, 8);
	TRY("select", SYS_select, 8, at, 0, 0, at);
	TRY("epoll_ctl", SYS_epoll_ctl, epoll, EPOLL_CTL_ADD, pipes[0], at);
	TRY("epoll_wait", SYS_epoll_wait, epoll, at, 1, 0);
	TRY("futex-wait", SYS_futex, at, FUTEX_WAIT, 1, 0, 0, 0);
	TRY("futex-wake-op", SYS_futex, at, FUTEX_WAKE_OP, 1, 1, at, 0x01000001);
	TRY("futex-requeue", SYS_futex, at, FUTEX_CMP_REQUEUE, 1, 1, at, 0);
	TRY("rt_sigaction", SYS_rt_sigaction, SIGUSR1, at, 0, 8);
	TRY("rt_sigaction-old", SYS_rt_sigaction, SIGUSR1, 0, at, 8);
	TRY("rt_sigprocmask", SYS_rt_sigprocmask, SIG_BLOCK, 0, at, 8);
	TRY("rt_sigpending", SYS_rt_sigpending, at, 8);
	TRY("sigaltstack-old", SYS_sigaltstack, 0, at);
	TRY("timer_create", SYS_timer_create, 0, at, at);
	TRY("timerfd_settime", SYS_timerfd_settime, syscall(SYS_timerfd_create, 1, 0), 0, at, at);
	TRY("sched_getaffinity", SYS_sched_getaffinity, 0, 128, at);
	TRY("get_robust_list", SYS_get_robust_list, 0, at, at);
	TRY("prctl-name", SYS_prctl, PR_SET_NAME, at);
	TRY("prctl-get-name", SYS_prctl, PR_GET_NAME, at);
	TRY("prctl-mm", SYS_prctl, PR_SET_MM, PR_SET_MM_START_BRK, at, 0, 0);
	TRY("arch_prctl-get", SYS_arch_prctl, 0x1003, at);
	TRY("mmap-fixed", SYS_mmap, start, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	TRY("mmap-noreplace", SYS_mmap, start, 4096, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE,
	    -1, 0);
	TRY("munmap", SYS_munmap, start, 4096);
	TRY("mprotect", SYS_mprotect, start, 4096, PROT_READ | PROT_WRITE);
	TRY("madvise", SYS_madvise, start, 4096, MADV_DONTNEED);
	TRY("mremap-from", SYS_mremap, start, 4096, 8192, MREMAP_MAYMOVE, 0);
	void *own = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	TRY("mremap-to", SYS_mremap, own, 4096, 4096, MREMAP_MAYMOVE | MREMAP_FIXED, start);
	TRY("mlock", SYS_mlock, start, 4096);
	TRY("mincore", SYS_mincore, own, 4096, at);
	TRY("mincore-of", SYS_mincore, start, 4096, answer + sizeof answer - 8);
	TRY("msync", SYS_msync, start, 4096, MS_ASYNC);
	TRY("remap_file_pages", SYS_remap_file_pages, start, 4096, 0, 0, 0);
	TRY("mbind", SYS_mbind, start, 4096, 0, 0, 0, 0);
	TRY("shmat", SYS_shmat, 0, start, 0);
	TRY("pkey_mprotect", SYS_pkey_mprotect, start, 4096, PROT_READ, -1);
	TRY("sendfile-offset", SYS_sendfile, pair[0], file, at, 8);
	TRY("splice-offset", SYS_splice, file, at, pipes[1], 0, 8, 0);
	TRY("vmsplice", SYS_vmsplice, pipes[1], &inner, 1, 0);
	TRY("copy_file_range", SYS_copy_file_range, file, at, file, at, 8, 0);
	TRY("process_vm_readv", SYS_process_vm_readv, getpid(), &(struct iovec){answer, 8}, 1, &inner, 1, 0);
	TRY("process_vm_writev", SYS_process_vm_writev, getpid(), &(struct iovec){answer, 8}, 1, &inner, 1, 0);
	TRY("process_madvise", SYS_process_madvise, syscall(SYS_pidfd_open, getpid(), 0), &inner, 1, MADV_COLD, 0);
	TRY("pidfd_getfd", SYS_pidfd_getfd, syscall(SYS_pidfd_open, getpid(), 0), 1023, 0);
	TRY("ptrace", SYS_ptrace, 0, 0, 0, 0);
	TRY("userfaultfd", SYS_userfaultfd, 0);
	TRY("io_uring_setup", SYS_io_uring_setup, 4, at);
	TRY("perf_event_open", SYS_perf_event_open, at, 0, -1, -1, 0);
	TRY("bpf", SYS_bpf, 0, at, 64);
	TRY("seccomp", SYS_seccomp, 1, 0, at);
	TRY("kcmp", SYS_kcmp, getpid(), getpid(), 0, 0, 1);
	TRY("modify_ldt", SYS_modify_ldt, 0, at, 16);
	TRY("rseq", SYS_rseq, at, 32, 0, 0);
	TRY("setns", SYS_setns, file, 0);
	TRY("ioctl", SYS_ioctl, pair[0], 0x541b, at);
	TRY("fcntl-lock", SYS_fcntl, file, F_GETLK, at);
	TRY("wait4", SYS_wait4, getpid(), at, WNOHANG, at);
	TRY("execve", SYS_execve, at, at, at);
	TRY("clone3", SYS_clone3, at, 88);
	unsigned long end = (unsigned long)syscall(SYS_brk, 0);
	if ((unsigned long)syscall(SYS_brk, at) != end)
		succeeded("brk");
	int fds[] = {file, pipes[0], pipes[1], pair[0], pair[1], epoll};
	for (unsigned i = 0; i < sizeof fds / sizeof *fds; i++)
		close(fds[i]);
	munmap(own, 4096);
}

static void sweep(unsigned long at)
{
	// What ends, stops or forks this process, changes who it is, or waits for ever.
	static const short left_out[] = {
		SYS_exit, SYS_exit_group, SYS_fork, SYS_vfork, SYS_clone, SYS_execve, SYS_rt_sigreturn, SYS_kill,
		SYS_tkill, SYS_tgkill, SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pause, SYS_rt_sigsuspend,
		SYS_setuid, SYS_setgid, SYS_setreuid, SYS_setregid, SYS_setresuid, SYS_setresgid, SYS_setfsuid,
		SYS_setfsgid, SYS_setsid, SYS_umask, SYS_reboot, SYS_sync, SYS_close_range, SYS_alarm,
		SYS_arch_prctl, SYS_set_tid_address, SYS_set_robust_list, SYS_sigaltstack, SYS_setpriority,
	};
	// As a descriptor, 0 must not be what others share: `fchmod(0, ...)` and the like succeed.
	int own = (int)syscall(SYS_memfd_create, "swept", 0);
	if (own < 0 || dup2(own, 0) != 0 || close(own) != 0) {
		succeeded("nothing, without a descriptor of its own");
		return;
	}
	for (long number = 0; number < 470; number++) {
		int skip = 0;
		for (unsigned i = 0; i < sizeof left_out / sizeof *left_out; i++)
			skip |= left_out[i] == number;
		if (!skip)
			syscall(number, at, at, at, at, at, at);
		if (!skip && number != SYS_close)
			syscall(number, 0, at, at, at, at, at);
	}
}

static void use_descriptor(int fd)
{
	struct stat status;
	char byte = 0, name[64];
	if (write(fd, &byte, 0) >= 0)
		succeeded("write");
	if (read(fd, &byte, 0) >= 0)
		succeeded("read");
	if (fstat(fd, &status) == 0)
		succeeded("fstat");
	if (fcntl(fd, F_GETFD) >= 0)
		succeeded("fcntl");
	if (dup(fd) >= 0)
		succeeded("dup");
	if (fcntl(0, F_DUPFD, fd) >= 0)
		succeeded("dupfd");
	if (dup2(2, fd) >= 0)
		succeeded("dup2");
	if (close(fd) == 0)
		succeeded("close");
	if (mmap(NULL, 4096, PROT_READ, MAP_SHARED, fd, 0) != MAP_FAILED)
		succeeded("mmap");
	if (syscall(SYS_ioctl, fd, 0xae00, 0) >= 0)
		succeeded("ioctl");
	syscall(SYS_close_range, fd, fd, 0);
	snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
	int opened = open(name, O_RDWR);
	if (opened >= 0 && pread(opened, &byte, 1, (off_t)(unsigned long)&byte) == 1)
		succeeded("memory through its link");
	close(opened);
}

// A child has a monitor of its own, and its parent is one.
static void child_looks(void)
{
	int status = 0;
	pid_t child = fork();
	if (child == 0) {
		char name[64];
		snprintf(name, sizeof name, "/proc/%d/mem", getppid());
		int fd = open(name, O_RDWR);
		_exit(fd >= 0);
	}
	if (waitpid(child, &status, 0) != child || status != 0)
		succeeded("memory of the parent");
}

static void *end_thread(void *at)
{
	syscall(SYS_set_tid_address, at);
	syscall(SYS_set_robust_list, at, 24);
	syscall(SYS_exit, 0);
	return NULL;
}

static int serve(int fd)
{
	char line[128];
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	line[n] = 0;
	unsigned long at;
	answer[0] = 0;
	if (sscanf(line, "calls %lx", &at) == 1) {
		calls(at);
	} else if (sscanf(line, "sweep %lx", &at) == 1) {
		sweep(at);
	} else if (sscanf(line, "read %lx", &at) == 1) {
		snprintf(answer, sizeof answer, "%d", *(volatile unsigned char *)at);
	} else if (sscanf(line, "write %lx", &at) == 1) {
		*(volatile unsigned char *)at = 0xcc;
	} else if (sscanf(line, "run %lx", &at) == 1) {
		((void (*)(void))at)();
	} else if (sscanf(line, "fs %lx", &at) == 1) {
		syscall(SYS_arch_prctl, 0x1001, at);
		__asm__ volatile("movb $1, %gs:0");
	} else if (sscanf(line, "thread %lx", &at) == 1) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, end_thread, (void *)at) == 0)
			pthread_detach(thread);
	} else if (sscanf(line, "fd %lx", &at) == 1) {
		use_descriptor((int)at);
	} else if (strncmp(line, "parent", 6) == 0) {
		child_looks();
	} else if (strncmp(line, "port", 4) == 0) {
		__asm__ volatile("outb %%al, $0x80" ::"a"(0));
	} else if (strncmp(line, "crash", 5) == 0) {
		*(volatile int *)0 = 1;
	}
	strcat(answer, "\n");
	return write(fd, answer, strlen(answer)) > 0;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	signal(SIGPIPE, SIG_IGN);
	return serve_all(argv[1], serve);
}
