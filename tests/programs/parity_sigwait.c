/* A signal for the process that all threads block: the one that waits for it gets it, whichever the kernel has chosen. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t never = PTHREAD_COND_INITIALIZER;

static void *wait_for_ever(void *unused)
{
    pthread_mutex_lock(&mutex);
    for (;;)
        pthread_cond_wait(&never, &mutex);
    return unused;
}

static void *wait_for_signals(void *parent)
{
    sigset_t all;
    sigfillset(&all);
    for (int i = 0; i < 20; i++) {
        pid_t child = fork();
        if (child == 0) {
            usleep(5000);
            kill(*(pid_t *)parent, i % 2 ? SIGTERM : SIGHUP);
            _exit(0);
        }
        siginfo_t info;
        int number;
        do
            number = sigwaitinfo(&all, &info);
        while (number == SIGCHLD || (number < 0 && errno == EINTR));
        if (info.si_pid != child || info.si_code != SI_USER)
            printf("not from the child\n");
        printf("%d\n", number);
        waitpid(child, NULL, 0);
    }
    exit(0);
}

int main(void)
{
    sigset_t all;
    pthread_t thread;
    setvbuf(stdout, NULL, _IOLBF, 0);
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, NULL);
    for (int i = 0; i < 6; i++)
        pthread_create(&thread, NULL, wait_for_ever, NULL);
    pid_t parent = getpid();
    pthread_create(&thread, NULL, wait_for_signals, &parent);
    wait_for_ever(NULL);
    return 1;
}
