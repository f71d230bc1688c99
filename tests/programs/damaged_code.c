// A server whose every request runs through one function, which is easily found in memory. The port is the argument;
// anything is answered with `ok`.
#include <sys/socket.h>
#include <unistd.h>

#include "serve.h"

// The constant is the mark to look for.
__attribute__((noinline)) static const char *answer(void)
{
	__asm__ volatile("movabs $0x6b72616d2065646f, %%rax" ::: "rax");
	return "ok\n";
}

static int serve(int fd)
{
	char line[64];
	if (read(fd, line, sizeof line) <= 0)
		return 0;
	return write(fd, answer(), 3) == 3;
}

int main(int argc, char **argv)
{
	return argc < 2 ? 2 : serve_all(argv[1], serve);
}
