// A server with one thread that answers in pieces. A request is a line: "P N MS" sends N lines with MS milliseconds
// before each; "C ..." crashes after that.
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "serve.h"

static int serve(int fd)
{
	char line[64], kind;
	int pieces, ms;
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	line[n] = 0;
	if (sscanf(line, "%c %d %d", &kind, &pieces, &ms) != 3)
		return 0;
	for (int i = 0; i < pieces; i++) {
		struct timespec time = { ms / 1000, ms % 1000 * 1000000L };
		nanosleep(&time, NULL);
		if (write(fd, "piece\n", 6) != 6)
			return 0;
	}
	if (kind == 'C')
		*(volatile int *)0 = 1;
	return 0;
}

int main(int argc, char **argv)
{
	return serve_all(argc > 1 ? argv[1] : "7000", serve);
}
