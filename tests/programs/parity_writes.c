/* Writes of megabytes: a file takes all of them, and so does whatever the writer waits for. */
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define SIZE (5 << 19)

static unsigned char bytes[SIZE];

static unsigned sum(const unsigned char *from, size_t count, unsigned sum)
{
    while (count--)
        sum = sum * 31 + *from++;
    return sum;
}

/* Reads to the end, and tells how much that was. */
static void *reader(void *end)
{
    unsigned char buffer[4096];
    ssize_t count;
    size_t total = 0;
    unsigned all = 0;
    int fd = *(int *)end;
    while ((count = read(fd, buffer, sizeof buffer)) > 0) {
        all = sum(buffer, count, all);
        total += count;
    }
    printf("read: %zu %u\n", total, all);
    return NULL;
}

static void through(int from, int to, ssize_t (*put)(int))
{
    pthread_t thread;
    pthread_create(&thread, NULL, reader, &from);
    ssize_t count = put(to);
    close(to);
    pthread_join(thread, NULL);
    close(from);
    printf("written: %zd\n", count);
}

static ssize_t put_write(int to)
{
    return write(to, bytes, SIZE);
}

static ssize_t put_writev(int to)
{
    struct iovec parts[] = {{bytes, 5}, {bytes + 5, 0}, {bytes + 5, SIZE - 12}, {bytes + SIZE - 7, 7}};
    return writev(to, parts, 4);
}

static ssize_t put_send(int to)
{
    return send(to, bytes, SIZE, 0);
}

static ssize_t put_sendmsg(int to)
{
    struct iovec parts[] = {{bytes, 5}, {bytes + 5, SIZE - 5}};
    struct msghdr message = {.msg_iov = parts, .msg_iovlen = 2};
    return sendmsg(to, &message, 0);
}

static void handle(int signal)
{
    printf("signal: %d\n", signal);
}

/* A handler that restarts calls runs while some has been written: the call tells how much. */
static void interrupted(ssize_t (*put)(int), int from, int to)
{
    struct sigaction action = {.sa_handler = handle, .sa_flags = SA_RESTART};
    sigaction(SIGALRM, &action, NULL);
    ualarm(200000, 0);
    ssize_t count = put(to);
    close(to);
    printf("some: %d\n", count > 0 && count < SIZE);
    size_t total = 0;
    for (ssize_t more; (more = read(from, bytes, SIZE)) > 0;)
        total += more;
    close(from);
    printf("as many: %d\n", total == (size_t)count);
}

int main(void)
{
    for (size_t i = 0; i < SIZE; i++)
        bytes[i] = i * 7 >> 3;
    printf("sum: %u\n", sum(bytes, SIZE, 0));

    char path[] = "/tmp/parity-writes-XXXXXX";
    int file = mkstemp(path);
    unlink(path);
    struct iovec parts[] = {{bytes, SIZE - 1}, {bytes + SIZE - 1, 1}};
    printf("write: %zd\n", write(file, bytes, SIZE));
    printf("writev: %zd\n", writev(file, parts, 2));
    printf("pwrite: %zd\n", pwrite(file, bytes, SIZE, SIZE / 2));
    printf("pwritev: %zd\n", pwritev(file, parts, 2, SIZE + 3));
    printf("pwrite: %zd\n", pwrite(file, bytes, SIZE, -1));
    printf("at: %ld\n", (long)lseek(file, 0, SEEK_CUR));
    lseek(file, 0, SEEK_SET);
    reader(&file);
    struct stat about;
    fstat(file, &about);
    printf("size: %ld\n", (long)about.st_size);

    ssize_t (*puts[])(int) = {put_write, put_writev, put_send, put_sendmsg};
    for (int i = 0; i < 4; i++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0)
            through(ends[0], ends[1], puts[i]);
        if (i < 2 && pipe(ends) == 0)
            through(ends[0], ends[1], puts[i]);
    }
    for (int i = 0; i < 4; i++) {
        int ends[2];
        if (socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0)
            interrupted(puts[i], ends[0], ends[1]);
        if (i < 2 && pipe(ends) == 0)
            interrupted(puts[i], ends[0], ends[1]);
    }
    return 0;
}
