/* Attributes of the process, its timers and its signals. */
#include "effects.h"

#include <fcntl.h>
#include <linux/sched.h>
#include <linux/sched/types.h>
#include <signal.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/time.h>
#include <time.h>

#define ACT(call, how) static long call##_##how(void)

ACT(chdir, directory) { return syscall(SYS_chdir, "directory"); }
ACT(fchdir, root) {
    /* Back to where it was, by the directory that is open. */
    int up = open("..", O_RDONLY | O_DIRECTORY);
    return up < 0 ? -1 : syscall(SYS_fchdir, up) || close(up) ? -1 : 0;
}
ACT(umask, all) { return syscall(SYS_umask, 0137); }
static long set_limit(int resource, rlim_t soft, int modern) {
    struct rlimit limit;
    if (getrlimit(resource, &limit))
        return -1;
    limit.rlim_cur = soft;
    return modern ? syscall(SYS_prlimit64, 0, resource, &limit, NULL) : syscall(SYS_setrlimit, resource, &limit);
}
ACT(setrlimit, core) { return set_limit(RLIMIT_CORE, 4096, 0); }
ACT(setrlimit, files) { return set_limit(RLIMIT_NOFILE, 300, 0); }
ACT(prlimit64, stack) { return set_limit(RLIMIT_STACK, 4 << 20, 1); }
ACT(prctl, name) { return syscall(SYS_prctl, PR_SET_NAME, "renamed", 0, 0, 0); }
ACT(prctl, slack) { return syscall(SYS_prctl, PR_SET_TIMERSLACK, 77777, 0, 0, 0); }
ACT(prctl, dumpable) { return syscall(SYS_prctl, PR_SET_DUMPABLE, !prctl(PR_GET_DUMPABLE), 0, 0, 0); }
ACT(prctl, pdeathsig) { return syscall(SYS_prctl, PR_SET_PDEATHSIG, SIGHUP, 0, 0, 0); }
ACT(prctl, subreaper) { return syscall(SYS_prctl, PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); }
ACT(setpriority, nicer) { return syscall(SYS_setpriority, PRIO_PROCESS, 0, 3); }
ACT(ioprio_set, lower) { return syscall(SYS_ioprio_set, 1, 0, 2 << 13 | 6); }
ACT(sched_setaffinity, one) {
    unsigned long set[16] = {1};
    return syscall(SYS_sched_setaffinity, 0, sizeof set, set);
}
ACT(sched_setparam, same) {
    int priority = 0;
    return syscall(SYS_sched_setparam, 0, &priority);
}
ACT(sched_setscheduler, batch) {
    int priority = 0;
    return syscall(SYS_sched_setscheduler, 0, SCHED_BATCH, &priority);
}
ACT(sched_setattr, other) {
    struct sched_attr attributes = {.size = sizeof attributes, .sched_policy = 0, .sched_nice = 4};
    return syscall(SYS_sched_setattr, 0, &attributes, 0);
}
ACT(alarm, far) { return syscall(SYS_alarm, 5000); }
ACT(setitimer, real) {
    struct itimerval setting = {{11, 0}, {6000, 0}};
    return syscall(SYS_setitimer, ITIMER_REAL, &setting, NULL);
}
ACT(setitimer, off) {
    struct itimerval setting = {0}, old;
    return syscall(SYS_setitimer, ITIMER_REAL, &setting, &old);
}
ACT(setitimer, soon) {
    /* It has fired by the time that the request ends: the signal must not come. */
    struct itimerval setting = {{0, 0}, {0, 1000}};
    if (syscall(SYS_setitimer, ITIMER_REAL, &setting, NULL))
        return -1;
    for (struct timespec from = {0}, now = {0}; now.tv_sec * 1000000000l + now.tv_nsec -
                                                    (from.tv_sec * 1000000000l + from.tv_nsec) < 5000000 || !from.tv_sec;) {
        if (!from.tv_sec)
            clock_gettime(CLOCK_MONOTONIC, &from);
        clock_gettime(CLOCK_MONOTONIC, &now);
    }
    return 0;
}
ACT(timer_create, one) {
    struct sigevent event = {.sigev_notify = SIGEV_NONE};
    int id;
    return syscall(SYS_timer_create, CLOCK_REALTIME, &event, &id);
}
ACT(timer_settime, other) {
    struct itimerspec setting = {{1, 5}, {4000, 0}};
    return syscall(SYS_timer_settime, timer_id, 0, &setting, NULL);
}
ACT(timer_delete, one) {
    struct itimerspec setting;
    if (syscall(SYS_timer_delete, spare_timer_id))
        return -1;
    return syscall(SYS_timer_gettime, spare_timer_id, &setting) == -1 && errno == EINVAL ? 0 : -1;
}
ACT(kill, self) { return syscall(SYS_kill, getpid(), SIGUSR1); }
ACT(tkill, self) { return syscall(SYS_tkill, gettid(), SIGUSR1); }
ACT(tgkill, self) { return syscall(SYS_tgkill, getpid(), gettid(), SIGUSR1); }
static siginfo_t info_of(int number) {
    siginfo_t info = {0};
    info.si_signo = number;
    info.si_code = SI_QUEUE;
    return info;
}
ACT(rt_sigqueueinfo, self) {
    siginfo_t info = info_of(SIGUSR2);
    return syscall(SYS_rt_sigqueueinfo, getpid(), SIGUSR2, &info);
}
ACT(rt_tgsigqueueinfo, self) {
    siginfo_t info = info_of(SIGUSR2);
    return syscall(SYS_rt_tgsigqueueinfo, getpid(), gettid(), SIGUSR2, &info);
}
ACT(pidfd_send_signal, self) { return syscall(SYS_pidfd_send_signal, self_pidfd, SIGUSR1, NULL, 0); }
ACT(rt_sigaction, ignore) {
    uint64_t action[4] = {1};
    return syscall(SYS_rt_sigaction, SIGTSTP, action, NULL, 8);
}
ACT(rt_sigprocmask, block) {
    uint64_t set = 1ull << (SIGWINCH - 1);
    return syscall(SYS_rt_sigprocmask, SIG_BLOCK, &set, NULL, 8);
}
ACT(sigaltstack, other) {
    static char area[1 << 14];
    stack_t stack = {.ss_sp = area, .ss_size = sizeof area};
    return syscall(SYS_sigaltstack, &stack, NULL);
}

#define ROW(call, how) {#call, #how, 0, call##_##how}
const struct effect process_effects[] = {
    ROW(chdir, directory), ROW(fchdir, root), ROW(umask, all), ROW(setrlimit, core), ROW(setrlimit, files),
    ROW(prlimit64, stack), ROW(prctl, name), ROW(prctl, slack), ROW(prctl, dumpable), ROW(prctl, pdeathsig),
    ROW(prctl, subreaper), ROW(setpriority, nicer), ROW(ioprio_set, lower), ROW(sched_setaffinity, one),
    {"sched_setparam", "same", INVISIBLE, sched_setparam_same}, ROW(sched_setscheduler, batch), ROW(sched_setattr, other),
    ROW(alarm, far), ROW(setitimer, real), ROW(setitimer, off), ROW(setitimer, soon),
    ROW(timer_create, one), ROW(timer_settime, other), ROW(timer_delete, one), ROW(kill, self), ROW(tkill, self),
    ROW(tgkill, self), ROW(rt_sigqueueinfo, self), ROW(rt_tgsigqueueinfo, self), ROW(pidfd_send_signal, self),
    ROW(rt_sigaction, ignore), ROW(rt_sigprocmask, block), ROW(sigaltstack, other),
    {0},
};
