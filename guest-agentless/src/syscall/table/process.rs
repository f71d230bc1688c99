//! Processes, threads, identity, scheduling and limits.

super::rows! {
    SYS_clone(flags: Value, stack: Address, parent_tid: Custom, child_tid: Custom, tls: Address) Process Partial
        "Threads, and processes as by fork; CLONE_VM without CLONE_THREAD copies memory as fork does. CLONE_PARENT_SETTID writes 4 \
         bytes at parent_tid, CLONE_CHILD_SETTID 4 bytes at child_tid, CLONE_CHILD_CLEARTID 4 bytes there when the \
         thread ends, CLONE_PIDFD (of processes) 4 bytes at parent_tid; without these flags the arguments mean nothing. \
         EINVAL for a process with another exit signal than SIGCHLD.";
    SYS_clone3(cl_args: In(Len(1)), size: Value) Process Partial
        "As clone, with a stack of known size. EINVAL for set_tid and cgroup.";
    SYS_fork() Process Partial "The child is not restarted in place.";
    SYS_vfork() Process Partial "The child has memory of its own. The parent waits until it executes a program or ends, and then has what the \
         child wrote to 64 KiB of its caller's stack.";
    SYS_execve(pathname: Path, argv: Strings, envp: Strings) Process Full
        "The monitor executes itself with the new program.";
    SYS_execveat(dirfd: DirFd, pathname: Path, argv: Strings, envp: Strings, flags: Value) Process Partial
        "A file that has no name any more cannot be executed so; the C library then tries /proc/self/fd.";
    SYS_exit(status: Value) Process Full "The domain commits; the last thread's is as `exit_group`.";
    SYS_exit_group(status: Value) Process Full "In a client's request of a server a fault of kind `exit`, unless `--allow-exit` is given; elsewhere the domain commits.";
    SYS_wait4(pid: Value, wstatus: Out(Fixed(4)), options: Value, rusage: Out(Fixed(144))) Process Full
        "The domain commits.";
    SYS_waitid(idtype: Value, id: Value, infop: Out(Fixed(128)), options: Value, rusage: Out(Fixed(144)))
        Process Full "As wait4.";
    SYS_set_tid_address(tidptr: Address) Process Full
        "The monitor writes 4 bytes of zeros there and wakes a waiter when the thread ends.";
    SYS_set_robust_list(head: Address, len: Value) Process Full
        "The monitor walks the list when the thread ends.";
    SYS_get_robust_list(pid: Value, head_ptr: Out(Fixed(8)), len_ptr: Out(Fixed(8))) Process Full "";
    SYS_rseq(rseq: Address, rseq_len: Value, flags: Value, sig: Value) Process Refused
        "ENOSYS: the kernel would write the structure at any time; the C library does without.";
    SYS_arch_prctl(code: Value, addr: Custom) Process Partial
        "ARCH_SET_FS and ARCH_SET_GS take an address as it is; ARCH_GET_FS and ARCH_GET_GS write 8 bytes. Other \
         codes: EINVAL.";
    SYS_prctl(option: Value, arg2: Custom, arg3: Value, arg4: Value, arg5: Value) Compensated Partial
        "PR_SET_NAME reads and PR_GET_NAME writes 16 bytes; PR_GET_PDEATHSIG and PR_GET_CHILD_SUBREAPER write 4; \
         the dumpable, pdeathsig, keepcaps, timerslack, subreaper, THP and no_new_privs options take or return \
         numbers. PR_SET_NO_NEW_PRIVS and PR_SET_SECCOMP are never taken back: external. Unknown options: EINVAL.";
    SYS_getpid() Pure Full "";
    SYS_getppid() Pure Full "";
    SYS_gettid() Pure Full "";
    SYS_getpgid(pid: Value) Pure Full "";
    SYS_getpgrp() Pure Full "";
    SYS_getsid(pid: Value) Pure Full "";
    SYS_setpgid(pid: Value, pgid: Value) External Full "";
    SYS_setsid() External Full "";
    SYS_getuid() Pure Full "";
    SYS_geteuid() Pure Full "";
    SYS_getgid() Pure Full "";
    SYS_getegid() Pure Full "";
    SYS_getresuid(ruid: Out(Fixed(4)), euid: Out(Fixed(4)), suid: Out(Fixed(4))) Pure Full "";
    SYS_getresgid(rgid: Out(Fixed(4)), egid: Out(Fixed(4)), sgid: Out(Fixed(4))) Pure Full "";
    SYS_getgroups(size: Value, list: Out(Elements { count: 0, each: 4 })) Pure Full "";
    SYS_setuid(uid: Value) External Partial
        "As on Linux for the calling thread only; the monitor's own threads keep their identity.";
    SYS_setgid(gid: Value) External Partial "As setuid.";
    SYS_setreuid(ruid: Value, euid: Value) External Partial "As setuid.";
    SYS_setregid(rgid: Value, egid: Value) External Partial "As setuid.";
    SYS_setresuid(ruid: Value, euid: Value, suid: Value) External Partial "As setuid.";
    SYS_setresgid(rgid: Value, egid: Value, sgid: Value) External Partial "As setuid.";
    SYS_setfsuid(fsuid: Value) External Partial "As setuid.";
    SYS_setfsgid(fsgid: Value) External Partial "As setuid.";
    SYS_setgroups(size: Value, list: In(Elements { count: 0, each: 4 })) External Partial "As setuid.";
    SYS_capget(hdrp: InOut(Fixed(8)), datap: Out(Fixed(24))) Pure Full "Version 1 writes only 12 bytes of datap.";
    SYS_capset(hdrp: InOut(Fixed(8)), datap: In(Fixed(24))) External Partial
        "As setuid. Version 1 reads only 12 bytes of datap.";
    SYS_getrlimit(resource: Value, rlim: Out(Fixed(16))) Pure Full "";
    SYS_setrlimit(resource: Value, rlim: In(Fixed(16))) Compensated Partial
        "The monitor lives under the same limits. A hard limit that only a privileged process could raise again: \
         external.";
    SYS_prlimit64(pid: Value, resource: Value, new_limit: In(Fixed(16)), old_limit: Out(Fixed(16)))
        Compensated Partial "As setrlimit; pure without new_limit. Of another process: external.";
    SYS_getrusage(who: Value, usage: Out(Fixed(144))) Pure Partial "The monitor's own share is counted as well.";
    SYS_getpriority(which: Value, who: Value) Pure Full "";
    SYS_setpriority(which: Value, who: Value, prio: Value) Compensated Full
        "External where it cannot be set back: of another process, a group or a user, and nicer without \
         CAP_SYS_NICE.";
    SYS_ioprio_get(which: Value, who: Value) Pure Full "";
    SYS_ioprio_set(which: Value, who: Value, ioprio: Value) Compensated Full "Of a group or a user: external.";
    SYS_sched_yield() Pure Full "Offers the run token to other threads, outside of domains.";
    SYS_sched_getaffinity(pid: Value, cpusetsize: Value, mask: Out(Len(1))) Pure Full "";
    SYS_sched_setaffinity(pid: Value, cpusetsize: Value, mask: In(Len(1))) Compensated Full
        "Of another process: external.";
    SYS_sched_getparam(pid: Value, param: Out(Fixed(4))) Pure Full "";
    SYS_sched_setparam(pid: Value, param: In(Fixed(4))) Compensated Full
        "Of another process, or where the old setting may not be set again: external.";
    SYS_sched_getscheduler(pid: Value) Pure Full "";
    SYS_sched_setscheduler(pid: Value, policy: Value, param: In(Fixed(4))) Compensated Full "As sched_setparam.";
    SYS_sched_get_priority_max(policy: Value) Pure Full "";
    SYS_sched_get_priority_min(policy: Value) Pure Full "";
    SYS_sched_rr_get_interval(pid: Value, tp: Out(Fixed(16))) Pure Full "";
    SYS_sched_getattr(pid: Value, attr: Out(Len(2)), size: Value, flags: Value) Pure Full "";
    SYS_sched_setattr(pid: Value, attr: Custom, flags: Value) Compensated Full
        "As sched_setparam. attr begins with its own size, 4 bytes.";
    SYS_getcpu(cpu: Out(Fixed(4)), node: Out(Fixed(4)), tcache: Address) Pure Full "The kernel ignores tcache.";
    SYS_personality(persona: Value) Pure Partial "Asking (0xffffffff) only; a change: EINVAL.";
    SYS_unshare(flags: Value) Pure Refused "EPERM: the monitor's threads cannot be told apart from the guest's.";
    SYS_setns(fd: Fd, nstype: Value) Pure Refused "EPERM: as unshare.";
    SYS_seccomp(operation: Value, flags: Value, args: Custom) External Partial
        "The monitor executes the filters. What they forbid in a request is a fault of it. Decisions by another process \
         (SECCOMP_FILTER_FLAG_NEW_LISTENER): EINVAL. SECCOMP_RET_TRACE: ENOSYS, as without a tracer.";
    SYS_ptrace(request: Value, pid: Value, addr: Address, data: Custom) Pure Refused
        "ENOSYS: a tracer could reach the monitor.";
    SYS_kcmp(pid1: Value, pid2: Value, type: Value, idx1: Value, idx2: Value) Pure Refused
        "ENOSYS: as ptrace.";
    SYS_pidfd_open(pid: Value, flags: Value) Compensated Full "";
    SYS_pidfd_getfd(pidfd: Fd, targetfd: Value, flags: Value) Pure Refused "ENOSYS: as ptrace.";
    SYS_process_mrelease(pidfd: Fd, flags: Value) Pure Refused "ENOSYS: as ptrace.";
    SYS_modify_ldt(func: Value, ptr: Custom, bytecount: Value) Pure Refused
        "ENOSYS: the guest has no descriptor tables of its own.";
}
