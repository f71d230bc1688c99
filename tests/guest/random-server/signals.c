/* Signal dispositions, masks and stacks, and signals that the server sends to itself. */
#include "guest.h"

#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

volatile uint32_t handler_runs;

static void count_run(int number) {
    (void)number;
    handler_runs++;
}

/* SIGUSR1 and SIGUSR2 always have a handler: the server sends them to itself. */
void signals_init(void) {
    struct sigaction action = {.sa_handler = count_run, .sa_flags = SA_RESTART};
    sigaction(SIGUSR1, &action, NULL);
    sigaction(SIGUSR2, &action, NULL);
    /* Of which a process that writes to reset connections has to expect some. */
    signal(SIGPIPE, SIG_IGN);
}

static void set_action(struct run *run) {
    static const int signals[] = {SIGWINCH, SIGCHLD, SIGTSTP, SIGURG, SIGSEGV, SIGBUS, SIGFPE, SIGILL};
    int number = one_in(run, 4) ? SIGRTMIN + (int)below(run, 5) : signals[below(run, 8)];
    /* As the kernel takes it: handler, flags, restorer, mask. */
    uint64_t action[4] = {below(run, 2), 0, 0, next_random(&run->rng) & ~(1ull << (SIGTERM - 1))};
    struct sigaction handled = {.sa_handler = count_run, .sa_flags = one_in(run, 2) ? SA_NODEFER : 0};
    if (one_in(run, 2))
        sigaction(number, &handled, NULL);
    else
        syscall(SYS_rt_sigaction, number, action, out(run, 32), 8);
}

static void set_mask(struct run *run) {
    static const int hows[] = {SIG_BLOCK, SIG_UNBLOCK, SIG_SETMASK, 77};
    uint64_t some = 1ull << (SIGUSR1 - 1) | 1ull << (SIGUSR2 - 1) | 1ull << (SIGWINCH - 1) | 1ull << 40;
    uint64_t *set = (uint64_t *)place(run, 8);
    uint64_t value = next_random(&run->rng) & some;
    memcpy(set, &value, sizeof value);
    syscall(SYS_rt_sigprocmask, hows[below(run, 4)], set, one_in(run, 2) ? NULL : out(run, 8), 8);
}

static void set_stack(struct run *run) {
    stack_t stack = {.ss_sp = arena + below(run, arena_len / 2), .ss_size = 8192,
                     .ss_flags = one_in(run, 3) ? SS_DISABLE : 0};
    syscall(SYS_sigaltstack, &stack, one_in(run, 2) ? NULL : out(run, 24));
}

static void send_to_process(struct run *run) { kill(getpid(), one_in(run, 2) ? SIGUSR1 : SIGUSR2); }

static void send_to_thread(struct run *run) {
    syscall(SYS_tgkill, getpid(), syscall(SYS_gettid), one_in(run, 2) ? SIGUSR1 : SIGUSR2);
}

const struct operation signal_operations[] = {
    {"set_action", SET_SIGNAL, set_action},
    {"set_mask", SET_SIGNAL, set_mask},
    {"set_stack", SET_SIGNAL, set_stack},
    {"send_to_process", SET_RAISE, send_to_process},
    {"send_to_thread", SET_RAISE, send_to_thread},
    {0},
};
