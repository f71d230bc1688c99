// Receiving with MSG_TRUNC: TCP drops the bytes and leaves the buffer alone; other sockets fill it, and tell how long a record
// was. Whatever lies in the receiver's buffer after the call is shown.
#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void show(const char *what, ssize_t n, const char *buffer, size_t size)
{
	printf("%-28s %zd %s \"%.*s\"\n", what, n, n < 0 ? strerrorname_np(errno) : "", (int)size, buffer);
}

static void tcp(int ends[2])
{
	struct sockaddr_in at = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	socklen_t len = sizeof at;
	int listener = socket(AF_INET, SOCK_STREAM, 0);
	if (bind(listener, (struct sockaddr *)&at, len) != 0 || listen(listener, 1) != 0 || getsockname(listener, (struct sockaddr *)&at, &len) != 0)
		_exit(1);
	ends[1] = socket(AF_INET, SOCK_STREAM, 0);
	if (connect(ends[1], (struct sockaddr *)&at, len) != 0)
		_exit(1);
	ends[0] = accept(listener, NULL, NULL);
	close(listener);
}

static void put(int fd, const char *text)
{
	if (send(fd, text, strlen(text), 0) != (ssize_t)strlen(text))
		_exit(2);
	usleep(20000);
}

int main(void)
{
	char buffer[33], clean[33] = "................................";
	int ends[2];
	for (int kind = 0; kind < 3; kind++) {
		switch (kind) {
		case 0: puts("TCP"); tcp(ends); break;
		case 1: puts("a local stream"); if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) != 0) return 3; break;
		default: puts("local records"); if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0) return 3;
		}
		put(ends[1], "what another client has said!");
		memcpy(buffer, clean, sizeof buffer);
		show("all of it", recv(ends[0], buffer, 32, 0), buffer, 32);
		put(ends[1], "0123456789");
		memcpy(buffer, clean, sizeof buffer);
		show("4 bytes, truncated", recv(ends[0], buffer, 4, MSG_TRUNC), buffer, 32);
		if (kind == 2)
			put(ends[1], "0123456789");
		memcpy(buffer, clean, sizeof buffer);
		show("looked at, truncated", recv(ends[0], buffer, 3, MSG_TRUNC | MSG_PEEK), buffer, 32);
		memcpy(buffer, clean, sizeof buffer);
		show("4 bytes", recv(ends[0], buffer, 4, 0), buffer, 32);
		if (kind == 2)
			put(ends[1], "0123456789");
		memcpy(buffer, clean, sizeof buffer);
		if (kind == 0)
			show("nowhere, truncated", recv(ends[0], NULL, 16, MSG_TRUNC), buffer, 32);
		put(ends[1], "abcdef");
		struct iovec part = {buffer, 5};
		struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};
		show("a message, truncated", recvmsg(ends[0], &message, MSG_TRUNC), buffer, 32);
		printf("flags %x\n", message.msg_flags);
		close(ends[0]);
		close(ends[1]);
	}
	return 0;
}
