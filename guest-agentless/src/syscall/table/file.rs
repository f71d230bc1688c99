//! Descriptors and the data behind them: files, pipes, and the generic calls that sockets share.

super::rows! {
    SYS_read(fd: Fd, buf: Out(Len(2)), count: Value) Origin Full
        "Origin on a stream socket. On pipes, stream socket pairs, eventfds, timerfds and files with an offset: \
         consuming. On inotify descriptors, terminals and socket pairs of other types: external, since there is \
         no way to give back what was read. A file is read as its deferred writes will leave it.";
    SYS_write(fd: Fd, buf: In(Len(2)), count: Value) Held Full
        "Held on sockets; deferred write on regular files; on an eventfd or a pipe: deferred. Where the result \
         cannot be foretold (a pipe or socket pair without room for all of it, a full eventfd, a file at its size \
         limit), or a shared mapping of the guest shows what is written, the domain commits first and the kernel \
         answers.";
    SYS_readv(fd: Fd, iov: IovecOut { count: 2 }, iovcnt: Value) Origin Full "As read.";
    SYS_writev(fd: Fd, iov: IovecIn { count: 2 }, iovcnt: Value) Held Full "As write.";
    SYS_pread64(fd: Fd, buf: Out(Len(2)), count: Value, offset: Value) Pure Full
        "Moves no offset. A file is read as its deferred writes will leave it.";
    SYS_pwrite64(fd: Fd, buf: In(Len(2)), count: Value, offset: Value) DeferredWrite Full "";
    SYS_preadv(fd: Fd, iov: IovecOut { count: 2 }, iovcnt: Value, pos_l: Value, pos_h: Value) Pure Full
        "As pread64.";
    SYS_pwritev(fd: Fd, iov: IovecIn { count: 2 }, iovcnt: Value, pos_l: Value, pos_h: Value) DeferredWrite Full "";
    SYS_preadv2(fd: Fd, iov: IovecOut { count: 2 }, iovcnt: Value, pos_l: Value, pos_h: Value, flags: Value)
        Consuming Full "Position -1: as readv, which makes it an origin on a stream socket; else as pread64.";
    SYS_pwritev2(fd: Fd, iov: IovecIn { count: 2 }, iovcnt: Value, pos_l: Value, pos_h: Value, flags: Value)
        DeferredWrite Full "Position -1: as writev, which is held on a socket. With flags: external, since they change how \
        the kernel writes.";
    SYS_lseek(fd: Fd, offset: Value, whence: Value) Compensated Full
        "The old offset is put back. Deferred writes of the file count as done, and what they move is moved again \
         behind them. SEEK_DATA and SEEK_HOLE make them real first.";
    SYS_close(fd: Fd) Deferred Full
        "The number stays taken until commit, but is EBADF for the guest from here on. A file that the domain has \
         opened itself is closed at once.";
    SYS_close_range(first: Value, last: Value, flags: Value) Deferred Partial
        "The monitor's own descriptors are left out. CLOSE_RANGE_UNSHARE is refused with EINVAL.";
    SYS_dup(oldfd: Fd) Compensated Full "";
    SYS_dup2(oldfd: Fd, newfd: Value) Compensated Full
        "What newfd was is kept until commit; output that is pending for it commits the domain first. A newfd that \
         the monitor uses for itself: EBADF.";
    SYS_dup3(oldfd: Fd, newfd: Value, flags: Value) Compensated Full "As dup2.";
    SYS_fcntl(fd: Fd, cmd: Value, arg: Custom) Compensated Full
        "F_GETLK and F_OFD_GETLK write 32 bytes, F_GETOWN_EX 8, F_GET_RW_HINT and F_GET_FILE_RW_HINT 8; F_SETLK and \
         F_OFD_SETLK read 32, F_SETOWN_EX 8, F_SET_RW_HINT and F_SET_FILE_RW_HINT 8; all others take a number. \
         Gets are pure. Record locks are taken at once and released at commit. F_ADD_SEALS: external, since a \
         seal is never taken off.";
    SYS_ioctl(fd: Fd, request: Value, argp: Custom) External Partial
        "[The requests of ioctl](ioctls.md) have classes of their own. All others: ENOTTY.";
    SYS_fsync(fd: Fd) DeferredWrite Full "In order with the writes before it.";
    SYS_fdatasync(fd: Fd) DeferredWrite Full "In order with the writes before it.";
    SYS_sync() DeferredWrite Full "In order with the writes before it.";
    SYS_syncfs(fd: Fd) DeferredWrite Full "In order with the writes before it.";
    SYS_sync_file_range(fd: Fd, offset: Value, nbytes: Value, flags: Value) DeferredWrite Full
        "In order with the writes before it.";
    SYS_ftruncate(fd: Fd, length: Value) External Full "";
    SYS_fallocate(fd: Fd, mode: Value, offset: Value, len: Value) External Full "";
    SYS_fadvise64(fd: Fd, offset: Value, len: Value, advice: Value) Pure Full "";
    SYS_readahead(fd: Fd, offset: Value, count: Value) Pure Full "";
    SYS_flock(fd: Fd, operation: Value) Compensated Full "Taken at once, released or made weaker at commit. One that has to be waited for: external, and gives up \
         the run token.";
    SYS_sendfile(out_fd: Fd, in_fd: Fd, offset: InOut(Fixed(8)), count: Value) Held Partial
        "From a file to a socket the data is read at once and held; without offset, the input's offset is put back \
         at abandon. Deferred writes of the file count as done. To anything else: external.";
    SYS_copy_file_range(fd_in: Fd, off_in: InOut(Fixed(8)), fd_out: Fd, off_out: InOut(Fixed(8)), len: Value,
        flags: Value) External Full "";
    SYS_splice(fd_in: Fd, off_in: InOut(Fixed(8)), fd_out: Fd, off_out: InOut(Fixed(8)), len: Value, flags: Value)
        External Full "";
    SYS_tee(fd_in: Fd, fd_out: Fd, len: Value, flags: Value) External Full "";
    SYS_vmsplice(fd: Fd, iov: Custom, nr_segs: Value, flags: Value) Pure Refused
        "ENOSYS: the kernel would read the guest's pages after the call, so that they could not be restored.";
    SYS_pipe(pipefd: Out(Fixed(8))) Compensated Full "";
    SYS_pipe2(pipefd: Out(Fixed(8)), flags: Value) Compensated Full "";
    SYS_memfd_create(name: Path, flags: Value) Compensated Full "";
    SYS_memfd_secret(flags: Value) Pure Refused "ENOSYS: the monitor could not save such pages.";
    SYS_io_setup(nr_events: Value, ctx_idp: InOut(Fixed(8))) Compensated Full
        "The ring is in guest memory, where a request's changes of it are undone.";
    SYS_io_destroy(ctx_id: Value) Compensated Full "";
    SYS_io_submit(ctx_id: Value, nr: Value, iocbpp: Custom) Deferred Partial
        "What is submitted is done before the call returns, each operation as the call that does the same. Polls are \
         refused with EINVAL, flags of single buffers with EOPNOTSUPP.";
    SYS_io_cancel(ctx_id: Value, iocb: In(Fixed(64)), result: Value) Pure Full
        "What was submitted is done, so this fails with EINVAL.";
    SYS_io_getevents(ctx_id: Value, min_nr: Value, nr: Value, events: Custom, timeout: In(Fixed(16))) Boundary Full
        "Events are taken off the ring in guest memory.";
    SYS_io_uring_setup(entries: Value, params: InOut(Fixed(120))) Pure Refused
        "ENOSYS: a ring performs system calls and writes guest memory past the monitor.";
    SYS_io_uring_enter(fd: Fd, to_submit: Value, min_complete: Value, flags: Value, arg: Custom, argsz: Value)
        Pure Refused "ENOSYS: as io_uring_setup.";
    SYS_io_uring_register(fd: Fd, opcode: Value, arg: Custom, nr_args: Value) Pure Refused
        "ENOSYS: as io_uring_setup.";
}
