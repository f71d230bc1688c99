/* Serves one connection from a socket that was handed over as systemd does: descriptor 3. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int main(void)
{
    const char *fds = getenv("LISTEN_FDS"), *pid = getenv("LISTEN_PID");
    if (!fds || strcmp(fds, "1") || !pid || atoi(pid) != getpid()) {
        fprintf(stderr, "LISTEN_FDS=%s LISTEN_PID=%s, and this is %d\n", fds ? fds : "(none)",
                pid ? pid : "(none)", getpid());
        return 1;
    }
    int connection = accept(3, NULL, NULL);
    char buffer[64];
    ssize_t n = read(connection, buffer, sizeof buffer);
    if (n <= 0 || write(connection, buffer, (size_t)n) != n)
        return 2;
    close(connection);
    return 0;
}
