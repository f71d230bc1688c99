/* A daemon that becomes another user in a root directory of its own, and goes on to fork and to execute. */
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

static int ended(pid_t child)
{
    int how;
    waitpid(child, &how, 0);
    return how;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    if (argc > 1) {
        char where[100] = "";
        getcwd(where, sizeof where);
        printf("executed as %d %d in %.17s\n", getuid(), getgid(), where);
        return ended(fork() ?: (_exit(5), 0)) == 5 << 8 ? 4 : 1;
    }
    if (geteuid() != 0) {
        printf("not root\n");
        return 0;
    }
    int self = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
    char root[] = "/tmp/parity-drop-XXXXXX";
    if (!mkdtemp(root) || chmod(root, 0755) || chdir(root))
        return 1;
    printf("user: %d\n", setgroups(0, NULL) | setgid(65534) | setuid(65534));
    printf("dumpable: %d\n", prctl(PR_GET_DUMPABLE));
    pid_t child = fork();
    if (child == 0)
        _exit(getuid() == 65534 ? 6 : 7);
    printf("forked: %d\n", WEXITSTATUS(ended(child)));
    child = fork();
    if (child == 0) {
        execl("/proc/self/exe", argv[0], "again", NULL);
        printf("%s\n", strerror(errno));
        _exit(9);
    }
    int how = ended(child);
    printf("executed: %x\n", how);
    close(self);
    return 0;
}
