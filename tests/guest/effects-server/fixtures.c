/* What the calls work on. */
#include "effects.h"

#include <fcntl.h>
#include <mqueue.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/inotify.h>
#include <sys/mman.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>

int pipe_fd[2], pair_fd[2], record_pair[2], udp_pair[2], ticking_fd, inotify_fd, queue_fd, lock_fd, record_fd, other_lock_fd, memory_fd,
    open_fd, spare_fd, self_pidfd, closing_pair[2], rights_pair[2], ready_count_fd, signals_fd, master_fd;
int timer_id, spare_timer_id;
char *pages, *shared;

static int make_timer(void) {
    struct sigevent event = {.sigev_notify = SIGEV_SIGNAL, .sigev_signo = SIGUSR2};
    struct itimerspec setting = {.it_value = {9000, 0}, .it_interval = {7, 0}};
    int id = -1;
    if (syscall(SYS_timer_create, CLOCK_MONOTONIC, &event, &id) ||
        syscall(SYS_timer_settime, id, 0, &setting, NULL))
        die("timer");
    return id;
}

static void make_queue(void) {
    char name[64];
    struct mq_attr attributes = {.mq_maxmsg = 4, .mq_msgsize = 64};
    snprintf(name, sizeof name, "effects-%d", getpid());
    queue_fd = (int)syscall(SYS_mq_open, name, O_RDWR | O_CREAT | O_EXCL, 0600, &attributes);
    if (queue_fd < 0)
        die("message queue");
    syscall(SYS_mq_unlink, name);
}

/* Messages that bring a descriptor each. */
static void send_rights(int fd) {
    union {
        struct cmsghdr header;
        char room[CMSG_SPACE(sizeof(int))];
    } control = {.header = {CMSG_LEN(sizeof(int)), SOL_SOCKET, SCM_RIGHTS}};
    struct iovec part = {"abc", 3};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control.room};
    memcpy(CMSG_DATA(&control.header), &fd, sizeof fd);
    if (sendmsg(rights_pair[0], &message, 0) != 3)
        die("rights");
}

static void count_run(int number) {
    (void)number;
    handler_runs++;
}

void fixtures_init(void) {
    signal(SIGALRM, count_run);
    struct itimerspec fast = {.it_value = {0, 1000000}};
    if (pipe2(pipe_fd, O_NONBLOCK) || write(pipe_fd[1], "the bytes of a pipe", 19) != 19 ||
        socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, pair_fd) || write(pair_fd[0], "abcdefgh", 8) != 8 ||
        socketpair(AF_UNIX, SOCK_STREAM, 0, closing_pair) ||
        socketpair(AF_UNIX, SOCK_SEQPACKET | SOCK_NONBLOCK, 0, record_pair) ||
        socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK, 0, udp_pair))
        die("pairs");
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, rights_pair))
        die("pair");
    /* One expiration, and no more of them. */
    ticking_fd = timerfd_create(CLOCK_MONOTONIC, TFD_NONBLOCK);
    struct timespec nap = {0, 5000000};
    timerfd_settime(ticking_fd, 0, &fast, NULL);
    nanosleep(&nap, NULL);
    ready_count_fd = eventfd(5, EFD_NONBLOCK);
    master_fd = posix_openpt(O_RDWR | O_NOCTTY);
    sigset_t signals;
    sigemptyset(&signals);
    sigaddset(&signals, SIGUSR1);
    signals_fd = signalfd(-1, &signals, SFD_NONBLOCK);
    inotify_fd = inotify_init1(IN_NONBLOCK);
    if (inotify_add_watch(inotify_fd, "data", IN_DELETE_SELF) < 0)
        die("inotify");
    make_queue();
    lock_fd = open("scratch", O_RDWR);
    /* Of files that nobody else opens: to close one of them gives the process's locks up. */
    record_fd = open("directory/one", O_RDWR);
    other_lock_fd = open("directory/two", O_RDWR);
    memory_fd = memfd_create("effects", MFD_ALLOW_SEALING);
    open_fd = open("data", O_RDONLY);
    for (int i = 0; i < 3; i++) {
        send_rights(open_fd);
        if (write(rights_pair[0], "--", 2) != 2)
            die("rights");
    }
    spare_fd = open("mapped", O_RDWR | O_CLOEXEC);
    self_pidfd = (int)syscall(SYS_pidfd_open, getpid(), 0);
    timer_id = make_timer();
    spare_timer_id = make_timer();
    int file = open("shared", O_RDWR);
    pages = mmap(NULL, 16 * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    shared = mmap(NULL, 4 * PAGE, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (ticking_fd < 0 || ready_count_fd < 0 || signals_fd < 0 || lock_fd < 0 || record_fd < 0 || other_lock_fd < 0 || memory_fd < 0 ||
        open_fd < 0 || spare_fd < 0 || self_pidfd < 0 || master_fd < 0 || pages == MAP_FAILED || shared == MAP_FAILED)
        die("fixtures");
    memset(pages, 'p', 16 * PAGE);
    mlock(pages + 12 * PAGE, 2 * PAGE);
}
