//! Reading the TSC and the host's clocks.

use std::arch::asm;
use std::fs;
use std::mem::MaybeUninit;

use super::track::{NSEC_PER_SEC, Point};

/// Tries per reading; the tightest counts. One is enough on a quiet machine, and an interrupt in all of
/// them is very unlikely.
const TRIES: usize = 5;

/// The TSC, read after everything before it in program order is globally visible: the clock page's odd
/// sequence, above all.
pub(super) fn tsc() -> u64 {
    let (low, high): (u32, u32);
    // SAFETY: MFENCE, LFENCE and RDTSC exist on every x86-64 processor, touch no memory and only write
    // the declared registers. Linux does not disable RDTSC unless the process asks for it (PR_SET_TSC).
    unsafe {
        asm!("mfence", "lfence", "rdtsc", out("eax") low, out("edx") high, options(nostack, preserves_flags));
    }
    u64::from(high) << 32 | u64::from(low)
}

fn timespec_ns(time: libc::timespec) -> u64 {
    (time.tv_sec as u64)
        .wrapping_mul(NSEC_PER_SEC)
        .wrapping_add(time.tv_nsec as u64)
}

/// A host clock in nanoseconds. Zero for a clock that the kernel does not have, which none of those
/// used here is.
pub(super) fn clock_ns(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: the pointer is valid for one `timespec`; all-zero bytes are a valid value of it, so it is
    // initialized even if the call fails.
    let time = unsafe {
        libc::clock_gettime(clock, time.as_mut_ptr());
        time.assume_init()
    };
    timespec_ns(time)
}

/// The resolution of a host clock in nanoseconds, at least 1.
pub(super) fn resolution_ns(clock: libc::clockid_t) -> u64 {
    let mut time = MaybeUninit::<libc::timespec>::zeroed();
    // SAFETY: as in `clock_ns`.
    let time = unsafe {
        libc::clock_getres(clock, time.as_mut_ptr());
        time.assume_init()
    };
    timespec_ns(time).max(1)
}

/// Where `clock` is now, against the TSC.
pub(super) fn point(clock: libc::clockid_t) -> Point {
    let mut best: Option<(u64, Point)> = None;
    for _ in 0..TRIES {
        let before = tsc();
        let ns = clock_ns(clock);
        let window = tsc().wrapping_sub(before);
        if best.is_none_or(|(tightest, _)| window < tightest) {
            best = Some((
                window,
                Point {
                    tsc: before.wrapping_add(window / 2),
                    ns,
                },
            ));
        }
    }
    best.map_or(Point { tsc: 0, ns: 0 }, |(_, point)| point)
}

/// What to add to `CLOCK_MONOTONIC` to get `clock`: the tightest bounds of several readings.
pub(super) fn offset_bounds(clock: libc::clockid_t) -> OffsetBounds {
    let read = || {
        let before = clock_ns(libc::CLOCK_MONOTONIC);
        let ns = clock_ns(clock);
        let after = clock_ns(libc::CLOCK_MONOTONIC);
        OffsetBounds {
            low: ns.wrapping_sub(after),
            width: after.wrapping_sub(before),
        }
    };
    let mut best = read();
    for _ in 1..TRIES {
        let next = read();
        if next.width < best.width {
            best = next;
        }
    }
    best
}

/// The true offset lies in `low ..= low + width`, modulo 2^64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OffsetBounds {
    pub(super) low: u64,
    pub(super) width: u64,
}

impl OffsetBounds {
    /// Keeps an offset that these bounds allow: the clocks' distance changes only when the host's clock
    /// is set (or the machine was suspended), and the reading's noise must not move it.
    pub(super) fn refine(self, offset: u64) -> u64 {
        if offset.wrapping_sub(self.low) <= self.width {
            offset
        } else {
            self.middle()
        }
    }

    pub(super) fn middle(self) -> u64 {
        self.low.wrapping_add(self.width / 2)
    }
}

/// True if the host's TSC runs at a constant rate, in idle states too, and its kernel has not found it
/// unreliable.
pub(super) fn tsc_is_clock() -> bool {
    tsc_is_invariant() && kernel_trusts_tsc()
}

/// CPUID 0x8000_0007 EDX bit 8: what /proc/cpuinfo shows as `constant_tsc` and `nonstop_tsc`.
fn tsc_is_invariant() -> bool {
    const POWER_LEAF: u32 = 0x8000_0007;
    const INVARIANT_TSC: u32 = 1 << 8;
    // Newer compilers have this as a safe function.
    #[allow(unused_unsafe)]
    // SAFETY: every x86-64 processor has CPUID, and the leaf is only read if it exists.
    unsafe {
        use std::arch::x86_64::__cpuid;
        __cpuid(0x8000_0000).eax >= POWER_LEAF && __cpuid(POWER_LEAF).edx & INVARIANT_TSC != 0
    }
}

/// The kernel takes the TSC off its list of clock sources when it finds it unstable. An unreadable list
/// (no /sys in a container) says nothing against it.
fn kernel_trusts_tsc() -> bool {
    fs::read_to_string("/sys/devices/system/clocksource/clocksource0/available_clocksource")
        .map_or(true, |list| {
            list.split_whitespace().any(|source| source == "tsc")
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_moves_only_out_of_its_bounds() {
        let bounds = OffsetBounds {
            low: 100,
            width: 20,
        };
        assert_eq!(bounds.refine(100), 100);
        assert_eq!(bounds.refine(120), 120);
        assert_eq!(bounds.refine(99), 110);
        assert_eq!(bounds.refine(121), 110);
        let around_zero = OffsetBounds {
            low: u64::MAX - 4,
            width: 10,
        };
        assert_eq!(around_zero.refine(2), 2);
        assert_eq!(around_zero.refine(6), 0);
    }

    #[test]
    fn points_advance() {
        let first = point(libc::CLOCK_MONOTONIC);
        let second = point(libc::CLOCK_MONOTONIC);
        assert!(second.tsc > first.tsc && second.ns > first.ns);
    }
}
