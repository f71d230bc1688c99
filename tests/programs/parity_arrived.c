// One read takes all that has arrived, as far as there is room: with edge-triggered epoll a short read says that
// nothing is left. From sockets, with each of the calls, and from pipes.
#include <arpa/inet.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <unistd.h>

enum { TOTAL = 150001, ROOM = 262112 };
static char *sent, *got;

static void send_all(int fd, int total)
{
	for (int done = 0; done < total;) {
		ssize_t n = write(fd, sent + done, (size_t)(total - done));
		if (n <= 0)
			exit(2);
		done += (int)n;
	}
}

static long take(int how, int fd, int room)
{
	struct iovec parts[2] = { { got, 1000 }, { got + 1000, (size_t)room - 1000 } };
	char control[64];
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2, .msg_control = control, .msg_controllen = sizeof control };
	switch (how) {
	case 0:
		return read(fd, got, (size_t)room);
	case 1:
		return readv(fd, parts, 2);
	case 2:
		return recv(fd, got, (size_t)room, 0);
	case 3:
		return recvmsg(fd, &message, 0);
	default:
		return recv(fd, got, (size_t)room, MSG_PEEK);
	}
}

static void show(const char *what, int how, int writer, int reader, int total)
{
	int waiting = 0;
	send_all(writer, total);
	for (int i = 0; i < 500 && waiting < total; i++, usleep(10000))
		ioctl(reader, FIONREAD, &waiting);
	memset(got, 0, ROOM);
	long n = take(how, reader, ROOM);
	printf("%s %d: %d waited, %ld read, %s\n", what, how, waiting, n, memcmp(sent, got, (size_t)total) ? "wrong" : "right");
	if (how == 4)
		printf("after the look: %zd\n", read(reader, got, ROOM));
	printf("then %zd\n", read(reader, got, ROOM));
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	sent = malloc(ROOM);
	got = malloc(ROOM);
	for (int i = 0; i < ROOM; i++)
		sent[i] = (char)(i * 7 + i / 251);
	struct sockaddr_in address = { AF_INET, 0, { htonl(INADDR_LOOPBACK) }, { 0 } };
	socklen_t len = sizeof address;
	int listener = socket(AF_INET, SOCK_STREAM, 0), size = 1 << 20;
	setsockopt(listener, SOL_SOCKET, SO_RCVBUF, &size, sizeof size);
	bind(listener, (struct sockaddr *)&address, len);
	listen(listener, 5);
	getsockname(listener, (struct sockaddr *)&address, &len);
	int client = socket(AF_INET, SOCK_STREAM, 0);
	setsockopt(client, SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	connect(client, (struct sockaddr *)&address, len);
	int server = accept4(listener, NULL, NULL, SOCK_NONBLOCK);
	for (int how = 0; how < 5; how++)
		show("tcp", how, client, server, TOTAL);

	// The request of a server with edge-triggered events.
	int epoll = epoll_create1(0), total = 0, waiting = 0;
	struct epoll_event event = { .events = EPOLLIN | EPOLLET };
	send_all(client, TOTAL);
	for (int i = 0; i < 500 && waiting < TOTAL; i++, usleep(10000))
		ioctl(server, FIONREAD, &waiting);
	epoll_ctl(epoll, EPOLL_CTL_ADD, server, &event);
	while (total < TOTAL && epoll_wait(epoll, &event, 1, 2000) > 0) {
		ssize_t n;
		while ((n = read(server, got, ROOM)) > 0) {
			total += (int)n;
			if (n < ROOM)
				break;
		}
	}
	printf("by edges %d\n", total);

	int pair[2], ends[2];
	socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair);
	setsockopt(pair[0], SOL_SOCKET, SO_SNDBUF, &size, sizeof size);
	for (int how = 0; how < 4; how++)
		show("pair", how, pair[0], pair[1], TOTAL);
	pipe2(ends, O_NONBLOCK);
	fcntl(ends[1], F_SETPIPE_SZ, 1 << 18);
	for (int how = 0; how < 2; how++)
		show("pipe", how, ends[1], ends[0], TOTAL);
	int zero = open("/dev/zero", O_RDONLY);
	printf("zero %zd\n", read(zero, got, ROOM));

	int datagrams[2];
	socketpair(AF_UNIX, SOCK_DGRAM, 0, datagrams);
	printf("datagram %zd", send(datagrams[0], sent, 100000, 0));
	printf(" %zd\n", recv(datagrams[1], got, ROOM, 0));
	return 0;
}
