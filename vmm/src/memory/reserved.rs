//! The monitor's own descriptors live at the top of the descriptor table, out of the guest's sight: the
//! guest keeps the low numbers that it would have without the monitor.

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

/// Descriptors for the monitor, at most. A vCPU takes one.
const RESERVED: u64 = 2048;
/// Descriptors for the guest, at most.
const MOST: u64 = 1 << 20;

struct Limits {
    /// The first reserved descriptor.
    first: i32,
    /// The guest's limits, soft and hard: those that the monitor was started with.
    guest: (u64, u64),
}

static LIMITS: OnceLock<Limits> = OnceLock::new();

/// The first descriptor that belongs to the monitor; the guest's are below.
pub fn first_reserved() -> i32 {
    limits().first
}

/// The guest's limits on descriptors at its start, soft and hard.
pub fn guest_descriptor_limits() -> (u64, u64) {
    limits().guest
}

/// Makes room for the monitor's descriptors above the guest's on the first call. Where the hard limit may
/// not be raised, the guest gets EMFILE an eighth before it.
fn limits() -> &'static Limits {
    LIMITS.get_or_init(|| {
        let guest = descriptor_limits();
        let hard = guest.1.min(MOST);
        let first = match set_descriptor_limits(hard + RESERVED, hard + RESERVED) {
            Ok(()) => hard,
            Err(_) => {
                let _ = set_descriptor_limits(hard, hard);
                hard - RESERVED.min(hard / 8)
            }
        };
        Limits {
            first: first as i32,
            guest,
        }
    })
}

fn descriptor_limits() -> (u64, u64) {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the call to fill in.
    unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// Sets the host's limits on descriptors.
pub fn set_descriptor_limits(soft: u64, hard: u64) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: soft,
        rlim_max: hard,
    };
    // SAFETY: `limit` is initialised.
    match unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Moves `fd` to the reserved numbers, close-on-exec.
pub fn reserved_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    reserved_copy(fd.as_raw_fd())
}

/// A copy of `fd`, whoever owns it, among the reserved numbers, close-on-exec.
pub fn reserved_copy(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first_reserved()) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}
