// A program executed with descriptor 0 (1, 2) closed: natively it stays closed.
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <stdio.h>
#include <stdlib.h>
#include <fcntl.h>
#include <unistd.h>
#include <errno.h>
#include <string.h>
#include <sys/wait.h>
int main(int c, char **v) {
    if (c > 1) { char b[200]; int n = 0;
        for (int i = 0; i < 5; i++) n += sprintf(b + n, "%d:%s ", i, fcntl(i, F_GETFD) < 0 ? strerrorname_np(errno) : "open");
        n += sprintf(b + n, "\n"); write(atoi(v[1]), b, n); return 0; }
    int out = fcntl(1, F_DUPFD, 9); char s[9]; sprintf(s, "%d", out);
    for (int i = 0; i < 3; i++) if (fork() == 0) { close(i); execl("/proc/self/exe", v[0], s, NULL); _exit(9); } else wait(0);
}
