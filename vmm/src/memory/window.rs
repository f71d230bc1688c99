//! The guest windows: the only addresses that a guest has.
//!
//! They are reserved in the monitor's own address space, so that a guest address is a host address and
//! host system calls work on guest memory as it is. Both lie below 2^39, the smallest physical address
//! width that CPUs with KVM have.

use std::io;

use guest_agentless::{GuestRange, GuestVa};

/// For programs linked at a fixed low address. It starts above the usual `vm.mmap_min_addr`.
pub const LOW: (u64, u64) = (0x1_0000, 0x8000_0000);
/// For everything else.
pub const HIGH: (u64, u64) = (0x10_0000_0000, 0x50_0000_0000);

/// The windows as ranges.
pub fn windows() -> [GuestRange; 2] {
    [
        GuestRange::from_bounds(LOW.0, LOW.1),
        GuestRange::from_bounds(HIGH.0, HIGH.1),
    ]
}

/// Whether all of `range` lies in one window.
pub fn contains(range: GuestRange) -> bool {
    windows().iter().any(|w| w.encloses(range))
}

/// The range of `len` bytes at `start` if it lies in a window.
pub fn checked(start: u64, len: u64) -> Option<GuestRange> {
    GuestRange::new(GuestVa(start), len).filter(|r| contains(*r))
}

/// Reserves both windows, without access and without backing.
pub fn reserve() -> io::Result<()> {
    for window in windows() {
        reserve_range(window, libc::MAP_FIXED_NOREPLACE)?;
    }
    Ok(())
}

/// Puts a part of a window back to its reserved state; what was mapped there is gone.
pub fn release(range: GuestRange) -> io::Result<()> {
    reserve_range(range, libc::MAP_FIXED)
}

fn reserve_range(range: GuestRange, placement: i32) -> io::Result<()> {
    debug_assert!(contains(range));
    // SAFETY: the range lies in a guest window, where the monitor keeps nothing of its own; before the
    // windows are reserved, MAP_FIXED_NOREPLACE makes the call fail rather than replace anything.
    let address = unsafe {
        libc::mmap(
            range.start() as *mut libc::c_void,
            range.len() as usize,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE | placement,
            -1,
            0,
        )
    };
    match address {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        a if a as u64 != range.start() => Err(io::Error::from_raw_os_error(libc::EEXIST)),
        _ => Ok(()),
    }
}
