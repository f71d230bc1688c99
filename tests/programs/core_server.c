// A server whose requests write what they are told to and then crash, for a debugger to find.
//
// Line commands: `set NUMBER` stores it; `get` tells what is stored: a variable, a field on the heap, the
// size of the list; `crash NUMBER` stores it and crashes three calls deep; `abort NUMBER` likewise, by
// `abort`; `big MIB NUMBER` writes so much memory before it crashes. The port is the argument; a second one is
// a number of threads that do nothing.
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "serve.h"

#define PAGE 4096

struct item {
	int number;
	char name[28];
	struct item *next;
};

int stored = 1;
int never_written;
const char *const greeting = "hello";
__thread int per_thread = 1;
struct item *list;
static unsigned char *memory;

__attribute__((noinline)) static void idle_function(void)
{
	sigset_t none;
	sigemptyset(&none);
	for (;;)
		sigsuspend(&none);
}

static void *idle(void *argument)
{
	per_thread = (int)(long)argument;
	idle_function();
	return NULL;
}

__attribute__((noinline)) static void store(int number)
{
	struct item *item = malloc(sizeof *item);
	if (!item)
		exit(2);
	item->number = number;
	snprintf(item->name, sizeof item->name, "item-%d", number);
	item->next = list;
	list = item;
	stored = number;
	per_thread = number;
}

__attribute__((noinline)) static int the_culprit(int number, volatile int *where, int aborts)
{
	int local = number * 2;
	store(number);
	if (aborts)
		abort();
	*where = local;
	return local;
}

__attribute__((noinline)) static int its_caller(int number, int aborts)
{
	return the_culprit(number, NULL, aborts) + 1;
}

static int length(void)
{
	int n = 0;
	for (struct item *item = list; item; item = item->next)
		n++;
	return n;
}

// Whether the connection goes on.
__attribute__((noinline)) static int serve(int fd)
{
	char line[128], answer[128] = "ok\n";
	ssize_t n = read(fd, line, sizeof line - 1);
	if (n <= 0)
		return 0;
	line[n] = 0;
	int number;
	size_t mib;
	if (sscanf(line, "set %d", &number) == 1) {
		store(number);
	} else if (sscanf(line, "crash %d", &number) == 1) {
		return its_caller(number, 0);
	} else if (sscanf(line, "abort %d", &number) == 1) {
		return its_caller(number, 1);
	} else if (sscanf(line, "big %zu %d", &mib, &number) == 2) {
		for (size_t i = 0; i < mib << 20; i += PAGE)
			*(volatile int *)(memory + i) = number;
		return its_caller(number, 0);
	} else {
		snprintf(answer, sizeof answer, "%d %d %d\n", stored, list->number, length());
	}
	return write(fd, answer, strlen(answer)) > 0;
}

int main(int argc, char **argv)
{
	if (argc < 2)
		return 2;
	store(1);
	memory = malloc((size_t)1 << 30);
	for (long i = 0; argc > 2 && i < atoi(argv[2]); i++) {
		pthread_t thread;
		if (pthread_create(&thread, NULL, idle, (void *)(i + 100)) != 0)
			return 2;
	}
	return serve_all(argv[1], serve);
}
