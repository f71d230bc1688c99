// A server whose requests take one of everything and then crash. The port is the argument.
//
// `crash` does that; anything else is answered with `ok`.
#include <fcntl.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "serve.h"

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static int epoll;
static char *volatile kept;

static void take_and_crash(void)
{
	int pipes[2], pair[2];
	struct epoll_event event = {.events = EPOLLIN};
	if (pipe(pipes) || socketpair(AF_UNIX, SOCK_STREAM, 0, pair))
		return;
	int event_fd = eventfd(0, 0);
	timerfd_create(CLOCK_MONOTONIC, 0);
	open("/dev/null", O_RDONLY);
	dup(pipes[0]);
	epoll_ctl(epoll, EPOLL_CTL_ADD, event_fd, &event);
	char *map = mmap(NULL, 256 << 10, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(map, 1, 256 << 10);
	kept = malloc(100000);
	memset(kept, 2, 100000);
	pthread_mutex_lock(&lock);
	*(volatile int *)0 = 1;
}

static int serve(int fd)
{
	char line[64];
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	pthread_mutex_lock(&lock);
	pthread_mutex_unlock(&lock);
	if (n >= 5 && memcmp(line, "crash", 5) == 0)
		take_and_crash();
	return write(fd, "ok\n", 3) == 3;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	epoll = epoll_create1(0);
	return serve_all(argv[1], serve);
}
