/* Reports the signals it gets from outside: `signals`. Ends at SIGTERM after SIGUSR2. */
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static int pipe_ends[2];

static void caught(int number, siginfo_t *info, void *context)
{
    unsigned char message[2] = {(unsigned char)number, info->si_code == SI_USER};
    (void)context;
    if (write(pipe_ends[1], message, sizeof message) != sizeof message)
        _exit(1);
}

int main(void)
{
    const int numbers[] = {SIGTERM, SIGINT, SIGHUP, SIGUSR1, SIGUSR2};
    struct sigaction action = {.sa_sigaction = caught, .sa_flags = SA_SIGINFO};
    unsigned char message[2];
    if (pipe(pipe_ends))
        return 1;
    for (unsigned i = 0; i < sizeof numbers / sizeof *numbers; i++)
        sigaction(numbers[i], &action, NULL);
    puts("ready");
    fflush(stdout);
    for (;;) {
        ssize_t n = read(pipe_ends[0], message, sizeof message);
        if (n < 0 && errno == EINTR)
            continue;
        if (n != sizeof message)
            return 1;
        printf("%s%s\n", sigabbrev_np(message[0]), message[1] ? " from a process" : "");
        fflush(stdout);
        if (message[0] == SIGTERM)
            return 7;
    }
}
