/* SIGABRT that another process sends: handled, then not. */
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

static void handle(int signal)
{
    printf("handled: %d\n", signal);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    int ready[2], status;
    char byte;
    if (pipe(ready))
        return 1;
    pid_t child = fork();
    if (child == 0) {
        struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESETHAND};
        sigaction(SIGABRT, &action, NULL);
        for (;;) {
            if (write(ready[1], "r", 1) != 1)
                return 1;
            pause();
        }
    }
    for (int i = 0; i < 2; i++) {
        if (read(ready[0], &byte, 1) != 1)
            return 1;
        usleep(100000);
        kill(child, SIGABRT);
    }
    waitpid(child, &status, 0);
    printf("ended: %d\n", WTERMSIG(status));
    return 0;
}
