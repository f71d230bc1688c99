//! Signals. The monitor keeps handlers, masks and pending signals of each thread itself.

super::rows! {
    SYS_rt_sigaction(signum: Value, act: In(Fixed(32)), oldact: Out(Fixed(32)), sigsetsize: Value) Process Full
        "Undone at abandon. A handler for a fault does not come before recovery.";
    SYS_rt_sigprocmask(how: Value, set: In(Len(3)), oldset: Out(Len(3)), sigsetsize: Value) Process Full
        "Undone at abandon.";
    SYS_rt_sigpending(set: Out(Len(1)), sigsetsize: Value) Process Full "";
    SYS_rt_sigsuspend(mask: In(Len(1)), sigsetsize: Value) Boundary Full "";
    SYS_rt_sigtimedwait(set: In(Len(3)), info: Out(Fixed(128)), timeout: In(Fixed(16)), sigsetsize: Value)
        Boundary Full "";
    SYS_rt_sigreturn() Process Full "Reads the signal frame at the stack pointer.";
    SYS_sigaltstack(ss: In(Fixed(24)), old_ss: Out(Fixed(24))) Process Full "Undone at abandon.";
    SYS_pause() Boundary Full "";
    SYS_kill(pid: Value, sig: Value) Deferred Full
        "To the process itself: a signal that ends it is a fault of the request, one with a handler is handled \
         before the call returns. To a process group: external, since some of it may be sent and some not.";
    SYS_tkill(tid: Value, sig: Value) Deferred Full "As kill.";
    SYS_tgkill(tgid: Value, tid: Value, sig: Value) Deferred Full "As kill.";
    SYS_rt_sigqueueinfo(tgid: Value, sig: Value, info: In(Fixed(128))) Deferred Full "As kill.";
    SYS_rt_tgsigqueueinfo(tgid: Value, tid: Value, sig: Value, info: In(Fixed(128))) Deferred Full "As kill.";
    SYS_pidfd_send_signal(pidfd: Fd, sig: Value, info: In(Fixed(128)), flags: Value) Deferred Full "As kill.";
    SYS_restart_syscall() Process Refused "EINTR: the monitor restarts calls itself.";
}
