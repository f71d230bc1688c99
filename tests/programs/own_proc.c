/* Looks for the memory and the mappings of its own process under many names. Prints one line for each
   name under which something of whoever runs it can be reached; nothing if there is none. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

static void look_mem(const char *name, int fd)
{
    if (fd >= 0) {
        printf("memory: %s\n", name);
        close(fd);
    }
}

static void look_maps(const char *name, int fd)
{
    char text[1 << 16], *found = NULL;
    ssize_t n;
    size_t length = 0;
    while (fd >= 0 && length < sizeof text - 1
           && (n = read(fd, text + length, sizeof text - 1 - length)) > 0)
        length += (size_t)n;
    text[length] = 0;
    if (strstr(text, "vmsrs-"))
        found = strstr(text, "vmsrs-");
    if (strstr(text, "kvm-vcpu"))
        found = strstr(text, "kvm-vcpu");
    if (found)
        printf("mappings: %s: %.20s\n", name, found);
    if (fd >= 0)
        close(fd);
}

int main(void)
{
    char name[256];
    const char *forms[] = {
        "/proc/self/%s",          "/proc/thread-self/%s", "/proc//self/%s",   "//proc/self/%s",
        "/proc/self/./%s",        "/proc/self//%s",       "/proc/./self/%s",  "/proc/self/../self/%s",
        "/proc/self/task/%d/%s",  "/proc/%d/%s",          "/proc/%d/task/%1$d/%s",
        "/proc/self/root/proc/self/%s", "/proc/self/cwd/../../../../../../../proc/self/%s",
    };
    for (unsigned i = 0; i < sizeof forms / sizeof *forms; i++) {
        for (int maps = 0; maps < 2; maps++) {
            const char *file = maps ? "maps" : "mem";
            if (strstr(forms[i], "%1$d"))
                snprintf(name, sizeof name, "/proc/%d/task/%d/%s", getpid(), getpid(), file);
            else if (strstr(forms[i], "%d"))
                snprintf(name, sizeof name, forms[i], getpid(), file);
            else
                snprintf(name, sizeof name, forms[i], file);
            int fd = open(name, maps ? O_RDONLY : O_RDWR);
            maps ? look_maps(name, fd) : look_mem(name, fd);
        }
    }
    int dir = open("/proc/self", O_RDONLY | O_DIRECTORY);
    look_mem("mem in an open /proc/self", openat(dir, "mem", O_RDWR));
    look_maps("maps in an open /proc/self", openat(dir, "maps", O_RDONLY));
    dir = open("/proc", O_RDONLY | O_DIRECTORY);
    look_mem("self/mem in an open /proc", openat(dir, "self/mem", O_RDWR));
    look_maps("smaps", open("/proc/self/smaps", O_RDONLY));
    char link[] = "/tmp/own-proc-XXXXXX";
    if (mkdtemp(link)) {
        snprintf(name, sizeof name, "%s/mem", link);
        if (!symlink("/proc/self/mem", name))
            look_mem("a symbolic link to mem", open(name, O_RDWR));
        unlink(name);
        rmdir(link);
    }
    if (!chdir("/proc/self"))
        look_mem("mem in the working directory /proc/self", open("mem", O_RDWR));

    /* Calls that reach memory by process id. */
    int value = 1, other = 2;
    struct iovec local = {&value, sizeof value}, low = {&other, sizeof other};
    if (process_vm_readv(getpid(), &local, 1, &low, 1, 0) == sizeof value && value != 2)
        puts("process_vm_readv: reads something else");
    struct iovec foreign = {(void *)0x7ffff0000000, 4096};
    for (unsigned long at = 0x550000000000; at < 0x570000000000; at += 1ul << 32) {
        foreign.iov_base = (void *)at;
        if (process_vm_readv(getpid(), &local, 1, &foreign, 1, 0) > 0)
            printf("process_vm_readv: %lx\n", at);
    }
    return 0;
}
