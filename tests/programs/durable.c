/*
 * durable PORT
 *
 * A server that writes to files and tells what the kernel said. One line is one request; the reply is one line
 * and must be the same as without the monitor. "crash" at the end of a line crashes instead of replying.
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <unistd.h>

static int log_fd, other_log_fd, data_fd, sealed_fd, limited_fd, pipe_fd[2], count_fd;
static unsigned served;

static void die(const char *what) {
    perror(what);
    exit(1);
}

static const char *outcome(ssize_t n) {
    static char text[32];
    if (n < 0)
        snprintf(text, sizeof text, "error %d", errno);
    else
        snprintf(text, sizeof text, "%zd", n);
    return text;
}

static long size_of(int fd) {
    struct stat stat;
    return fstat(fd, &stat) ? -1 : (long)stat.st_size;
}

/* A log line, a change of a file, and a write that the kernel refuses only when it is done. */
static void refused(char *reply, const char *line) {
    ssize_t logged = write(log_fd, line, strlen(line));
    ssize_t changed = pwrite(data_fd, line, 4, 4);
    const char *last = outcome(write(sealed_fd, line, strlen(line)));
    sprintf(reply, "refused %zd %zd %s served %u", logged, changed, last, served);
}

static void sync_refused(char *reply, const char *line) {
    ssize_t logged = write(log_fd, line, strlen(line));
    int synced = fdatasync(log_fd);
    const char *last = outcome(pwrite(sealed_fd, "x", 1, 5000));
    sprintf(reply, "sync %zd %d %s size %ld", logged, synced, last, size_of(log_fd));
}

static void limited(char *reply, const char *line) {
    char all[256], *end = all;
    for (int i = 0; i < 3; i++)
        end += sprintf(end, " %s", outcome(write(limited_fd, line, 40)));
    sprintf(reply, "limited%s size %ld", all, size_of(limited_fd));
}

/* Everything that can tell a write that was put off from one that was done. */
static void look_back(char *reply, const char *line) {
    char back[16] = "", again[16] = "";
    ssize_t n = write(log_fd, line, 8);
    long at = lseek(log_fd, 0, SEEK_CUR) - size_of(log_fd);
    long grown = size_of(other_log_fd);
    n += pwrite(data_fd, "ABCDEFGH", 8, 100);
    pread(data_fd, back, 8, 100);
    pwrite(data_fd, "ijklmnop", 8, 104);
    char *map = mmap(NULL, 4096, PROT_READ, MAP_SHARED, data_fd, 0);
    if (map != MAP_FAILED)
        memcpy(again, map + 100, 12);
    munmap(map, 4096);
    int fd = open("log", O_RDONLY);
    long by_name = size_of(fd);
    close(fd);
    sprintf(reply, "back %zd at %ld %s %s same %d", n, at, back, again, grown == by_name);
}

static void fill_pipe(char *reply) {
    char bytes[3000] = "";
    long total = 0, refusals = 0, drained = 0;
    for (int i = 0; i < 40; i++) {
        ssize_t n = write(pipe_fd[1], bytes, sizeof bytes);
        total += n > 0 ? n : 0;
        refusals += n < 0 && errno == EAGAIN;
    }
    for (ssize_t n; (n = read(pipe_fd[0], bytes, sizeof bytes)) > 0;)
        drained += n;
    sprintf(reply, "pipe %ld refused %ld drained %ld", total, refusals, drained);
}

static void fill_count(char *reply) {
    uint64_t much = 0xfffffffffffffffe, one = 1, count = 0;
    const char *first = outcome(write(count_fd, &much, 8));
    char text[64];
    snprintf(text, sizeof text, "%s", first);
    const char *second = outcome(write(count_fd, &one, 8));
    if (read(count_fd, &count, 8) != 8)
        count = 1;
    sprintf(reply, "count %s %s %lx", text, second, (unsigned long)count);
}

static void serve(int fd, char *line) {
    char reply[512] = "what?";
    served++;
    if (!strncmp(line, "refused", 7))
        refused(reply, line);
    else if (!strncmp(line, "sync", 4))
        sync_refused(reply, line);
    else if (!strncmp(line, "limited", 7))
        limited(reply, "0123456789012345678901234567890123456789");
    else if (!strncmp(line, "back", 4))
        look_back(reply, "12345678");
    else if (!strncmp(line, "pipe", 4))
        fill_pipe(reply);
    else if (!strncmp(line, "count", 5))
        fill_count(reply);
    if (strstr(line, "crash"))
        *(volatile int *)0 = 1;
    strcat(reply, "\n");
    if (write(fd, reply, strlen(reply)) < 0)
        perror("reply");
}

static void open_files(void) {
    log_fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    other_log_fd = open("log", O_RDONLY);
    data_fd = open("data", O_RDWR | O_CREAT, 0600);
    limited_fd = open("limited", O_WRONLY | O_CREAT, 0600);
    sealed_fd = memfd_create("sealed", 2);
    count_fd = eventfd(0, EFD_NONBLOCK);
    if (log_fd < 0 || data_fd < 0 || limited_fd < 0 || sealed_fd < 0 || count_fd < 0 || pipe2(pipe_fd, O_NONBLOCK) ||
        ftruncate(data_fd, 4096) || fcntl(sealed_fd, F_ADD_SEALS, F_SEAL_GROW))
        die("files");
    signal(SIGXFSZ, SIG_IGN);
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0), epoll = epoll_create1(0);
    if (argc != 2)
        return 2;
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    open_files();
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 16))
        die("listen");
    struct epoll_event event = {.events = EPOLLIN, .data.fd = listening};
    epoll_ctl(epoll, EPOLL_CTL_ADD, listening, &event);
    while (epoll_wait(epoll, &event, 1, -1) == 1) {
        char line[256];
        int fd = event.data.fd;
        if (fd == listening) {
            event.data.fd = accept(listening, NULL, NULL);
            event.events = EPOLLIN;
            epoll_ctl(epoll, EPOLL_CTL_ADD, event.data.fd, &event);
            continue;
        }
        ssize_t n = read(fd, line, sizeof line - 1);
        if (n <= 0) {
            close(fd);
            continue;
        }
        line[n] = 0;
        if (!strncmp(line, "limit now", 9)) {
            struct rlimit limit = {100, RLIM_INFINITY};
            setrlimit(RLIMIT_FSIZE, &limit);
        }
        serve(fd, line);
    }
    return 0;
}
