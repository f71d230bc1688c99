// Asynchronous I/O by the system calls themselves, as libaio makes them.
#include <errno.h>
#include <fcntl.h>
#include <linux/aio_abi.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static aio_context_t context;

static long setup(unsigned events, aio_context_t *into) { return syscall(SYS_io_setup, events, into); }

static long submit(long count, struct iocb **blocks) { return syscall(SYS_io_submit, context, count, blocks); }

static long get(long least, long most, struct io_event *events, struct timespec *time)
{
	return syscall(SYS_io_getevents, context, least, most, events, time);
}

static void say(const char *what, long result)
{
	printf("%s: %ld %s\n", what, result, result < 0 ? strerror(errno) : "");
}

static struct iocb block(int code, int fd, void *buffer, size_t len, long offset, uint64_t data)
{
	struct iocb block = {
		.aio_data = data,
		.aio_lio_opcode = (uint16_t)code,
		.aio_fildes = (uint32_t)fd,
		.aio_buf = (uintptr_t)buffer,
		.aio_nbytes = len,
		.aio_offset = offset,
	};
	return block;
}

static void *submit_later(void *argument)
{
	struct iocb *one = argument;
	usleep(50000);
	say("by another thread", submit(1, &one));
	return NULL;
}

static void *destroy_later(void *result)
{
	usleep(50000);
	*(long *)result = syscall(SYS_io_destroy, context);
	return result;
}

// What is submitted alone comes to this.
static void alone(const char *what, struct iocb one)
{
	struct iocb *blocks[] = {&one};
	struct io_event event = {0};
	struct timespec soon = {5, 0};
	long submitted = submit(1, blocks);
	say(what, submitted);
	if (submitted != 1)
		return;
	long got = get(1, 1, &event, &soon);
	printf("  %ld: data %llu, its block %d, %lld %lld\n", got, event.data, event.obj == (uintptr_t)&one, event.res,
	       event.res2);
}

int main(void)
{
	char in[64] = "", out[] = "what is written asynchronously";
	int file = open("aio.data", O_RDWR | O_CREAT | O_TRUNC, 0600), reader = open("aio.data", O_RDONLY);
	aio_context_t other = 1;
	say("a context that is there", setup(4, &other));
	other = 0;
	say("of nothing", setup(0, &other));
	say("nowhere", setup(4, (void *)8));
	say("a context", setup(4, &context));
	uint32_t ring[8];
	memcpy(ring, (void *)context, sizeof ring);
	printf("a ring: %d, %u %u, %x %u\n", ring[1] >= 4, ring[2], ring[3], ring[4], ring[7]);

	alone("a write", block(IOCB_CMD_PWRITE, file, out, sizeof out, 100, 1));
	alone("a read", block(IOCB_CMD_PREAD, file, in, sizeof in, 100, 2));
	printf("read: %s\n", in);
	struct iovec parts[] = {{in, 5}, {in + 20, 8}}, sources[] = {{"one", 3}, {"two", 3}};
	memset(in, '.', sizeof in - 1);
	alone("a read into parts", block(IOCB_CMD_PREADV, reader, parts, 2, 100, 3));
	printf("read: %s\n", in);
	alone("a write from parts", block(IOCB_CMD_PWRITEV, file, sources, 2, 0, 4));
	alone("an fsync", block(IOCB_CMD_FSYNC, file, NULL, 0, 0, 5));
	alone("an fdatasync", block(IOCB_CMD_FDSYNC, file, NULL, 0, 0, 6));
	alone("a read past the end", block(IOCB_CMD_PREAD, file, in, 10, 1000, 7));
	alone("a read to nowhere", block(IOCB_CMD_PREAD, file, (void *)8, 10, 0, 8));

	alone("no descriptor", block(IOCB_CMD_PREAD, 999, in, 10, 0, 0));
	alone("a write to what is read", block(IOCB_CMD_PWRITE, reader, out, 3, 0, 0));
	alone("an unknown code", block(99, file, out, 3, 0, 0));
	alone("too much", block(IOCB_CMD_PREAD, file, in, SIZE_MAX, 0, 0));
	struct iocb one = block(IOCB_CMD_PREAD, file, in, 3, 0, 0), *blocks[] = {&one, NULL, &one};
	one.aio_reserved2 = 1;
	alone("a reserved member", one);
	one.aio_reserved2 = 0;
	one.aio_flags = IOCB_FLAG_RESFD;
	one.aio_resfd = (uint32_t)file;
	alone("a file to be told", one);
	say("nothing", submit(0, blocks));
	say("less than nothing", submit(-1, blocks));
	say("blocks that are nowhere", submit(1, (void *)8));

	int told = eventfd(0, EFD_NONBLOCK);
	one.aio_resfd = (uint32_t)told;
	struct io_event events[4];
	struct timespec now = {0, 0}, soon = {0, 20000000};
	say("up to a block that is nowhere", submit(3, blocks));
	struct iocb *same[] = {&one, &one};
	say("twice the same", submit(2, same));
	uint64_t count = 0;
	say("told", read(told, &count, sizeof count));
	printf("told of %llu\n", (unsigned long long)count);
	say("two of them", get(1, 2, events, NULL));
	say("the rest", get(0, 4, events, &now));
	say("no more", get(1, 4, events, &now));
	say("none in time", get(2, 4, events, &soon));
	say("more than there is room for", get(3, 2, events, &now));
	say("fewer than none", get(-1, 2, events, &now));
	struct io_event result;
	say("cancelled", syscall(SYS_io_cancel, context, &one, &result));

	pthread_t thread;
	one.aio_data = 9;
	pthread_create(&thread, NULL, submit_later, &one);
	long got = get(1, 4, events, NULL);
	pthread_join(thread, NULL);
	printf("waited for: %ld, data %llu, %lld\n", got, events[0].data, events[0].res);

	// Around the ring, more than once.
	long total = 0;
	for (int i = 0; i < 1000; i++) {
		if (submit(2, same) != 2 || get(2, 2, events, NULL) != 2)
			break;
		total += 2;
	}
	printf("%ld operations\n", total);
	long destroyed = -1;
	pthread_create(&thread, NULL, destroy_later, &destroyed);
	say("waited for in vain", get(1, 4, events, NULL));
	pthread_join(thread, NULL);
	say("destroyed", destroyed);
	say("again", syscall(SYS_io_destroy, context));
	say("submitted afterwards", submit(1, same));
	say("fetched afterwards", get(0, 1, events, &now));
	return unlink("aio.data");
}
