//! The machine as a whole: what a server may ask, and what only administrators do.

super::rows! {
    SYS_uname(buf: Out(Fixed(390))) Pure Full "";
    SYS_sysinfo(info: Out(Fixed(112))) Pure Full "";
    SYS_getrandom(buf: Out(Len(1)), buflen: Value, flags: Value) Pure Full
        "An abandoned domain's bytes are not given again.";
    SYS_sysfs(option: Value, arg1: Custom, arg2: Custom) Pure Refused "ENOSYS: obsolete on Linux.";
    SYS_syslog(type: Value, bufp: Out(Len(2)), len: Value) Pure Refused "EPERM: for administrators.";
    SYS_sethostname(name: In(Len(1)), len: Value) Pure Refused "EPERM: for administrators.";
    SYS_setdomainname(name: In(Len(1)), len: Value) Pure Refused "EPERM: for administrators.";
    SYS_reboot(magic: Value, magic2: Value, cmd: Value, arg: Custom) Pure Refused "EPERM: for administrators.";
    SYS_kexec_load(entry: Value, nr_segments: Value, segments: Custom, flags: Value) Pure Refused
        "EPERM: for administrators.";
    SYS_kexec_file_load(kernel_fd: Fd, initrd_fd: Fd, cmdline_len: Value, cmdline: In(Len(2)), flags: Value)
        Pure Refused "EPERM: for administrators.";
    SYS_init_module(module_image: In(Len(1)), len: Value, param_values: Path) Pure Refused
        "EPERM: for administrators.";
    SYS_finit_module(fd: Fd, param_values: Path, flags: Value) Pure Refused "EPERM: for administrators.";
    SYS_delete_module(name: Path, flags: Value) Pure Refused "EPERM: for administrators.";
    SYS_swapon(path: Path, swapflags: Value) Pure Refused "EPERM: for administrators.";
    SYS_swapoff(path: Path) Pure Refused "EPERM: for administrators.";
    SYS_acct(filename: Path) Pure Refused "EPERM: for administrators.";
    SYS_quotactl(cmd: Value, special: Path, id: Value, addr: Custom) Pure Refused "EPERM: for administrators.";
    SYS_quotactl_fd(fd: Fd, cmd: Value, id: Value, addr: Custom) Pure Refused "EPERM: for administrators.";
    SYS_vhangup() Pure Refused "EPERM: for administrators.";
    SYS_iopl(level: Value) Pure Refused "EPERM: the guest has no I/O ports.";
    SYS_ioperm(from: Value, num: Value, turn_on: Value) Pure Refused "EPERM: the guest has no I/O ports.";
    SYS_mount(source: Path, target: Path, filesystemtype: Path, mountflags: Value, data: Custom) Pure Refused
        "EPERM: would change the monitor's view of the file system.";
    SYS_umount2(target: Path, flags: Value) Pure Refused "EPERM: as mount.";
    SYS_pivot_root(new_root: Path, put_old: Path) Pure Refused "EPERM: as mount.";
    SYS_open_tree(dirfd: DirFd, filename: Path, flags: Value) Pure Refused "EPERM: as mount.";
    SYS_move_mount(from_dirfd: DirFd, from_path: Path, to_dirfd: DirFd, to_path: Path, flags: Value) Pure Refused
        "EPERM: as mount.";
    SYS_fsopen(fsname: Path, flags: Value) Pure Refused "EPERM: as mount.";
    SYS_fsconfig(fd: Fd, cmd: Value, key: Path, value: Custom, aux: Value) Pure Refused "EPERM: as mount.";
    SYS_fsmount(fd: Fd, flags: Value, attr_flags: Value) Pure Refused "EPERM: as mount.";
    SYS_fspick(dirfd: DirFd, path: Path, flags: Value) Pure Refused "EPERM: as mount.";
    SYS_mount_setattr(dirfd: DirFd, path: Path, flags: Value, attr: In(Len(4)), size: Value) Pure Refused
        "EPERM: as mount.";
    SYS_bpf(cmd: Value, attr: Custom, size: Value) Pure Refused "ENOSYS: programs in the host kernel.";
    SYS_perf_event_open(attr: Custom, pid: Value, cpu: Value, group_fd: Value, flags: Value) Pure Refused
        "ENOSYS: would count and sample the monitor.";
    SYS_add_key(type: Path, description: Path, payload: In(Len(3)), plen: Value, keyring: Value) Pure Refused
        "ENOSYS: keyrings outlive the guest.";
    SYS_request_key(type: Path, description: Path, callout_info: Path, dest_keyring: Value) Pure Refused
        "ENOSYS: as add_key.";
    SYS_keyctl(operation: Value, arg2: Custom, arg3: Custom, arg4: Custom, arg5: Custom) Pure Refused
        "ENOSYS: as add_key.";
    SYS_landlock_create_ruleset(attr: In(Len(1)), size: Value, flags: Value) Pure Refused
        "ENOSYS: a rule set would bind the monitor as well.";
    SYS_landlock_add_rule(ruleset_fd: Fd, rule_type: Value, rule_attr: Custom, flags: Value) Pure Refused
        "ENOSYS: as landlock_create_ruleset.";
    SYS_landlock_restrict_self(ruleset_fd: Fd, flags: Value) Pure Refused
        "ENOSYS: as landlock_create_ruleset.";
}
