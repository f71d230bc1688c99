/* A daemon that gives up its rights and its limits on processes and on the size of files, as sandboxes do. */
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#define N(e) do { errno = 0; long r = (long)(e); printf("%s = %ld %s\n", #e, r, r < 0 ? strerrorname_np(errno) : ""); fflush(stdout); } while (0)

static void *nothing(void *argument) { return argument; }

static int child(void) {
    pid_t pid = fork();
    if (!pid)
        _exit(0);
    return pid < 0 ? -1 : waitpid(pid, NULL, 0) == pid;
}

static int set(int resource, rlim_t soft, rlim_t hard) {
    struct rlimit limit = {soft, hard};
    return setrlimit(resource, &limit);
}

static void get(int resource) {
    struct rlimit limit;
    getrlimit(resource, &limit);
    printf("%d: %ld %ld\n", resource, (long)limit.rlim_cur, (long)limit.rlim_max);
}

int main(int argc, char **argv) {
    pthread_t thread;
    if (argc > 1) {
        get(RLIMIT_NPROC); N(child()); N(pthread_create(&thread, NULL, nothing, NULL) == EAGAIN);
        return 0;
    }
    N(set(RLIMIT_NPROC, 50000, 60000)); get(RLIMIT_NPROC); N(child()); N(setgid(65534)); N(setuid(65533));
    N(set(RLIMIT_NPROC, 0, 60000)); get(RLIMIT_NPROC); N(child()); N(vfork() == -1); N(errno == EAGAIN);
    N(pthread_create(&thread, NULL, nothing, NULL) == EAGAIN);
    N(set(RLIMIT_NPROC, 100, 60000)); N(child()); N(pthread_create(&thread, NULL, nothing, NULL)); N(pthread_join(thread, NULL));
    N(set(RLIMIT_NPROC, 0, 60000)); N(child());
    N(set(RLIMIT_NPROC, 100, 60001)); N(set(RLIMIT_NPROC, 2, 1));
    N(set(RLIMIT_NPROC, 0, 0)); get(RLIMIT_NPROC); N(child()); N(set(RLIMIT_NPROC, 1, 1));
    if (argv[0][0] == '/')
        execl(argv[0], argv[0], "again", NULL);
    return 0;
}
