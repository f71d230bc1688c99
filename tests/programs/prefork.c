// A small prefork server: the master makes workers, which accept and serve one connection at a time, and makes
// another one when one has died. usage: prefork PORT WORKERS
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

static void work(int listener)
{
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0)
            continue;
        char line[64], reply[64];
        ssize_t n;
        while ((n = read(fd, line, sizeof line)) > 0) {
            if (memcmp(line, "crash", 5) == 0)
                *(volatile int *)8 = 1;
            int len = snprintf(reply, sizeof reply, "%d\n", getpid());
            if (write(fd, reply, len) < 0)
                break;
        }
        close(fd);
    }
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return 1;
    int missing = atoi(argv[2]);
    for (;;) {
        for (; missing > 0; missing--)
            if (fork() == 0)
                work(listener);
        int status;
        pid_t gone = wait(&status);
        if (gone > 0) {
            missing++;
            printf("worker %d died of %d\n", gone, WIFSIGNALED(status) ? WTERMSIG(status) : 0);
            fflush(stdout);
        }
    }
}
