// Reservations of terabytes, of which little is used.
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TIB ((size_t)1 << 40)
enum {
	PAGE = 4096,
	READ_WRITE = PROT_READ | PROT_WRITE,
	RESERVED = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
};

static void say(const char *what, int holds)
{
	printf("%s: %s\n", what, holds ? "yes" : strerror(errno));
	fflush(stdout);
}

static char *reserve(size_t len, int protection)
{
	return mmap(NULL, len, protection, RESERVED, -1, 0);
}

// What read(2) and write(2) make of memory there.
static int through_a_pipe(char *from, char *to)
{
	int ends[2];
	if (pipe(ends))
		return 0;
	int done = write(ends[1], from, 100) == 100 && read(ends[0], to, 100) == 100 && !memcmp(from, to, 100);
	close(ends[0]);
	// As much as there is, into as much as it may be.
	done = done && write(ends[1], from, 1) == -1 && errno == EPIPE;
	close(ends[1]);
	return done;
}

static int in_child(char *at, char seen, char left)
{
	int status;
	if (fork() == 0) {
		int same = *at == seen;
		*at = left;
		at[PAGE] = left;
		_exit(same && *at == left);
	}
	wait(&status);
	return WEXITSTATUS(status);
}

static double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return (double)now.tv_sec + (double)now.tv_nsec / 1e9;
}

int main(void)
{
	const size_t len = 8 * TIB;
	// A pipe without a reader is an error, not a signal.
	if (sigaction(SIGPIPE, &(struct sigaction){.sa_handler = SIG_IGN}, NULL))
		return 1;
	char *all = reserve(len, PROT_NONE);
	say("8 TiB", all != MAP_FAILED);
	if (all == MAP_FAILED)
		return 1;
	char *places[] = {all, all + len / 2 - PAGE, all + len - 64 * PAGE};
	for (int i = 0; i < 3; i++) {
		char *at = places[i];
		say("a piece", mprotect(at, 64 * PAGE, READ_WRITE) == 0);
		for (int page = 0; page < 64; page++)
			at[page * PAGE + page] = (char)(page + i + 1);
		int sum = 0;
		for (int page = 0; page < 64; page++)
			sum += at[page * PAGE + page] + at[page * PAGE + 100];
		printf("%d\n", sum);
		strcpy(at + 200, "through a pipe");
		say("through a pipe", through_a_pipe(at + 150, at + 5 * PAGE - 50));
		char *beside = i < 2 ? at + 64 * PAGE : at - PAGE;
		say("not next to it", write(1, beside, 1) == -1 && errno == EFAULT);
	}
	char *fixed = mmap(all + len / 4, 3 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
	say("at a fixed place", fixed == all + len / 4);
	fixed[PAGE] = 1;
	say("again, new", mmap(fixed, 3 * PAGE, READ_WRITE, RESERVED | MAP_FIXED, -1, 0) == fixed && fixed[PAGE] == 0);
	fixed[PAGE] = 2;
	say("a child", in_child(fixed + PAGE, 2, 3));
	printf("%d %d\n", fixed[PAGE], fixed[2 * PAGE]);
	say("a child further on", in_child(places[2], 3, 4));
	printf("%d %d\n", places[2][0], places[2][PAGE]);

	say("not needed", madvise(places[1], 2 * PAGE, MADV_DONTNEED) == 0);
	printf("%d %d\n", places[1][0], places[1][2 * PAGE + 2]);
	say("none of it is", madvise(all, len, MADV_DONTNEED) == 0);
	printf("%d %d %d\n", places[0][0], places[1][3 * PAGE + 3], places[2][0]);
	places[0][0] = 7;
	places[2][63 * PAGE] = 9;

	char *moved = mremap(places[0], 64 * PAGE, 128 * PAGE, MREMAP_MAYMOVE);
	say("a piece grows elsewhere", moved != MAP_FAILED && moved != places[0]);
	printf("%d %d\n", moved[0], moved[127 * PAGE]);
	say("and goes back", mremap(moved, 128 * PAGE, 64 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, places[0]) == places[0]);
	printf("%d\n", places[0][0]);

	say("a hole", munmap(all + len / 4, len / 2) == 0);
	say("nothing is there", madvise(all + len / 2, PAGE, MADV_DONTNEED) != 0 && errno == ENOMEM);
	say("the hole is filled", mmap(all + len / 2, TIB, PROT_NONE, RESERVED | MAP_FIXED_NOREPLACE, -1, 0) == all + len / 2);
	printf("%d %d\n", places[0][0], places[2][63 * PAGE]);
	say("all goes", munmap(all, len) == 0);
	say("nothing is left", madvise(all, PAGE, MADV_DONTNEED) != 0 && errno == ENOMEM);

	char *large = reserve(TIB, PROT_NONE);
	say("1 TiB", large != MAP_FAILED && mprotect(large, TIB, READ_WRITE) == 0);
	large[TIB / 2] = 5;
	say("inaccessible", mprotect(large, TIB, PROT_NONE) == 0);
	large = mremap(large, TIB, 2 * TIB, MREMAP_MAYMOVE);
	say("2 TiB, wherever", large != MAP_FAILED);
	say("accessible", mprotect(large, 2 * TIB, READ_WRITE) == 0);
	large[2 * TIB - 1] = 6;
	printf("%d %d %d\n", large[0], large[TIB / 2], large[2 * TIB - 1]);
	say("shrinks", mremap(large, 2 * TIB, PAGE, 0) == large && munmap(large, PAGE) == 0);

	char *twice[2];
	for (int i = 0; i < 2; i++) {
		twice[i] = reserve((size_t)16 * TIB, PROT_NONE);
		say("16 TiB", twice[i] != MAP_FAILED && mprotect(twice[i] + 15 * TIB, PAGE, READ_WRITE) == 0);
		twice[i][15 * TIB] = (char)i;
	}
	say("both go", munmap(twice[0], 16 * TIB) == 0 && munmap(twice[1], 16 * TIB) == 0);

	char *all_used = reserve(len, READ_WRITE);
	say("8 TiB to be written", all_used != MAP_FAILED);
	int sum = 0;
	for (size_t at = 0; at < len; at += len / 16) {
		all_used[at] = 1;
		sum += all_used[at] + all_used[at + len / 32];
	}
	printf("%d\n", sum);
	say("that go", munmap(all_used, len) == 0);

	double begin = seconds();
	for (int i = 0; i < 20; i++) {
		char *at = reserve(len, PROT_NONE);
		if (at == MAP_FAILED || mprotect(at, len / 2, PROT_READ) || madvise(at, len, MADV_DONTNEED) || munmap(at, len))
			say("again and again", 0);
	}
	double each = (seconds() - begin) / 20;
	say("at once", each < 0.5);
	if (getenv("RESERVE_TIME"))
		fprintf(stderr, "%.0f us\n", each * 1e6);

	struct rlimit limit = {4 * TIB, 4 * TIB};
	say("limit", setrlimit(RLIMIT_AS, &limit) == 0);
	say("8 TiB with a limit", reserve(len, PROT_NONE) == MAP_FAILED && errno == ENOMEM);
	say("2 TiB with a limit", reserve(2 * TIB, PROT_NONE) != MAP_FAILED);
	say("3 TiB more", reserve(3 * TIB, PROT_NONE) == MAP_FAILED && errno == ENOMEM);
	return 0;
}
