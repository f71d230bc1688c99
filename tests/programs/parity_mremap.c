// mremap of shared memory, which stays the same memory wherever it is, and advice about memory.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

enum { PAGE = 4096, READ_WRITE = PROT_READ | PROT_WRITE };

static void say(const char *what, int holds)
{
	printf("%s: %s\n", what, holds ? "yes" : strerror(errno));
	fflush(stdout);
}

// A place with nothing behind it, so that what is there has to move.
static char *blocked(int flags, int fd, size_t len)
{
	char *place = mmap(NULL, len + PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	return mmap(place, len, READ_WRITE, flags | MAP_FIXED, fd, 0);
}

static int in_child(char *at, char seen, char left)
{
	int status;
	if (fork() == 0) {
		int same = *at == seen;
		*at = left;
		_exit(same);
	}
	wait(&status);
	return WEXITSTATUS(status) && *at == left;
}

int main(void)
{
	char *memory = blocked(MAP_SHARED | MAP_ANONYMOUS, -1, 4 * PAGE);
	memory[0] = 'a';
	memory[3 * PAGE] = 'd';
	say("a child sees it", in_child(memory, 'a', 'b'));
	char *moved = mremap(memory, 4 * PAGE, 8 * PAGE, MREMAP_MAYMOVE);
	say("it grows", moved != MAP_FAILED);
	say("elsewhere", moved != memory);
	printf("%c %c\n", moved[0], moved[3 * PAGE]);
	say("a child sees it there", in_child(moved, 'b', 'c'));
	say("what was shared before still is", in_child(moved + 3 * PAGE, 'd', 'e'));
	char *fixed = mmap(NULL, 2 * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	char *part = mremap(moved + 3 * PAGE, PAGE, PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, fixed);
	say("a part goes where it is told", part == fixed);
	printf("%c\n", *part);
	say("a child sees the part", in_child(part, 'e', 'f'));
	say("it shrinks", mremap(moved, 3 * PAGE, PAGE, 0) == moved);
	printf("%c\n", moved[0]);

	int fd = open("file", O_RDWR | O_CREAT | O_TRUNC, 0600);
	if (ftruncate(fd, 8 * PAGE))
		return 1;
	char *file = blocked(MAP_SHARED, fd, 2 * PAGE);
	memcpy(file, "first", 5);
	if (pwrite(fd, "third", 5, 2 * PAGE) != 5)
		return 1;
	file = mremap(file, 2 * PAGE, 4 * PAGE, MREMAP_MAYMOVE);
	say("a file grows", file != MAP_FAILED);
	printf("%.5s %.5s\n", file, file + 2 * PAGE);
	memcpy(file + 3 * PAGE, "fourth", 6);
	char back[8] = "";
	if (pread(fd, back, 6, 3 * PAGE) != 6)
		return 1;
	printf("%s\n", back);
	char *second = blocked(MAP_SHARED, fd, 2 * PAGE);
	second = mremap(second + PAGE, PAGE, 2 * PAGE, MREMAP_MAYMOVE);
	say("its second page grows", second != MAP_FAILED);
	printf("%.5s\n", second + PAGE);

	say("overlapping", mremap(file, 4 * PAGE, 4 * PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, file + PAGE) != MAP_FAILED);
	say("nothing there", mremap((void *)(16 * PAGE), PAGE, 2 * PAGE, MREMAP_MAYMOVE) != MAP_FAILED);
	say("to no length", mremap(file, 4 * PAGE, 0, MREMAP_MAYMOVE) != MAP_FAILED);

	char *private = mmap(NULL, 4 * PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(private, 7, 4 * PAGE);
	say("may be freed", madvise(private, 2 * PAGE, MADV_FREE) == 0);
	say("zero or as it was", private[0] == 0 || private[0] == 7);
	private[0] = 9;
	printf("%d %d\n", private[0], private[2 * PAGE]);
	say("a file may not", madvise(file, PAGE, MADV_FREE) == 0);
	say("shared memory may not", madvise(part, PAGE, MADV_FREE) == 0);
	say("is not needed", madvise(private, 4 * PAGE, MADV_DONTNEED) == 0 && private[2 * PAGE] == 0);
	say("advice that is none", madvise(private, PAGE, 9999) == 0);
	return unlink("file");
}
