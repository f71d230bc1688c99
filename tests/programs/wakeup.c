// A server that crashes between a wake-up and the first read: a connection that has sent "arm" is a
// time bomb for the loop that looks at it next. "slow" is answered late, "look" asks whether there is something
// in an eventfd, and "take" reads it and crashes. usage: wakeup PORT epoll|poll|select
#include <netinet/in.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <unistd.h>

static char armed[FD_SETSIZE], open_fds[FD_SETSIZE];
static int listener, epoll = -1, counter;

static void forget(int fd)
{
    armed[fd] = open_fds[fd] = 0;
    close(fd);
}

static void serve(int fd)
{
    char line[64];
    if (fd == listener) {
        int connection = accept(fd, NULL, NULL);
        if (connection < 0 || connection >= FD_SETSIZE)
            return;
        open_fds[connection] = 1;
        struct epoll_event event = { .events = EPOLLIN, .data.fd = connection };
        if (epoll >= 0)
            epoll_ctl(epoll, EPOLL_CTL_ADD, connection, &event);
        return;
    }
    if (armed[fd] && recv(fd, line, 1, MSG_PEEK) > 0)
        *(volatile int *)8 = 1; // before anything is read
    ssize_t n = read(fd, line, sizeof line);
    if (n <= 0) {
        forget(fd);
        return;
    }
    if (n >= 3 && memcmp(line, "arm", 3) == 0)
        armed[fd] = 1;
    if (n >= 4 && memcmp(line, "slow", 4) == 0)
        usleep(300000);
    struct pollfd entry = { .fd = counter, .events = POLLIN };
    if (n >= 4 && memcmp(line, "look", 4) == 0 && poll(&entry, 1, 0) != 1)
        return;
    unsigned long long count;
    if (n >= 4 && memcmp(line, "take", 4) == 0 && read(counter, &count, sizeof count) > 0)
        *(volatile int *)8 = 1;
    if (write(fd, "ok\n", 3) < 0)
        forget(fd);
}

static void wait_by_epoll(void)
{
    struct epoll_event events[8];
    int n = epoll_wait(epoll, events, 8, -1);
    for (int i = 0; i < n; i++)
        serve(events[i].data.fd);
}

static void wait_by_poll(void)
{
    struct pollfd entries[FD_SETSIZE];
    int count = 0;
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        if (open_fds[fd])
            entries[count++] = (struct pollfd){ .fd = fd, .events = POLLIN };
    if (poll(entries, count, -1) > 0)
        for (int i = 0; i < count; i++)
            if (entries[i].revents)
                serve(entries[i].fd);
}

static void wait_by_select(void)
{
    fd_set set;
    FD_ZERO(&set);
    for (int fd = 0; fd < FD_SETSIZE; fd++)
        if (open_fds[fd])
            FD_SET(fd, &set);
    if (select(FD_SETSIZE, &set, NULL, NULL, NULL) > 0)
        for (int fd = 0; fd < FD_SETSIZE; fd++)
            if (FD_ISSET(fd, &set))
                serve(fd);
}

int main(int argc, char **argv)
{
    if (argc != 3)
        return 2;
    struct sockaddr_in address = { .sin_family = AF_INET, .sin_port = htons(atoi(argv[1])) };
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    listener = socket(AF_INET, SOCK_STREAM, 0);
    int on = 1;
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    if (bind(listener, (struct sockaddr *)&address, sizeof address) || listen(listener, 16))
        return 1;
    open_fds[listener] = 1;
    counter = eventfd(1, 0);
    if (strcmp(argv[2], "epoll") == 0) {
        epoll = epoll_create1(0);
        struct epoll_event event = { .events = EPOLLIN, .data.fd = listener };
        epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &event);
    }
    for (;;) {
        if (epoll >= 0)
            wait_by_epoll();
        else if (strcmp(argv[2], "poll") == 0)
            wait_by_poll();
        else
            wait_by_select();
    }
}
