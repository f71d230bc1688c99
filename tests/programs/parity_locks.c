// Locks released by one open file of a process must be free for another at once; F_GETLK tells the owner's process ID.
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/wait.h>
#include <unistd.h>
#define T(e) do { errno = 0; int r = (e); printf("%-52s %d %s\n", #e, r, r < 0 ? strerrorname_np(errno) : ""); fflush(stdout); } while (0)
static struct flock L(int t, int s, int n) { struct flock l = { .l_type = t, .l_whence = SEEK_SET, .l_start = s, .l_len = n }; return l; }
int main(void) {
    const char *n = "lock.tmp"; int a = open(n, O_RDWR | O_CREAT | O_TRUNC, 0600), b = open(n, O_RDWR); write(a, "0123456789", 10);
    T(flock(a, LOCK_EX | LOCK_NB)); T(flock(b, LOCK_EX | LOCK_NB)); T(flock(a, LOCK_UN)); T(flock(b, LOCK_EX | LOCK_NB)); T(flock(b, LOCK_UN));
    T(flock(a, LOCK_SH)); T(flock(b, LOCK_SH | LOCK_NB)); T(flock(a, LOCK_EX | LOCK_NB)); T(flock(a, LOCK_UN)); T(flock(b, LOCK_EX | LOCK_NB)); close(b);
    T(flock(a, LOCK_EX | LOCK_NB)); T(flock(a, LOCK_UN));
    T(flock(a, LOCK_EX)); int p[2], q[2]; char c; pipe(p); pipe(q);
    if (fork() == 0) { int d = open(n, O_RDWR); T(flock(d, LOCK_EX | LOCK_NB)); T(flock(a, LOCK_UN)); T(flock(d, LOCK_EX | LOCK_NB)); _exit(0); } wait(0);
    T(flock(a, LOCK_EX | LOCK_NB)); T(flock(a, LOCK_UN));
    struct flock l = L(F_WRLCK, 2, 3); T(fcntl(a, F_SETLK, &l));
    if (fork() == 0) {
        struct flock g = L(F_WRLCK, 0, 0); T(fcntl(a, F_GETLK, &g)); printf("type %d start %ld len %ld parent %d\n", g.l_type, (long)g.l_start, (long)g.l_len, g.l_pid == getppid());
        g = L(F_WRLCK, 3, 1); T(fcntl(a, F_SETLK, &g)); g = L(F_RDLCK, 5, 1); T(fcntl(a, F_SETLK, &g)); write(q[1], "x", 1); read(p[0], &c, 1);
        g = L(F_WRLCK, 3, 1); T(fcntl(a, F_SETLK, &g)); g = L(F_UNLCK, 0, 0); T(fcntl(a, F_SETLK, &g)); write(q[1], "x", 1); _exit(0);
    }
    read(q[0], &c, 1); l = L(F_UNLCK, 3, 1); T(fcntl(a, F_SETLK, &l)); write(p[1], "x", 1); read(q[0], &c, 1); l = L(F_WRLCK, 0, 0); T(fcntl(a, F_SETLK, &l)); wait(0);
    b = open(n, O_RDWR); close(b); // drops all of this process' record locks
    if (fork() == 0) { l = L(F_WRLCK, 0, 0); T(fcntl(a, F_SETLK, &l)); _exit(0); } wait(0);
    int o1 = open(n, O_RDWR), o2 = open(n, O_RDWR); l = L(F_WRLCK, 0, 4); T(fcntl(o1, F_OFD_SETLK, &l)); l = L(F_WRLCK, 0, 4); T(fcntl(o2, F_OFD_SETLK, &l)); l = L(F_UNLCK, 0, 4); T(fcntl(o1, F_OFD_SETLK, &l)); l = L(F_WRLCK, 0, 4); T(fcntl(o2, F_OFD_SETLK, &l)); T(lockf(o2, F_TLOCK, 1));
    unlink(n); return 0;
}
