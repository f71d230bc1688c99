// Edge-triggered epoll: a read that returns less than was asked for says that the socket is empty (epoll(7)); nginx relies on it.
// 65,559 bytes wait in a socket; a read with a larger buffer gets all of them natively.
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <fcntl.h>
#include <unistd.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
int main(int c, char **v) {
    int total = c > 1 ? atoi(v[1]) : 65559, size = 262112, l = socket(AF_INET, SOCK_STREAM, 0);
    struct sockaddr_in a = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } }; socklen_t n = sizeof a;
    bind(l, (void *)&a, n); listen(l, 5); getsockname(l, (void *)&a, &n);
    if (fork() == 0) { int s = socket(AF_INET, SOCK_STREAM, 0); char *b = calloc(1, total), x; connect(s, (void *)&a, sizeof a); usleep(200000); write(s, b, total); read(s, &x, 1); _exit(0); }
    int s = accept(l, 0, 0), e = epoll_create1(0); fcntl(s, F_SETFL, O_NONBLOCK);
    struct epoll_event ev = { EPOLLIN | EPOLLET }; epoll_ctl(e, EPOLL_CTL_ADD, s, &ev);
    usleep(600000); char *b = malloc(size); int got = 0, w;
    while (got < total && (w = epoll_wait(e, &ev, 1, 1500)) > 0)
        for (;;) { int r = recv(s, b, size, 0), left = 0; ioctl(s, FIONREAD, &left); printf("recv %d of %d, %d left\n", r, size, left); if (r > 0) got += r; if (r < size) break; }
    printf("%s: %d of %d\n", got == total ? "all" : "HANGS", got, total);
    close(s); wait(0); return got != total;
}
