/* The kernel's view of the process, as the process can ask for it: what a failed request must not change. */
#include "guest.h"

#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

static char *text;
static size_t used, capacity;

static __attribute__((format(printf, 1, 2))) void say(const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    int n = vsnprintf(text + used, capacity - used, format, arguments);
    va_end(arguments);
    if (n > 0 && used + (size_t)n < capacity)
        used += (size_t)n;
}

static void say_file(const char *title, const char *path) {
    char part[1024];
    int fd = open(path, O_RDONLY);
    if (fd < 0)
        return;
    say("%s:\n", title);
    for (ssize_t n; (n = read(fd, part, sizeof part - 1)) > 0;) {
        part[n] = 0;
        say("%s", part);
    }
    close(fd);
}

enum { FIRST = 3, BEYOND = 256 };

/* The standard ones are shared with the monitor, which may have written to them. One call finds the others. */
static struct pollfd *open_descriptors(void) {
    static struct pollfd entries[BEYOND];
    for (int fd = 0; fd < BEYOND; fd++)
        entries[fd] = (struct pollfd){.fd = fd};
    poll(entries, BEYOND, 0);
    return entries;
}

static void say_descriptors(const struct pollfd *known) {
    for (int fd = FIRST; fd < BEYOND; fd++) {
        struct stat stat;
        if (known[fd].revents & POLLNVAL || fstat(fd, &stat))
            continue;
        int flags = fcntl(fd, F_GETFD);
        say("fd %d: cloexec %d, flags %o, offset %ld, mode %o, inode %lu\n", fd, flags, fcntl(fd, F_GETFL),
            (long)lseek(fd, 0, SEEK_CUR), stat.st_mode, (unsigned long)stat.st_ino);
        int waiting = 0;
        if ((S_ISFIFO(stat.st_mode) || S_ISSOCK(stat.st_mode)) && ioctl(fd, FIONREAD, &waiting) == 0)
            say("fd %d: %d bytes to read\n", fd, waiting);
        if (S_ISFIFO(stat.st_mode))
            say("fd %d: pipe of %d bytes\n", fd, fcntl(fd, F_GETPIPE_SZ));
        int domain = 0;
        socklen_t len = sizeof domain;
        if (S_ISSOCK(stat.st_mode) && getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &len) == 0 && domain == AF_UNIX &&
            ioctl(fd, TIOCOUTQ, &waiting) == 0) {
            struct pollfd entry = {fd, POLLIN | POLLRDHUP, 0};
            poll(&entry, 1, 0);
            say("fd %d: %d bytes on the way, ready for %x\n", fd, waiting, entry.revents);
        }
        struct termios settings;
        int packets = 0, lock = 0;
        if (S_ISCHR(stat.st_mode) && ioctl(fd, TCGETS, &settings) == 0) {
            ioctl(fd, 0x80045438, &packets);
            ioctl(fd, 0x80045439, &lock);
            say("fd %d: terminal %x %x %x %x, packets %d, lock %d\n", fd, settings.c_iflag, settings.c_oflag,
                settings.c_cflag, settings.c_lflag, packets, lock);
        }
        if (S_ISSOCK(stat.st_mode))
            say("fd %d: owner %d, signal %d\n", fd, fcntl(fd, F_GETOWN), fcntl(fd, F_GETSIG));
    }
}

/* All that the kernel tells of each descriptor, but for the time that is left of a timer. */
static void say_all_descriptor_info(const struct pollfd *known) {
    for (int fd = FIRST; fd < BEYOND; fd++) {
        char path[64], part[4096];
        if (known[fd].revents & POLLNVAL)
            continue;
        snprintf(path, sizeof path, "/proc/self/fdinfo/%d", fd);
        int info = open(path, O_RDONLY | O_CLOEXEC);
        if (info < 0)
            continue;
        ssize_t n = read(info, part, sizeof part - 1);
        close(info);
        part[n > 0 ? n : 0] = 0;
        for (char *line = strtok(part, "\n"); line; line = strtok(NULL, "\n")) {
            if (!strncmp(line, "it_value", 8))
                say("fd %d: %s\n", fd, strcmp(line, "it_value: (0, 0)") ? "armed" : "not armed");
            else if (strncmp(line, "eventfd-id", 10))
                say("fd %d: %s\n", fd, line);
        }
    }
}

static void say_timers(void) {
    for (int id = 0; id < 8; id++) {
        struct itimerspec setting = {0};
        if (syscall(SYS_timer_gettime, id, &setting) == 0)
            say("timer %d: interval %ld %ld, about %ld000 s left\n", id, (long)setting.it_interval.tv_sec,
                setting.it_interval.tv_nsec, (long)(setting.it_value.tv_sec + 500) / 1000);
    }
    for (int which = 0; which < 3; which++) {
        struct itimerval setting = {0};
        getitimer(which, &setting);
        say("interval timer %d: interval %ld, about %ld000 s left\n", which, (long)setting.it_interval.tv_sec,
            (long)(setting.it_value.tv_sec + 500) / 1000);
    }
}

static void say_scheduling(void) {
    unsigned long set[16] = {0}, attributes[7] = {0};
    syscall(SYS_sched_getaffinity, 0, sizeof set, set);
    syscall(SYS_sched_getattr, 0, attributes, sizeof attributes, 0);
    say("priority %d, I/O priority %ld, CPUs %lx, scheduling", getpriority(PRIO_PROCESS, 0),
        syscall(SYS_ioprio_get, 1, 0), set[0]);
    for (size_t i = 0; i < 4; i++)
        say(" %lx", attributes[i]);
    say("\n");
}

/* Lines of /proc/self/status. */
static void say_status(void) {
    char part[4096];
    int fd = open("/proc/self/status", O_RDONLY | O_CLOEXEC);
    ssize_t n = read(fd, part, sizeof part - 1);
    close(fd);
    part[n > 0 ? n : 0] = 0;
    for (char *line = strtok(part, "\n"); line; line = strtok(NULL, "\n"))
        if (!strncmp(line, "Umask:", 6) || !strncmp(line, "VmLck:", 6))
            say("%s\n", line);
}

static void say_signals(void) {
    uint64_t mask = 0, pending = 0;
    stack_t stack = {0};
    for (int number = 1; number <= 64; number++) {
        uint64_t action[4] = {0};
        syscall(SYS_rt_sigaction, number, NULL, action, 8);
        say("signal %d: %lx %lx %lx\n", number, action[0], action[1], action[3]);
    }
    syscall(SYS_rt_sigprocmask, 0, NULL, &mask, 8);
    syscall(SYS_rt_sigpending, &pending, 8);
    sigaltstack(NULL, &stack);
    say("blocked %lx, pending %lx, stack %p %zu %d, handlers ran %u times\n", mask, pending, stack.ss_sp,
        stack.ss_size, stack.ss_flags, handler_runs);
}

static void say_contents(const char *path) {
    char part[4096];
    uint64_t sum = 0;
    off_t size = 0;
    int fd = open(path, O_RDONLY);
    for (ssize_t n; (n = read(fd, part, sizeof part)) > 0; size += n)
        for (ssize_t i = 0; i < n; i++)
            sum = sum * 31 + (unsigned char)part[i];
    close(fd);
    say("file %s: %ld bytes, sum %lx\n", path, (long)size, sum);
}

static void say_options(const char *title, int fd) {
    int keepalive = 0, nodelay = 0, idle = 0, receive = 0, send = 0;
    struct linger linger = {0};
    struct timeval limit = {0};
    socklen_t len = sizeof(int);
    getsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &keepalive, &len);
    getsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &nodelay, &len);
    getsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, &len);
    getsockopt(fd, SOL_SOCKET, SO_RCVBUF, &receive, &len);
    getsockopt(fd, SOL_SOCKET, SO_SNDBUF, &send, &len);
    len = sizeof linger;
    getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len);
    len = sizeof limit;
    getsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, &len);
    /* The time of a linger that is off means nothing, and cannot be put back. */
    say("socket %s: keepalive %d %d, nodelay %d, buffers %d %d, linger %d, limit %ld\n", title, keepalive,
        idle, nodelay, receive, send, linger.l_onoff ? linger.l_linger : -1, (long)limit.tv_sec);
}

static void say_page(unsigned long address, int readable, int writable, int protection) {
    say("page %lx: readable %d, writable %d, protection %d\n", address, readable, writable, protection);
}

static void say_process(void) {
    char name[16] = "", directory[256] = "";
    unsigned long fs = 0, gs = 0;
    for (int resource = 0; resource < 16; resource++) {
        struct rlimit limit = {0};
        getrlimit(resource, &limit);
        say("limit %d: %lx %lx\n", resource, limit.rlim_cur, limit.rlim_max);
    }
    prctl(PR_GET_NAME, name);
    syscall(SYS_getcwd, directory, sizeof directory);
    syscall(SYS_arch_prctl, 0x1003, &fs);
    syscall(SYS_arch_prctl, 0x1004, &gs);
    int death_signal = 0, subreaper = 0;
    prctl(PR_GET_PDEATHSIG, &death_signal);
    prctl(PR_GET_CHILD_SUBREAPER, &subreaper);
    say("name %s, directory %s, timer slack %d, dumpable %d, death signal %d, subreaper %d, bases %lx %lx, break %p\n",
        name, directory, prctl(PR_GET_TIMERSLACK), prctl(PR_GET_DUMPABLE), death_signal, subreaper, fs, gs,
        sbrk(0));
}

size_t describe_state(char *into, size_t room) {
    text = into;
    capacity = room;
    used = 0;
    const struct pollfd *known = open_descriptors();
    say_descriptors(known);
    say_all_descriptor_info(known);
    say_options("tcp", tcp_pair[0]);
    say_options("listener", idle_listener);
    say_options("udp", udp_fd);
    say_signals();
    say_process();
    say_timers();
    say_scheduling();
    say_status();
    const char *const files[] = {"data", "mapped", "shared", "scratch", "log"};
    for (size_t i = 0; i < sizeof files / sizeof *files; i++)
        say_contents(files[i]);
    probe_mappings(say_page);
    say_file("maps", "/proc/self/maps");
    return used;
}
