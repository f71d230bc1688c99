/* Signals between threads, masks, timers and interrupted calls. */
#include <errno.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static pthread_t hit_by;
static volatile sig_atomic_t hits, alarms, value;

static void on_user(int number)
{
    (void)number;
    hit_by = pthread_self();
    hits++;
}

static void on_alarm(int number, siginfo_t *info, void *context)
{
    (void)number, (void)context;
    value = info->si_value.sival_int;
    alarms++;
}

static void *sleeper(void *arg)
{
    struct timespec long_time = {30, 0}, rest = {0, 0};
    (void)arg;
    int result = nanosleep(&long_time, &rest);
    printf("sleep: %s, rest %s\n", result < 0 ? strerror(errno) : "slept",
           rest.tv_sec > 20 && rest.tv_sec < 30 ? "told" : "not told");
    return NULL;
}

static void *waiter(void *arg)
{
    sigset_t *set = arg;
    siginfo_t info;
    int number = sigwaitinfo(set, &info);
    printf("waited for: %s\n", number == SIGUSR2 ? "SIGUSR2" : strerror(errno));
    return NULL;
}

/* Long after the alarm has gone off in the reader. */
static void *write_later(void *arg)
{
    usleep(150000);
    if (write(*(int *)arg, "x", 1) != 1)
        puts("cannot write");
    return NULL;
}

int main(void)
{
    pthread_t thread;
    sigset_t set, old;
    struct sigaction user = {.sa_handler = on_user};
    struct sigaction alarm_action = {.sa_sigaction = on_alarm, .sa_flags = SA_SIGINFO};
    sigaction(SIGUSR1, &user, NULL);
    sigaction(SIGALRM, &alarm_action, NULL);
    setvbuf(stdout, NULL, _IOLBF, 0);

    /* One thread's signal is handled by that thread and interrupts its sleep. */
    pthread_create(&thread, NULL, sleeper, NULL);
    usleep(100000);
    pthread_kill(thread, SIGUSR1);
    pthread_join(thread, NULL);
    printf("hits %d, by the %s thread\n", hits, pthread_equal(hit_by, thread) ? "right" : "wrong");

    /* A blocked signal waits. */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR1);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    raise(SIGUSR1);
    sigset_t pending;
    sigpending(&pending);
    printf("blocked: hits %d, pending %d\n", hits, sigismember(&pending, SIGUSR1));
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    printf("unblocked: hits %d\n", hits);

    /* sigwaitinfo takes what everyone blocks. */
    sigemptyset(&set);
    sigaddset(&set, SIGUSR2);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&thread, NULL, waiter, &set);
    usleep(50000);
    kill(getpid(), SIGUSR2);
    pthread_join(thread, NULL);

    /* setitimer; the calls it interrupts say so. */
    struct itimerval once = {.it_value = {0, 50000}};
    struct pollfd nothing = {.fd = -1};
    setitimer(ITIMER_REAL, &once, NULL);
    int result = poll(&nothing, 1, 10000);
    printf("poll: %s, alarms %d\n", result < 0 ? strerror(errno) : "timed out", alarms);
    once.it_value.tv_usec = 50000;
    setitimer(ITIMER_REAL, &once, NULL);
    result = pause();
    printf("pause: %s, alarms %d\n", strerror(errno), alarms);

    /* timer_create with a value. */
    timer_t timer;
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGALRM};
    event.sigev_value.sival_int = 42;
    if (timer_create(CLOCK_MONOTONIC, &event, &timer)) {
        printf("timer_create: %s\n", strerror(errno));
    } else {
        struct itimerspec thrice = {{0, 20000000}, {0, 20000000}};
        int before = alarms;
        timer_settime(timer, 0, &thrice, NULL);
        while (alarms < before + 3)
            pause();
        timer_delete(timer);
        printf("timer: three times, value %d\n", value);
    }

    /* sigsuspend opens the mask for one signal. */
    sigemptyset(&set);
    sigaddset(&set, SIGALRM);
    pthread_sigmask(SIG_BLOCK, &set, &old);
    once.it_value.tv_usec = 20000;
    int before = alarms;
    setitimer(ITIMER_REAL, &once, NULL);
    usleep(40000);
    printf("held: %d\n", alarms - before);
    sigsuspend(&old);
    printf("suspended: %s, alarms %d\n", strerror(errno), alarms - before);

    /* SA_RESTART: the read goes on after the handler. */
    int ends[2];
    char c = 0;
    alarm_action.sa_flags |= SA_RESTART;
    sigaction(SIGALRM, &alarm_action, NULL);
    if (pipe(ends))
        return 1;
    /* The writer inherits a mask that leaves the alarm to this thread. */
    pthread_sigmask(SIG_BLOCK, &set, NULL);
    pthread_create(&thread, NULL, write_later, &ends[1]);
    pthread_sigmask(SIG_SETMASK, &old, NULL);
    once.it_value.tv_usec = 30000;
    setitimer(ITIMER_REAL, &once, NULL);
    ssize_t n = read(ends[0], &c, 1);
    printf("restarted read: %zd %c\n", n, c);
    pthread_join(thread, NULL);
    return 0;
}
