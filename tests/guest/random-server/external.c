/* Calls that commit the domain before it has ended, and calls that would see that something is still held. */
#include "guest.h"

#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

static void list_directory(struct run *run) {
    if (one_in(run, 3))
        lseek(dir_fd, 0, SEEK_SET);
    syscall(one_in(run, 2) ? SYS_getdents64 : SYS_getdents, dir_fd, out(run, 300), 300);
}

static void set_timer(struct run *run) {
    struct itimerspec value = {.it_value.tv_nsec = 1 + (long)below(run, 1000)};
    syscall(SYS_timerfd_settime, spare_timer, 0, &value, out(run, 32));
    syscall(SYS_read, spare_timer, out(run, 8), 8);
}

static void sleep_little(struct run *run) {
    struct timespec time = {0, 1 + (long)below(run, 2000)};
    syscall(SYS_nanosleep, &time, out(run, 16));
}

static void make_directory(struct run *run) {
    (void)run;
    mkdir("made", 0700);
    rmdir("made");
}

static void dup_over(struct run *run) {
    int copy = dup(data_fd);
    expect(run, dup2(dir_fd, copy) == copy, "dup2 over an open descriptor");
    struct stat stat;
    expect(run, fstat(copy, &stat) == 0 && S_ISDIR(stat.st_mode), "what dup2 has made");
    close(copy);
}

static void discard_much(struct run *run) {
    size_t len = 12ul << 20;
    if (arena_len < 2 * len)
        return;
    size_t from = below(run, arena_len / PAGE - len / PAGE) * PAGE;
    expect(run, madvise(arena + from, len, MADV_DONTNEED) == 0, "a large MADV_DONTNEED");
    expect(run, arena[from + below(run, len)] == 0, "what a large MADV_DONTNEED left");
}

static void pipe_round_trip(struct run *run) {
    char *at = place(run, 5);
    expect(run, write(quiet_pipe[1], "hello", 5) == 5, "write to a pipe");
    expect(run, read(quiet_pipe[0], at, 5) == 5 && memcmp(at, "hello", 5) == 0, "read from a pipe");
}

static void counter_round_trip(struct run *run) {
    uint64_t count = 3;
    expect(run, write(counter_fd, &count, 8) == 8, "write to an eventfd");
    expect(run, read(counter_fd, &count, 8) == 8 && count >= 3, "read from an eventfd what was written");
}

static void refill_counters(struct run *run) {
    uint64_t count = 1 + below(run, 100);
    expect(run, write(sum_fd, &count, 8) == 8 && write(semaphore_fd, &count, 8) == 8, "refill");
}

static void file_round_trip(struct run *run) {
    char byte = (char)below(run, 256), found = (char)~byte;
    int copy = open("scratch", O_RDONLY);
    expect(run, pwrite(scratch_fd, &byte, 1, 77) == 1, "pwrite");
    expect(run, pread(copy, &found, 1, 77) == 1 && found == byte, "read back by another descriptor");
    close(copy);
}

static void size_round_trip(struct run *run) {
    struct stat before, after;
    stat("log", &before);
    expect(run, write(log_fd, "x", 1) == 1, "append");
    stat("log", &after);
    expect(run, after.st_size == before.st_size + 1, "size of a file by name after a write");
}

const struct operation external_operations[] = {
    {"list_directory", SET_EXTERNAL, list_directory},
    {"set_timer", SET_EXTERNAL, set_timer},
    {"sleep_little", SET_EXTERNAL, sleep_little},
    {"make_directory", SET_EXTERNAL, make_directory},
    {"dup_over", SET_EXTERNAL, dup_over},
    {"discard_much", SET_EXTERNAL, discard_much},
    {"pipe_round_trip", SET_EXTERNAL, pipe_round_trip},
    {"counter_round_trip", SET_EXTERNAL, counter_round_trip},
    {"refill_counters", SET_EXTERNAL, refill_counters},
    {"file_round_trip", SET_EXTERNAL, file_round_trip},
    {"size_round_trip", SET_EXTERNAL, size_round_trip},
    {0},
};
