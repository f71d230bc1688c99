//! Waiting for other processes: futexes in memory that the monitors share, and whether a process will ever run again.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::atomic::AtomicU32;
use std::time::Duration;

/// The monotonic clock.
pub fn monotonic_time() -> Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to fill in.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &mut time) };
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Waits until somebody wakes those who wait for `word`, at most `timeout`, and not at all if it is not `value`. False if
/// the time is over.
pub fn futex_wait(word: &AtomicU32, value: u32, timeout: Duration) -> bool {
    let timeout = libc::timespec {
        tv_sec: timeout.as_secs() as i64,
        tv_nsec: i64::from(timeout.subsec_nanos()),
    };
    // SAFETY: the word and the time are valid for the call to read.
    let result = unsafe {
        libc::syscall(
            libc::SYS_futex,
            word.as_ptr(),
            libc::FUTEX_WAIT,
            value,
            &raw const timeout,
        )
    };
    result == 0 || io::Error::last_os_error().raw_os_error() != Some(libc::ETIMEDOUT)
}

/// Wakes up to `count` of those who wait for `word`, in whatever process.
pub fn futex_wake(word: &AtomicU32, count: i32) {
    // SAFETY: the call takes the address and numbers; it writes nothing.
    unsafe { libc::syscall(libc::SYS_futex, word.as_ptr(), libc::FUTEX_WAKE, count) };
}

/// Whether the process with this ID has ended: it is gone, or its parent has not been told yet.
pub fn has_ended(pid: u32) -> bool {
    // SAFETY: the call takes numbers.
    let opened = super::check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) });
    let fd = match opened {
        // SAFETY: the descriptor is new and nobody else's.
        Ok(fd) => unsafe { OwnedFd::from_raw_fd(fd as i32) },
        Err(error) => return error.raw_os_error() == Some(libc::ESRCH),
    };
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one entry, valid for the call to read and fill in. It is readable when all threads have ended.
    unsafe { libc::poll(&mut entry, 1, 0) == 1 }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn a_process_has_ended_before_its_parent_is_told() {
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        let pid = child.id();
        assert!(!has_ended(pid));
        child.kill().unwrap();
        while !has_ended(pid) {
            std::thread::sleep(Duration::from_millis(1));
        }
        child.wait().unwrap();
        assert!(has_ended(pid));
    }
}
