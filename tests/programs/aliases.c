/*
 * aliases PORT
 *
 * A server with two shared mappings of the file "shared". One line is one request, of words: "a17=5" and "b17=5" write
 * byte 17 through either mapping, "r17=5" lets the kernel do it, "w17=5" writes to the file, "crash" crashes. The reply is
 * "ok", or what the mappings and the file hold where they differ.
 */
#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

enum { LEN = 4 * 4096, MOST = 16 };
static int file, bytes;
static unsigned char *one, *other, back[LEN];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static const char *serve(char *line) {
    for (char *word = strtok(line, " \n"); word; word = strtok(NULL, " \n")) {
        unsigned at, value;
        if (!strcmp(word, "crash"))
            *(volatile int *)0 = 1;
        if (sscanf(word + 1, "%u=%u", &at, &value) != 2 || at >= LEN)
            return "what?\n";
        unsigned char byte = (unsigned char)value;
        if (*word == 'a')
            one[at] = byte;
        else if (*word == 'b')
            other[at] = byte;
        else if (*word == 'w' && pwrite(file, &byte, 1, at) != 1)
            return "pwrite\n";
        else if (*word == 'r' && pread(bytes, one + at, 1, byte) != 1)
            return "pread\n";
        if (one[at] != byte || other[at] != byte)
            return "the mappings differ\n";
    }
    if (pread(file, back, LEN, 0) != LEN || memcmp(back, one, LEN) || memcmp(back, other, LEN))
        return "the file differs\n";
    return "ok\n";
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct pollfd entries[MOST];
    nfds_t count = 1;
    int on = 1, listening = socket(AF_INET, SOCK_STREAM, 0);
    if (argc != 2)
        return 2;
    file = open("shared", O_RDWR | O_CREAT, 0600);
    bytes = open("bytes", O_RDWR | O_CREAT, 0600);
    for (int i = 0; i < 256; i++)
        if (write(bytes, &(unsigned char){(unsigned char)i}, 1) != 1)
            die("bytes");
    if (file < 0 || ftruncate(file, LEN))
        die("file");
    one = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    other = mmap(NULL, LEN, PROT_READ | PROT_WRITE, MAP_SHARED, file, 0);
    if (one == MAP_FAILED || other == MAP_FAILED)
        die("mmap");
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    setsockopt(listening, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listening, (struct sockaddr *)&address, sizeof address) || listen(listening, 16))
        die("listen");
    entries[0] = (struct pollfd){listening, POLLIN, 0};
    while (poll(entries, count, -1) >= 0) {
        for (nfds_t i = count; i-- > 0;) {
            char line[512];
            if (!entries[i].revents)
                continue;
            if (i == 0) {
                int fd = accept(listening, NULL, NULL);
                if (fd >= 0 && count < MOST)
                    entries[count++] = (struct pollfd){fd, POLLIN, 0};
                continue;
            }
            ssize_t n = read(entries[i].fd, line, sizeof line - 1);
            if (n <= 0) {
                close(entries[i].fd);
                entries[i] = entries[--count];
                continue;
            }
            line[n] = 0;
            const char *reply = serve(line);
            if (write(entries[i].fd, reply, strlen(reply)) < 0)
                perror("reply");
        }
    }
    return 0;
}
