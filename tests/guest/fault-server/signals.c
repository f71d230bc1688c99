/* Signals that a request sends to itself, and exits. */
#include "faults.h"

#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

static void handled(int signal) { (void)signal; }

static void block(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_BLOCK, &set, NULL);
}

static void unblock(int signal)
{
    sigset_t set;
    sigemptyset(&set);
    sigaddset(&set, signal);
    pthread_sigmask(SIG_UNBLOCK, &set, NULL);
}

static void abort_plain(void) { abort(); }
static void abort_blocked(void) { block(SIGABRT); abort(); }
static void abort_ignored(void) { signal(SIGABRT, SIG_IGN); abort(); }
static void abort_handled(void) { signal(SIGABRT, handled); abort(); }
static void abort_unblocked_later(void) { block(SIGABRT); raise(SIGABRT); unblock(SIGABRT); }
static void raise_abrt(void) { raise(SIGABRT); }
static void raise_segv(void) { raise(SIGSEGV); }
static void raise_sys(void) { raise(SIGSYS); }
static void raise_term(void) { raise(SIGTERM); }
static void raise_kill(void) { raise(SIGKILL); }
static void raise_usr1(void) { raise(SIGUSR1); }
static void kill_self(void) { kill(getpid(), SIGABRT); }
static void tkill_self(void) { syscall(SYS_tkill, syscall(SYS_gettid), SIGBUS); }
static void tgkill_self(void) { syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), SIGILL); }
static void pthread_kill_self(void) { pthread_kill(pthread_self(), SIGFPE); }
static void sigqueue_self(void) { sigqueue(getpid(), SIGABRT, (union sigval){.sival_int = 7}); }
static void pthread_sigqueue_self(void)
{
    pthread_sigqueue(pthread_self(), SIGSEGV, (union sigval){.sival_int = 7});
}

/* A handler that runs in the request, and faults. */
static void faulty(int signal)
{
    (void)signal;
    *(volatile int *)16 = 1;
}
static void handler_faults(void) { signal(SIGUSR1, faulty); raise(SIGUSR1); }
static void handler_once(void)
{
    struct sigaction action = {.sa_handler = faulty, .sa_flags = SA_RESETHAND | SA_NODEFER};
    sigaction(SIGUSR1, &action, NULL);
    kill(getpid(), SIGUSR1);
}

/* A handler on a stack of its own. */
static char other_stack[64 << 10];
static void handler_faults_on_other_stack(void)
{
    stack_t stack = {.ss_sp = other_stack, .ss_size = sizeof other_stack};
    sigaltstack(&stack, NULL);
    struct sigaction action = {.sa_handler = faulty, .sa_flags = SA_ONSTACK};
    sigaction(SIGUSR1, &action, NULL);
    raise(SIGUSR1);
}

/* A handler that has run before the call that raises it returns, as everywhere; then a fault. */
static volatile sig_atomic_t seen;
static void see(int signal) { seen = signal; }
static void handler_ran(void)
{
    signal(SIGUSR1, see);
    raise(SIGUSR1);
    if (seen == SIGUSR1)
        __builtin_trap();
}

/* A handler that leaves by a jump, and what it jumps to faults. */
static sigjmp_buf escape;
static void jump(int signal) { siglongjmp(escape, signal); }
static void handler_jumps(void)
{
    signal(SIGUSR1, jump);
    if (sigsetjmp(escape, 1) == 0)
        raise(SIGUSR1);
    else
        __builtin_trap();
}

/* A frame that sigreturn cannot read. */
static void bad_sigreturn(void)
{
    __asm__ volatile("mov $0x1000, %%rsp\n\tmov $15, %%eax\n\tsyscall" ::: "memory");
}

static void exit_3(void) { exit(3); }
static void exit_quick(void) { _exit(4); }
static void exit_group_raw(void) { syscall(SYS_exit_group, 5); }
static void say_goodbye(void) { puts("goodbye"); }
static void exit_with_handlers(void)
{
    atexit(say_goodbye);
    printf("unflushed");
    exit(6);
}

/* What came before the unlink cannot be undone. */
static void exit_after_unlink(void)
{
    if (unlink("no-such-file") != 0)
        exit(9);
}

const struct fault signal_faults[] = {
    {"abort", abort_plain},
    {"abort-blocked", abort_blocked},
    {"abort-ignored", abort_ignored},
    {"abort-handled", abort_handled},
    {"abort-unblocked-later", abort_unblocked_later},
    {"raise-abrt", raise_abrt},
    {"raise-segv", raise_segv},
    {"raise-sys", raise_sys},
    {"raise-term", raise_term},
    {"raise-kill", raise_kill},
    {"raise-usr1", raise_usr1},
    {"kill-self", kill_self},
    {"tkill-self", tkill_self},
    {"tgkill-self", tgkill_self},
    {"pthread-kill-self", pthread_kill_self},
    {"sigqueue-self", sigqueue_self},
    {"pthread-sigqueue-self", pthread_sigqueue_self},
    {"handler-faults", handler_faults},
    {"handler-once", handler_once},
    {"handler-faults-on-other-stack", handler_faults_on_other_stack},
    {"handler-ran", handler_ran},
    {"handler-jumps", handler_jumps},
    {"bad-sigreturn", bad_sigreturn},
    {"exit", exit_3},
    {"exit-quick", exit_quick},
    {"exit-group", exit_group_raw},
    {"exit-with-handlers", exit_with_handlers},
    {"exit-after-unlink", exit_after_unlink},
    {NULL, NULL},
};
