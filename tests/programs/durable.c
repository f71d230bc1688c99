/*
 * durable PORT
 *
 * A server that writes to files and tells what the kernel said. One line is one request; the reply is one line
 * and must be the same as without the monitor. "crash" at the end of a line crashes instead of replying.
 */
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
#include <sys/timerfd.h>
#include <sys/uio.h>
#include <unistd.h>

static int own_fd, other_own_fd, append_fd, sparse_fd, log_fd, other_log_fd, data_fd, sealed_fd, limited_fd, pipe_fd[2], count_fd;
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

/* Size, offset and blocks of a file, as the kernel tells them in every way it has. */
static char *facts(char *to, int fd, const char *name) {
    struct stat own = {0}, named = {0};
    struct statx extended = {0};
    fstat(fd, &own);
    stat(name, &named);
    statx(fd, "", AT_EMPTY_PATH, STATX_BASIC_STATS, &extended);
    int same = own.st_size == named.st_size && own.st_size == (long)extended.stx_size && own.st_blocks == named.st_blocks &&
               own.st_blocks == (long)extended.stx_blocks && own.st_mtim.tv_nsec == named.st_mtim.tv_nsec &&
               own.st_mtim.tv_nsec == extended.stx_mtime.tv_nsec && own.st_mtim.tv_sec == extended.stx_mtime.tv_sec &&
               own.st_ctim.tv_nsec == extended.stx_ctime.tv_nsec && own.st_ino == named.st_ino && own.st_dev == named.st_dev;
    return to + sprintf(to, " %ld/%ld/%ld%s", (long)own.st_size, (long)lseek(fd, 0, SEEK_CUR), (long)own.st_blocks,
                        same ? "" : " differs");
}

static char *content(char *to, ssize_t n, const char *bytes) {
    to += sprintf(to, " %zd:", n);
    for (ssize_t i = 0; i < n; i++)
        *to++ = bytes[i] ? bytes[i] : '.';
    return to;
}

/* What a request sees of what it has just written, with each way to look. */
static void look_at_own(char *reply) {
    char back[64], *to = reply + sprintf(reply, "own");
    int copy = dup(own_fd);
    write(own_fd, "first", 5);
    to = facts(to, own_fd, "own");
    write(copy, "second", 6);
    to = facts(to, own_fd, "own");
    to = content(to, pread(other_own_fd, back, 20, 3), back);
    to += sprintf(to, " at %ld", (long)lseek(own_fd, -4, SEEK_CUR));
    to = content(to, read(copy, back, 3), back);
    write(own_fd, "third", 5);
    to = facts(to, copy, "own");
    to += sprintf(to, " end %ld", (long)lseek(own_fd, 2, SEEK_END));
    write(own_fd, "x", 1);
    pwrite(own_fd, "far", 3, 30);
    to = facts(to, own_fd, "own");
    to = content(to, pread(own_fd, back, 40, 0), back);
    to += sprintf(to, " set %ld", (long)lseek(own_fd, 1, SEEK_SET));
    to += sprintf(to, " before %ld", (long)lseek(own_fd, -2, SEEK_CUR));
    to += sprintf(to, " error %d", errno);
    struct iovec parts[2] = {{back, 3}, {back + 3, 60}};
    to = content(to, readv(own_fd, parts, 2), back);
    to = content(to, read(own_fd, back, 10), back);
    to = content(to, read(other_own_fd, back, 7), back);
    errno = 0;
    to = content(to, pread(log_fd, back, 1, 0), back);
    to += sprintf(to, " error %d", errno);
    to = facts(to, other_own_fd, "own");
    close(copy);
}

/* A file that is appended to through two descriptors, and read. */
static void look_at_appended(char *reply) {
    char back[64], *to = reply + sprintf(reply, "append");
    lseek(append_fd, 2, SEEK_SET);
    write(append_fd, "one", 3);
    to = facts(to, append_fd, "appended");
    int other = open("appended", O_WRONLY | O_APPEND);
    write(other, "two", 3);
    to = facts(to, other, "appended");
    to = facts(to, append_fd, "appended");
    to += sprintf(to, " at %ld", (long)lseek(append_fd, -3, SEEK_END));
    to = content(to, read(append_fd, back, 9), back);
    pwrite(append_fd, "three", 5, 0);
    to = facts(to, append_fd, "appended");
    lseek(append_fd, -5, SEEK_END);
    to = content(to, read(append_fd, back, 9), back);
    close(other);
    /* Each write goes where it would have gone at once. */
    write(append_fd, "four", 4);
    fcntl(append_fd, F_SETFL, 0);
    pwrite(append_fd, "HEAD", 4, 0);
    fcntl(append_fd, F_SETFL, O_APPEND);
    pwrite(append_fd, "five", 4, 0);
    to = facts(to, append_fd, "appended");
    to = content(to, pread(append_fd, back, 9, 0), back);
}

static long changed_at(int fd) {
    struct stat stat;
    fstat(fd, &stat);
    return stat.st_mtim.tv_sec * 1000000000 + stat.st_mtim.tv_nsec;
}

/* A hole, and the time of the last change, which is still the same for the next request. */
static void leave_a_hole(char *reply) {
    static long told;
    long before = changed_at(sparse_fd);
    int as_told = !told || told == before;
    char *to = reply + sprintf(reply, "hole %d", as_told);
    pwrite(sparse_fd, "x", 1, (1 << 20) + (long)served * 8192);
    to = facts(to, sparse_fd, "sparse");
    told = changed_at(sparse_fd);
    to += sprintf(to, " later %d again %d", told >= before, told == changed_at(sparse_fd));
}

/* What ends a file, and what looks for its holes, is done at once. */
static void cut(char *reply) {
    char *to = reply + sprintf(reply, "cut");
    write(own_fd, "to be cut", 9);
    to += sprintf(to, " %d", ftruncate(own_fd, 5));
    to = facts(to, own_fd, "own");
    write(own_fd, "more", 4);
    to = facts(to, own_fd, "own");
    to += sprintf(to, " data %ld", (long)lseek(own_fd, 0, SEEK_DATA));
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

/* Until the disk is full, and what is there then. */
static void fill(char *reply) {
    static char block[20000];
    char *to = reply + sprintf(reply, "fill");
    memset(block, 'f', sizeof block);
    pwrite(data_fd, "before", 6, 10);
    for (int i = 0, failed = 0; i < 100 && !failed; i++) {
        ssize_t n = write(log_fd, block, sizeof block);
        failed = n < 0;
        if (n != sizeof block)
            to += sprintf(to, " %d: %s", i, outcome(n));
    }
    pwrite(data_fd, "after", 5, 20);
    sprintf(to, " size %ld", size_of(log_fd));
}

/* What happens without a request: a connection, a datagram, a wake-up of its own, an expired timer. Each writes to the
 * log and then to a file that refuses it, which only the write itself can tell. */
static int wake_fd, timer_fd, udp_fd, pipe_wake[2], refuse_next;
static unsigned happened;
static char told[200];

static void happen(const char *what) {
    ssize_t logged = write(log_fd, what, strlen(what));
    ssize_t changed = pwrite(data_fd, what, 3, 300);
    const char *last = outcome(write(sealed_fd, what, strlen(what)));
    happened++;
    sprintf(told, "%s %zd %zd %s", what, logged, changed, last);
}

static void serve_event(int fd) {
    char bytes[64] = "";
    struct sockaddr_in from;
    socklen_t len = sizeof from;
    if (fd == udp_fd) {
        ssize_t n = recvfrom(fd, bytes, sizeof bytes - 1, 0, (struct sockaddr *)&from, &len);
        happen(bytes);
        if (n > 0)
            sendto(fd, told, strlen(told), 0, (struct sockaddr *)&from, len);
    } else if (read(fd, bytes, fd == pipe_wake[0] ? 1 : 8) > 0) {
        happen(fd == wake_fd ? "event" : fd == timer_fd ? "timer" : "pipe");
    }
}

/* Makes something happen when this request has ended. */
static void arm(char *reply, const char *what) {
    uint64_t count = 1;
    struct itimerspec soon = {.it_value = {0, 20000000}};
    if (!strncmp(what, "event", 5))
        write(wake_fd, &count, 8);
    else if (!strncmp(what, "timer", 5))
        timerfd_settime(timer_fd, 0, &soon, NULL);
    else if (!strncmp(what, "pipe", 4))
        write(pipe_wake[1], "x", 1);
    else if (!strncmp(what, "accept", 6))
        refuse_next = 1;
    sprintf(reply, "armed");
}

static void serve(int fd, char *line) {
    char reply[2048] = "what?";
    served++;
    if (!strncmp(line, "refused", 7))
        refused(reply, line);
    else if (!strncmp(line, "sync", 4))
        sync_refused(reply, line);
    else if (!strncmp(line, "limited", 7))
        limited(reply, "0123456789012345678901234567890123456789");
    else if (!strncmp(line, "back", 4))
        look_back(reply, "12345678");
    else if (!strncmp(line, "own", 3))
        look_at_own(reply);
    else if (!strncmp(line, "append", 6))
        look_at_appended(reply);
    else if (!strncmp(line, "hole", 4))
        leave_a_hole(reply);
    else if (!strncmp(line, "cut", 3))
        cut(reply);
    else if (!strncmp(line, "fill", 4))
        fill(reply);
    else if (!strncmp(line, "arm ", 4))
        arm(reply, line + 4);
    else if (!strncmp(line, "told", 4))
        sprintf(reply, "told %u %s", happened, told);
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

static void watch(int epoll, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (fd < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event))
        die("watch");
}

static void open_files(void) {
    log_fd = open("log", O_WRONLY | O_CREAT | O_APPEND, 0600);
    other_log_fd = open("log", O_RDONLY);
    data_fd = open("data", O_RDWR | O_CREAT, 0600);
    limited_fd = open("limited", O_WRONLY | O_CREAT, 0600);
    own_fd = open("own", O_RDWR | O_CREAT, 0600);
    other_own_fd = open("own", O_RDONLY);
    append_fd = open("appended", O_RDWR | O_CREAT | O_APPEND, 0600);
    sparse_fd = open("sparse", O_RDWR | O_CREAT, 0600);
    sealed_fd = memfd_create("sealed", 2);
    count_fd = eventfd(0, EFD_NONBLOCK);
    if (own_fd < 0 || other_own_fd < 0 || append_fd < 0 || sparse_fd < 0 || log_fd < 0 || data_fd < 0 || limited_fd < 0 || sealed_fd < 0 || count_fd < 0 || pipe2(pipe_fd, O_NONBLOCK) ||
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
    struct epoll_event event;
    udp_fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    wake_fd = eventfd(0, EFD_NONBLOCK);
    timer_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    if (bind(udp_fd, (struct sockaddr *)&address, sizeof address) || pipe2(pipe_wake, O_NONBLOCK))
        die("wake");
    watch(epoll, listening);
    watch(epoll, udp_fd);
    watch(epoll, wake_fd);
    watch(epoll, timer_fd);
    watch(epoll, pipe_wake[0]);
    while (epoll_wait(epoll, &event, 1, -1) == 1) {
        char line[256];
        int fd = event.data.fd;
        if (fd == listening) {
            int new = accept(listening, NULL, NULL);
            if (refuse_next)
                happen("accept");
            refuse_next = 0;
            watch(epoll, new);
            continue;
        }
        if (fd == udp_fd || fd == wake_fd || fd == timer_fd || fd == pipe_wake[0]) {
            serve_event(fd);
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
