/* Signals from descriptors: FIOASYNC, O_ASYNC, F_SETOWN, F_SETSIG. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

static volatile sig_atomic_t seen;

static void on_signal(int number)
{
    seen = number;
}

static void wait_for(const char *what, int fd)
{
    struct timespec moment = { 0, 1000000 };
    write(fd, "x", 1);
    for (int i = 0; i < 500 && !seen; i++)
        nanosleep(&moment, NULL);
    printf("%s: signal %d\n", what, seen);
    seen = 0;
}

int main(void)
{
    int pair[2], on = 1, off = 0;
    signal(SIGIO, on_signal);
    signal(SIGUSR1, on_signal);
    socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
    printf("FIOASYNC: %d, F_SETOWN: %d\n", ioctl(pair[0], FIOASYNC, &on), fcntl(pair[0], F_SETOWN, getpid()));
    printf("O_ASYNC: %d\n", !!(fcntl(pair[0], F_GETFL) & O_ASYNC));
    wait_for("FIOASYNC", pair[1]);
    fcntl(pair[0], F_SETSIG, SIGUSR1);
    wait_for("F_SETSIG", pair[1]);
    printf("off: %d, O_ASYNC: %d\n", ioctl(pair[0], FIOASYNC, &off), !!(fcntl(pair[0], F_GETFL) & O_ASYNC));
    return 0;
}
