// A request closes a file and locks it anew through another descriptor. The close is deferred to the end of the request,
// and closing any descriptor drops all record locks of the process on the file: the server believes it holds a lock that is gone.
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>
#include <arpa/inet.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/wait.h>
int main(void) {
    const char *n = "lock.tmp"; struct sockaddr_in a = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } }; socklen_t len = sizeof a;
    int s = socket(AF_INET, SOCK_STREAM, 0), old = open(n, O_RDWR | O_CREAT, 0600); bind(s, (void *)&a, len); listen(s, 5); getsockname(s, (void *)&a, &len);
    setvbuf(stdout, 0, _IONBF, 0);
    if (fork() == 0) { char c[64] = ""; int k = socket(AF_INET, SOCK_STREAM, 0); connect(k, (void *)&a, len);
        write(k, "lock", 4); int r = read(k, c, 63); if (r > 0) c[r] = 0;
        int f = open(n, O_RDWR); struct flock l = { F_WRLCK, SEEK_SET, 0, 0 }; fcntl(f, F_GETLK, &l);
        printf("server: %s; the file is %s\n", c, l.l_type == F_UNLCK ? "NOT LOCKED" : l.l_pid == getppid() ? "locked by the server" : "locked by somebody");
        write(k, "flock", 5); r = read(k, c, 63); if (r > 0) c[r] = 0; printf("%s\n", c); _exit(0); }
    int k = accept(s, 0, 0); char c[64], o[64]; struct flock l = { F_WRLCK, SEEK_SET, 0, 0 };
    while (read(k, c, 63) > 0) if (c[0] == 'l') {
        close(old); int f = open(n, O_RDWR); int r = fcntl(f, F_SETLK, &l); write(k, o, sprintf(o, "F_SETLK %d", r)); }
    else { int x = open(n, O_RDWR), y = open(n, O_RDWR), r1 = flock(x, LOCK_EX), r2 = flock(x, LOCK_UN), r3 = flock(y, LOCK_EX | LOCK_NB);
        write(k, o, sprintf(o, "flock x %d, unlock x %d, trylock y %d %s", r1, r2, r3, r3 ? strerrorname_np(errno) : "")); }
    wait(0); unlink(n); return 0;
}
