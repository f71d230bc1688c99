/*
 * ancillary PORT
 *
 * Receives with recvmsg and recvmmsg, and tells what came: on the Unix stream sockets "wide", "narrow", "none" and
 * "all", which differ in what is asked for, and on the UDP port PORT + 1. A message with "crash" in it crashes the server
 * when it has been received, one with "refused" is written to a file that takes nothing. On PORT, "state" tells the
 * open descriptors.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

enum { WIDE, NARROW, NONE, ALL, TCP, UDP, LISTENING };
static const char *const names[] = {"wide", "narrow", "none", "all"};
static const size_t rooms[] = {512, CMSG_LEN(2 * sizeof(int)), 0, 512};
enum { WHOLE = 300000, MOST = 100 };

static int sealed_fd;
static struct pollfd entries[MOST];
static int kinds[MOST];
static char whole[WHOLE];

static void die(const char *what) {
    perror(what);
    exit(1);
}

static void come_to_an_end(const char *text) {
    ssize_t written = 0;
    if (strstr(text, "refused"))
        written = write(sealed_fd, text, strlen(text));
    if (strstr(text, "crash"))
        *(volatile int *)0 = 1;
    if (written < 0 && errno != EPERM)
        die("sealed");
}

/* The number that the next descriptor gets. */
static int next_free(void) {
    int fd = dup(0);
    close(fd);
    return fd;
}

/* The descriptors in a message, counted from the first number that was free, what is read from them, and other data by its kind. */
static char *describe(char *to, struct msghdr *message, int free) {
    to += sprintf(to, " flags %x control %zu", message->msg_flags, (size_t)message->msg_controllen);
    for (struct cmsghdr *part = CMSG_FIRSTHDR(message); part; part = CMSG_NXTHDR(message, part)) {
        size_t len = part->cmsg_len - CMSG_LEN(0);
        to += sprintf(to, " [%d:%d %zu", part->cmsg_level, part->cmsg_type, len);
        if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_RIGHTS) {
            for (size_t i = 0; i < len / sizeof(int); i++) {
                char bytes[64] = "";
                int fd;
                memcpy(&fd, CMSG_DATA(part) + i * sizeof fd, sizeof fd);
                ssize_t n = pread(fd, bytes, sizeof bytes - 1, 0);
                to += sprintf(to, " %d%s=%s", fd - free, fcntl(fd, F_GETFD) & FD_CLOEXEC ? "c" : "", n > 0 ? bytes : "?");
                if (close(fd))
                    die("close");
            }
        } else if (part->cmsg_level == SOL_SOCKET && part->cmsg_type == SCM_CREDENTIALS) {
            struct ucred who;
            memcpy(&who, CMSG_DATA(part), sizeof who);
            to += sprintf(to, " uid %d known %d", who.uid, who.pid > 0);
        } else if (part->cmsg_level == IPPROTO_IP && part->cmsg_type == IP_PKTINFO) {
            struct in_pktinfo info;
            memcpy(&info, CMSG_DATA(part), sizeof info);
            to += sprintf(to, " to %s", inet_ntoa(info.ipi_addr));
        }
        to += sprintf(to, "]");
    }
    return to;
}

static void answer(int fd, const char *text) {
    if (send(fd, text, strlen(text), MSG_NOSIGNAL) < 0)
        perror("answer");
}

/* False at the end of the connection. */
static int serve_stream(int fd, int kind) {
    static _Alignas(8) char control[512];
    char text[200] = "", reply[1024], *to = reply;
    struct iovec part = {text, sizeof text - 1};
    struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1, .msg_control = rooms[kind] ? control : NULL,
                             .msg_controllen = rooms[kind]};
    if (kind == ALL)
        part = (struct iovec){whole, sizeof whole};
    int free = next_free();
    ssize_t n = recvmsg(fd, &message, kind == NARROW ? MSG_CMSG_CLOEXEC : kind == ALL ? MSG_WAITALL : 0);
    if (n <= 0)
        return 0;
    to += sprintf(to, "%zd", n);
    if (kind == ALL) {
        unsigned sum = 0;
        for (ssize_t i = 0; i < n; i++)
            sum = sum * 31 + (unsigned char)whole[i];
        to += sprintf(to, " sum %u", sum);
        memcpy(text, whole + n - 20, 20);
    }
    to = describe(to, &message, free);
    come_to_an_end(text);
    strcpy(to, "\n");
    answer(fd, reply);
    return 1;
}

static void serve_datagrams(int fd) {
    enum { SOME = 8 };
    static _Alignas(8) char control[SOME][256];
    char text[SOME][64];
    struct sockaddr_in from[SOME];
    struct iovec parts[SOME];
    struct mmsghdr messages[SOME];
    for (int i = 0; i < SOME; i++) {
        memset(text[i], 0, sizeof text[i]);
        parts[i] = (struct iovec){text[i], sizeof text[i] - 1};
        messages[i].msg_hdr = (struct msghdr){.msg_iov = &parts[i], .msg_iovlen = 1, .msg_name = &from[i],
                                              .msg_namelen = sizeof from[i], .msg_control = control[i],
                                              .msg_controllen = sizeof control[i]};
    }
    int n = recvmmsg(fd, messages, SOME, MSG_WAITFORONE, NULL);
    for (int i = 0; i < n; i++) {
        char reply[512], *to = reply + sprintf(reply, "%d/%d %u", i, n, messages[i].msg_len);
        to = describe(to, &messages[i].msg_hdr, 0);
        sprintf(to, " %s", text[i]);
        come_to_an_end(text[i]);
        sendto(fd, reply, strlen(reply), 0, (struct sockaddr *)&from[i], sizeof from[i]);
    }
}

static void tell_state(int fd) {
    char reply[2048] = "open", *to = reply + 4;
    for (int i = 0; i < 256; i++)
        if (fcntl(i, F_GETFD) >= 0)
            to += sprintf(to, " %d", i);
    strcpy(to, "\n");
    answer(fd, reply);
}

static int count;

static void add(int fd, int kind) {
    if (fd < 0 || count == MOST)
        die("socket");
    entries[count] = (struct pollfd){fd, POLLIN, 0};
    kinds[count++] = kind;
}

int main(int argc, char **argv) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int on = 1, tcp = socket(AF_INET, SOCK_STREAM, 0), udp = socket(AF_INET, SOCK_DGRAM, 0);
    if (argc != 2)
        return 2;
    for (int i = 0; i < 4; i++) {
        struct sockaddr_un path = {.sun_family = AF_UNIX};
        strcpy(path.sun_path, names[i]);
        int fd = socket(AF_UNIX, SOCK_STREAM, 0);
        if (bind(fd, (struct sockaddr *)&path, sizeof path) || listen(fd, 16))
            die(names[i]);
        add(fd, LISTENING + i);
    }
    sealed_fd = memfd_create("sealed", MFD_ALLOW_SEALING);
    fcntl(sealed_fd, F_ADD_SEALS, F_SEAL_GROW);
    setsockopt(tcp, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    setsockopt(udp, IPPROTO_IP, IP_PKTINFO, &on, sizeof on);
    setsockopt(udp, SOL_SOCKET, SO_TIMESTAMPNS, &on, sizeof on);
    address.sin_port = htons((uint16_t)(atoi(argv[1]) + 1));
    if (bind(udp, (struct sockaddr *)&address, sizeof address))
        die("udp");
    address.sin_port = htons((uint16_t)atoi(argv[1]));
    if (bind(tcp, (struct sockaddr *)&address, sizeof address) || listen(tcp, 16))
        die("listen");
    add(udp, UDP);
    add(tcp, LISTENING + TCP);
    while (poll(entries, (nfds_t)count, -1) >= 0) {
        for (int i = count - 1; i >= 0; i--) {
            int fd = entries[i].fd, goes_on = 1;
            char line[100];
            if (!entries[i].revents)
                continue;
            if (kinds[i] >= LISTENING) {
                int new = accept(fd, NULL, NULL);
                if (new < 0)
                    continue;
                if (kinds[i] == LISTENING + WIDE)
                    setsockopt(new, SOL_SOCKET, SO_PASSCRED, &on, sizeof on);
                add(new, kinds[i] - LISTENING);
            } else if (kinds[i] == UDP) {
                serve_datagrams(fd);
            } else if (kinds[i] == TCP) {
                goes_on = read(fd, line, sizeof line) > 0;
                if (goes_on)
                    tell_state(fd);
            } else {
                goes_on = serve_stream(fd, kinds[i]);
            }
            if (!goes_on) {
                close(fd);
                entries[i] = entries[--count];
                kinds[i] = kinds[count];
            }
        }
    }
    return 0;
}
