/* What /proc shows of a process: its arguments, also as a title that it writes over them, its environment, its
   auxiliary vector and where its stack begins; of itself, of a child and of a program that the child executes. */
#include <elf.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/auxv.h>
#include <sys/wait.h>
#include <unistd.h>

static char text[1 << 16];

static size_t read_file(pid_t of, const char *file)
{
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/%s", of, file);
    FILE *in = fopen(path, "r");
    size_t n = in ? fread(text, 1, sizeof text - 1, in) : 0;
    if (in)
        fclose(in);
    text[n] = 0;
    return n;
}

static void show_strings(const char *title, pid_t of, const char *file)
{
    size_t n = read_file(of, file);
    printf("%s: %zu bytes:", title, n);
    for (size_t at = 0; at < n; at += strlen(text + at) + 1)
        printf(" [%s]", strstr(text + at, "parity_title") ? "program" : text + at);
    printf("\n");
}

static void show_auxv(void)
{
    int entries = (int)(read_file(getpid(), "auxv") / sizeof(Elf64_auxv_t)), same = 0, last = 0;
    for (Elf64_auxv_t *entry = (Elf64_auxv_t *)text; entries-- > 0; entry++) {
        last = entry->a_type == AT_NULL;
        if (last)
            break;
        /* The C library has its own idea of AT_HWCAP. */
        if (getauxval(entry->a_type) == entry->a_un.a_val)
            same++;
        else if (entry->a_type != AT_HWCAP)
            printf("auxv %lu differs\n", entry->a_type);
    }
    printf("auxv: some are the same: %d, ends: %d\n", same > 10, last);
}

static void show_stack(char **argv)
{
    read_file(getpid(), "stat");
    char *field = strrchr(text, ')') + 2;
    for (int i = 3; i < 28; i++)
        field = strchr(field, ' ') + 1;
    /* The stack pointer at the start points to argc, just below argv. */
    printf("start of the stack: %d\n", strtoul(field, NULL, 10) == (unsigned long)(argv - 1));
}

int main(int argc, char **argv, char **envp)
{
    (void)envp;
    if (argc == 2 && !strcmp(argv[1], "executed")) {
        show_strings("executed", getpid(), "cmdline");
        show_strings("its environment", getpid(), "environ");
        show_auxv();
        show_stack(argv);
        return 0;
    }
    show_strings("arguments", getpid(), "cmdline");
    printf("environment: %d\n", read_file(getpid(), "environ") > 0);
    show_auxv();
    show_stack(argv);
    fflush(stdout);

    /* A title, as servers write it: over the arguments. */
    char *program = strdup(argv[0]);
    memset(argv[0], 0, strlen(argv[0]));
    memcpy(argv[0], "title", strlen(program) < 5 ? strlen(program) : 5);
    read_file(getpid(), "cmdline");
    printf("title: %s\n", text);
    fflush(stdout);
    int pipes[2];
    if (pipe(pipes))
        return 1;
    pid_t child = fork();
    if (!child) {
        char byte;
        close(pipes[1]);
        read_file(getppid(), "cmdline");
        printf("the parent's: %s\n", text);
        memcpy(argv[0], "child", 5);
        printf("the child's: %s\n", (read_file(getpid(), "cmdline"), text));
        fflush(stdout);
        if (read(pipes[0], &byte, 1) < 0)
            return 1;
        char *args[] = {program, "executed", NULL}, *environment[] = {"ONE=1", "TWO=", NULL};
        execve("/proc/self/exe", args, environment);
        return 127;
    }
    close(pipes[0]);
    usleep(100000);
    printf("the parent's is still: %s\n", (read_file(getpid(), "cmdline"), text));
    fflush(stdout);
    close(pipes[1]);
    int status = 0;
    waitpid(child, &status, 0);
    printf("status %d\n", status);
    return 0;
}
