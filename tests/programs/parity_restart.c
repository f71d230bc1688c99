// Calls that SA_RESTART does not restart (signal(7)): they are interrupted whatever the handler was installed with.
#include <errno.h>
#include <linux/futex.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/ipc.h>
#include <sys/msg.h>
#include <sys/sem.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static void handle(int signal)
{
	(void)signal;
}

static long call(int number, int queue, int semaphore)
{
	struct timespec long_time = {.tv_sec = 20};
	struct sembuf wait = {.sem_op = -1};
	struct { long kind; char text[1024]; } message = {.kind = 1};
	int word = 0;
	long result = 0;
	switch (number) {
	case 0: return msgrcv(queue, &message, sizeof message.text, 0, 0);
	case 1: return semop(semaphore, &wait, 1);
	case 2: return syscall(SYS_futex, &word, FUTEX_WAIT, 0, &long_time, NULL, 0);
	case 3: return nanosleep(&long_time, NULL);
	case 4: return pause();
	default:
		while (result == 0)
			result = msgsnd(queue, &message, sizeof message.text, 0);
		return result;
	}
}

int main(void)
{
	static const char *const names[] = {"msgrcv", "semop", "futex", "nanosleep", "pause", "msgsnd"};
	for (int i = 0; i < 12; i++) {
		int queue = msgget(IPC_PRIVATE, 0600), semaphore = semget(IPC_PRIVATE, 1, 0600), flags = i % 2 ? SA_RESTART : 0;
		struct sigaction action = {.sa_handler = handle, .sa_flags = flags};
		sigaction(SIGUSR1, &action, NULL);
		fflush(stdout);
		pid_t child = fork();
		if (child == 0) {
			long result = call(i / 2, queue, semaphore);
			printf("%s%s: %ld %s\n", names[i / 2], flags ? " (restart)" : "", result, strerrorname_np(errno));
			return 0;
		}
		// Again and again, in case that the first came before the call.
		for (int tries = 0; tries < 200 && waitpid(child, NULL, WNOHANG) == 0; tries++) {
			usleep(50000);
			kill(child, SIGUSR1);
		}
		kill(child, SIGKILL);
		msgctl(queue, IPC_RMID, NULL);
		semctl(semaphore, 0, IPC_RMID);
	}
	return 0;
}
