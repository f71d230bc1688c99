//! The monitor's own descriptors live at the top of the descriptor table, out of the guest's sight: the
//! guest keeps the low numbers that it would have without the monitor.

use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::sync::OnceLock;

use super::own_limits::{Limit, host_limit, set_host_limit};

/// Descriptors for the monitor, at most. A vCPU takes one.
const RESERVED: u64 = 2048;
/// Descriptors for the guest, at most.
const MOST: u64 = 1 << 20;

struct Limits {
    /// The first reserved descriptor.
    first: i32,
    /// The first of those among them that stand for what is the guest's.
    first_kept: i32,
    /// The guest's limits, soft and hard: those that the monitor was started with.
    guest: Limit,
}

static LIMITS: OnceLock<Limits> = OnceLock::new();

/// The first descriptor that belongs to the monitor; the guest's are below.
pub fn first_reserved() -> i32 {
    limits().first
}

/// The monitor's own descriptors, without those that it keeps for the guest ([`kept_copy`]).
pub fn own_descriptors() -> Range<i32> {
    limits().first..limits().first_kept
}

/// The guest's limits on descriptors at its start, soft and hard.
pub fn guest_descriptor_limits() -> Limit {
    limits().guest
}

fn limits() -> &'static Limits {
    LIMITS.get_or_init(|| make_room(host_limit(libc::RLIMIT_NOFILE).unwrap_or((1024, 1024))))
}

/// The guest's limits are those that a monitor before this one has known. To be called before anything is reserved.
pub fn keep_descriptor_limits(guest: Limit) {
    LIMITS.get_or_init(|| make_room(guest));
}

/// Makes room for the monitor's descriptors above the guest's. Where the hard limit may not be raised, the guest gets
/// EMFILE an eighth before it.
fn make_room(guest: Limit) -> Limits {
    let set = |limit| set_host_limit(libc::RLIMIT_NOFILE, (limit, limit));
    let hard = guest.1.min(MOST);
    let (first, reserved) = match set(hard + RESERVED) {
        Ok(()) => (hard, RESERVED),
        Err(_) => {
            let _ = set(hard);
            let reserved = RESERVED.min(hard / 8);
            (hard - reserved, reserved)
        }
    };
    Limits {
        first: first as i32,
        first_kept: (first + reserved / 2) as i32,
        guest,
    }
}

/// Moves `fd` to the reserved numbers, close-on-exec.
pub fn reserved_fd(fd: OwnedFd) -> io::Result<OwnedFd> {
    reserved_copy(fd.as_raw_fd())
}

/// A copy of `fd`, whoever owns it, among the reserved numbers, close-on-exec.
pub fn reserved_copy(fd: RawFd) -> io::Result<OwnedFd> {
    copy_from(fd, first_reserved())
}

/// A copy of `fd`, which is the guest's, to be kept for it: for as long as it is open, so is what it stands for. The
/// monitor's threads that have a table of their own have none of these.
pub fn kept_copy(fd: RawFd) -> io::Result<OwnedFd> {
    copy_from(fd, own_descriptors().end).or_else(|_| reserved_copy(fd))
}

fn copy_from(fd: RawFd, first: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: takes numbers only.
    let high = unsafe { libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, first) };
    if high < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(high) })
}
