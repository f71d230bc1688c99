//! The guest's clocks: the vDSO image and the keeper of the page it reads.
//!
//! A system call is an exit, so the guest's clocks must not be system calls: the vDSO (C, in `vdso/`)
//! computes them from the TSC and a *clock page* that lies one page before its image. A keeper thread
//! follows the host's clocks and publishes a new line for the page some ten times a second.
//!
//! - `page`: the page itself, its layout and its seqlock;
//! - `track`: estimating a clock's rate, steering a line towards it (pure arithmetic);
//! - `keeper`: the thread, and what it publishes;
//! - `host`: reading the TSC and the host's clocks tightly.
//!
//! Invariants: `CLOCK_MONOTONIC` never decreases, on any thread and across updates; it stays within
//! microseconds of the host's. `CLOCK_REALTIME` steps when the host's does.

mod host;
#[cfg(test)]
mod image_tests;
mod keeper;
mod page;
mod track;
#[cfg(test)]
mod vdso_tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::Duration;

use keeper::{Calibration, Keeper};
pub use page::ClockPage;

/// The vDSO: an ELF64 shared object, to be mapped read and execute right after the clock page.
pub static VDSO_IMAGE: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/vdso.so"));

/// The shortest interval for the first estimate of the rate: 40 ns of noise in it are 40 ppm, which is
/// 80 ns at the keeper's first update.
const FIRST_INTERVAL: Duration = Duration::from_millis(1);

/// A clock page that is kept current until this is dropped.
#[derive(Debug)]
pub struct GuestClock {
    page: ClockPage,
    /// Held for its drop, which stops the thread.
    _keeper: Option<Keeper>,
}

impl GuestClock {
    /// Fills `page` and starts its keeper thread. From here on the guest may run.
    ///
    /// `usable_tsc`: the guest's TSC is the host's. Without it, or when the host's TSC is not a clock,
    /// the page tells the vDSO to use system calls and there is no thread. Takes at most a millisecond,
    /// less when `page` was created some time ago.
    pub fn start(page: ClockPage, usable_tsc: bool) -> io::Result<Self> {
        let keeper = if usable_tsc && host::tsc_is_clock() {
            if let Some(rest) = FIRST_INTERVAL.checked_sub(page.age()) {
                std::thread::sleep(rest);
            }
            let calibration = Calibration::first(page.created_at());
            Some(Keeper::start(page.mapping(), calibration)?)
        } else {
            None
        };
        Ok(Self {
            page,
            _keeper: keeper,
        })
    }
}

/// The memory file of the page: one page, sealed, to be mapped shared and read-only.
impl AsFd for GuestClock {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.page.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn start_is_quick_and_stops_on_drop() {
        let begin = std::time::Instant::now();
        let clock = GuestClock::start(ClockPage::create().unwrap(), true).unwrap();
        let started = begin.elapsed();
        assert_eq!(clock.page.snapshot().is_some(), host::tsc_is_clock());
        assert!(started < Duration::from_millis(50), "{started:?}");
        let begin = std::time::Instant::now();
        drop(clock);
        assert!(begin.elapsed() < Duration::from_millis(50));
    }

    #[test]
    fn without_a_usable_tsc_there_is_no_keeper() {
        let clock = GuestClock::start(ClockPage::create().unwrap(), false).unwrap();
        assert!(clock.page.snapshot().is_none());
    }
}
