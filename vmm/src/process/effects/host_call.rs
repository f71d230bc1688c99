//! A host call that is made later, by numbers and data of the monitor's own.

use guest_agentless::Errno;
use guest_agentless::ioctl::{self, Argument};

use crate::host;

/// A host call to be made at commit, or to undo one.
#[derive(Debug)]
pub struct HostCall {
    number: i64,
    args: [u64; 6],
    data: Option<Vec<u8>>,
}

/// `TFD_IOC_SET_TICKS` of the kernel's `timerfd.h`: sets the expirations of a timer, 8 bytes.
pub(super) const SET_TICKS: u64 = 0x4008_5400;

/// What calls are made later: the index of the argument that points to data the kernel reads, and its bytes
/// at least. None of them writes memory.
fn shape(number: i64, args: &[u64; 6]) -> Option<Option<(usize, usize)>> {
    Some(match number {
        libc::SYS_umask
        | libc::SYS_timer_delete
        | libc::SYS_inotify_rm_watch
        | libc::SYS_setpriority
        | libc::SYS_ioprio_set
        | libc::SYS_flock
        | libc::SYS_fchdir
        | libc::SYS_mlock
        | libc::SYS_munlock
        | libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_sync
        | libc::SYS_syncfs
        | libc::SYS_sync_file_range
        | libc::SYS_msync => None,
        libc::SYS_timerfd_settime | libc::SYS_timer_settime => Some((2, 32)),
        libc::SYS_setitimer => Some((1, 32)),
        libc::SYS_setrlimit => Some((1, 16)),
        libc::SYS_sched_setattr => Some((1, 48)),
        libc::SYS_sched_setaffinity => Some((2, 8)),
        libc::SYS_mq_getsetattr => Some((1, 64)),
        libc::SYS_signalfd4 => Some((1, 8)),
        libc::SYS_inotify_add_watch => Some((1, 1)),
        libc::SYS_pidfd_send_signal => Some((2, 128)),
        // Record locks and owners.
        libc::SYS_fcntl => Some((2, 8)),
        libc::SYS_ioctl if args[1] == SET_TICKS => Some((2, 8)),
        libc::SYS_ioctl => match ioctl::lookup(args[1])?.argument {
            Argument::In(bytes) => Some((2, bytes as usize)),
            _ => return None,
        },
        _ => return None,
    })
}

impl HostCall {
    /// A call with numbers only.
    pub fn numbers(number: i64, args: [u64; 6]) -> HostCall {
        HostCall {
            number,
            args,
            data: None,
        }
    }

    /// A call that reads `data`.
    pub fn with(number: i64, args: [u64; 6], data: Vec<u8>) -> HostCall {
        HostCall {
            number,
            args,
            data: Some(data),
        }
    }

    /// Its number.
    pub fn number(&self) -> i64 {
        self.number
    }

    /// Its arguments; data is not among them.
    pub fn args(&self) -> [u64; 6] {
        self.args
    }

    /// Makes the call.
    pub fn make(&self) -> Result<u64, Errno> {
        let mut args = self.args;
        match (shape(self.number, &args), &self.data) {
            (Some(None), None) => {}
            (Some(Some((index, least))), Some(data)) if data.len() >= least => {
                args[index] = data.as_ptr() as u64;
            }
            _ => return Err(Errno::ENOSYS),
        }
        // SAFETY: the calls of `shape` write no memory and read no more than the data, which is in the
        // monitor and has the length that the call expects. `mlock`, `munlock` and `msync` are given
        // ranges that were checked to be the guest's.
        unsafe { host::syscall(self.number as u64, args) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_calls_that_write_no_memory_are_made() {
        let old = HostCall::numbers(libc::SYS_umask, [0o22, 0, 0, 0, 0, 0])
            .make()
            .unwrap();
        let back = HostCall::numbers(libc::SYS_umask, [old, 0, 0, 0, 0, 0]);
        assert_eq!(back.make(), Ok(0o22));
        let read = HostCall::with(libc::SYS_read, [0; 6], vec![0; 8]);
        assert_eq!(read.make(), Err(Errno::ENOSYS));
        let short = HostCall::with(libc::SYS_setitimer, [0; 6], vec![0; 8]);
        assert_eq!(short.make(), Err(Errno::ENOSYS));
        let args = [0, libc::TCSETS, 0, 0, 0, 0];
        let short = HostCall::with(libc::SYS_ioctl, args, vec![0; 35]);
        assert_eq!(short.make(), Err(Errno::ENOSYS));
        let args = [0, libc::TCGETS, 0, 0, 0, 0];
        let writes = HostCall::with(libc::SYS_ioctl, args, vec![0; 64]);
        assert_eq!(writes.make(), Err(Errno::ENOSYS));
    }
}
