/* Network interfaces by ioctl: names, indices, lists of them into buffers of all sizes. */
#include <errno.h>
#include <linux/sockios.h>
#include <net/if.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#define N(e) do { errno = 0; long r = (long)(e); printf("%s = %ld %s\n", #e, r, r < 0 ? strerrorname_np(errno) : ""); } while (0)

static void ask(int fd, const char *name) {
    static const unsigned requests[] = {0x8910, 0x8913, 0x8915, 0x8917, 0x8919, 0x891b, 0x891d, 0x891f, 0x8921, 0x8925,
                                        0x8927, 0x8929, 0x8933, 0x8935, 0x8938, 0x8942, 0x8970, 0x8946, 0x89f0, 0x8999};
    for (unsigned i = 0; i < sizeof requests / sizeof *requests; i++) {
        struct ifreq request;
        memset(&request, 0, sizeof request);
        strcpy(request.ifr_name, name);
        if (requests[i] == 0x8910)
            request.ifr_ifindex = 1;
        errno = 0;
        int result = requests[i] == 0x8946 || requests[i] == 0x89f0 ? 0 : ioctl(fd, requests[i], &request);
        printf("%s %x: %d %s ", name, requests[i], result, result ? strerrorname_np(errno) : "");
        for (unsigned k = 0; k < sizeof request; k++)
            printf("%02x", ((unsigned char *)&request)[k]);
        printf("\n");
    }
}

static void list(int fd, int len, int none) {
    static unsigned char room[4096];
    memset(room, 0xee, sizeof room);
    struct ifconf list = {.ifc_len = len, .ifc_buf = none ? NULL : (char *)room};
    errno = 0;
    int result = ioctl(fd, SIOCGIFCONF, &list);
    int used = sizeof room;
    while (used && room[used - 1] == 0xee)
        used--;
    printf("list of %d: %d %s, %d bytes, %d written, first %s\n", len, result, result ? strerrorname_np(errno) : "",
           list.ifc_len, used, used ? (char *)room : "-");
}

int main(void) {
    char name[IF_NAMESIZE];
    int udp = socket(AF_INET, SOCK_DGRAM, 0), tcp = socket(AF_INET6, SOCK_STREAM, 0), local = socket(AF_UNIX, SOCK_STREAM, 0);
    N(if_nametoindex("lo")); N(if_nametoindex("none-such")); printf("%s\n", if_indextoname(1, name) ? name : "-"); N(if_indextoname(77, name) != NULL);
    ask(udp, "lo"); ask(udp, "none-such"); ask(local, "lo"); ask(tcp, "lo");
    int lengths[] = {0, 1, 39, 40, 41, 80, 4096, 0x7fffffff, -1, -0x7fffffff - 1};
    for (unsigned i = 0; i < sizeof lengths / sizeof *lengths; i++)
        list(udp, lengths[i], 0), list(udp, lengths[i], 1);
    struct ifconf nowhere = {.ifc_len = 4096, .ifc_buf = (char *)8};
    N(ioctl(udp, SIOCGIFCONF, &nowhere)); N(ioctl(udp, SIOCGIFCONF, NULL)); N(ioctl(udp, SIOCGIFINDEX, (void *)8));
    N(ioctl(0, SIOCGIFCONF, &nowhere)); N(ioctl(-1, SIOCGIFINDEX, &nowhere));
    int value = 5;
    N(ioctl(udp, SIOCATMARK, &value)); N(ioctl(tcp, SIOCATMARK, &value)); N(ioctl(udp, TIOCOUTQ, &value)); N(value);
    value = getpid(); N(ioctl(udp, FIOSETOWN, &value)); value = 0; N(ioctl(udp, SIOCGPGRP, &value)); N(value == getpid());
    value = -getpgrp(); N(ioctl(udp, SIOCSPGRP, &value)); value = 0; N(ioctl(udp, FIOGETOWN, &value)); N(value == -getpgrp());
    N(ioctl(udp, 0x8906, name)); struct ifreq up = {.ifr_name = "none-such"}; N(ioctl(udp, SIOCSIFFLAGS, &up)); N(ioctl(udp, SIOCSIFMTU, &up));
    return 0;
}
