/* Checks /proc/self/maps against what the program knows of itself, and that nothing writable or
   executable is listed that it did not map. Prints the kinds of mappings, sorted, without addresses. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int global;

static int within(FILE *maps, const void *pointer, const char *protection)
{
    unsigned long from, to, at = (uintptr_t)pointer;
    char line[512], bits[5];
    rewind(maps);
    while (fgets(line, sizeof line, maps))
        if (sscanf(line, "%lx-%lx %4s", &from, &to, bits) == 3 && at >= from && at < to)
            return !strcmp(bits, protection);
    return 0;
}

int main(void)
{
    int local;
    char line[512], path[400];
    unsigned long from, to, last = 0;
    char *mapped = mmap(NULL, 12288, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    mprotect(mapped + 4096, 4096, PROT_READ);
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps)
        return 1;
    setvbuf(maps, NULL, _IONBF, 0);
    printf("code %d, data %d, heap %d, stack %d\n", within(maps, (void *)main, "r-xp"),
           within(maps, &global, "rw-p"), within(maps, malloc(10), "rw-p"),
           within(maps, &local, "rw-p"));
    fclose(maps);
    maps = fopen("/proc/self/maps", "r");
    printf("three parts %d %d %d\n", within(maps, mapped, "rw-p"), within(maps, mapped + 4096, "r--p"),
           within(maps, mapped + 8192, "rw-p"));
    rewind(maps);
    int sorted = 1, foreign = 0;
    while (fgets(line, sizeof line, maps)) {
        *path = 0;
        if (sscanf(line, "%lx-%lx %*s %*s %*s %*s %399s", &from, &to, path) < 2)
            return 2;
        sorted &= from >= last && to > from;
        last = to;
        foreign |= strstr(path, "vmsrs") || strstr(path, "kvm");
    }
    printf("sorted %d, foreign %d\n", sorted, foreign);
    return 0;
}
