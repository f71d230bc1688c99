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

/// Descriptors that the monitor needs for itself: about 25, and one for each thread of the guest.
const NEEDED: u64 = 64;
/// Descriptors that a guest is left with at the least.
const GUEST_NEEDED: u64 = 64;

/// The limit on descriptors leaves no room for the monitor, and may not be raised.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "the limit on open files is {limit}, and this user may not raise it; at least {needed} are needed, and 1024 for an \
     ordinary server: `ulimit -n 1024`"
)]
pub struct TooFewDescriptors {
    /// The hard limit.
    pub limit: u64,
    /// What it must be.
    pub needed: u64,
}

/// Whether there is room for the monitor's descriptors beside the guest's.
pub fn enough_descriptors() -> Result<(), TooFewDescriptors> {
    let Limits { first, end, .. } = limits();
    match (end - first) as u64 >= NEEDED && *first as u64 >= GUEST_NEEDED {
        true => Ok(()),
        false => Err(TooFewDescriptors {
            limit: *end as u64,
            needed: NEEDED + GUEST_NEEDED,
        }),
    }
}

struct Limits {
    /// The first reserved descriptor.
    first: i32,
    /// The first of those among them that stand for what is the guest's.
    first_kept: i32,
    /// The host's limit: where they end.
    end: i32,
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
/// EMFILE an eighth before it, and at least [`NEEDED`] descriptors.
fn make_room(guest: Limit) -> Limits {
    let set = |limit| set_host_limit(libc::RLIMIT_NOFILE, (limit, limit));
    let hard = guest.1.min(MOST);
    let (first, reserved) = match set(hard + RESERVED) {
        Ok(()) => (hard, RESERVED),
        Err(_) => {
            let _ = set(hard);
            let reserved = RESERVED.min((hard / 8).max(NEEDED)).min(hard / 2);
            (hard - reserved, reserved)
        }
    };
    Limits {
        first: first as i32,
        first_kept: (first + reserved / 2) as i32,
        end: (first + reserved) as i32,
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
