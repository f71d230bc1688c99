/* The signals of faults, when another process sends them. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const int faults[] = {SIGSEGV, SIGBUS, SIGILL, SIGFPE, SIGTRAP};
enum { COUNT = sizeof faults / sizeof *faults };

static int to_parent[2], to_child[2];
static volatile sig_atomic_t handled;
static volatile pthread_t handled_by;
static siginfo_t last;

static void handle(int number, siginfo_t *info, void *context)
{
	(void)context;
	last = *info;
	handled_by = pthread_self();
	handled = number;
}

static void set_action(int number, int flags)
{
	struct sigaction action = {.sa_sigaction = handle, .sa_flags = SA_SIGINFO | flags};
	sigaction(number, &action, NULL);
}

static sigset_t all_of_them(void)
{
	sigset_t set;
	sigemptyset(&set);
	for (int i = 0; i < COUNT; i++)
		sigaddset(&set, faults[i]);
	return set;
}

static void tell(int fd)
{
	if (write(fd, "t", 1) != 1)
		_exit(90);
}

static void await(int fd)
{
	char byte;
	ssize_t n;
	do
		n = read(fd, &byte, 1);
	while (n < 0 && errno == EINTR);
	if (n != 1)
		_exit(91);
}

/* In the child: lets the parent send, and waits until it has. */
static void let_send(void)
{
	tell(to_parent[1]);
	await(to_child[0]);
}

/* In the parent: sends when the child lets it. */
static void send_to(pid_t child, int number)
{
	await(to_parent[0]);
	kill(child, number);
	tell(to_child[1]);
}

static void show_last(const char *what, int number)
{
	printf("%s %d: %d, code %d, from the parent %d, user %d\n", what, number, handled, last.si_code,
	       last.si_pid == getppid(), last.si_uid == getuid());
	fflush(stdout);
	handled = 0;
	memset(&last, 0, sizeof last);
}

static void settle(void)
{
	usleep(50000);
}

static void end_of(const char *what, pid_t child)
{
	int status;
	waitpid(child, &status, 0);
	printf("%s: exited %d with %d, by signal %d\n", what, WIFEXITED(status), WIFEXITED(status) ? WEXITSTATUS(status) : 0,
	       WIFSIGNALED(status) ? WTERMSIG(status) : 0);
	fflush(stdout);
}

static void with_handlers(void)
{
	pid_t child = fork();
	if (child == 0) {
		for (int i = 0; i < COUNT; i++) {
			set_action(faults[i], 0);
			tell(to_parent[1]);
			while (!handled)
				;
			show_last("in code", faults[i]);
			await(to_child[0]);
		}
		for (int i = 0; i < COUNT; i++) {
			tell(to_parent[1]);
			pause();
			show_last("in a call", faults[i]);
			await(to_child[0]);
		}
		for (int i = 0; i < COUNT; i++) {
			set_action(faults[i], SA_RESTART);
			char byte;
			tell(to_parent[1]);
			ssize_t n = read(to_child[0], &byte, 1);
			printf("restarted: %zd\n", n);
			show_last("in a call that goes on", faults[i]);
		}
		/* With a value; and that the real ones are still told apart. */
		tell(to_parent[1]);
		while (!handled)
			;
		printf("value: %d\n", last.si_value.sival_int);
		show_last("queued", SIGSEGV);
		await(to_child[0]);
		signal(SIGSEGV, SIG_DFL);
		*(volatile int *volatile)NULL = 1;
		_exit(0);
	}
	for (int i = 0; i < COUNT; i++)
		send_to(child, faults[i]);
	for (int round = 0; round < 2; round++) {
		for (int i = 0; i < COUNT; i++) {
			await(to_parent[0]);
			settle();
			kill(child, faults[i]);
			settle();
			tell(to_child[1]);
		}
	}
	await(to_parent[0]);
	sigqueue(child, SIGSEGV, (union sigval){.sival_int = 77});
	tell(to_child[1]);
	end_of("a fault of its own", child);
}

static void blocked(void)
{
	pid_t child = fork();
	if (child == 0) {
		sigset_t set = all_of_them(), pending;
		sigprocmask(SIG_BLOCK, &set, NULL);
		for (int i = 0; i < COUNT; i++) {
			let_send();
			let_send();
			settle();
			sigpending(&pending);
			printf("pending:");
			for (int j = 0; j < COUNT; j++)
				printf(" %d", sigismember(&pending, faults[j]));
			fflush(stdout);
			pid_t its_child = fork();
			if (its_child == 0) {
				sigpending(&pending);
				_exit(sigismember(&pending, faults[i]) ? 1 : 2);
			}
			int status;
			waitpid(its_child, &status, 0);
			printf(", its child %d\n", WEXITSTATUS(status));
			struct timespec limit = {5, 0}, now = {0, 0};
			memset(&last, 0, sizeof last);
			handled = sigtimedwait(&set, &last, &limit);
			show_last("taken", faults[i]);
			printf("no more: %d\n", sigtimedwait(&set, NULL, &now) == -1 && errno == EAGAIN);
			/* Waited for before it is sent. */
			tell(to_parent[1]);
			memset(&last, 0, sizeof last);
			handled = sigtimedwait(&set, &last, &limit);
			show_last("waited for", faults[i]);
			await(to_child[0]);
			/* Opened at last. */
			set_action(faults[i], 0);
			let_send();
			settle();
			printf("not yet: %d\n", handled);
			sigprocmask(SIG_UNBLOCK, &set, NULL);
			show_last("opened", faults[i]);
			sigprocmask(SIG_BLOCK, &set, NULL);
			/* For a call alone. */
			let_send();
			sigset_t none;
			sigemptyset(&none);
			printf("suspended: %d\n", sigsuspend(&none) == -1 && errno == EINTR);
			show_last("for a call", faults[i]);
		}
		_exit(0);
	}
	for (int i = 0; i < COUNT; i++) {
		send_to(child, faults[i]);
		send_to(child, faults[i]);
		await(to_parent[0]);
		settle();
		kill(child, faults[i]);
		tell(to_child[1]);
		send_to(child, faults[i]);
		send_to(child, faults[i]);
	}
	end_of("blocked", child);
}

static void ignored(void)
{
	pid_t child = fork();
	if (child == 0) {
		for (int i = 0; i < COUNT; i++) {
			signal(faults[i], SIG_IGN);
			let_send();
			struct timespec time = {0, 50000000};
			printf("ignored %d: slept %d\n", faults[i], nanosleep(&time, NULL));
			fflush(stdout);
		}
		_exit(4);
	}
	for (int i = 0; i < COUNT; i++)
		send_to(child, faults[i]);
	end_of("ignored", child);
}

static void by_default(int in_call)
{
	for (int i = 0; i < COUNT; i++) {
		pid_t child = fork();
		if (child == 0) {
			tell(to_parent[1]);
			while (in_call)
				pause();
			for (;;)
				;
		}
		await(to_parent[0]);
		if (in_call)
			settle();
		kill(child, faults[i]);
		end_of(in_call ? "ended in a call" : "ended in code", child);
	}
}

static void *wait_for_ever(void *unused)
{
	sigset_t set = all_of_them();
	pthread_sigmask(SIG_UNBLOCK, &set, NULL);
	tell(to_parent[1]);
	for (;;)
		pause();
	return unused;
}

/* The one thread that does not block it gets it. */
static void threads(void)
{
	pid_t child = fork();
	if (child == 0) {
		sigset_t set = all_of_them();
		pthread_sigmask(SIG_BLOCK, &set, NULL);
		for (int i = 0; i < COUNT; i++)
			set_action(faults[i], 0);
		pthread_t thread;
		pthread_create(&thread, NULL, wait_for_ever, NULL);
		for (int i = 0; i < COUNT; i++) {
			while (!handled)
				usleep(1000);
			printf("by the thread: %d\n", pthread_equal(handled_by, thread));
			show_last("to the thread", faults[i]);
			await(to_child[0]);
			tell(to_parent[1]);
		}
		pause();
	}
	for (int i = 0; i < COUNT; i++) {
		await(to_parent[0]);
		settle();
		kill(child, faults[i]);
		tell(to_child[1]);
	}
	await(to_parent[0]);
	kill(child, SIGTERM);
	end_of("threads", child);
}

/* What is pending, blocked and ignored is that of the next program, too. */
static void next_program(char *self)
{
	pid_t child = fork();
	if (child == 0) {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, SIGSEGV);
		sigaddset(&set, SIGFPE);
		sigprocmask(SIG_BLOCK, &set, NULL);
		signal(SIGBUS, SIG_IGN);
		signal(SIGILL, SIG_IGN);
		let_send();
		let_send();
		char fds[32];
		snprintf(fds, sizeof fds, "%d %d", to_parent[1], to_child[0]);
		execl(self, self, fds, NULL);
		_exit(92);
	}
	send_to(child, SIGSEGV);
	send_to(child, SIGFPE);
	send_to(child, SIGBUS);
	send_to(child, SIGILL);
	await(to_parent[0]);
	settle();
	kill(child, SIGBUS);
	end_of("the next program", child);
}

static int is_next_program(const char *fds)
{
	if (sscanf(fds, "%d %d", &to_parent[1], &to_child[0]) != 2)
		return 93;
	sigset_t set = all_of_them(), pending, before;
	sigprocmask(SIG_BLOCK, NULL, &before);
	sigpending(&pending);
	printf("pending and blocked:");
	for (int i = 0; i < COUNT; i++)
		printf(" %d%d", sigismember(&pending, faults[i]), sigismember(&before, faults[i]));
	printf("\n");
	let_send();
	let_send();
	settle();
	struct timespec now = {0, 0};
	for (int i = 0; i < COUNT; i += 3) {
		sigset_t one;
		sigemptyset(&one);
		sigaddset(&one, faults[i]);
		memset(&last, 0, sizeof last);
		handled = sigtimedwait(&one, &last, &now);
		show_last("taken by the next program", faults[i]);
	}
	sigprocmask(SIG_UNBLOCK, &set, NULL);
	signal(SIGBUS, SIG_DFL);
	tell(to_parent[1]);
	pause();
	return 94;
}

int main(int argc, char **argv)
{
	if (argc > 1)
		return is_next_program(argv[1]);
	if (pipe(to_parent) || pipe(to_child))
		return 1;
	with_handlers();
	blocked();
	ignored();
	by_default(0);
	by_default(1);
	threads();
	next_program(argv[0]);
	/* To the first process, which ends by it at last. */
	set_action(SIGTRAP, 0);
	pid_t child = fork();
	if (child == 0) {
		kill(getppid(), SIGTRAP);
		_exit(0);
	}
	while (!handled)
		;
	printf("by the child: %d\n", last.si_pid == child);
	fflush(stdout);
	waitpid(child, NULL, 0);
	if (fork() == 0) {
		kill(getppid(), SIGSEGV);
		_exit(0);
	}
	for (;;)
		pause();
}
