// Memory in so many places that no machine has the addresses for it: `again` at always new ones, `ever` at ever more.
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>

#define TIB ((size_t)1 << 40)
enum { PAGE = 4096 };

static const size_t APART = (size_t)64 << 20;

static char *reserve(size_t len)
{
	return mmap(NULL, len, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
}

// Whether `count` pages of it are zero, and then what they are made.
static int use(char *at, size_t len, size_t count, int round)
{
	int holds = 1;
	for (size_t i = 0; i < count; i++) {
		char *page = at + len / count * i + (size_t)round * PAGE;
		holds &= *page == 0;
		*page = (char)(round + 1);
	}
	for (size_t i = 0; i < count; i++)
		holds &= at[len / count * i + (size_t)round * PAGE] == (char)(round + 1);
	return holds;
}

static int again(void)
{
	char *old = NULL;
	size_t old_len = 0;
	for (int round = 0; round < 30; round++) {
		size_t len = TIB + (size_t)(round % 7) * (TIB / 8);
		char *at = reserve(len);
		if (at == MAP_FAILED || !use(at, len, 100, round) || (old && munmap(old, old_len)))
			return 1;
		old = at;
		old_len = len;
	}
	return puts("always new") < 0;
}

static sigjmp_buf back;
static char *volatile wanted;
static volatile int is_there;

static void on_signal(int signal, siginfo_t *info, void *context)
{
	(void)context;
	is_there = signal == SIGBUS && info->si_code == BUS_ADRERR && info->si_addr == wanted;
	siglongjmp(back, 1);
}

static int ever(void)
{
	struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO};
	sigaction(SIGBUS, &action, NULL);
	char *at = reserve(8 * TIB);
	if (at == MAP_FAILED)
		return 1;
	if (sigsetjmp(back, 1) == 0) {
		for (wanted = at; wanted < at + 8 * TIB; wanted += APART)
			*(volatile char *)wanted = 1;
		return puts("there is no end") < 0;
	}
	printf("an end: %d, after %zu\n", is_there, (size_t)(wanted - at) / APART);
	if (munmap(at, 8 * TIB))
		return 1;
	at = reserve(9 * TIB);
	if (at == MAP_FAILED || !use(at, 9 * TIB, 100, 0))
		return 1;
	return puts("and a new beginning") < 0;
}

int main(int argc, char **argv)
{
	return argc > 1 && strcmp(argv[1], "ever") == 0 ? ever() : again();
}
