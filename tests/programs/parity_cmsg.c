// Ancillary data other than SCM_RIGHTS/SCM_CREDENTIALS: what UDP servers on wildcard addresses send (IP_PKTINFO),
// DNS and QUIC servers (IPV6_PKTINFO, TOS/TCLASS, HOPLIMIT, UDP_SEGMENT).
#pragma GCC diagnostic ignored "-Wunused-result"
#pragma GCC diagnostic ignored "-Wmissing-field-initializers"
#pragma GCC diagnostic ignored "-Wunused-parameter"
#pragma GCC diagnostic ignored "-Wunused-variable"
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/udp.h>
#include <sys/socket.h>
#include <unistd.h>
static int out(const char *n, int s, struct sockaddr *to, socklen_t tl, int level, int type, void *d, size_t l) {
    char b[64], c[CMSG_SPACE(64)] = {0}; struct iovec v = { "abcdef", 6 };
    struct msghdr m = { to, tl, &v, 1, c, CMSG_SPACE(l), 0 };
    struct cmsghdr *h = CMSG_FIRSTHDR(&m); h->cmsg_level = level; h->cmsg_type = type; h->cmsg_len = CMSG_LEN(l); memcpy(CMSG_DATA(h), d, l);
    errno = 0; int r = sendmsg(s, &m, 0); printf("%-16s %d %s\n", n, r, r < 0 ? strerrorname_np(errno) : ""); return r;
}
int main(void) {
    int one = 1, s = socket(AF_INET, SOCK_DGRAM, 0), r = socket(AF_INET, SOCK_DGRAM, 0);
    struct sockaddr_in a = { AF_INET, 0, { htonl(INADDR_LOOPBACK) } }; socklen_t l = sizeof a; bind(r, (void *)&a, l); getsockname(r, (void *)&a, &l);
    struct in_pktinfo p = { .ipi_spec_dst = { htonl(0x7f000002) } }; int tos = 0x10, ttl = 9; unsigned short seg = 2;
    out("IP_PKTINFO", s, (void *)&a, l, IPPROTO_IP, IP_PKTINFO, &p, sizeof p); out("IP_TOS", s, (void *)&a, l, IPPROTO_IP, IP_TOS, &tos, 4);
    out("IP_TTL", s, (void *)&a, l, IPPROTO_IP, IP_TTL, &ttl, 4); out("UDP_SEGMENT", s, (void *)&a, l, SOL_UDP, UDP_SEGMENT, &seg, 2);
    struct timeval t = { 1 }; setsockopt(r, SOL_SOCKET, SO_RCVTIMEO, &t, sizeof t);
    for (int i = 0; i < 6; i++) { struct sockaddr_in f; socklen_t fl = sizeof f; char b[64]; int n = recvfrom(r, b, 64, 0, (void *)&f, &fl); if (n > 0) printf("got %d from %s\n", n, inet_ntoa(f.sin_addr)); else printf("nothing\n"); }
    int s6 = socket(AF_INET6, SOCK_DGRAM, 0), r6 = socket(AF_INET6, SOCK_DGRAM, 0); struct sockaddr_in6 a6 = { AF_INET6, 0, 0, IN6ADDR_LOOPBACK_INIT }; l = sizeof a6;
    if (bind(r6, (void *)&a6, l) == 0) { getsockname(r6, (void *)&a6, &l); struct in6_pktinfo p6 = { IN6ADDR_LOOPBACK_INIT };
    out("IPV6_PKTINFO", s6, (void *)&a6, l, IPPROTO_IPV6, IPV6_PKTINFO, &p6, sizeof p6); out("IPV6_HOPLIMIT", s6, (void *)&a6, l, IPPROTO_IPV6, IPV6_HOPLIMIT, &ttl, 4); out("IPV6_TCLASS", s6, (void *)&a6, l, IPPROTO_IPV6, IPV6_TCLASS, &tos, 4); }
    return 0;
}
