//! Signals of the monitor and its threads.

use std::io;

use super::{check, handles};

/// All signals. For handlers, which copy no guest memory.
pub fn all_signals() -> libc::sigset_t {
    // SAFETY: an all-zero set is a valid value, and the call only changes it.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut set);
        set
    }
}

/// All signals but those of a fault.
fn all_but_faults() -> libc::sigset_t {
    let mut set = all_signals();
    for fault in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: only changes the set.
        unsafe { libc::sigdelset(&mut set, fault) };
    }
    set
}

/// Runs `spawn` with every signal blocked, which the new thread inherits: the monitor's and the guest's
/// signals are for other threads. Not those of a fault: blocked, they would end the process where guest memory
/// turns out not to be accessible (`memory/copy.rs`).
pub fn with_signals_blocked<T>(spawn: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    let all = all_but_faults();
    let mut before = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: `before` is memory for a signal set, which is used only if the call has succeeded.
    let error = unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &all, before.as_mut_ptr()) };
    if error != 0 {
        return Err(io::Error::from_raw_os_error(error));
    }
    let result = spawn();
    // SAFETY: `before` was initialized above. Restoring a valid mask cannot fail.
    unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, before.as_ptr(), std::ptr::null_mut()) };
    result
}

/// Sets the signal mask of the calling thread (a set in the kernel's layout); returns the old one.
pub fn set_signal_mask(blocked: u64) -> u64 {
    change_signal_mask(libc::SIG_SETMASK, blocked)
}

/// Adds `signals` (a set in the kernel's layout) to the signal mask of the calling thread; returns the old one.
pub fn block_signals(signals: u64) -> u64 {
    change_signal_mask(libc::SIG_BLOCK, signals)
}

fn change_signal_mask(how: i32, signals: u64) -> u64 {
    let mut old = 0u64;
    let (new, size) = (&raw const signals, size_of::<u64>());
    // SAFETY: both sets are eight bytes, which is the kernel's size of a signal set.
    unsafe { libc::syscall(libc::SYS_rt_sigprocmask, how, new, &raw mut old, size) };
    old
}

/// Runs `write`, whose output the guest's limit on the size of files may cut off: the signal that tells that is not for
/// the guest.
pub fn without_file_size_signal<T>(write: impl FnOnce() -> T) -> T {
    const SIGNAL: u64 = 1 << (libc::SIGXFSZ - 1);
    let size = size_of::<u64>();
    let before = block_signals(SIGNAL);
    let mut pending = 0u64;
    // SAFETY: the kernel writes a set of eight bytes.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, size) };
    let result = write();
    if pending & SIGNAL == 0 {
        let (set, at_once) = (SIGNAL, [0u64; 2]);
        // SAFETY: a set of eight bytes and a `timespec`; what the signal says is not asked for.
        unsafe {
            libc::syscall(
                libc::SYS_rt_sigtimedwait,
                &raw const set,
                0,
                at_once.as_ptr(),
                size,
            )
        };
    }
    set_signal_mask(before);
    result
}

/// Sends a signal with that `siginfo_t`, whoever it says it is from, to the calling thread; async-signal-safe.
pub fn queue_to_own_thread(signal: i32, info: &[u8; 128]) {
    // SAFETY: numbers, and a `siginfo_t` that outlives the call.
    unsafe {
        libc::syscall(
            libc::SYS_rt_tgsigqueueinfo,
            libc::getpid(),
            libc::gettid(),
            signal,
            info.as_ptr(),
        )
    };
}

/// `kill`.
pub fn kill(pid: i32, signal: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(i64::from(unsafe { libc::kill(pid, signal) })).map(drop)
}

/// The signals that a signalfd is for, as a set.
pub fn signals_of(fd: i32) -> io::Result<u64> {
    let info = handles::fdinfo(fd)?;
    let set = info
        .lines()
        .find_map(|line| line.strip_prefix("sigmask:"))
        .and_then(|set| u64::from_str_radix(set.trim(), 16).ok());
    set.ok_or_else(|| io::ErrorKind::InvalidInput.into())
}

/// Ends the process by `signal`, as its default action does. Returns if that does not end it.
pub fn die_by(signal: i32) {
    // SAFETY: sets a default disposition, opens the mask of this thread for the signal alone, and raises it.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        set_signal_mask(!(1 << (signal - 1)));
        libc::kill(libc::getpid(), signal);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is pending of SIGXFSZ for the calling thread, which has it blocked.
    fn is_pending() -> bool {
        let mut pending = 0u64;
        // SAFETY: the kernel writes a set of eight bytes.
        unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut pending, size_of::<u64>()) };
        pending & 1 << (libc::SIGXFSZ - 1) != 0
    }

    fn raise() {
        // SAFETY: the calling thread has the signal blocked.
        unsafe { libc::raise(libc::SIGXFSZ) };
    }

    #[test]
    fn a_write_of_the_monitors_leaves_no_signal_and_takes_none() {
        let before = block_signals(1 << (libc::SIGXFSZ - 1));
        without_file_size_signal(raise);
        assert!(!is_pending());
        raise();
        without_file_size_signal(raise);
        assert!(is_pending());
        without_file_size_signal(|| ());
        assert!(is_pending());
        let (set, at_once) = (1u64 << (libc::SIGXFSZ - 1), [0u64; 2]);
        let (set, at_once) = (&raw const set, at_once.as_ptr());
        // SAFETY: a set of eight bytes and a `timespec`.
        unsafe { libc::syscall(libc::SYS_rt_sigtimedwait, set, 0, at_once, 8) };
        set_signal_mask(before);
    }
}
