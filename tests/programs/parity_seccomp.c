// Filters of system calls that a program installs on itself; where it ends by one, a child does.
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <pthread.h>
#include <signal.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <ucontext.h>
#include <unistd.h>

#define LOAD(member) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define RETURN(value) BPF_STMT(BPF_RET | BPF_K, value)
#define IF_EQUAL(value, then, otherwise) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, value, then, otherwise)

static void say(const char *what, long result)
{
	printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
	fflush(stdout);
}

static long install(unsigned flags, struct sock_filter *filter, unsigned short len)
{
	struct sock_fprog program = {.len = len, .filter = filter};
	return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, flags, &program);
}

// One call comes to `value`, all others are allowed.
static long forbid(int number, uint32_t value, unsigned flags)
{
	struct sock_filter filter[] = {
		LOAD(arch), IF_EQUAL(AUDIT_ARCH_X86_64, 1, 0), RETURN(SECCOMP_RET_KILL_PROCESS),
		LOAD(nr), IF_EQUAL((uint32_t)number, 0, 1), RETURN(value), RETURN(SECCOMP_RET_ALLOW),
	};
	return install(flags, filter, sizeof filter / sizeof *filter);
}

// What a child comes to that does this.
static void child(const char *what, void (*does)(void))
{
	fflush(stdout);
	pid_t pid = fork();
	if (pid == 0) {
		does();
		_exit(0);
	}
	int status = 0;
	waitpid(pid, &status, 0);
	if (WIFSIGNALED(status))
		printf("%s: signal %d\n", what, WTERMSIG(status));
	else
		printf("%s: status %d\n", what, WEXITSTATUS(status));
}

static volatile sig_atomic_t seen;
static siginfo_t seen_info;
static long resumed_with;

static void trapped(int number, siginfo_t *info, void *context)
{
	seen = number;
	seen_info = *info;
	ucontext_t *state = context;
	resumed_with = state->uc_mcontext.gregs[REG_RAX];
	state->uc_mcontext.gregs[REG_RAX] = 4711;
}

static void fails(void)
{
	say("forbidden", forbid(SYS_getppid, SECCOMP_RET_ERRNO | 77, 0));
	say("fails", syscall(SYS_getppid));
	say("with no error", forbid(SYS_getuid, SECCOMP_RET_ERRNO, 0));
	say("is nothing", syscall(SYS_getuid));
	say("with a large one", forbid(SYS_getgid, SECCOMP_RET_ERRNO | 5000, 0));
	long result = syscall(SYS_getgid);
	printf("%ld %d\n", result, errno);
	say("a newer one", forbid(SYS_getppid, SECCOMP_RET_ERRNO | 78, 0));
	errno = 0;
	result = syscall(SYS_getppid);
	printf("%ld %d\n", result, errno);
	say("a milder one", forbid(SYS_getppid, SECCOMP_RET_LOG, 0));
	say("fails still", syscall(SYS_getppid));
	say("a mode", prctl(PR_GET_SECCOMP));
	say("traced", forbid(SYS_getsid, SECCOMP_RET_TRACE | 3, 0));
	say("without a tracer", syscall(SYS_getsid, 0));
}

static void traps(void)
{
	struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
	sigaction(SIGSYS, &action, NULL);
	say("to be told", forbid(SYS_getppid, SECCOMP_RET_TRAP | 12, 0));
	say("made", syscall(SYS_getppid));
	printf("told: %d %d %d %d %d %x, %d\n", seen, seen_info.si_signo, seen_info.si_errno, seen_info.si_code,
	       seen_info.si_syscall == SYS_getppid, seen_info.si_arch, resumed_with == SYS_getppid);
	fflush(stdout);
	sigset_t set;
	sigemptyset(&set);
	sigaddset(&set, SIGSYS);
	sigprocmask(SIG_BLOCK, &set, NULL);
	syscall(SYS_getppid);
}

static void traps_without_a_handler(void)
{
	forbid(SYS_getppid, SECCOMP_RET_TRAP, 0);
	syscall(SYS_getppid);
}

static void is_killed(void)
{
	struct sigaction action = {.sa_sigaction = trapped, .sa_flags = SA_SIGINFO};
	sigaction(SIGSYS, &action, NULL);
	forbid(SYS_getppid, SECCOMP_RET_KILL_PROCESS, 0);
	syscall(SYS_getppid);
}

static void *make_the_call(void *argument)
{
	say("in a thread", argument ? (forbid(SYS_getppid, SECCOMP_RET_KILL_THREAD, 0), 0) : 0);
	syscall(SYS_getppid);
	say("after it", 0);
	return argument;
}

static void a_thread_ends(void)
{
	pthread_t thread;
	pthread_create(&thread, NULL, make_the_call, "forbid");
	pthread_join(thread, NULL);
	say("the others go on", syscall(SYS_getppid) > 0);
	_exit(5);
}

static void the_last_thread_ends(void)
{
	forbid(SYS_getppid, SECCOMP_RET_KILL_THREAD, 0);
	syscall(SYS_getppid);
}

static void is_strict(void)
{
	say("strict", prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT));
	syscall(SYS_write, 1, "still here\n", 11);
	syscall(SYS_exit, 3);
}

static void is_strict_and_asks(void)
{
	prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT);
	syscall(SYS_getppid);
}

static void a_childs_child(void)
{
	forbid(SYS_getppid, SECCOMP_RET_ERRNO | 9, 0);
	fflush(stdout);
	if (fork() == 0) {
		say("inherited", syscall(SYS_getppid));
		say("another one", forbid(SYS_getuid, SECCOMP_RET_ERRNO | 8, 0));
		execl("/proc/self/exe", "parity_seccomp", "executed", NULL);
		_exit(9);
	}
	int status;
	wait(&status);
	printf("its status: %d\n", WEXITSTATUS(status));
	say("not the parent's", syscall(SYS_getuid) >= 0);
}

static pthread_barrier_t barrier;

static void *wait_and_call(void *argument)
{
	(void)argument;
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	return (void *)syscall(SYS_getppid);
}

static void *diverge(void *argument)
{
	forbid(SYS_getpgrp, SECCOMP_RET_ALLOW, 0);
	pthread_barrier_wait(&barrier);
	pthread_barrier_wait(&barrier);
	return argument;
}

static void all_threads(void)
{
	pthread_t threads[2];
	pthread_barrier_init(&barrier, NULL, 3);
	for (int i = 0; i < 2; i++)
		pthread_create(&threads[i], NULL, wait_and_call, NULL);
	pthread_barrier_wait(&barrier);
	say("for all", forbid(SYS_getppid, SECCOMP_RET_ERRNO | 6, SECCOMP_FILTER_FLAG_TSYNC));
	pthread_barrier_wait(&barrier);
	void *results[2];
	for (int i = 0; i < 2; i++)
		pthread_join(threads[i], &results[i]);
	printf("theirs: %ld %ld\n", (long)results[0], (long)results[1]);
	pthread_barrier_init(&barrier, NULL, 2);
	pthread_create(&threads[0], NULL, diverge, NULL);
	pthread_barrier_wait(&barrier);
	say("one has its own", forbid(SYS_getuid, SECCOMP_RET_ERRNO | 6, SECCOMP_FILTER_FLAG_TSYNC) > 0);
	say("as an error", forbid(SYS_getuid, SECCOMP_RET_ERRNO | 6,
				  SECCOMP_FILTER_FLAG_TSYNC | SECCOMP_FILTER_FLAG_TSYNC_ESRCH));
	pthread_barrier_wait(&barrier);
	pthread_join(threads[0], NULL);
}

static void arguments_count(void)
{
	// lseek fails where its offset is 0x100000002.
	struct sock_filter filter[] = {
		LOAD(nr), IF_EQUAL(SYS_lseek, 0, 5), LOAD(args[1]), IF_EQUAL(2, 0, 3),
		BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, args[1]) + 4), IF_EQUAL(1, 0, 1),
		RETURN(SECCOMP_RET_ERRNO | 11), RETURN(SECCOMP_RET_ALLOW),
	};
	int file = open("/proc/self/exe", O_RDONLY);
	say("by its argument", install(SECCOMP_FILTER_FLAG_LOG | SECCOMP_FILTER_FLAG_SPEC_ALLOW, filter, 8));
	say("one", lseek(file, 0x100000002, SEEK_SET));
	say("another", lseek(file, 2, SEEK_SET));
	say("a third", lseek(file, 0x200000002, SEEK_SET));
}

static void what_is_refused(void)
{
	struct sock_filter allow = RETURN(SECCOMP_RET_ALLOW), load = LOAD(nr), outside = BPF_STMT(BPF_LD | BPF_W | BPF_ABS, 64);
	struct sock_filter away[] = {BPF_JUMP(BPF_JMP | BPF_JA, 1, 0, 0), allow}, unset[] = {BPF_STMT(BPF_LD | BPF_MEM, 3), allow};
	struct sock_filter far[] = {outside, allow}, half[] = {BPF_STMT(BPF_LD | BPF_H | BPF_ABS, 0), allow};
	say("no end", install(0, &load, 1));
	say("away", install(0, away, 2));
	say("unset", install(0, unset, 2));
	say("outside", install(0, far, 2));
	say("half a word", install(0, half, 2));
	say("nothing", install(0, &allow, 0));
	say("nowhere", install(0, (void *)8, 1));
	say("flags", install(1 << 20, &allow, 1));
	say("operation", syscall(SYS_seccomp, 99, 0, NULL));
	say("strict with flags", syscall(SYS_seccomp, SECCOMP_SET_MODE_STRICT, 1, NULL));
	say("a program that is nowhere", syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, (void *)8));
	uint32_t action = SECCOMP_RET_KILL_THREAD, unknown = 0x1234;
	say("an action", syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &action));
	say("none", syscall(SYS_seccomp, SECCOMP_GET_ACTION_AVAIL, 0, &unknown));
	say("a mode that is none", prctl(PR_SET_SECCOMP, 7));
	say("strict after a filter", (install(0, &allow, 1), prctl(PR_SET_SECCOMP, SECCOMP_MODE_STRICT)));
}

static void without_privileges(void)
{
	struct sock_filter allow = RETURN(SECCOMP_RET_ALLOW);
	if (setuid(65534))
		_exit(9);
	say("not allowed", install(0, &allow, 1));
	say("no new privileges", prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0));
	say("allowed", install(0, &allow, 1));
}

int main(int argc, char **argv)
{
	if (argc > 1) {
		say(argv[1], syscall(SYS_getppid));
		say("both", syscall(SYS_getuid));
		return 4;
	}
	say("the mode", prctl(PR_GET_SECCOMP));
	child("fails", fails);
	child("traps", traps);
	child("no handler", traps_without_a_handler);
	child("killed", is_killed);
	child("a thread", a_thread_ends);
	child("the last thread", the_last_thread_ends);
	child("strict", is_strict);
	child("strict and asks", is_strict_and_asks);
	child("a child's child", a_childs_child);
	child("all threads", all_threads);
	child("by arguments", arguments_count);
	child("refused", what_is_refused);
	child("no privileges", without_privileges);
	say("the mode still", prctl(PR_GET_SECCOMP));
	return 0;
}
