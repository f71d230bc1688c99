// The event loop of the servers that have one thread and know connections only by their descriptors.
#ifndef SERVE_H
#define SERVE_H

#include <arpa/inet.h>
#include <poll.h>
#include <stdlib.h>
#include <sys/socket.h>
#include <unistd.h>

// Listens at `port` of the loopback address, and calls `serve` with every connection that has something to read;
// where that is zero the connection is closed. Returns, with an exit status, only if it cannot listen.
static int serve_all(const char *port, int (*serve)(int fd))
{
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	struct sockaddr_in address = {
		.sin_family = AF_INET,
		.sin_port = htons((unsigned short)atoi(port)),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	if (bind(listener, (struct sockaddr *)&address, sizeof address) != 0 || listen(listener, 64) != 0)
		return 1;
	static struct pollfd fds[128];
	int count = 1;
	fds[0].fd = listener;
	fds[0].events = POLLIN;
	for (;;) {
		if (poll(fds, (nfds_t)count, -1) <= 0)
			continue;
		for (int i = count - 1; i > 0; i--) {
			if (fds[i].revents && !serve(fds[i].fd)) {
				close(fds[i].fd);
				fds[i] = fds[--count];
			}
		}
		if (fds[0].revents && count < 128) {
			fds[count].fd = accept(listener, NULL, NULL);
			fds[count].events = POLLIN;
			if (fds[count].fd >= 0)
				count++;
		}
	}
}

#endif
