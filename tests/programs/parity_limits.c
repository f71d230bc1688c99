/* Limits of memory, and where mappings go. */
#include <errno.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#ifndef MAP_HUGETLB
#define MAP_HUGETLB 0x40000
#endif

static const int PRIVATE = MAP_PRIVATE | MAP_ANONYMOUS;

/* What a mapping of so many MiB comes to. */
static int maps(size_t mebibytes, int protection)
{
    void *at = mmap(NULL, mebibytes << 20, protection, PRIVATE, -1, 0);
    if (at == MAP_FAILED)
        return errno;
    return munmap(at, mebibytes << 20);
}

static void show(const char *what, int resource)
{
    struct rlimit limit;
    getrlimit(resource, &limit);
    printf("%s: %lld %lld\n", what, (long long)limit.rlim_cur, (long long)limit.rlim_max);
}

static int again(char *self, char *what)
{
    pid_t child = fork();
    if (child == 0) {
        execl(self, self, what, NULL);
        _exit(9);
    }
    int how;
    waitpid(child, &how, 0);
    return how;
}

int main(int argc, char **argv)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    struct rlimit limit;
    if (argc > 1) {
        /* Executed by the one below. */
        show("inherited address space", RLIMIT_AS);
        show("inherited data", RLIMIT_DATA);
        show("inherited descriptors", RLIMIT_NOFILE);
        printf("600 MiB: %d, 1200 MiB: %d\n", maps(600, PROT_READ), maps(1200, PROT_READ));
        return 3;
    }
    void *at = mmap(NULL, 2 << 20, PROT_READ | PROT_WRITE, PRIVATE | MAP_HUGETLB, -1, 0);
    printf("huge pages: %d\n", at == MAP_FAILED ? errno : 0);
    at = mmap(NULL, 1 << 20, PROT_READ, PRIVATE | MAP_32BIT, -1, 0);
    printf("low: %d\n", at != MAP_FAILED && (unsigned long)at + (1 << 20) <= 0x80000000ul);
    at = mmap((void *)0x7000000000ul, 1 << 20, PROT_READ, PRIVATE | MAP_32BIT, -1, 0);
    printf("low in spite of a hint: %d\n", (unsigned long)at + (1 << 20) <= 0x80000000ul);

    limit.rlim_cur = limit.rlim_max = 1000 << 20;
    printf("data: %d\n", setrlimit(RLIMIT_DATA, &limit));
    printf("writable: %d, read-only: %d\n", maps(1200, PROT_READ | PROT_WRITE), maps(1200, PROT_READ));
    printf("address space: %d\n", setrlimit(RLIMIT_AS, &limit));
    show("address space", RLIMIT_AS);
    printf("1200 MiB: %d, 500 MiB: %d\n", maps(1200, PROT_READ), maps(500, PROT_READ));
    pid_t child = fork();
    if (child == 0)
        _exit(maps(1200, PROT_READ));
    int how;
    waitpid(child, &how, 0);
    printf("a child: %d\n", WEXITSTATUS(how));
    limit.rlim_cur = 100;
    limit.rlim_max = 200;
    printf("descriptors: %d\n", setrlimit(RLIMIT_NOFILE, &limit));
    printf("executed: %d\n", WEXITSTATUS(again(argv[0], "again")));
    return 0;
}
