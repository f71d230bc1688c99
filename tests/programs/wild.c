// System calls with wild arguments, from the seed that is the argument: in the middle of requests, many of which crash.
//
// Each round is a child, which may die of what it does. The parent ends children that hang, and itself with 1 if the
// monitor of one has failed. It becomes nobody first, and children leave other processes alone.
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

// Exit statuses of the monitor when it has failed itself, and of one that has panicked.
#define FAILED 125
#define PANICKED 101
#define CALLS 40
#define REQUESTS 8
#define PATIENCE_MS 4000

static uint64_t state;

static uint64_t any(void)
{
	state += 0x9e3779b97f4a7c15;
	uint64_t z = state;
	z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
	z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
	return z ^ (z >> 31);
}

static uint64_t below(uint64_t limit)
{
	return any() % limit;
}

// What ends the process, makes more of them, or reaches others.
static const int refused[] = {
	SYS_exit, SYS_exit_group, SYS_fork, SYS_vfork, SYS_clone, SYS_clone3, SYS_kill, SYS_tkill, SYS_tgkill,
	SYS_rt_sigqueueinfo, SYS_rt_tgsigqueueinfo, SYS_pidfd_send_signal, SYS_ptrace, SYS_process_vm_writev,
	SYS_prlimit64, SYS_setpriority, SYS_ioprio_set, SYS_sched_setscheduler, SYS_sched_setparam, SYS_sched_setattr,
	SYS_sched_setaffinity, SYS_pause, SYS_rt_sigreturn, SYS_migrate_pages, SYS_move_pages, SYS_setrlimit,
	SYS_execve, SYS_execveat, SYS_process_madvise, SYS_kcmp,
};

static int is_refused(long number)
{
	for (size_t i = 0; i < sizeof refused / sizeof *refused; i++)
		if (refused[i] == number)
			return 1;
	return 0;
}

static char *room;

static uint64_t argument(void)
{
	static const uint64_t edges[] = {
		0, 1, 2, 7, 8, 64, 4095, 4096, 4097, 65536, 1u << 31, UINT32_MAX, INT64_MAX, UINT64_MAX, UINT64_MAX - 4095,
		0x1000, 0x7ffffffff000, 0x800000000000, 0xffff800000000000, 0x4fffff0000, 0x100000000000,
	};
	switch (below(6)) {
	case 0:
		return edges[below(sizeof edges / sizeof *edges)];
	case 1:
		return below(16);
	case 2:
		// Across the end of what is mapped.
		return (uint64_t)room + 4 * 4096 - below(64);
	case 3:
		return 1ull << below(64);
	case 4:
		return any();
	default:
		return (uint64_t)room + below(4 * 4096);
	}
}

static void wild_call(void)
{
	long number = (long)below(below(8) ? 460 : 1u << 20);
	if (is_refused(number))
		return;
	syscall(number, argument(), argument(), argument(), argument(), argument(), argument());
}

static int *volatile nowhere;

static int may_crash;

static void request(int calls)
{
	int pair[2];
	char byte;
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, pair) || write(pair[1], "x", 1) != 1)
		return;
	int crashes = may_crash && below(2);
	ssize_t n = read(pair[0], &byte, 1);
	if (n == 1) {
		for (int i = 0; i < calls; i++)
			wild_call();
		if (crashes)
			*nowhere = 1;
	}
	close(pair[0]);
	close(pair[1]);
}

static void interrupt(int signal)
{
	(void)signal;
}

static int child(uint64_t seed)
{
	state = seed;
	may_crash = seed & 1;
	room = mmap(NULL, 5 * 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	munmap(room + 4 * 4096, 4096);
	for (int i = 0; i < 4 * 4096; i += 8)
		*(uint64_t *)(room + i) = below(4) ? below(256) : argument();
	// Calls that wait are interrupted.
	struct sigaction action = {.sa_handler = interrupt};
	sigaction(SIGALRM, &action, NULL);
	struct itimerval often = {{0, 3000}, {0, 3000}};
	setitimer(ITIMER_REAL, &often, NULL);
	for (int i = 0; i < REQUESTS; i++)
		request(CALLS);
	return 0;
}

static int wait_for(pid_t pid, int *status)
{
	for (int ms = 0; ms < PATIENCE_MS; ms++) {
		if (waitpid(pid, status, WNOHANG) == pid)
			return 1;
		usleep(1000);
	}
	return 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	uint64_t seed = strtoull(argv[1], NULL, 10), rounds = strtoull(argv[2], NULL, 10);
	int ended = 0, died = 0, hung = 0, bad = 0;
	if (getuid() == 0 && (setgid(65534) || setuid(65534)))
		return 2;
	for (uint64_t round = 0; round < rounds; round++) {
		pid_t pid = fork();
		if (pid < 0)
			return 2;
		if (pid == 0) {
			close(0);
			close(1);
			_exit(child(seed * 1000003 + round));
		}
		int status;
		if (!wait_for(pid, &status)) {
			hung++;
			kill(pid, SIGKILL);
			waitpid(pid, &status, 0);
		} else if (WIFSIGNALED(status)) {
			died++;
		} else if (WEXITSTATUS(status) == FAILED || WEXITSTATUS(status) == PANICKED) {
			fprintf(stderr, "seed %lu round %lu: the monitor ended with %d\n", seed, round, WEXITSTATUS(status));
			bad = 1;
		} else {
			ended++;
		}
	}
	printf("%d ended, %d died, %d hung\n", ended, died, hung);
	return bad;
}
