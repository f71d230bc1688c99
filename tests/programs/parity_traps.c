/*
 * Traps, whose instruction is over when they are told, while a timer interrupts the thread again and again: each is
 * told once. (A fault comes again when its instruction does; a trap that gets lost is lost.)
 */
#include <signal.h>
#include <stdio.h>
#include <sys/time.h>
#include <ucontext.h>

#define TIMES 700

static volatile sig_atomic_t traps, alarms, is_due;

/* Once, so that there is progress however long the handler takes. */
static void set_alarm(void)
{
    struct itimerval soon = {.it_value = {.tv_usec = 300}};
    is_due = 0;
    setitimer(ITIMER_REAL, &soon, NULL);
}

/* Some virtual machines tell of `int1` as of a fault: the instruction would come again, for ever, natively too. */
static void on_trap(int number, siginfo_t *info, void *context)
{
    greg_t *rip = &((ucontext_t *)context)->uc_mcontext.gregs[REG_RIP];
    (void)number;
    (void)info;
    if (*(unsigned char *)*rip == 0xf1)
        ++*rip;
    traps++;
}

static void on_alarm(int number)
{
    (void)number;
    alarms++;
    is_due = 1;
}

static void by_int3(void) { __asm__ volatile("int3" ::: "memory"); }
static void by_int1(void) { __asm__ volatile(".byte 0xf1" ::: "memory"); }

/* The trap comes after the second `popf`, which clears the flag again. */
static void by_trap_flag(void)
{
    __asm__ volatile("lea -128(%%rsp), %%rsp\n\t"
                     "pushf\n\tpushf\n\torl $0x100, (%%rsp)\n\tpopf\n\tpopf\n\t"
                     "lea 128(%%rsp), %%rsp" ::
                         : "memory", "cc");
}

static void repeat(const char *name, void (*trap)(void), unsigned each)
{
    traps = 0;
    for (int i = 0; i < TIMES; i++) {
        if (is_due)
            set_alarm();
        trap();
    }
    if (traps == (sig_atomic_t)(TIMES * each))
        printf("%s: each was told\n", name);
    else
        printf("%s: %d of %u\n", name, (int)traps, TIMES * each);
}

int main(void)
{
    struct sigaction action = {.sa_sigaction = on_trap, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, NULL);
    signal(SIGALRM, on_alarm);
    set_alarm();
    repeat("int3", by_int3, 1);
    repeat("int1", by_int1, 1);
    repeat("trap flag", by_trap_flag, 1);
    puts(alarms > 20 ? "the timer interrupted it" : "the timer did not interrupt it");
    return 0;
}
