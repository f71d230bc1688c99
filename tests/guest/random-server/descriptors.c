/* Descriptors: a table of some that come and go, and the server's fixed ones. */
#include "guest.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <unistd.h>

int data_fd, data_rw_fd, dir_fd, log_fd, scratch_fd, counter_fd, sum_fd, semaphore_fd, spare_epoll,
    spare_timer, udp_fd, tcp_pair[2], idle_listener, quiet_pipe[2];

static int made[32]; /* 0: none */
enum { MADE = sizeof made / sizeof *made, HIGH = 150 };

static void make_file(const char *name, size_t len) {
    int fd = open(name, O_RDWR | O_CREAT | O_TRUNC, 0600);
    char bytes[1000];
    for (size_t i = 0; i < sizeof bytes; i++)
        bytes[i] = (char)('a' + i % 23);
    for (size_t done = 0; fd >= 0 && done < len; done += sizeof bytes)
        if (write(fd, bytes, sizeof bytes) != sizeof bytes)
            die(name);
    if (fd < 0 || close(fd))
        die(name);
}

static int listener(struct sockaddr_in *address) {
    socklen_t len = sizeof *address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    *address = (struct sockaddr_in){.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    if (fd < 0 || bind(fd, (struct sockaddr *)address, len) || listen(fd, 8) ||
        getsockname(fd, (struct sockaddr *)address, &len))
        die("listener");
    return fd;
}

static void make_tcp_pair(void) {
    struct sockaddr_in address;
    idle_listener = listener(&address);
    tcp_pair[0] = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (connect(tcp_pair[0], (struct sockaddr *)&address, sizeof address))
        die("connect");
    tcp_pair[1] = accept4(idle_listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC);
    char bytes[2 * PAGE];
    memset(bytes, 'p', sizeof bytes);
    if (tcp_pair[1] < 0 || send(tcp_pair[0], bytes, sizeof bytes, 0) != sizeof bytes)
        die("tcp pair");
}

void descriptors_init(void) {
    make_file("data", 70000);
    make_file("mapped", 64000);
    make_file("shared", 64000);
    make_file("scratch", 10000);
    make_file("log", 0);
    mkdir("directory", 0700);
    make_file("directory/one", 1000);
    make_file("directory/two", 2000);
    if (symlink("data", "link"))
        die("link");
    data_fd = open("data", O_RDONLY | O_CLOEXEC);
    data_rw_fd = open("mapped", O_RDWR | O_CLOEXEC);
    dir_fd = open("directory", O_RDONLY | O_DIRECTORY);
    log_fd = open("log", O_WRONLY | O_APPEND);
    scratch_fd = open("scratch", O_RDWR);
    counter_fd = eventfd(1000, EFD_NONBLOCK);
    sum_fd = eventfd(1000, EFD_NONBLOCK);
    semaphore_fd = eventfd(1000, EFD_NONBLOCK | EFD_SEMAPHORE);
    spare_epoll = epoll_create1(EPOLL_CLOEXEC);
    spare_timer = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    udp_fd = socket(AF_INET, SOCK_DGRAM | SOCK_NONBLOCK, 0);
    if (data_fd < 0 || data_rw_fd < 0 || dir_fd < 0 || log_fd < 0 || scratch_fd < 0 || counter_fd < 0 ||
        sum_fd < 0 || semaphore_fd < 0 || spare_epoll < 0 || spare_timer < 0 || udp_fd < 0 || pipe2(quiet_pipe, O_NONBLOCK))
        die("descriptors");
    make_tcp_pair();
}

static void keep(struct run *run, int fd) {
    int *place = &made[below(run, MADE)];
    if (fd < 0)
        return;
    if (*place)
        close(*place);
    *place = fd;
}

static int any(struct run *run) {
    int fd = made[below(run, MADE)];
    return fd ? fd : data_fd;
}

static void do_open(struct run *run) {
    static const char *const names[] = {"data", "directory", "link", "missing", "/proc/self/maps",
                                        "/proc/self/exe", "/dev/null"};
    keep(run, open(names[below(run, 7)], O_RDONLY | (one_in(run, 2) ? O_CLOEXEC : 0)));
}

static void do_close(struct run *run) {
    int *place = &made[below(run, MADE)];
    if (*place) {
        expect(run, close(*place) == 0, "close");
        expect(run, fcntl(*place, F_GETFD) == -1, "a closed descriptor answers");
    }
    *place = 0;
}

static void do_dup(struct run *run) { keep(run, dup(any(run))); }

static void dup_high(struct run *run) { keep(run, fcntl(any(run), F_DUPFD_CLOEXEC, HIGH)); }

static void dup_to_free(struct run *run) {
    int to = HIGH + 50 + (int)below(run, 40);
    if (fcntl(to, F_GETFD) < 0)
        keep(run, one_in(run, 2) ? dup2(any(run), to) : dup3(any(run), to, O_CLOEXEC));
}

static void set_flags(struct run *run) {
    int fd = any(run);
    switch (below(run, 4)) {
    case 0:
        fcntl(fd, F_SETFD, one_in(run, 2) ? FD_CLOEXEC : 0);
        return;
    case 1:
        fcntl(fd, F_SETFL, one_in(run, 2) ? O_NONBLOCK : O_APPEND);
        return;
    case 2: {
        int on = (int)below(run, 2);
        ioctl(fd, FIONBIO, &on);
        return;
    }
    default:
        ioctl(fd, one_in(run, 2) ? FIOCLEX : FIONCLEX);
    }
}

static void make_anonymous(struct run *run) {
    switch (below(run, 4)) {
    case 0:
        keep(run, eventfd(0, EFD_NONBLOCK));
        return;
    case 1:
        keep(run, epoll_create1(0));
        return;
    case 2:
        keep(run, timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK));
        return;
    default:
        keep(run, memfd_create("guest", 0));
    }
}

static void keep_pair(struct run *run, const void *at, long result) {
    int pair[2];
    if (result)
        return;
    memcpy(pair, at, sizeof pair);
    keep(run, pair[0]);
    keep(run, pair[1]);
}

static void make_pair(struct run *run) {
    void *at = out(run, 8);
    if (one_in(run, 2))
        keep_pair(run, at, syscall(SYS_pipe2, at, O_NONBLOCK));
    else
        keep_pair(run, at, syscall(SYS_socketpair, AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, at));
}

static void make_socket(struct run *run) {
    keep(run, socket(AF_INET, (one_in(run, 2) ? SOCK_STREAM : SOCK_DGRAM) | SOCK_NONBLOCK, 0));
}

static void change_interest(struct run *run) {
    static const int operations[] = {EPOLL_CTL_ADD, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL};
    int fds[] = {counter_fd, semaphore_fd, quiet_pipe[0], tcp_pair[1], spare_timer, any(run)};
    struct epoll_event *event = (struct epoll_event *)place(run, sizeof *event);
    event->events = EPOLLIN | (one_in(run, 3) ? EPOLLET : 0);
    event->data.u64 = next_random(&run->rng);
    epoll_ctl(spare_epoll, operations[below(run, 4)], fds[below(run, 6)], event);
}

/* The same list by another descriptor. */
static void change_interest_by_copy(struct run *run) {
    int copy = dup(spare_epoll);
    struct epoll_event event = {.events = EPOLLIN | EPOLLPRI, .data.u64 = next_random(&run->rng)};
    epoll_ctl(copy, one_in(run, 2) ? EPOLL_CTL_MOD : EPOLL_CTL_DEL, counter_fd, &event);
    close(copy);
}

/* Not one that is read: a read would have to make the write real. */
static void add_to_counter(struct run *run) {
    uint64_t count = 1 + below(run, 5);
    expect(run, write(counter_fd, &count, 8) == 8, "write to an eventfd");
}

static void seek(struct run *run) {
    lseek(data_fd, (off_t)below(run, 80000), one_in(run, 3) ? SEEK_END : SEEK_SET);
}

static void append(struct run *run) {
    char line[64];
    memset(line, 'l', sizeof line);
    expect(run, write(log_fd, line, 1 + below(run, sizeof line)) > 0, "append");
    if (one_in(run, 3))
        expect(run, fdatasync(log_fd) == 0, "fdatasync");
}

static void overwrite(struct run *run) {
    char bytes[300];
    scribble(run, bytes, sizeof bytes);
    expect(run, pwrite(scratch_fd, bytes, sizeof bytes, (off_t)below(run, 9000)) == sizeof bytes, "pwrite");
}

static void set_option(struct run *run) {
    int fd = one_in(run, 2) ? tcp_pair[0] : idle_listener;
    int value = (int)below(run, 2);
    switch (below(run, 6)) {
    case 0:
        setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &value, sizeof value);
        return;
    case 1:
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &value, sizeof value);
        return;
    case 2: {
        struct linger linger = {value, 3};
        setsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, sizeof linger);
        return;
    }
    case 3: {
        struct timeval limit = {value, 0};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        return;
    }
    case 4:
        value = 60 + (int)below(run, 100);
        setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &value, sizeof value);
        return;
    default:
        value = 20000 + (int)below(run, 50000);
        setsockopt(udp_fd, SOL_SOCKET, one_in(run, 2) ? SO_RCVBUF : SO_SNDBUF, &value, sizeof value);
    }
}

static void limit_descriptors(struct run *run) {
    struct rlimit limit;
    getrlimit(RLIMIT_NOFILE, &limit);
    limit.rlim_cur = 400 + below(run, 100);
    if (limit.rlim_cur <= limit.rlim_max)
        prlimit(0, RLIMIT_NOFILE, &limit, out(run, 16));
}

static void set_name(struct run *run) {
    char name[16] = "random-A";
    name[7] = (char)('A' + below(run, 26));
    prctl(PR_SET_NAME, name);
}

static void set_timer_slack(struct run *run) { prctl(PR_SET_TIMERSLACK, 50000 + below(run, 1000)); }

#define ROW(name, function) {name, SET_DESCRIPTOR, function}
const struct operation descriptor_operations[] = {
    ROW("open", do_open),
    ROW("close", do_close),
    ROW("dup", do_dup),
    ROW("dup_high", dup_high),
    ROW("dup_to_free", dup_to_free),
    ROW("set_flags", set_flags),
    ROW("make_anonymous", make_anonymous),
    ROW("make_pair", make_pair),
    ROW("make_socket", make_socket),
    ROW("change_interest", change_interest),
    ROW("add_to_counter", add_to_counter),
    ROW("seek", seek),
    ROW("append", append),
    ROW("overwrite", overwrite),
    ROW("set_option", set_option),
    ROW("limit_descriptors", limit_descriptors),
    ROW("set_name", set_name),
    ROW("set_timer_slack", set_timer_slack),
    {"change_interest_by_copy", SET_ALIAS, change_interest_by_copy},
    {0},
};
