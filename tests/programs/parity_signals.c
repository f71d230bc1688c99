/* What becomes of signals: how they queue, what they say, who gets them, what waits for them. */
#include <errno.h>
#include <fcntl.h>
#include <mqueue.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static sigset_t set_of(int first, ...)
{
    sigset_t set;
    sigemptyset(&set);
    __builtin_va_list list;
    __builtin_va_start(list, first);
    for (int number = first; number; number = __builtin_va_arg(list, int))
        sigaddset(&set, number);
    __builtin_va_end(list);
    return set;
}

static void block(int how, sigset_t set)
{
    sigprocmask(how, &set, NULL);
}

static char log_text[4096];

static void note(const char *format, ...)
{
    __builtin_va_list list;
    __builtin_va_start(list, format);
    size_t used = strlen(log_text);
    vsnprintf(log_text + used, sizeof log_text - used, format, list);
    __builtin_va_end(list);
}

static void show(const char *title)
{
    printf("%s:%s\n", title, log_text);
    log_text[0] = 0;
    fflush(stdout);
}

static void on_signal(int number, siginfo_t *info, void *context)
{
    (void)context;
    int from_self = info->si_pid == getpid();
    note(" %d(code %d%s value %d)", number, info->si_code, from_self ? " self" : "", info->si_value.sival_int);
}

static void handle(int number, int flags, sigset_t mask)
{
    struct sigaction action = {.sa_sigaction = on_signal, .sa_flags = SA_SIGINFO | flags, .sa_mask = mask};
    sigaction(number, &action, NULL);
}

static void queue(int number, int value)
{
    sigqueue(getpid(), number, (union sigval){.sival_int = value});
}

static void queue_three_of_each(void)
{
    for (int i = 0; i < 3; i++) {
        queue(SIGRTMIN + 3, i);
        queue(SIGRTMIN, 10 + i);
        queue(SIGUSR1, 20 + i);
    }
}

static void handle_each(sigset_t mask)
{
    handle(SIGUSR1, 0, mask);
    handle(SIGRTMIN, 0, mask);
    handle(SIGRTMIN + 3, 0, mask);
}

static void queues(void)
{
    sigset_t set = set_of(SIGUSR1, SIGRTMIN, SIGRTMIN + 3, 0);
    sigset_t none = set_of(0);
    handle_each(none);
    block(SIG_BLOCK, set);
    queue_three_of_each();
    raise(SIGUSR1);
    block(SIG_UNBLOCK, set);
    show("nested, the last first");
    sigset_t all;
    sigfillset(&all);
    handle_each(all);
    block(SIG_BLOCK, set);
    queue_three_of_each();
    block(SIG_UNBLOCK, set);
    show("one after the other");
}

static void waits(void)
{
    sigset_t set = set_of(SIGUSR2, SIGRTMIN + 1, SIGCHLD, 0);
    block(SIG_BLOCK, set);
    for (int i = 0; i < 3; i++)
        queue(SIGRTMIN + 1, i);
    kill(getpid(), SIGUSR2);
    sigset_t pending;
    sigpending(&pending);
    note(" pending %d %d %d", sigismember(&pending, SIGUSR2), sigismember(&pending, SIGRTMIN + 1),
         sigismember(&pending, SIGUSR1));
    struct timespec now = {0, 0}, soon = {0, 20000000};
    siginfo_t info;
    for (int i = 0; i < 5; i++) {
        memset(&info, 0, sizeof info);
        int number = sigtimedwait(&set, &info, &now);
        note(" %d/%d/%d", number, number > 0 ? info.si_code : -errno, number > 0 ? info.si_value.sival_int : 0);
    }
    show("taken");
    note(" %d", sigtimedwait(&set, &info, &soon) == -1 && errno == EAGAIN);
    pid_t child = fork();
    if (child == 0) {
        usleep(10000);
        kill(getppid(), SIGUSR2);
        _exit(7);
    }
    for (int i = 0; i < 2; i++) {
        int number = sigwaitinfo(&set, &info);
        note(" %d code %d child %d status %d", number, info.si_code, info.si_pid == child,
             number == SIGCHLD ? info.si_status : 0);
    }
    waitpid(child, NULL, 0);
    show("from a child");
    block(SIG_UNBLOCK, set);
}

static void descriptors(void)
{
    sigset_t set = set_of(SIGUSR1, SIGRTMIN + 2, 0);
    block(SIG_BLOCK, set);
    int fd = signalfd(-1, &set, SFD_NONBLOCK | SFD_CLOEXEC);
    struct signalfd_siginfo got[4];
    note(" empty %d", read(fd, got, sizeof got) == -1 && errno == EAGAIN);
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    note(" poll %d", poll(&entry, 1, 0));
    raise(SIGUSR1);
    queue(SIGRTMIN + 2, 5);
    queue(SIGRTMIN + 2, 6);
    note(" poll %d", poll(&entry, 1, 1000));
    ssize_t n = read(fd, got, sizeof got);
    for (ssize_t i = 0; i < n / (ssize_t)sizeof got[0]; i++)
        note(" %u/%d/%d/%d", got[i].ssi_signo, got[i].ssi_code, got[i].ssi_int, (pid_t)got[i].ssi_pid == getpid());
    show("signalfd");

    int epoll = epoll_create1(0);
    struct epoll_event event = {.events = EPOLLIN};
    epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event);
    pid_t child = fork();
    if (child == 0) {
        usleep(10000);
        kill(getppid(), SIGUSR1);
        _exit(0);
    }
    note(" epoll %d", epoll_wait(epoll, &event, 1, 5000));
    n = read(fd, got, sizeof got);
    note(" %zd %u %d", n / (ssize_t)sizeof got[0], got[0].ssi_signo, (pid_t)got[0].ssi_pid == child);
    waitpid(child, NULL, 0);
    sigset_t other = set_of(SIGRTMIN + 2, 0);
    note(" same %d", signalfd(fd, &other, 0) == fd);
    raise(SIGUSR1);
    note(" now for another %d", read(fd, got, sizeof got) == -1 && errno == EAGAIN);
    note(" bad %d", syscall(SYS_signalfd4, -1, &other, 4, 0) == -1 && errno == EINVAL);
    note(" bad %d", signalfd(0x7fffffff, &other, 0) == -1 && errno == EBADF);
    note(" bad %d", signalfd(epoll, &other, 0) == -1 && errno == EINVAL);
    show("waited for");
    handle(SIGUSR1, 0, set_of(0));
    block(SIG_UNBLOCK, set);
    show("left over");
    close(fd);
    close(epoll);
}

static int pipes[2];

static void *send_later(void *thread)
{
    usleep(20000);
    pthread_kill(*(pthread_t *)thread, SIGUSR1);
    usleep(20000);
    ssize_t ignored = write(pipes[1], "x", 1);
    (void)ignored;
    return NULL;
}

static void interrupted(int flags)
{
    handle(SIGUSR1, flags, set_of(0));
    pthread_t self = pthread_self(), sender;
    if (pipe(pipes))
        return;
    pthread_create(&sender, NULL, send_later, &self);
    char byte;
    ssize_t n = read(pipes[0], &byte, 1);
    note(" read %zd %d", n, n < 0 ? errno : 0);
    pthread_join(sender, NULL);
    close(pipes[0]);
    close(pipes[1]);
    show(flags ? "restarted" : "interrupted");
}

static void *wait_for_one(void *unused)
{
    (void)unused;
    sigset_t set = set_of(SIGRTMIN + 4, 0);
    siginfo_t info;
    long sum = 0;
    for (int i = 0; i < 50; i++) {
        /* It fails when another thread was faster. */
        while (sigwaitinfo(&set, &info) != SIGRTMIN + 4)
            ;
        sum += info.si_value.sival_int;
    }
    return (void *)sum;
}

static void threads(void)
{
    sigset_t set = set_of(SIGRTMIN + 4, 0);
    block(SIG_BLOCK, set);
    pthread_t waiters[3];
    for (int i = 0; i < 3; i++)
        pthread_create(&waiters[i], NULL, wait_for_one, NULL);
    for (int i = 1; i <= 150; i++)
        queue(SIGRTMIN + 4, i);
    long sum = 0;
    for (int i = 0; i < 3; i++) {
        void *part;
        pthread_join(waiters[i], &part);
        sum += (long)part;
    }
    note(" %ld", sum);
    show("shared by three threads");
}

static void timers(void)
{
    sigset_t set = set_of(SIGRTMIN + 5, SIGALRM, 0);
    block(SIG_BLOCK, set);
    struct sigevent event = {
        .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 5, .sigev_value.sival_int = 77};
    timer_t timer;
    timer_create(CLOCK_MONOTONIC, &event, &timer);
    struct itimerspec once = {.it_value.tv_nsec = 10000000};
    timer_settime(timer, 0, &once, NULL);
    siginfo_t info;
    int number = sigwaitinfo(&set, &info);
    note(" %d code %d value %d", number, info.si_code, info.si_value.sival_int);
    timer_delete(timer);
    struct itimerval alarm = {.it_value.tv_usec = 10000};
    setitimer(ITIMER_REAL, &alarm, NULL);
    number = sigwaitinfo(&set, &info);
    note(" %d code %d", number, info.si_code);
    show("timers");
}

/* A message for an empty queue is told by a signal, once. */
static void message_queues(void)
{
    char name[64];
    snprintf(name, sizeof name, "/parity-signals-%d", getpid());
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 16};
    mqd_t queue_id = mq_open(name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    mq_unlink(name);
    sigset_t set = set_of(SIGRTMIN + 6, 0);
    block(SIG_BLOCK, set);
    struct sigevent event = {
        .sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGRTMIN + 6, .sigev_value.sival_int = 99};
    note(" %d", mq_notify(queue_id, &event));
    note(" busy %d", mq_notify(queue_id, &event) == -1 && errno == EBUSY);
    mq_send(queue_id, "one", 3, 0);
    mq_send(queue_id, "two", 3, 0);
    siginfo_t info;
    int number = sigwaitinfo(&set, &info);
    note(" %d code %d value %d", number, info.si_code, info.si_value.sival_int);
    struct timespec now = {0, 0};
    note(" no more %d", sigtimedwait(&set, &info, &now) == -1 && errno == EAGAIN);
    note(" %d %d", mq_notify(queue_id, &event), mq_notify(queue_id, NULL));
    mq_close(queue_id);
    show("message queues");
}

static void suspends(void)
{
    handle(SIGUSR1, 0, set_of(0));
    handle(SIGUSR2, 0, set_of(0));
    sigset_t both = set_of(SIGUSR1, SIGUSR2, 0);
    block(SIG_BLOCK, both);
    raise(SIGUSR1);
    sigset_t other;
    sigfillset(&other);
    sigdelset(&other, SIGUSR1);
    note(" %d", sigsuspend(&other) == -1 && errno == EINTR);
    raise(SIGUSR2);
    struct timespec limit = {5, 0};
    sigset_t none = set_of(0);
    note(" %d", ppoll(NULL, 0, &limit, &none) == -1 && errno == EINTR);
    sigset_t now;
    sigprocmask(SIG_BLOCK, NULL, &now);
    note(" blocked again %d %d", sigismember(&now, SIGUSR1), sigismember(&now, SIGUSR2));
    show("for a moment");
}

static void children(void)
{
    signal(SIGCHLD, SIG_IGN);
    pid_t child = fork();
    if (child == 0)
        _exit(3);
    note(" %d", waitpid(child, NULL, 0) == -1 && errno == ECHILD);
    signal(SIGCHLD, SIG_DFL);
    child = fork();
    if (child == 0)
        _exit(3);
    int status;
    waitpid(child, &status, 0);
    note(" %d", WEXITSTATUS(status));
    child = fork();
    if (child == 0) {
        block(SIG_UNBLOCK, set_of(SIGUSR1, 0));
        signal(SIGUSR1, SIG_DFL);
        raise(SIGUSR1);
        _exit(0);
    }
    waitpid(child, &status, 0);
    note(" %d", WIFSIGNALED(status) && WTERMSIG(status) == SIGUSR1);
    show("children");
}

/* A pending signal and the mask outlive `execve`; this one came through `fexecve`. */
static int second_program(void)
{
    sigset_t pending, blocked;
    sigpending(&pending);
    sigprocmask(SIG_BLOCK, NULL, &blocked);
    note(" pending %d %d blocked %d %d", sigismember(&pending, SIGUSR2), sigismember(&pending, SIGHUP),
         sigismember(&blocked, SIGUSR2), sigismember(&blocked, SIGHUP));
    struct timespec now = {0, 0};
    sigset_t set = set_of(SIGUSR2, 0);
    siginfo_t info;
    note(" taken %d", sigtimedwait(&set, &info, &now));
    struct sigaction action;
    sigaction(SIGHUP, NULL, &action);
    note(" ignored %d", action.sa_handler == SIG_IGN);
    show("after exec");
    return 0;
}

int main(int argc, char **argv)
{
    if (argc > 1)
        return second_program();
    queues();
    waits();
    descriptors();
    interrupted(0);
    interrupted(SA_RESTART);
    threads();
    timers();
    message_queues();
    suspends();
    children();
    signal(SIGHUP, SIG_IGN);
    block(SIG_SETMASK, set_of(SIGUSR2, 0));
    raise(SIGUSR2);
    note(" %d", syscall(SYS_execveat, AT_FDCWD, "", argv, environ, 0) == -1 && errno == ENOENT);
    note(" %d", syscall(SYS_execveat, AT_FDCWD, "/proc/self/exe", argv, environ, AT_SYMLINK_NOFOLLOW) == -1 && errno == ELOOP);
    note(" %d", syscall(SYS_execveat, 99, "x", argv, environ, 0) == -1 && errno == EBADF);
    show("execveat");
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    fexecve(self, (char *[]){argv[0], "again", NULL}, environ);
    return 1;
}
