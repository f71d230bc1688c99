/* Prints one thing that a program can see of its surroundings: `show WHAT [ARGS]`. */
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;

static void hex(const char *text)
{
    for (; *text; text++)
        printf("%02x", (unsigned char)*text);
    putchar('\n');
}

/* Every string, byte for byte. */
static int strings(char **list)
{
    for (; *list; list++)
        hex(*list);
    return 0;
}

static int cwd(void)
{
    char path[PATH_MAX];
    struct stat here, there;
    if (!getcwd(path, sizeof path) || stat(".", &here) || stat(path, &there))
        return 1;
    puts(path);
    return here.st_ino != there.st_ino;
}

/* The three standard streams: input to output in capitals, a line to the error stream. */
static int streams(void)
{
    int c;
    struct stat s;
    for (int fd = 0; fd < 3; fd++) {
        if (fstat(fd, &s))
            return 1;
        printf("%d is %s\n", fd, S_ISFIFO(s.st_mode) ? "a pipe" : "something else");
    }
    while ((c = getchar()) != EOF)
        putchar(c >= 'a' && c <= 'z' ? c - 'a' + 'A' : c);
    fputs("to the error stream\n", stderr);
    return 0;
}

static int limits(void)
{
    struct rlimit limit;
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 1;
    printf("%llu %llu\n", (unsigned long long)limit.rlim_cur, (unsigned long long)limit.rlim_max);
    return 0;
}

/* The file that runs, by /proc/self/exe and by the auxiliary vector. */
static int executable(void)
{
    char path[PATH_MAX];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    if (n < 0)
        return 1;
    path[n] = 0;
    puts(path);
    puts((const char *)getauxval(AT_EXECFN));
    return 0;
}

/* Signals that are ignored from the start. */
static int ignored(void)
{
    for (int number = 1; number < 32; number++) {
        struct sigaction action;
        if (!sigaction(number, NULL, &action) && action.sa_handler == SIG_IGN)
            printf("%d\n", number);
    }
    return 0;
}

/* fork either works or fails cleanly, and the process goes on. */
static int forked(void)
{
    pid_t child = fork();
    if (child == 0)
        _exit(9);
    if (child < 0) {
        printf("refused: %s\n", errno == ENOSYS ? "ENOSYS" : strerror(errno));
    } else {
        int status;
        if (waitpid(child, &status, 0) != child)
            return 1;
        printf("child exited with %d\n", WEXITSTATUS(status));
    }
    return 0;
}

int main(int argc, char **argv)
{
    const char *what = argc > 1 ? argv[1] : "";
    if (!strcmp(what, "args"))
        return strings(argv + 2);
    if (!strcmp(what, "environment"))
        return strings(environ);
    if (!strcmp(what, "cwd"))
        return cwd();
    if (!strcmp(what, "streams"))
        return streams();
    if (!strcmp(what, "limits"))
        return limits();
    if (!strcmp(what, "executable"))
        return executable();
    if (!strcmp(what, "ignored"))
        return ignored();
    if (!strcmp(what, "fork"))
        return forked();
    if (!strcmp(what, "pid"))
        return printf("%d %d\n", getpid(), getppid()) < 0;
    if (!strcmp(what, "exit") && argc > 2)
        return atoi(argv[2]);
    if (!strcmp(what, "raise") && argc > 2)
        return raise(atoi(argv[2]));
    if (!strcmp(what, "abort"))
        abort();
    fprintf(stderr, "show: what?\n");
    return 2;
}
