/*
 * A server that does random things to itself on request: the guest of the audit test.
 *
 * A request is a record of REQUEST_LEN bytes. It names a seed and a range of operations; operation i of a
 * seed is always the same, whatever was executed before it. See main.c for the protocol.
 */
#ifndef GUEST_H
#define GUEST_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

#define PAGE 4096ul
#define REQUEST_LEN 64
#define MODEL_WORDS 1536
#define CONNECTIONS 64
#define WORKERS 16

/* Classes of operations; a request says which of them it may draw from. */
enum {
    SET_MEMORY = 1,       /* plain writes, malloc, stack */
    SET_READ = 2,         /* system calls that make the kernel write memory */
    SET_MAPPING = 4,      /* mmap and its kin */
    SET_DESCRIPTOR = 8,   /* open, dup, epoll_ctl, eventfd ... */
    SET_SIGNAL = 16,      /* dispositions, masks, stacks */
    SET_RAISE = 32,       /* signals that the server sends to itself */
    SET_BOUNDARY = 64,    /* asks for work: ends the domain */
    SET_EXTERNAL = 128,   /* cannot be undone: commits the domain early */
    SET_ALIAS = 256,      /* one page of memory, or one interest list, by two names */
};

/* What a client and the server both compute. */
struct model {
    uint64_t words[MODEL_WORDS];
};

struct connection {
    int fd; /* -1: free */
    uint32_t filled;
    char request[REQUEST_LEN];
    struct model model;
};

struct worker {
    int epoll;
    uint64_t rng; /* for how the next request is waited for and read */
};

/* A request that is being executed. */
struct run {
    uint64_t rng; /* of the current operation */
    struct connection *connection;
    struct worker *worker;
    int alone;   /* no other thread may write where this one does */
    char *stack; /* room on the stack of the thread */
    size_t stack_len;
    uint32_t violations;
    char first_violation[64];
};

struct operation {
    const char *name;
    unsigned set;
    void (*execute)(struct run *);
};

/* The operations of one source file, ended by one without a name. */
extern const struct operation memory_operations[], info_operations[], read_operations[],
    mapping_operations[], descriptor_operations[], signal_operations[], boundary_operations[],
    external_operations[];

/* random.c */
uint64_t next_random(uint64_t *state);
uint64_t below(struct run *run, uint64_t limit);
int one_in(struct run *run, uint64_t n);

/* place.c: where to write to */
void place_init(void);
char *place(struct run *run, size_t len);       /* writable; of the thread itself unless it is alone */
void *bad(struct run *run, size_t len);         /* not writable, or not in full */
void *out(struct run *run, size_t len);         /* for the kernel to write to; one in eight is bad */
void scribble(struct run *run, char *at, size_t len);
extern char *arena;
extern size_t arena_len; /* bytes; set before place_init */
extern char *fence;
extern const size_t fence_len;

/* The server's own descriptors, in descriptors.c */
extern int data_fd, data_rw_fd, dir_fd, log_fd, scratch_fd, counter_fd, sum_fd, semaphore_fd, spare_epoll,
    spare_timer, udp_fd, tcp_pair[2], idle_listener, quiet_pipe[2];
void descriptors_init(void);

/* mapping.c */
void probe_mappings(void (*each)(unsigned long address, int readable, int writable, int protection));

/* signals.c */
extern volatile uint32_t handler_runs;

/* model.c */
void model_init(struct model *model, uint64_t seed);
void model_step(struct model *model, uint64_t seed, uint32_t count);
uint64_t model_sum(const struct model *model);

/* operations.c */
void run_operations(struct run *run, uint64_t seed, uint32_t from, uint32_t to, unsigned sets,
                    const char *only);
void expect(struct run *run, int holds, const char *what);
size_t list_operations(char *into, size_t room, uint64_t seed, uint32_t from, uint32_t to, unsigned sets,
                       const char *only);

/* crash.c */
void crash(const char *kind);

/* state.c */
size_t describe_state(char *into, size_t room);

/* main.c */
extern struct connection connections[CONNECTIONS];
void die(const char *what);

#endif
