/* A pool of workers that read, execute and answer themselves: one thread accepts, and the connection is the task.
 * Usage: worker_pool PORT WORKERS IDLE, where IDLE is how a worker waits for a task:
 *   condvar, semaphore, timed (a condition variable, for a while at a time), or futex (the plain kind, which glibc
 *   has for mutexes only and other libraries for everything).
 * A request is "ask", answered with "ok", "notify", for which another thread is told through a pipe and answers,
 * or "crash". */
#include <arpa/inet.h>
#include <netinet/in.h>
#include <pthread.h>
#include <linux/futex.h>
#include <semaphore.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

enum { TASKS = 1024 };
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t filled = PTHREAD_COND_INITIALIZER, told = PTHREAD_COND_INITIALIZER;
static sem_t count;
static atomic_int gate;
static int tasks[TASKS], tell[2];
static unsigned head, tail, told_count;
static const char *idle;

static int is(const char *name) {
    return !strcmp(idle, name);
}

static int take(void) {
    if (is("semaphore")) {
        while (sem_wait(&count)) continue;
    }
    if (is("futex")) {
        int n;
        while ((n = atomic_load(&gate)) == 0 || !atomic_compare_exchange_strong(&gate, &n, n - 1))
            syscall(SYS_futex, &gate, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0);
    }
    for (;;) {
        pthread_mutex_lock(&lock);
        while (head == tail && is("condvar")) pthread_cond_wait(&filled, &lock);
        if (head == tail && is("timed")) {
            struct timespec until;
            clock_gettime(CLOCK_REALTIME, &until);
            until.tv_sec++;
            pthread_cond_timedwait(&filled, &lock, &until);
        }
        int fd = head == tail ? -1 : tasks[head++ % TASKS];
        pthread_mutex_unlock(&lock);
        if (fd >= 0) return fd;
    }
}

static void *work(void *unused) {
    for (;;) {
        int fd = take();
        char text[64] = {0};
        if (read(fd, text, sizeof text - 1) <= 0) {
            close(fd);
            continue;
        }
        if (!strncmp(text, "crash", 5)) *(volatile int *)8 = 1;
        if (!strncmp(text, "notify", 6)) {
            /* The other thread can only answer when it has been told. */
            pthread_mutex_lock(&lock);
            unsigned before = told_count;
            if (write(tell[1], "x", 1) != 1) exit(1);
            while (told_count == before) pthread_cond_wait(&told, &lock);
            pthread_mutex_unlock(&lock);
        }
        if (write(fd, "ok", 2) == 2) close(fd);
    }
    return unused;
}

static void *listen_to_notes(void *unused) {
    char note;
    while (read(tell[0], &note, 1) == 1) {
        pthread_mutex_lock(&lock);
        told_count++;
        pthread_cond_broadcast(&told);
        pthread_mutex_unlock(&lock);
    }
    return unused;
}

int main(int argc, char **argv) {
    if (argc != 4) return 2;
    idle = argv[3];
    int listener = socket(AF_INET, SOCK_STREAM, 0), on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons((unsigned short)atoi(argv[1]))};
    at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 64)) return 1;
    if (pipe(tell) || sem_init(&count, 0, 0)) return 1;
    pthread_t thread;
    pthread_create(&thread, NULL, listen_to_notes, NULL);
    for (int i = 0; i < atoi(argv[2]); i++) pthread_create(&thread, NULL, work, NULL);
    for (;;) {
        int fd = accept(listener, NULL, NULL);
        if (fd < 0) continue;
        pthread_mutex_lock(&lock);
        tasks[tail++ % TASKS] = fd;
        pthread_cond_signal(&filled);
        pthread_mutex_unlock(&lock);
        sem_post(&count);
        atomic_fetch_add(&gate, 1);
        syscall(SYS_futex, &gate, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
    }
}
