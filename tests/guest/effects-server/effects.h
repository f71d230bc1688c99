/*
 * A server that makes one system call per request and then crashes, or answers. It shares the random
 * server's fixtures and its description of the state that the kernel reports.
 */
#ifndef EFFECTS_H
#define EFFECTS_H

#include "../random-server/guest.h"

#include <errno.h>
#include <stdint.h>
#include <sys/syscall.h>
#include <unistd.h>

/* Things that are there before the first request. */
extern int pipe_fd[2], pair_fd[2], record_pair[2], udp_pair[2], ticking_fd, inotify_fd, queue_fd, lock_fd, record_fd, other_lock_fd,
    memory_fd, open_fd, spare_fd, self_pidfd, closing_pair[2], rights_pair[2], ready_count_fd, signals_fd, master_fd;
extern int timer_id, spare_timer_id;
extern char *pages;  /* private, 16 pages */
extern char *shared; /* of the file "shared", 4 pages */
void fixtures_init(void);

enum { INVISIBLE = 1 }; /* a commit of it changes nothing that describe_state tells */

/* One way to make a call: -1 if it failed. */
struct effect {
    const char *call;
    const char *variant;
    int flags;
    long (*make)(void);
};

/* Each ended by one without a name. */
extern const struct effect output_effects[], descriptor_effects[], process_effects[],
    memory_effects[], reading_effects[];

#endif
