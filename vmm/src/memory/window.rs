//! The guest windows: the only addresses that a guest has.
//!
//! They are reserved in the monitor's own address space, so that a guest address is a host address and
//! host system calls work on guest memory as it is. The first two lie below 2^39, the smallest physical address
//! width that CPUs with KVM have, and are at the same guest-physical addresses; those of the third are
//! [`super::slots`]' business.

use std::io;
use std::sync::atomic::{AtomicU64, Ordering};

use guest_agentless::{GuestRange, GuestVa};

/// For programs linked at a fixed low address. It starts above the usual `vm.mmap_min_addr`.
pub const LOW: (u64, u64) = (0x1_0000, 0x8000_0000);
/// For everything else.
pub const HIGH: (u64, u64) = (0x10_0000_0000, 0x50_0000_0000);
/// For reservations that do not fit there, of terabytes. It has the addresses that ZGC insists on, and ends below where
/// the host maps things when it goes upwards (`setarch --addr-compat-layout`: from a third of its address space).
pub const FAR: (u64, u64) = (0x100_0000_0000, 0x2800_0000_0000);
/// Where the far window starts if it cannot start there: with `ulimit -s unlimited` the host goes down from a sixth of
/// its address space.
const SECOND_START: u64 = 0x1600_0000_0000;

/// All that there may be.
pub(super) const WINDOWS: [(u64, u64); 3] = [LOW, HIGH, FAR];

/// Where the far window starts. 0 if there is none: under a limit on the monitor's own address space there may be no room.
static FAR_START: AtomicU64 = AtomicU64::new(0);

/// The windows as ranges.
pub fn windows() -> impl Iterator<Item = GuestRange> {
    [LOW, HIGH]
        .into_iter()
        .map(|(start, end)| GuestRange::from_bounds(start, end))
        .chain(far())
}

/// The far window, if there is one.
pub fn far() -> Option<GuestRange> {
    match FAR_START.load(Ordering::Relaxed) {
        0 => None,
        start => Some(GuestRange::from_bounds(start, FAR.1)),
    }
}

/// Whether all of `range` lies in one window.
pub fn contains(range: GuestRange) -> bool {
    windows().any(|w| w.encloses(range))
}

/// The range of `len` bytes at `start` if it lies in a window.
pub fn checked(start: u64, len: u64) -> Option<GuestRange> {
    GuestRange::new(GuestVa(start), len).filter(|r| contains(*r))
}

/// Reserves the windows, without access and without backing. That the far one cannot be had is no error.
pub fn reserve() -> io::Result<()> {
    for window in windows() {
        reserve_range(window, libc::MAP_FIXED_NOREPLACE)?;
    }
    for start in [FAR.0, SECOND_START] {
        let far = GuestRange::from_bounds(start, FAR.1);
        match reserve_range(far, libc::MAP_FIXED_NOREPLACE) {
            Ok(()) => {
                FAR_START.store(start, Ordering::Relaxed);
                break;
            }
            Err(error) => log::info!("the far window cannot be {far:?}: {error}"),
        }
    }
    Ok(())
}

/// Puts a part of a window back to its reserved state; what was mapped there is gone.
pub fn release(range: GuestRange) -> io::Result<()> {
    debug_assert!(contains(range));
    reserve_range(range, libc::MAP_FIXED)
}

fn reserve_range(range: GuestRange, placement: i32) -> io::Result<()> {
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
