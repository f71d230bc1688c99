// vfork and posix_spawn: the parent waits, and learns what became of its child.
#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

extern char **environ;
static volatile int ticks;

static void tick(int number)
{
	(void)number;
	ticks++;
}

static double now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return (double)time.tv_sec + (double)time.tv_nsec / 1e9;
}

static void spawn(const char *what, const char *path, char **argv)
{
	pid_t pid = -1;
	int error = posix_spawn(&pid, path, NULL, NULL, argv, environ), status = 0;
	printf("%s: %s", what, error ? strerror(error) : "spawned");
	if (!error && waitpid(pid, &status, 0) == pid)
		printf(", status %d", WEXITSTATUS(status));
	printf("\n");
	fflush(stdout);
}

static void *work(void *argument)
{
	volatile int *count = argument;
	for (int i = 0; i < 1000000; i++)
		*count += 1;
	return NULL;
}

// A child that lets its parent wait, and tells it something.
static __attribute__((noinline)) void wait_and_tell(void)
{
	volatile int told = 0, more[3] = {1, 2, 3};
	double begun = now();
	pid_t pid = vfork();
	if (pid == 0) {
		struct timespec time = {0, 200000000};
		syscall(SYS_nanosleep, &time, NULL);
		told = 42;
		more[1] = 77;
		_exit(3);
	}
	double waited = now() - begun;
	int status;
	waitpid(pid, &status, 0);
	printf("waited: %d, told %d, %d %d %d, status %d\n", waited > 0.19, told, more[0], more[1], more[2],
	       WEXITSTATUS(status));
	fflush(stdout);
}

static __attribute__((noinline)) void execute(const char *path)
{
	volatile int error = 0;
	pid_t pid = vfork();
	if (pid == 0) {
		execl(path, path, "-c", "exit 6", NULL);
		error = errno;
		_exit(127);
	}
	int status;
	waitpid(pid, &status, 0);
	printf("executed: %s, status %d\n", error ? strerror(error) : "yes", WEXITSTATUS(status));
	fflush(stdout);
}

static __attribute__((noinline)) void is_killed(void)
{
	volatile int seen = 1;
	pid_t pid = vfork();
	if (pid == 0) {
		kill(getpid(), SIGKILL);
		_exit(0);
	}
	int status;
	waitpid(pid, &status, 0);
	printf("killed: %d by %d, %d\n", WIFSIGNALED(status), WTERMSIG(status), seen);
	fflush(stdout);
}

static void handle(int number)
{
	(void)number;
	if (write(STDOUT_FILENO, "handled\n", 8) != 8)
		_exit(9);
}

// A parent that gets a signal while it waits for a child that sleeps.
static void is_sent(const char *what, int number, void (*action)(int), int is_blocked, long milliseconds)
{
	int ready[2], status;
	char byte;
	if (pipe(ready))
		exit(1);
	pid_t parent = fork();
	if (parent == 0) {
		sigset_t set;
		sigemptyset(&set);
		sigaddset(&set, number);
		sigprocmask(is_blocked ? SIG_BLOCK : SIG_UNBLOCK, &set, NULL);
		signal(number, action);
		struct timespec time = {milliseconds / 1000, milliseconds % 1000 * 1000000};
		if (vfork() == 0) {
			if (write(ready[1], "r", 1) == 1)
				syscall(SYS_nanosleep, &time, NULL);
			_exit(0);
		}
		_exit(5);
	}
	if (read(ready[0], &byte, 1) != 1)
		exit(1);
	usleep(50000);
	double begun = now();
	kill(parent, number);
	waitpid(parent, &status, 0);
	printf("%s: by signal %d, with %d, at once %d\n", what, WIFSIGNALED(status) ? WTERMSIG(status) : 0,
	       WIFEXITED(status) ? WEXITSTATUS(status) : 0, now() - begun < (double)milliseconds / 1e3 * 0.7);
	fflush(stdout);
	close(ready[0]);
	close(ready[1]);
}

int main(void)
{
	char *good[] = {"sh", "-c", "exit 5", NULL};
	spawn("a program", "/bin/sh", good);
	spawn("none", "/nonexistent", good);
	spawn("a directory", "/tmp", good);
	spawn("no program", "/etc/passwd", good);
	wait_and_tell();
	execute("/bin/sh");
	execute("/nonexistent");
	is_killed();
	// Signals wait, too.
	struct sigaction action = {.sa_handler = tick};
	sigaction(SIGALRM, &action, NULL);
	ualarm(50000, 0);
	wait_and_tell();
	printf("ticks: %d\n", ticks);
	fflush(stdout);
	is_sent("ended", SIGTERM, SIG_DFL, 0, 3000);
	is_sent("ended by a real-time signal", SIGRTMIN + 3, SIG_DFL, 0, 3000);
	is_sent("with a handler", SIGTERM, handle, 0, 400);
	is_sent("ignored", SIGTERM, SIG_IGN, 0, 400);
	is_sent("blocked", SIGTERM, SIG_DFL, 1, 400);
	is_sent("with a core", SIGQUIT, SIG_DFL, 0, 400);
	is_sent("a child's end", SIGCHLD, SIG_DFL, 0, 400);
	// Other threads do not.
	pthread_t thread;
	volatile int count = 0;
	pthread_create(&thread, NULL, work, (void *)&count);
	wait_and_tell();
	pthread_join(thread, NULL);
	printf("counted: %d\n", count);
	FILE *out = popen("echo from a pipe; exit 4", "r");
	char line[64] = "";
	printf("%s", out && fgets(line, sizeof line, out) ? line : "nothing\n");
	printf("status: %d\n", WEXITSTATUS(pclose(out)));
	fflush(stdout);
	return WEXITSTATUS(system("exit 9")) - 9;
}
