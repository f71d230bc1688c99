/* Descriptors: the numbers a program gets, and that it cannot reach any that are not its own. */
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

/* The open descriptors, as /proc/self/fd lists them, without the one that lists them. */
static void list(const char *when)
{
    DIR *dir = opendir("/proc/self/fd");
    struct dirent *entry;
    int open_fds[64], count = 0;
    while (dir && (entry = readdir(dir)))
        if (entry->d_name[0] != '.' && atoi(entry->d_name) != dirfd(dir) && count < 64)
            open_fds[count++] = atoi(entry->d_name);
    closedir(dir);
    printf("%s:", when);
    for (int number = 0; number < (1 << 20); number++)
        for (int i = 0; i < count; i++)
            if (open_fds[i] == number)
                printf(" %d", number);
    putchar('\n');
}

int main(void)
{
    struct rlimit limit;
    list("at the start");
    printf("first open: %d\n", open("/dev/null", O_RDONLY));
    printf("second open: %d\n", open("/dev/null", O_RDONLY));
    close(3);
    printf("lowest free: %d\n", open("/dev/null", O_RDONLY));
    if (getrlimit(RLIMIT_NOFILE, &limit))
        return 1;
    int top = (int)limit.rlim_cur - 1;
    printf("dup2 to the top: %s\n", dup2(0, top) == top ? "ok" : strerror(errno));
    printf("dup2 past the top: %s\n", dup2(0, top + 1) < 0 ? strerror(errno) : "ok");
    printf("F_DUPFD past the top: %s\n",
           fcntl(0, F_DUPFD, top + 1) < 0 ? strerror(errno) : "ok");
    int last = 0, fd;
    while ((fd = open("/dev/null", O_RDONLY)) >= 0)
        last = fd;
    printf("highest: %s, then %s\n", last == top - 1 ? "below the top" : "elsewhere",
           strerror(errno));
    /* As daemons do. Whatever else is open must survive it, or the next line is never printed. */
    for (long fd = 3; fd < 30000; fd++)
        close((int)fd);
    list("all closed");
    if (syscall(436 /* close_range */, 3, ~0u, 0) && errno != ENOSYS)
        printf("close_range: %s\n", strerror(errno));
    list("all closed again");
    printf("a pipe: ");
    int ends[2];
    if (pipe(ends))
        return 1;
    printf("%d %d\n", ends[0], ends[1]);
    return 0;
}
