//! Sockets.

super::rows! {
    SYS_socket(domain: Value, type: Value, protocol: Value) Compensated Full "";
    SYS_socketpair(domain: Value, type: Value, protocol: Value, sv: Out(Fixed(8))) Compensated Full "";
    SYS_bind(sockfd: Fd, addr: In(Len(2)), addrlen: Value) External Full "No socket is ever unbound.";
    SYS_listen(sockfd: Fd, backlog: Value) External Full
        "Peers can connect from here on. The first one is where the server begins to serve.";
    SYS_accept(sockfd: Fd, addr: Out(Pointee(2)), addrlen: InOut(Fixed(4))) Origin Full
        "An abandoned one answers ECONNABORTED. Without addr, addrlen is not used.";
    SYS_accept4(sockfd: Fd, addr: Out(Pointee(2)), addrlen: InOut(Fixed(4)), flags: Value) Origin Full
        "As accept.";
    SYS_connect(sockfd: Fd, addr: In(Len(2)), addrlen: Value) External Full "";
    SYS_shutdown(sockfd: Fd, how: Value) Deferred Full
        "After the output that is held. On a socket that is not connected: external.";
    SYS_getsockname(sockfd: Fd, addr: Out(Pointee(2)), addrlen: InOut(Fixed(4))) Pure Full "";
    SYS_getpeername(sockfd: Fd, addr: Out(Pointee(2)), addrlen: InOut(Fixed(4))) Pure Full "";
    SYS_getsockopt(sockfd: Fd, level: Value, optname: Value, optval: Out(Pointee(4)), optlen: InOut(Fixed(4)))
        Pure Full "SO_ERROR clears the pending error, which is not given back. Some options of IPPROTO_TCP and \
        SOL_IP also read optval.";
    SYS_setsockopt(sockfd: Fd, level: Value, optname: Value, optval: In(Len(4)), optlen: Value) Compensated Full
        "The old value is read first. Options whose value holds pointers (socket filters): EINVAL.";
    SYS_sendto(sockfd: Fd, buf: In(Len(2)), len: Value, flags: Value, dest_addr: In(Len(5)), addrlen: Value)
        Held Full "MSG_ZEROCOPY is ignored. MSG_OOB and other flags that change what the peer sees: external.";
    SYS_sendmsg(sockfd: Fd, msg: MsgIn, flags: Value) Held Full
        "As sendto. Descriptors are copied at once and passed at commit; credentials are the monitor's. Other \
         ancillary data: EOPNOTSUPP.";
    SYS_sendmmsg(sockfd: Fd, msgvec: Custom, vlen: Value, flags: Value) Held Full
        "As sendmsg. An array of 64-byte struct mmsghdr; the kernel writes msg_len, 4 bytes at offset 56 of each.";
    SYS_recvfrom(sockfd: Fd, buf: Out(Len(2)), len: Value, flags: Value, src_addr: Out(Pointee(5)),
        addrlen: InOut(Fixed(4))) Origin Full
        "MSG_PEEK takes nothing away: pure. MSG_ERRQUEUE: external. Without src_addr, addrlen is not used.";
    SYS_recvmsg(sockfd: Fd, msg: MsgOut, flags: Value) Origin Full
        "As recvfrom. Descriptors that came with an abandoned request are closed. On a stream or datagram socket the \
         message goes with the request, and the sender is not told; on a stream socket pair it is given back, \
         descriptors and all.";
    SYS_recvmmsg(sockfd: Fd, msgvec: Custom, vlen: Value, flags: Value, timeout: InOut(Fixed(16))) Origin Partial
        "As recvmsg. Returns the datagrams of one sender that are there, which are one request: those of others would \
         be lost with it. Waits for the first one only; timeout is ignored. On a stream one message at a time. An array of 64-byte \
         struct mmsghdr, each like the message of recvmsg, with msg_len (4 bytes at offset 56) written as well.";
}
