//! Waiting for descriptors and events.

super::rows! {
    SYS_poll(fds: InOut(Elements { count: 1, each: 8 }), nfds: Value, timeout: Value) Boundary Full "";
    SYS_ppoll(fds: InOut(Elements { count: 1, each: 8 }), nfds: Value, tmo_p: InOut(Fixed(16)),
        sigmask: In(Len(4)), sigsetsize: Value) Boundary Full "";
    SYS_select(nfds: Value, readfds: Custom, writefds: Custom, exceptfds: Custom, timeout: InOut(Fixed(16)))
        Boundary Full "The kernel reads and writes 8 * ceil(nfds / 64) bytes of each set.";
    SYS_pselect6(nfds: Value, readfds: Custom, writefds: Custom, exceptfds: Custom, timeout: InOut(Fixed(16)),
        sigmask: Custom) Boundary Full
        "As select. sigmask points to the address of a signal set and its size (16 bytes, read).";
    SYS_epoll_create(size: Value) Compensated Full "";
    SYS_epoll_create1(flags: Value) Compensated Full "";
    SYS_epoll_ctl(epfd: Fd, op: Value, fd: Fd, event: In(Fixed(12))) Compensated Full
        "EPOLL_CTL_DEL does not read event.";
    SYS_epoll_wait(epfd: Fd, events: Out(Elements { count: 2, each: 12 }), maxevents: Value, timeout: Value)
        Boundary Full "A poisoned connection reports EPOLLHUP and EPOLLERR.";
    SYS_epoll_pwait(epfd: Fd, events: Out(Elements { count: 2, each: 12 }), maxevents: Value, timeout: Value,
        sigmask: In(Len(5)), sigsetsize: Value) Boundary Full "As epoll_wait.";
    SYS_epoll_pwait2(epfd: Fd, events: Out(Elements { count: 2, each: 12 }), maxevents: Value,
        timeout: In(Fixed(16)), sigmask: In(Len(5)), sigsetsize: Value) Boundary Full "As epoll_wait.";
    SYS_eventfd(initval: Value) Compensated Full "";
    SYS_eventfd2(initval: Value, flags: Value) Compensated Full "";
    SYS_signalfd(fd: Value, mask: In(Len(2)), sizemask: Value) Compensated Full
        "SIGSEGV and SIGBUS do not come this way, nor does a SIGPIPE that the guest has sent itself.";
    SYS_signalfd4(fd: Value, mask: In(Len(2)), sizemask: Value, flags: Value) Compensated Full "As signalfd.";
    SYS_timerfd_create(clockid: Value, flags: Value) Compensated Full "";
    SYS_timerfd_settime(fd: Fd, flags: Value, new_value: In(Fixed(32)), old_value: Out(Fixed(32)))
        Compensated Full "";
    SYS_timerfd_gettime(fd: Fd, curr_value: Out(Fixed(32))) Pure Full "";
    SYS_futex(uaddr: InOut(Fixed(4)), futex_op: Value, val: Value, timeout: Custom, uaddr2: Custom, val3: Value)
        Process Full
        "Only FUTEX_LOCK_PI and its relatives write uaddr. timeout is 16 bytes that are read by the waiting \
         operations and a number for the others; uaddr2 is a word that FUTEX_WAKE_OP and FUTEX_CMP_REQUEUE_PI \
         write and the requeue operations name. A wait gives up the run token; a wake-up is deferred.";
    SYS_futex_waitv(waiters: In(Elements { count: 1, each: 24 }), nr_futexes: Value, flags: Value,
        timeout: In(Fixed(16)), clockid: Value) Pure Refused "ENOSYS: not yet carried.";
    SYS_mq_open(name: Path, oflag: Value, mode: Value, attr: In(Fixed(64))) External Full "";
    SYS_mq_unlink(name: Path) External Full "";
    SYS_mq_timedsend(mqdes: Fd, msg_ptr: In(Len(2)), msg_len: Value, msg_prio: Value, abs_timeout: In(Fixed(16)))
        External Full "";
    SYS_mq_timedreceive(mqdes: Fd, msg_ptr: Out(Len(2)), msg_len: Value, msg_prio: Out(Fixed(4)),
        abs_timeout: In(Fixed(16))) External Full "";
    SYS_mq_notify(mqdes: Fd, sevp: In(Fixed(64))) External Full
        "With SIGEV_THREAD the kernel reads 32 bytes more where sigev_value points to.";
    SYS_mq_getsetattr(mqdes: Fd, newattr: In(Fixed(64)), oldattr: Out(Fixed(64))) Compensated Full "";
    SYS_semget(key: Value, nsems: Value, semflg: Value) External Full "";
    SYS_semop(semid: Value, sops: In(Elements { count: 2, each: 6 }), nsops: Value) External Full "";
    SYS_semtimedop(semid: Value, sops: In(Elements { count: 2, each: 6 }), nsops: Value, timeout: In(Fixed(16)))
        External Full "";
    SYS_semctl(semid: Value, semnum: Value, cmd: Value, arg: Custom) External Full
        "IPC_STAT and SEM_STAT write 104 bytes, IPC_INFO and SEM_INFO 40, IPC_SET reads 104; GETALL and SETALL take two \
         bytes for each semaphore; SETVAL and the other GET commands take no address.";
    SYS_msgget(key: Value, msgflg: Value) External Full "";
    SYS_msgsnd(msqid: Value, msgp: Custom, msgsz: Value, msgflg: Value) External Full
        "The kernel reads 8 + msgsz bytes.";
    SYS_msgrcv(msqid: Value, msgp: Custom, msgsz: Value, msgtyp: Value, msgflg: Value) External Full
        "The kernel writes up to 8 + msgsz bytes.";
    SYS_msgctl(msqid: Value, cmd: Value, buf: Custom) External Full
        "IPC_STAT and MSG_STAT write 120 bytes, IPC_INFO and MSG_INFO 32, IPC_SET reads 120.";
}
