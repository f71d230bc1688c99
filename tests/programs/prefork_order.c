// A prefork server whose processes tell each other the same thing in two ways: each of its objects has a count and a list
// of entries, which are kept in different places (shared memory, a file, a file that is mapped shared) under a lock of one of
// several kinds. Whatever one process has answered is what every other one finds.
//
// usage: PORT PROCESSES SEED DIRECTORY [undoable]. With the last argument, only kinds of locks that the monitor can take back
// are used. A request is "OBJECT CRASH\n": adds an entry to the object and answers its number,
// or "BAD ..." if the two places differ; CRASH is 0, or the number of the step after which the request crashes.
// OBJECT -1 answers the counts of all objects.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <sched.h>
#include <semaphore.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/sem.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { OBJECTS = 12, ENTRIES = 20000 };
enum lock { MUTEX, SPIN, SEMAPHORE, FLOCK, RECORD, PIPE, SYSTEM_V, LOCKS };
enum place { MEMORY, FILE_AT, FILE_END, MAPPED, PLACES };

struct shared {
	pthread_mutex_t mutex;
	sem_t semaphore;
	int spin;
	long count;
	long entries[ENTRIES];
};

static struct object {
	enum lock lock;
	enum place counts, entries;
	int count_first, locks, count, list, tokens[2], system_v;
	struct shared *shared;
	long *mapped_count, *mapped_entries;
} objects[OBJECTS];

static int *volatile nowhere;
static int locks = LOCKS;

static void step(int number, int crash)
{
	if (number == crash)
		*nowhere = 1;
}

static int record(int fd, int kind)
{
	struct flock range = {.l_type = (short)kind, .l_whence = SEEK_SET};
	return fcntl(fd, F_SETLKW, &range);
}

static int system_v(int id, int change)
{
	struct sembuf operation = {.sem_op = (short)change};
	return semop(id, &operation, 1);
}

static void lock(struct object *o)
{
	char token;
	switch (o->lock) {
	case MUTEX: pthread_mutex_lock(&o->shared->mutex); break;
	case SPIN: while (__atomic_exchange_n(&o->shared->spin, 1, __ATOMIC_ACQUIRE)) sched_yield(); break;
	case SEMAPHORE: while (sem_wait(&o->shared->semaphore) != 0); break;
	case FLOCK: while (flock(o->locks, LOCK_EX) != 0); break;
	case RECORD: while (record(o->locks, F_WRLCK) != 0); break;
	case PIPE: while (read(o->tokens[0], &token, 1) != 1); break;
	default: while (system_v(o->system_v, -1) != 0); break;
	}
}

static void unlock(struct object *o)
{
	switch (o->lock) {
	case MUTEX: pthread_mutex_unlock(&o->shared->mutex); break;
	case SPIN: __atomic_store_n(&o->shared->spin, 0, __ATOMIC_RELEASE); break;
	case SEMAPHORE: sem_post(&o->shared->semaphore); break;
	case FLOCK: flock(o->locks, LOCK_UN); break;
	case RECORD: record(o->locks, F_UNLCK); break;
	case PIPE: if (write(o->tokens[1], "t", 1) != 1) abort(); break;
	default: system_v(o->system_v, 1); break;
	}
}

static long get(enum place place, long *memory, long *mapped, int fd, long index)
{
	long value = 0;
	switch (place) {
	case MEMORY: return memory[index];
	case MAPPED: return mapped[index];
	default: return pread(fd, &value, sizeof value, index * 8) < 0 ? -1 : value;
	}
}

static void set(enum place place, long *memory, long *mapped, int fd, long index, long value)
{
	ssize_t done = sizeof value;
	switch (place) {
	case MEMORY: memory[index] = value; break;
	case MAPPED: mapped[index] = value; break;
	case FILE_END: lseek(fd, 0, SEEK_END); done = write(fd, &value, sizeof value); break;
	default: done = pwrite(fd, &value, sizeof value, index * 8); break;
	}
	if (done != sizeof value)
		abort();
}

static void count(struct object *o, long n)
{
	set(o->counts, &o->shared->count, o->mapped_count, o->count, 0, n);
}

static int add(struct object *o, int crash, char *answer)
{
	lock(o);
	step(1, crash);
	long n = get(o->counts, &o->shared->count, o->mapped_count, o->count, 0), last = -1, next = 0;
	if (n > 0)
		last = get(o->entries, o->shared->entries, o->mapped_entries, o->list, n - 1);
	next = get(o->entries, o->shared->entries, o->mapped_entries, o->list, n);
	int is_right = last == (n > 0 ? n : -1) && next == 0;
	if (o->entries == FILE_END)
		is_right = is_right && lseek(o->list, 0, SEEK_END) == n * 8;
	if (o->count_first)
		count(o, n + 1);
	step(2, crash);
	set(o->entries, o->shared->entries, o->mapped_entries, o->list, n, n + 1);
	step(3, crash);
	if (!o->count_first)
		count(o, n + 1);
	unlock(o);
	step(4, crash);
	if (is_right)
		return sprintf(answer, "%ld\n", n);
	return sprintf(answer, "BAD lock %d counts %d entries %d: %ld counted, the last is %ld, the next %ld\n", o->lock, o->counts, o->entries, n, last, next);
}

static int open_files(struct object *o, const char *directory, int number, int flags)
{
	char path[4096];
	int *files[] = {&o->locks, &o->count, &o->list};
	for (int i = 0; i < 3; i++) {
		snprintf(path, sizeof path, "%s/%d-%d", directory, number, i);
		*files[i] = open(path, O_RDWR | flags, 0600);
		if (*files[i] < 0)
			return -1;
	}
	return 0;
}

static void serve(int listener, const char *directory)
{
	char line[64], answer[512];
	// Each process has open files of its own: `flock` is about those.
	for (int i = 0; i < OBJECTS; i++)
		if (open_files(&objects[i], directory, i, 0) != 0)
			_exit(3);
	for (;;) {
		int client = accept(listener, 0, 0), object, crash;
		ssize_t n;
		while (client >= 0 && (n = read(client, line, sizeof line - 1)) > 0) {
			line[n] = 0;
			int length = 0;
			if (sscanf(line, "%d %d", &object, &crash) != 2 || object >= OBJECTS)
				break;
			if (object >= 0) {
				length = add(&objects[object], crash, answer);
				step(5, crash);
			} else {
				for (int i = 0; i < OBJECTS; i++) {
					struct object *o = &objects[i];
					lock(o);
					length += sprintf(answer + length, "%ld%s", get(o->counts, &o->shared->count, o->mapped_count, o->count, 0), i + 1 < OBJECTS ? " " : "\n");
					unlock(o);
				}
			}
			if (write(client, answer, (size_t)length) != length)
				break;
			step(6, crash);
		}
		if (client >= 0)
			close(client);
	}
}

static void *map(size_t length, int fd)
{
	void *start = mmap(0, length, PROT_READ | PROT_WRITE, MAP_SHARED | (fd < 0 ? MAP_ANONYMOUS : 0), fd, 0);
	if (start == MAP_FAILED)
		exit(4);
	return start;
}

static void make(struct object *o, int number, const char *directory)
{
	pthread_mutexattr_t attributes;
	o->lock = (enum lock)(rand() % locks);
	o->counts = (enum place)(rand() % PLACES);
	o->entries = (enum place)(rand() % PLACES);
	if (o->counts == FILE_END)
		o->counts = FILE_AT;
	o->count_first = rand() % 2;
	if (open_files(o, directory, number, O_CREAT | O_TRUNC) != 0)
		exit(5);
	o->shared = map(sizeof *o->shared, -1);
	pthread_mutexattr_init(&attributes);
	pthread_mutexattr_setpshared(&attributes, PTHREAD_PROCESS_SHARED);
	pthread_mutex_init(&o->shared->mutex, &attributes);
	sem_init(&o->shared->semaphore, 1, 1);
	if (pipe(o->tokens) != 0 || write(o->tokens[1], "t", 1) != 1)
		exit(6);
	o->system_v = semget(IPC_PRIVATE, 1, 0600);
	semctl(o->system_v, 0, SETVAL, 1);
	if (o->counts == MAPPED && ftruncate(o->count, 4096) == 0)
		o->mapped_count = map(4096, o->count);
	if (o->entries == MAPPED && ftruncate(o->list, ENTRIES * 8) == 0)
		o->mapped_entries = map(ENTRIES * 8, o->list);
	fprintf(stderr, "%d: lock %d counts %d entries %d first %d\n", number, o->lock, o->counts, o->entries, o->count_first);
}

static void end(int signal)
{
	(void)signal;
	for (int i = 0; i < OBJECTS; i++)
		semctl(objects[i].system_v, 0, IPC_RMID);
	_exit(0);
}

int main(int argc, char **argv)
{
	if (argc < 5)
		return 2;
	int listener = socket(AF_INET, SOCK_STREAM, 0), one = 1;
	struct sockaddr_in at = {
		.sin_family = AF_INET,
		.sin_port = htons((unsigned short)atoi(argv[1])),
		.sin_addr.s_addr = htonl(INADDR_LOOPBACK),
	};
	srand((unsigned)atoi(argv[3]));
	if (argc > 5)
		locks = PIPE;
	for (int i = 0; i < OBJECTS; i++)
		make(&objects[i], i, argv[4]);
	setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
	if (bind(listener, (struct sockaddr *)&at, sizeof at) != 0 || listen(listener, 64) != 0)
		return 1;
	for (int i = 0; i < atoi(argv[2]); i++)
		if (fork() == 0)
			serve(listener, argv[4]);
	signal(SIGTERM, end);
	for (;;)
		pause();
}
