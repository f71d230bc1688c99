// Sends to a peer that has gone fail, and those to one that does not read end in time (SO_SNDTIMEO). Each is
// made in the middle of a request: after something was received from another connection.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static struct sockaddr_in address;
static int listener, broken;

static void on_pipe(int signal)
{
	(void)signal;
	broken++;
}

static int dial(void)
{
	int fd = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0)
		exit(2);
	return fd;
}

static void show(const char *what, long result)
{
	const char *error = result < 0 ? strerrorname_np(errno) : "";
	printf("%s %ld %s, %d signals\n", what, result, error, broken);
	broken = 0;
}

// A connection whose peer closes it, with a reset if `resets`, once `arrives` says so.
static int abandoned(int resets)
{
	int client = dial(), server = accept(listener, NULL, NULL);
	struct linger now = { 1, 0 };
	if (resets)
		setsockopt(client, SOL_SOCKET, SO_LINGER, &now, sizeof now);
	write(client, "request", 7);
	struct pollfd event = { server, POLLIN, 0 };
	poll(&event, 1, -1);
	close(client);
	event.events = POLLRDHUP;
	poll(&event, 1, -1);
	return server;
}

static void begin_request(int client, int server)
{
	char bytes[16];
	write(client, "work", 4);
	read(server, bytes, sizeof bytes);
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	signal(SIGPIPE, on_pipe);
	address = (struct sockaddr_in){ AF_INET, 0, { htonl(INADDR_LOOPBACK) }, { 0 } };
	socklen_t len = sizeof address;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (struct sockaddr *)&address, len);
	listen(listener, 5);
	getsockname(listener, (struct sockaddr *)&address, &len);
	int client = dial(), server = accept(listener, NULL, NULL);
	char bytes[64];
	struct iovec part = { bytes, 4 };
	struct msghdr message = { .msg_iov = &part, .msg_iovlen = 1 };
	int file = open("/proc/self/exe", O_RDONLY);

	for (int how = 0; how < 6; how++) {
		int fd = abandoned(1);
		begin_request(client, server);
		for (int i = 0; i < 2; i++) {
			errno = 0;
			switch (how) {
			case 0:
				show("write", write(fd, "ok\n", 3));
				break;
			case 1:
				show("writev", writev(fd, &part, 1));
				break;
			case 2:
				show("send", send(fd, "ok\n", 3, 0));
				break;
			case 3:
				show("send without a signal", send(fd, "ok\n", 3, MSG_NOSIGNAL));
				break;
			case 4:
				show("sendmsg", sendmsg(fd, &message, 0));
				break;
			default:
				show("sendfile", sendfile(fd, file, NULL, 100));
			}
		}
		close(fd);
	}
	// What had arrived can be read, then comes the error, once.
	int fd = abandoned(1);
	for (int i = 0; i < 3; i++)
		show("recv", recv(fd, bytes, sizeof bytes, 0));
	show("write", write(fd, "ok\n", 3));
	close(fd);
	// The first send to one that has closed is taken, and answered by a reset.
	fd = abandoned(0);
	begin_request(client, server);
	show("write", write(fd, "ok\n", 3));
	struct pollfd none = { server, POLLIN, 0 };
	poll(&none, 1, 100);
	begin_request(client, server);
	show("write", write(fd, "ok\n", 3));
	close(fd);
	// Shut down by oneself, in a request before.
	int other = dial();
	fd = accept(listener, NULL, NULL);
	begin_request(client, server);
	shutdown(fd, SHUT_WR);
	poll(&none, 1, 0);
	begin_request(client, server);
	show("write", write(fd, "ok\n", 3));
	close(fd);
	close(other);
	int ends[2];
	pipe(ends);
	close(ends[0]);
	begin_request(client, server);
	show("pipe", write(ends[1], "ok\n", 3));
	socketpair(AF_UNIX, SOCK_STREAM, 0, ends);
	close(ends[0]);
	begin_request(client, server);
	show("pair", write(ends[1], "ok\n", 3));

	// One that does not read.
	struct timeval limit = { 0, 200000 };
	setsockopt(server, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit);
	begin_request(client, server);
	size_t size = 80 << 20;
	char *much = calloc(1, size);
	struct timespec from, to;
	clock_gettime(CLOCK_MONOTONIC, &from);
	long sent, calls = 0;
	while ((sent = write(server, much, size)) > 0 && ++calls < 100)
		;
	int error = errno;
	clock_gettime(CLOCK_MONOTONIC, &to);
	double took = (double)(to.tv_sec - from.tv_sec) + (double)(to.tv_nsec - from.tv_nsec) / 1e9;
	// The request has ended.
	poll(NULL, 0, 0);
	printf("full: %ld %s, %s\n", sent, strerrorname_np(error), took > 0.15 && took < 15 ? "in time" : "late");
	return 0;
}
