// A parent and its workers, which share memory and take turns at accepting connections. The port is the argument. With a
// second argument, the workers are programs that it executes, and what they share is that file.
//
// `add` counts; `pair` counts twice under a lock. `sum` and `lock` crash after that, the second with the lock held and
// one of two counted. `tell` answers with all three counters and the lock, `who` with the process. `try` tries to take the
// lock, and cannot; `busy` counts and then computes for half a second. Whatever else is answered with `ok`.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define WORKERS 3

static struct {
	long lock, sum, first, second;
} *shared;

static void count(long *counter)
{
	__atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST);
}

static void lock(void)
{
	long free = 0;
	while (!__atomic_compare_exchange_n(&shared->lock, &free, getpid(), 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) {
		free = 0;
		sched_yield();
	}
}

static void unlock(void)
{
	__atomic_store_n(&shared->lock, 0, __ATOMIC_SEQ_CST);
}

static int *volatile nowhere;

static void crash(void)
{
	*nowhere = 1;
}

static struct timespec now(void)
{
	struct timespec time;
	clock_gettime(CLOCK_MONOTONIC, &time);
	return time;
}

static long elapsed_ms(struct timespec begin, struct timespec end)
{
	return (end.tv_sec - begin.tv_sec) * 1000 + (end.tv_nsec - begin.tv_nsec) / 1000000;
}

static int serve(int fd)
{
	char line[64], answer[128] = "ok\n";
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	line[n] = 0;
	if (strncmp(line, "add", 3) == 0) {
		count(&shared->sum);
	} else if (strncmp(line, "sum", 3) == 0) {
		count(&shared->sum);
		crash();
	} else if (strncmp(line, "pair", 4) == 0 || strncmp(line, "lock", 4) == 0) {
		lock();
		count(&shared->first);
		if (line[0] == 'l')
			crash();
		count(&shared->second);
		unlock();
	} else if (strncmp(line, "try", 3) == 0) {
		long never = -1;
		__atomic_compare_exchange_n(&shared->lock, &never, 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST);
	} else if (strncmp(line, "busy", 4) == 0) {
		count(&shared->sum);
		for (struct timespec begin = now(), end = begin; elapsed_ms(begin, end) < 500;)
			end = now();
	} else if (strncmp(line, "who", 3) == 0) {
		snprintf(answer, sizeof answer, "%d\n", getpid());
	} else if (strncmp(line, "tell", 4) == 0) {
		snprintf(answer, sizeof answer, "%ld %ld %ld %ld\n", shared->sum, shared->first, shared->second, shared->lock);
	}
	return write(fd, answer, strlen(answer)) > 0;
}

static void work(int listener)
{
	struct pollfd fds[64] = {{.fd = listener, .events = POLLIN}};
	int used = 1;
	for (;;) {
		if (poll(fds, (nfds_t)used, -1) <= 0)
			continue;
		for (int i = used - 1; i > 0; i--) {
			if (fds[i].revents && !serve(fds[i].fd)) {
				close(fds[i].fd);
				fds[i] = fds[--used];
			}
		}
		if (fds[0].revents && used < 64) {
			int fd = accept(listener, NULL, NULL);
			if (fd >= 0) {
				fds[used].fd = fd;
				fds[used++].events = POLLIN;
			}
		}
	}
}

static void share(const char *file)
{
	int fd = -1, flags = MAP_SHARED | MAP_ANONYMOUS;
	if (file) {
		fd = open(file, O_RDWR | O_CREAT, 0600);
		flags = MAP_SHARED;
		if (ftruncate(fd, 4096) != 0)
			exit(3);
	}
	shared = mmap(NULL, 4096, PROT_READ | PROT_WRITE, flags, fd, 0);
	if (shared == MAP_FAILED)
		exit(3);
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	if (argc > 3) {
		share(argv[2]);
		work(atoi(argv[3]));
	}
	share(argc > 2 ? argv[2] : NULL);
	int listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), one = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons((unsigned short)atoi(argv[1])),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0)
		return 1;
	for (int missing = WORKERS;;) {
		for (; missing > 0; missing--) {
			pid_t worker = fork();
			if (worker == 0 && argc > 2) {
				char number[16];
				snprintf(number, sizeof number, "%d", listener);
				execl("/proc/self/exe", argv[0], argv[1], argv[2], number, NULL);
				return 4;
			}
			if (worker == 0)
				work(listener);
			if (worker < 0)
				return 1;
		}
		pid_t ended = waitpid(-1, NULL, 0);
		if (ended < 0)
			continue;
		missing++;
		// As servers do whose workers may die with a lock.
		if (__atomic_load_n(&shared->lock, __ATOMIC_SEQ_CST) == ended) {
			shared->second = shared->first;
			unlock();
		}
	}
}
