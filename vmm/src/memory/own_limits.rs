//! Limits of resources that are kept for the guest and not set on the host, because the monitor needs more of them
//! than the guest may have.

use std::io;

use super::reserved::guest_descriptor_limits;

/// A soft and a hard limit.
pub type Limit = (u64, u64);

/// `RLIM_INFINITY`: there is none.
pub const UNLIMITED: u64 = libc::RLIM_INFINITY;

/// The limits of one guest process, see `getrlimit(2)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwnLimits {
    /// `RLIMIT_NOFILE`: one more than the highest descriptor.
    pub descriptors: Limit,
    /// `RLIMIT_AS`: bytes of all mappings.
    pub address_space: Limit,
    /// `RLIMIT_DATA`: bytes of private writable mappings.
    pub data: Limit,
    /// `RLIMIT_NPROC`: processes and threads of the user. The host counts them, so its soft limit is the guest's while
    /// the guest makes one ([`OwnLimits::while_making_a_task`]).
    pub tasks: Limit,
}

impl OwnLimits {
    /// Those that the monitor was started with. The host's are raised as far as they may be.
    pub fn from_host() -> OwnLimits {
        OwnLimits {
            descriptors: guest_descriptor_limits(),
            address_space: take_over(libc::RLIMIT_AS),
            data: take_over(libc::RLIMIT_DATA),
            tasks: take_over(libc::RLIMIT_NPROC),
        }
    }

    /// The limit of `resource`, if it is one of these.
    pub fn get(&self, resource: u32) -> Option<Limit> {
        match resource {
            libc::RLIMIT_NOFILE => Some(self.descriptors),
            libc::RLIMIT_AS => Some(self.address_space),
            libc::RLIMIT_DATA => Some(self.data),
            libc::RLIMIT_NPROC => Some(self.tasks),
            _ => None,
        }
    }

    /// Sets the limit of `resource`, which is one of these.
    pub fn set(&mut self, resource: u32, limit: Limit) {
        match resource {
            libc::RLIMIT_NOFILE => self.descriptors = limit,
            libc::RLIMIT_AS => self.address_space = limit,
            libc::RLIMIT_DATA => self.data = limit,
            libc::RLIMIT_NPROC => self.tasks = limit,
            _ => debug_assert!(false, "limit {resource} is not the guest's own"),
        }
    }
}

impl OwnLimits {
    /// Makes a process or thread of the guest's, within its limit. In a forked child the limit is the monitor's again, too.
    pub fn while_making_a_task<T>(&self, make: impl FnOnce() -> T) -> T {
        let Ok(own) = host_limit(libc::RLIMIT_NPROC) else {
            return make();
        };
        if self.tasks.0 >= own.0 {
            return make();
        }
        // Both stay below the hard limit, so neither can fail.
        let _ = set_host_limit(libc::RLIMIT_NPROC, (self.tasks.0, own.1));
        let made = make();
        let _ = set_host_limit(libc::RLIMIT_NPROC, own);
        made
    }
}

/// The limit that the monitor was started with; its own soft limit becomes the hard one.
fn take_over(resource: u32) -> Limit {
    let Ok(limit) = host_limit(resource) else {
        return (UNLIMITED, UNLIMITED);
    };
    if limit.0 != limit.1 {
        // Where it may not be raised, what needs more says so.
        let _ = set_host_limit(resource, (limit.1, limit.1));
    }
    limit
}

/// The monitor's own limit.
pub(super) fn host_limit(resource: u32) -> io::Result<Limit> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the call to fill in.
    match unsafe { libc::getrlimit(resource, &mut limit) } {
        0 => Ok((limit.rlim_cur, limit.rlim_max)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sets the monitor's own limit.
pub(super) fn set_host_limit(resource: u32, limit: Limit) -> io::Result<()> {
    let limit = libc::rlimit {
        rlim_cur: limit.0,
        rlim_max: limit.1,
    };
    // SAFETY: `limit` is initialised.
    match unsafe { libc::setrlimit(resource, &limit) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
