/*
 * effects-server PORT
 *
 * Serves lines of text on 127.0.0.1:
 *
 *     LIST              the calls that it can make, each "name variant flags"
 *     STATE             the kernel's view of the process
 *     CALL name variant crash   makes the call and crashes
 *     CALL name variant reply   makes the call and answers "ok", or says why it failed
 *
 * A reply is one line; to LIST and STATE, the line is the length of the text that follows.
 */
#include "effects.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>

void mapping_init(void);
void signals_init(void);

struct connection connections[CONNECTIONS];

static char *text;
static const size_t text_room = 1 << 18;

/* In the order in which they are tried: the last ones replace and close what the others work on. */
static const struct effect *const all[] = {reading_effects, output_effects, process_effects, memory_effects,
                                           descriptor_effects};
enum { LISTS = sizeof all / sizeof *all };

void die(const char *what) {
    perror(what);
    exit(1);
}

static void answer(int fd, const char *what, size_t len) {
    while (len) {
        ssize_t n = send(fd, what, len, MSG_NOSIGNAL);
        if (n < 0)
            return;
        what += n;
        len -= (size_t)n;
    }
}

static void answer_text(int fd, size_t len) {
    char line[32];
    int n = snprintf(line, sizeof line, "%zu\n", len);
    answer(fd, line, (size_t)n);
    answer(fd, text, len);
}

static void list(int fd) {
    size_t used = 0;
    for (int i = 0; i < LISTS; i++)
        for (const struct effect *effect = all[i]; effect->call; effect++)
            used += (size_t)snprintf(text + used, text_room - used, "%s %s %d\n", effect->call, effect->variant,
                                     effect->flags);
    answer_text(fd, used);
}

static const struct effect *find(const char *call, const char *variant) {
    for (int i = 0; i < LISTS; i++)
        for (const struct effect *effect = all[i]; effect->call; effect++)
            if (!strcmp(effect->call, call) && !strcmp(effect->variant, variant))
                return effect;
    fprintf(stderr, "no such effect: %s %s\n", call, variant);
    exit(1);
}

static void execute(int fd, const char *request) {
    char call[32], variant[32], end[16], line[64];
    if (!strncmp(request, "LIST", 4)) {
        list(fd);
    } else if (!strncmp(request, "STATE", 5)) {
        answer_text(fd, describe_state(text, text_room));
    } else if (sscanf(request, "CALL %31s %31s %15s", call, variant, end) == 3) {
        errno = 0;
        int failed = find(call, variant)->make() == -1;
        int error = errno;
        if (!failed && !strcmp(end, "crash"))
            crash("null");
        int n = failed ? snprintf(line, sizeof line, "failed: %s\n", strerror(error)) : snprintf(line, sizeof line, "ok\n");
        answer(fd, line, (size_t)n);
    }
}

static int listen_on(int port) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 64))
        die("listen");
    return fd;
}

int main(int argc, char **argv) {
    struct pollfd entries[CONNECTIONS] = {0};
    char request[128];
    nfds_t count = 1;
    if (argc != 2)
        return 2;
    /* What the server has inherited may change without it. */
    syscall(SYS_close_range, 3, ~0u, 0);
    arena_len = 1 << 20;
    place_init();
    descriptors_init();
    mapping_init();
    signals_init();
    fixtures_init();
    /* Far from the descriptors that the calls make, which may be closed by any of them. */
    int listening = listen_on(atoi(argv[1]));
    if (dup2(listening, 230) < 0 || close(listening))
        die("dup2");
    text = mmap(NULL, text_room, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    memset(text, 0, text_room);
    entries[0] = (struct pollfd){230, POLLIN, 0};
    for (;;) {
        if (poll(entries, count, -1) < 0)
            continue;
        nfds_t known = count;
        if (entries[0].revents && count < CONNECTIONS) {
            int fd = accept(230, NULL, NULL);
            int high = fd < 0 ? -1 : fcntl(fd, F_DUPFD_CLOEXEC, 231);
            if (fd >= 0)
                close(fd);
            if (high >= 0)
                entries[count++] = (struct pollfd){high, POLLIN, 0};
        }
        for (nfds_t i = 1; i < known; i++) {
            if (!entries[i].revents)
                continue;
            ssize_t n = read(entries[i].fd, request, sizeof request - 1);
            if (n > 0) {
                request[n] = 0;
                execute(entries[i].fd, request);
                continue;
            }
            close(entries[i].fd);
            entries[i] = entries[--count];
            known = known > count ? count : known;
            i--;
        }
    }
}
