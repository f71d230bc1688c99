// A server whose requests write as much as they are told to.
//
// Line commands: `fill MIB VALUE` writes a word to every page of the first MIB of the buffer;
// `crash MIB VALUE` does that and crashes; `check MIB VALUE` says whether all of them hold VALUE;
// `eat MIB VALUE` maps fresh memory, fills it and crashes; `word PAGE` tells one of them.
// The port is the argument, the size of the buffer in MiB the second.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve.h"

#define PAGE 4096

static unsigned char *buffer;

static void fill(unsigned char *at, size_t mib, unsigned value)
{
	for (size_t i = 0; i < mib << 20; i += PAGE)
		*(volatile unsigned *)(at + i) = value;
}

static size_t differing(size_t mib, unsigned value)
{
	size_t count = 0;
	for (size_t i = 0; i < mib << 20; i += PAGE)
		count += *(volatile unsigned *)(buffer + i) != value;
	return count;
}

static void *map(size_t mib)
{
	void *at = mmap(NULL, mib << 20, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (at == MAP_FAILED)
		exit(2);
	return at;
}

// Whether the connection goes on.
static int serve(int fd)
{
	char line[128], answer[64] = "ok\n";
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	line[n] = 0;
	size_t mib;
	unsigned value;
	if (sscanf(line, "fill %zu %u", &mib, &value) == 2) {
		fill(buffer, mib, value);
	} else if (sscanf(line, "crash %zu %u", &mib, &value) == 2) {
		fill(buffer, mib, value);
		*(volatile int *)0 = 1;
	} else if (sscanf(line, "eat %zu %u", &mib, &value) == 2) {
		fill(map(mib), mib, value);
		*(volatile int *)0 = 1;
	} else if (sscanf(line, "check %zu %u", &mib, &value) == 2) {
		snprintf(answer, sizeof answer, "%zu\n", differing(mib, value));
	} else if (sscanf(line, "word %zu", &mib) == 1) {
		snprintf(answer, sizeof answer, "%u\n", *(volatile unsigned *)(buffer + mib * PAGE));
	}
	return write(fd, answer, strlen(answer)) > 0;
}

int main(int argc, char **argv)
{
	if (argc < 3)
		return 2;
	buffer = map(strtoul(argv[2], NULL, 10));
	return serve_all(argv[1], serve);
}
