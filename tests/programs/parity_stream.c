// Answers in pieces with waits between them: every piece leaves when the wait begins, and the server is told when the
// client has gone.
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { WAYS = 8, PIECES = 5 };
static int listener;
static const char *const names[WAYS] = { "usleep", "nanosleep of 5 ms", "until a time", "poll", "select", "futex", "condition", "lock" };
static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t condition = PTHREAD_COND_INITIALIZER;

// Waits for 100 ms.
static void wait_by(int way)
{
	struct timespec time = { 0, 100000000 }, now;
	switch (way) {
	case 0:
		usleep(100000);
		break;
	case 1:
		time.tv_nsec = 5000000;
		for (int i = 0; i < 20; i++)
			nanosleep(&time, NULL);
		break;
	case 2:
		clock_gettime(CLOCK_MONOTONIC, &now);
		now.tv_nsec += 100000000;
		if (now.tv_nsec >= 1000000000) {
			now.tv_sec++;
			now.tv_nsec -= 1000000000;
		}
		clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &now, NULL);
		break;
	case 3:
		poll(NULL, 0, 100);
		break;
	case 4:
		select(0, NULL, NULL, NULL, &(struct timeval){ 0, 100000 });
		break;
	case 5: {
		int word = 0;
		syscall(SYS_futex, &word, FUTEX_WAIT_PRIVATE, 0, &time, NULL, 0);
		break;
	}
	case 6:
		clock_gettime(CLOCK_REALTIME, &now);
		now.tv_nsec += 100000000;
		if (now.tv_nsec >= 1000000000) {
			now.tv_sec++;
			now.tv_nsec -= 1000000000;
		}
		pthread_mutex_lock(&mutex);
		pthread_cond_timedwait(&condition, &mutex, &now);
		pthread_mutex_unlock(&mutex);
		break;
	default: {
		// A child holds the lock for a while.
		int file = open("/tmp", O_TMPFILE | O_RDWR, 0600), told[2];
		char path[64], byte;
		snprintf(path, sizeof path, "/proc/self/fd/%d", file);
		pipe(told);
		if (fork() == 0) {
			int own = open(path, O_RDWR);
			flock(own, LOCK_EX);
			write(told[1], "x", 1);
			usleep(100000);
			_exit(0);
		}
		read(told[0], &byte, 1);
		flock(file, LOCK_EX);
		close(file);
		close(told[0]);
		close(told[1]);
		wait(NULL);
	}
	}
}

static void *serve(void *argument)
{
	int fd = accept(listener, NULL, NULL);
	char way;
	(void)argument;
	read(fd, &way, 1);
	int i = 0;
	for (; i < 300; i++) {
		if (send(fd, "tick\n", 5, MSG_NOSIGNAL) < 0)
			break;
		wait_by(way);
	}
	printf("server: %s\n", i < 300 ? "told that the client has gone" : "never told");
	close(fd);
	return NULL;
}

int main(void)
{
	setvbuf(stdout, NULL, _IONBF, 0);
	struct sockaddr_in address = { AF_INET, 0, { htonl(INADDR_LOOPBACK) }, { 0 } };
	socklen_t len = sizeof address;
	listener = socket(AF_INET, SOCK_STREAM, 0);
	bind(listener, (struct sockaddr *)&address, len);
	listen(listener, 5);
	getsockname(listener, (struct sockaddr *)&address, &len);
	for (char way = 0; way < WAYS; way++) {
		pid_t child = fork();
		if (child == 0) {
			int fd = socket(AF_INET, SOCK_STREAM, 0), got = 0, pieces = 0;
			char bytes[64 * PIECES];
			connect(fd, (struct sockaddr *)&address, len);
			write(fd, &way, 1);
			// Held output would come in one piece.
			while (got < 5 * PIECES) {
				ssize_t n = read(fd, bytes, sizeof bytes);
				if (n <= 0)
					break;
				got += (int)n;
				pieces += n < 5 * PIECES;
			}
			printf("%s: client has got them %s\n", names[(int)way], pieces > 1 ? "one by one" : "together");
			// The work is done.
			poll(NULL, 0, 0);
			close(fd);
			_exit(0);
		}
		waitpid(child, NULL, WNOHANG);
		pthread_t thread;
		// With a second thread and without.
		if (way % 2) {
			serve(NULL);
		} else {
			pthread_create(&thread, NULL, serve, NULL);
			pthread_join(thread, NULL);
		}
		while (waitpid(child, NULL, 0) == child)
			;
	}
	return 0;
}
