//! The monitor's own descriptors live at the top of the descriptor table, out of the guest's sight: the
//! guest keeps the low numbers that it would have without the monitor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::sync::OnceLock;

/// Descriptors for the monitor, at most. A vCPU takes one.
const RESERVED: u64 = 2048;

/// The first reserved descriptor, and the soft limit as it was at the start.
static FIRST: OnceLock<(i32, u64)> = OnceLock::new();

/// The first descriptor that belongs to the monitor; the guest's are below. Raises the soft limit on
/// descriptors to the hard one on the first call.
pub fn first_reserved() -> i32 {
    limits().0
}

/// The soft limit on descriptors that the monitor was started with.
pub fn inherited_descriptor_limit() -> u64 {
    limits().1
}

fn limits() -> (i32, u64) {
    *FIRST.get_or_init(|| {
        let mut limit = libc::rlimit {
            rlim_cur: 0,
            rlim_max: 0,
        };
        // SAFETY: `limit` is valid for the call to fill in.
        unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
        let inherited = limit.rlim_cur;
        limit.rlim_cur = limit.rlim_max.min(1 << 20);
        // SAFETY: `limit` is initialised.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
        (
            (limit.rlim_cur - RESERVED.min(limit.rlim_cur / 2)) as i32,
            inherited,
        )
    })
}

/// Sets the host's soft limit on descriptors, for a program that takes the monitor's place.
pub fn set_soft_descriptor_limit(soft: u64) -> io::Result<()> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for both calls.
    let result = unsafe {
        libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit);
        limit.rlim_cur = soft.min(limit.rlim_max);
        libc::setrlimit(libc::RLIMIT_NOFILE, &limit)
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Moves `fd` to the reserved numbers, close-on-exec.
pub fn reserved_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    // SAFETY: `fd` is open; the duplicate is a new descriptor that nobody else owns.
    let high = unsafe { libc::fcntl(fd.as_raw_fd(), libc::F_DUPFD_CLOEXEC, first_reserved()) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: as above.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}
