// clone3 in its variants: threads, processes, and what is wrong with its arguments.
#include <errno.h>
#include <linux/sched.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

static long clone_by(struct clone_args *args, size_t size)
{
	return syscall(SYS_clone3, args, size);
}

static void refused(const char *what, struct clone_args args, size_t size)
{
	long result = clone_by(&args, size);
	printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
	if (result == 0)
		_exit(9);
}

static void *add(void *sum)
{
	__atomic_fetch_add((long *)sum, 1, __ATOMIC_SEQ_CST);
	return NULL;
}

int main(void)
{
	int parent_tid = 0, *child_tid = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	struct clone_args args = {
		.flags = CLONE_PARENT_SETTID | CLONE_CHILD_SETTID,
		.parent_tid = (uintptr_t)&parent_tid,
		.child_tid = (uintptr_t)child_tid,
		.exit_signal = SIGCHLD,
	};
	long pid = clone_by(&args, sizeof args);
	if (pid == 0)
		_exit(*child_tid == getpid() ? 7 : 8);
	int status;
	long waited = waitpid((pid_t)pid, &status, 0);
	printf("a process: %d %d %d %d\n", waited == pid, parent_tid == pid, *child_tid == pid, WEXITSTATUS(status));

	// The first version of the structure.
	struct clone_args plain = {.exit_signal = SIGCHLD};
	pid = clone_by(&plain, CLONE_ARGS_SIZE_VER0);
	if (pid == 0)
		_exit(6);
	waitpid((pid_t)pid, &status, 0);
	printf("a plain process: %d\n", WEXITSTATUS(status));

	// A descriptor of the process, by both calls.
	int pidfd = -1;
	struct clone_args with_pidfd = {.flags = CLONE_PIDFD, .pidfd = (uintptr_t)&pidfd, .exit_signal = SIGCHLD};
	pid = clone_by(&with_pidfd, sizeof with_pidfd);
	if (pid == 0)
		_exit(pidfd == -1 ? 5 : 4);
	siginfo_t info = {0};
	waited = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
	printf("by its descriptor: %ld, %d %d\n", waited, info.si_pid == pid, info.si_status);
	close(pidfd);
	pid = syscall(SYS_clone, CLONE_PIDFD | SIGCHLD, NULL, &pidfd, NULL, 0);
	if (pid == 0)
		_exit(3);
	waited = waitid(P_PIDFD, (id_t)pidfd, &info, WEXITED);
	printf("and by clone: %ld, %d %d\n", waited, info.si_pid == pid, info.si_status);
	close(pidfd);
	with_pidfd.pidfd = 8;
	refused("to nowhere", with_pidfd, sizeof with_pidfd);
	pid = syscall(SYS_clone, CLONE_PIDFD | CLONE_PARENT_SETTID | SIGCHLD, NULL, &pidfd, NULL, 0);
	printf("both: %d %s\n", (int)pid, strerror(errno));

	refused("too small", plain, 63);
	refused("too large", plain, 5000);
	refused("a signal in the flags", (struct clone_args){.flags = SIGCHLD}, sizeof plain);
	refused("no such signal", (struct clone_args){.exit_signal = 65}, sizeof plain);
	refused("a stack without size", (struct clone_args){.stack = (uintptr_t)child_tid, .exit_signal = SIGCHLD}, sizeof plain);
	refused("a size without stack", (struct clone_args){.stack_size = 4096, .exit_signal = SIGCHLD}, sizeof plain);
	refused("thread-local storage nowhere", (struct clone_args){.flags = CLONE_SETTLS, .tls = 1ul << 63, .exit_signal = SIGCHLD}, sizeof plain);
	refused("likewise, at the end", (struct clone_args){.flags = CLONE_SETTLS, .tls = 0x7ffffffff000, .exit_signal = SIGCHLD}, sizeof plain);
	long result = syscall(SYS_clone3, 8, sizeof plain);
	printf("nowhere: %ld %s\n", result, strerror(errno));

	// Who is waited for.
	pid = fork();
	if (pid == 0)
		_exit(12);
	waited = waitpid((pid_t)pid, &status, __WCLONE);
	printf("a child that sends SIGCHLD: %ld %s\n", waited, strerror(errno));
	waited = waitid(P_ALL, 0, &info, WEXITED | WNOWAIT | __WALL | __WNOTHREAD);
	printf("of any kind: %ld, %d %d\n", waited, info.si_pid == pid, info.si_status);
	waited = waitpid(-1, &status, __WALL | __WNOTHREAD);
	printf("once more: %d %d\n", waited == pid, WEXITSTATUS(status));

	long sum = 0;
	pthread_t threads[8];
	for (int i = 0; i < 8; i++)
		pthread_create(&threads[i], NULL, add, &sum);
	for (int i = 0; i < 8; i++)
		pthread_join(threads[i], NULL);
	printf("threads: %ld\n", sum);
	return 0;
}
