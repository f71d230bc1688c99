/* What /proc/self/smaps says of a mapping: servers take from it how much a forked child has copied. */
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096ul
#define PAGES 64

static void look(const char *when, const char *mapping)
{
    char line[512];
    unsigned long start, end, others = 0;
    int inside = 0;
    FILE *file = fopen("/proc/self/smaps", "re");
    if (!file) {
        perror("smaps");
        return;
    }
    while (fgets(line, sizeof line, file)) {
        char protection[8];
        if (sscanf(line, "%lx-%lx %7s", &start, &end, protection) == 3) {
            inside = start == (unsigned long)mapping;
            others += !inside;
            if (inside)
                printf("%s: %lu pages, %s\n", when, (end - start) / PAGE, protection);
        } else if (inside && (!strncmp(line, "Rss:", 4) || !strncmp(line, "Private_Dirty:", 14))) {
            fputs(line, stdout);
        }
    }
    fclose(file);
    printf("others: %d\n", others > 3);
}

int main(void)
{
    setvbuf(stdout, NULL, _IOLBF, 0);
    /* Between two that cannot be used, so that it is one mapping. */
    char *whole = mmap(NULL, (PAGES + 2) * PAGE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    char *mapping = whole + PAGE;
    mprotect(mapping, PAGES * PAGE, PROT_READ | PROT_WRITE);
    look("untouched", mapping);
    memset(mapping, 1, PAGES / 2 * PAGE);
    look("half written", mapping);
    if (fork() == 0) {
        look("forked", mapping);
        memset(mapping, 2, 16 * PAGE);
        look("written in the child", mapping);
        _exit(0);
    }
    wait(NULL);
    return 0;
}
