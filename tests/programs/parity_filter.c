// Filters of sockets, whose programs lie behind a pointer in the option's value: one that lets nothing through, one that lets
// four bytes through, and the ones that the kernel refuses.
#include <errno.h>
#include <linux/filter.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static void attach(const char *what, int fd, int name, struct sock_fprog *program, socklen_t size)
{
	errno = 0;
	int result = setsockopt(fd, SOL_SOCKET, name, program, size);
	printf("%-20s %d %s\n", what, result, result < 0 ? strerrorname_np(errno) : "");
}

static void through(int ends[2])
{
	char buffer[16];
	if (send(ends[1], "0123456789", 10, 0) != 10)
		puts("not sent");
	ssize_t n = recv(ends[0], buffer, sizeof buffer, MSG_DONTWAIT);
	printf("received %zd\n", n);
}

int main(void)
{
	int ends[2];
	struct sock_filter code[] = {BPF_STMT(BPF_RET | BPF_K, 0)};
	struct sock_fprog program = {.len = 1, .filter = code};
	if (socketpair(AF_UNIX, SOCK_DGRAM, 0, ends) != 0)
		return 1;
	through(ends);
	attach("nothing", ends[0], SO_ATTACH_FILTER, &program, sizeof program);
	code[0].k = 4;
	attach("four bytes", ends[0], SO_ATTACH_FILTER, &program, sizeof program);
	through(ends);
	attach("too short", ends[0], SO_ATTACH_FILTER, &program, 8);
	program.len = 0;
	attach("empty", ends[0], SO_ATTACH_FILTER, &program, sizeof program);
	program.len = 1;
	program.filter = NULL;
	attach("nowhere", ends[0], SO_ATTACH_FILTER, &program, sizeof program);
	program.filter = (struct sock_filter *)0x7f0000000000;
	attach("elsewhere", ends[0], SO_ATTACH_FILTER, &program, sizeof program);
	int one = 1, server = socket(AF_INET, SOCK_DGRAM, 0);
	setsockopt(server, SOL_SOCKET, SO_REUSEPORT, &one, sizeof one);
	attach("for ports, nowhere", server, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
	program.filter = code;
	attach("for ports", server, SO_ATTACH_REUSEPORT_CBPF, &program, sizeof program);
	return 0;
}
