/* A request that ends a child process and waits for it, once with each call that waits. */
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t idle(void)
{
    pid_t child = fork();
    if (child == 0) {
        alarm(5);
        for (;;)
            pause();
    }
    return child;
}

/* The signal that ended the child. */
static int dismissed(char how, pid_t child)
{
    int status = 0;
    siginfo_t info = {0};
    kill(child, SIGTERM);
    if (how == 'w')
        return waitpid(child, &status, 0) == child ? WTERMSIG(status) : -1;
    return waitid(P_PID, child, &info, WEXITED) == 0 ? info.si_status : -1;
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int listener = socket(AF_INET, SOCK_STREAM, 0);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 1)
        || getsockname(listener, (struct sockaddr *)&address, &length))
        return 1;
    pid_t client = fork();
    if (client == 0) {
        int fd = socket(AF_INET, SOCK_STREAM, 0);
        char reply;
        if (connect(fd, (struct sockaddr *)&address, sizeof address))
            _exit(1);
        for (const char *how = "wi"; *how; how++)
            if (write(fd, how, 1) != 1 || read(fd, &reply, 1) != 1)
                _exit(2);
        _exit(0);
    }
    pid_t first = idle(), second = idle();
    int fd = accept(listener, NULL, NULL), status;
    char how;
    while (read(fd, &how, 1) == 1) {
        printf("%c: %d\n", how, dismissed(how, how == 'w' ? first : second));
        if (write(fd, &how, 1) != 1)
            return 1;
    }
    waitpid(client, &status, 0);
    printf("client: %x\n", status);
    return 0;
}
