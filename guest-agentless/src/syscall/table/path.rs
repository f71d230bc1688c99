//! Names in the file system and what is known about them.

super::rows! {
    SYS_open(pathname: Path, flags: Value, mode: Value) Compensated Full
        "External when it creates or truncates a file. Some files under /proc/self are the monitor's answer.";
    SYS_openat(dirfd: DirFd, pathname: Path, flags: Value, mode: Value) Compensated Full "As open.";
    SYS_openat2(dirfd: DirFd, pathname: Path, how: In(Len(3)), size: Value) Compensated Full "As open.";
    SYS_creat(pathname: Path, mode: Value) External Full "";
    SYS_stat(pathname: Path, statbuf: Out(Fixed(144))) Pure Full "As fstat.";
    SYS_lstat(pathname: Path, statbuf: Out(Fixed(144))) Pure Full "As fstat.";
    SYS_fstat(fd: Fd, statbuf: Out(Fixed(144))) Pure Full
        "Size, blocks and times are those which deferred writes of the file will lead to. On file systems of which \
         that is not known (procfs, NFS, FUSE) they are made real first.";
    SYS_newfstatat(dirfd: DirFd, pathname: Path, statbuf: Out(Fixed(144)), flags: Value) Pure Full
        "As fstat.";
    SYS_statx(dirfd: DirFd, pathname: Path, flags: Value, mask: Value, statxbuf: Out(Fixed(256))) Pure Full
        "As fstat.";
    SYS_statfs(path: Path, buf: Out(Fixed(120))) Pure Full "";
    SYS_fstatfs(fd: Fd, buf: Out(Fixed(120))) Pure Full "";
    SYS_ustat(dev: Value, ubuf: Out(Fixed(32))) Pure Full "";
    SYS_access(pathname: Path, mode: Value) Pure Full "";
    SYS_faccessat(dirfd: DirFd, pathname: Path, mode: Value) Pure Full "";
    SYS_faccessat2(dirfd: DirFd, pathname: Path, mode: Value, flags: Value) Pure Full "";
    SYS_readlink(pathname: Path, buf: Out(Len(2)), bufsiz: Value) Pure Full
        "/proc/self/exe is the guest's program.";
    SYS_readlinkat(dirfd: DirFd, pathname: Path, buf: Out(Len(3)), bufsiz: Value) Pure Full "As readlink.";
    SYS_getdents(fd: Fd, dirp: Out(Len(2)), count: Value) Consuming Full "";
    SYS_getdents64(fd: Fd, dirp: Out(Len(2)), count: Value) Consuming Full "";
    SYS_getcwd(buf: Out(Len(1)), size: Value) Pure Full "";
    SYS_chdir(path: Path) Compensated Full "";
    SYS_fchdir(fd: Fd) Compensated Full "";
    SYS_chroot(path: Path) External Partial "The monitor changes its root as well.";
    SYS_umask(mask: Value) Compensated Full "";
    SYS_truncate(path: Path, length: Value) External Full "";
    SYS_rename(oldpath: Path, newpath: Path) External Full "";
    SYS_renameat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path) External Full "";
    SYS_renameat2(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: Value) External Full "";
    SYS_mkdir(pathname: Path, mode: Value) External Full "";
    SYS_mkdirat(dirfd: DirFd, pathname: Path, mode: Value) External Full "";
    SYS_rmdir(pathname: Path) External Full "";
    SYS_link(oldpath: Path, newpath: Path) External Full "";
    SYS_linkat(olddirfd: DirFd, oldpath: Path, newdirfd: DirFd, newpath: Path, flags: Value) External Full "";
    SYS_symlink(target: Path, linkpath: Path) External Full "";
    SYS_symlinkat(target: Path, newdirfd: DirFd, linkpath: Path) External Full "";
    SYS_unlink(pathname: Path) External Full "";
    SYS_unlinkat(dirfd: DirFd, pathname: Path, flags: Value) External Full "";
    SYS_mknod(pathname: Path, mode: Value, dev: Value) External Full "";
    SYS_mknodat(dirfd: DirFd, pathname: Path, mode: Value, dev: Value) External Full "";
    SYS_chmod(pathname: Path, mode: Value) External Full "";
    SYS_fchmod(fd: Fd, mode: Value) External Full "";
    SYS_fchmodat(dirfd: DirFd, pathname: Path, mode: Value) External Full "";
    SYS_fchmodat2(dirfd: DirFd, pathname: Path, mode: Value, flags: Value) External Full "";
    SYS_chown(pathname: Path, owner: Value, group: Value) External Full "";
    SYS_fchown(fd: Fd, owner: Value, group: Value) External Full "";
    SYS_lchown(pathname: Path, owner: Value, group: Value) External Full "";
    SYS_fchownat(dirfd: DirFd, pathname: Path, owner: Value, group: Value, flags: Value) External Full "";
    SYS_utime(filename: Path, times: In(Fixed(16))) External Full "";
    SYS_utimes(filename: Path, times: In(Fixed(32))) External Full "";
    SYS_futimesat(dirfd: DirFd, pathname: Path, times: In(Fixed(32))) External Full "";
    SYS_utimensat(dirfd: DirFd, pathname: Path, times: In(Fixed(32)), flags: Value) External Full
        "A null pathname means the descriptor itself.";
    SYS_getxattr(path: Path, name: Path, value: Out(Len(3)), size: Value) Pure Full "";
    SYS_lgetxattr(path: Path, name: Path, value: Out(Len(3)), size: Value) Pure Full "";
    SYS_fgetxattr(fd: Fd, name: Path, value: Out(Len(3)), size: Value) Pure Full "";
    SYS_listxattr(path: Path, list: Out(Len(2)), size: Value) Pure Full "";
    SYS_llistxattr(path: Path, list: Out(Len(2)), size: Value) Pure Full "";
    SYS_flistxattr(fd: Fd, list: Out(Len(2)), size: Value) Pure Full "";
    SYS_setxattr(path: Path, name: Path, value: In(Len(3)), size: Value, flags: Value) External Full "";
    SYS_lsetxattr(path: Path, name: Path, value: In(Len(3)), size: Value, flags: Value) External Full "";
    SYS_fsetxattr(fd: Fd, name: Path, value: In(Len(3)), size: Value, flags: Value) External Full "";
    SYS_removexattr(path: Path, name: Path) External Full "";
    SYS_lremovexattr(path: Path, name: Path) External Full "";
    SYS_fremovexattr(fd: Fd, name: Path) External Full "";
    SYS_inotify_init() Compensated Full "";
    SYS_inotify_init1(flags: Value) Compensated Full "";
    SYS_inotify_add_watch(fd: Fd, pathname: Path, mask: Value) Compensated Full
        "If events wait to be read at abandon, the one that tells of the removal joins them.";
    SYS_inotify_rm_watch(fd: Fd, wd: Value) External Full
        "A watch that is made again gets another number.";
    SYS_fanotify_init(flags: Value, event_f_flags: Value) Pure Refused "ENOSYS: for system tools.";
    SYS_fanotify_mark(fanotify_fd: Fd, flags: Value, mask: Value, dirfd: DirFd, pathname: Path) Pure Refused
        "ENOSYS: for system tools.";
    SYS_name_to_handle_at(dirfd: DirFd, pathname: Path, handle: Custom, mount_id: Out(Fixed(4)), flags: Value)
        Pure Refused "EOPNOTSUPP: as on a file system without handles.";
    SYS_open_by_handle_at(mount_fd: Fd, handle: Custom, flags: Value) Pure Refused
        "EOPNOTSUPP: as on a file system without handles.";
}
