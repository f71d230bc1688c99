//! The clock page: shared memory that this process writes and the guest reads.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr::{self, NonNull};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
use std::time::{Duration, Instant};

use super::host;
use super::track::{Line, Point};
use crate::memory::reserved_fd;

/// Bytes of the page, and its distance before the vDSO image (`CLOCK_PAGE_SIZE` in the C header).
pub(super) const CLOCK_PAGE_SIZE: usize = 4096;

/// `mode`: the vDSO reads the TSC (`CLOCK_MODE_TSC` in the C header). A new page is all zeroes, which is
/// `CLOCK_MODE_SYSCALL`.
const MODE_TSC: u32 = 1;

/// `struct clock_page` of `vdso/clock_page.h`, where the fields are described.
#[repr(C)]
#[derive(Debug, Default)]
struct Layout {
    sequence: AtomicU32,
    mode: AtomicU32,
    tsc_base: AtomicU64,
    mono_base_ns: AtomicU64,
    mono_mult: AtomicU64,
    raw_base_ns: AtomicU64,
    raw_mult: AtomicU64,
    realtime_offset_ns: AtomicU64,
    boottime_offset_ns: AtomicU64,
    tai_offset_ns: AtomicU64,
    coarse_anchor_ns: AtomicU64,
    coarse_floor_ns: AtomicU64,
    coarse_step_ns: AtomicU64,
    resolution_ns: AtomicU64,
}

const _: () = assert!(size_of::<Layout>() == 104 && size_of::<Layout>() <= CLOCK_PAGE_SIZE);

/// What the page says, as plain values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Published {
    /// `CLOCK_MONOTONIC`.
    pub(super) mono: Line,
    /// `CLOCK_MONOTONIC_RAW`; starts where `mono` does.
    pub(super) raw: Line,
    pub(super) realtime_offset: u64,
    pub(super) boottime_offset: u64,
    pub(super) tai_offset: u64,
    pub(super) coarse: Coarse,
    pub(super) resolution_ns: u64,
}

/// The host's ticks, for the coarse clocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Coarse {
    pub(super) anchor_ns: u64,
    pub(super) floor_ns: u64,
    pub(super) step_ns: u64,
}

impl Coarse {
    /// `CLOCK_MONOTONIC_COARSE` when the fine clock is at `mono_ns`.
    pub(super) fn at(&self, mono_ns: u64) -> u64 {
        let ahead = mono_ns.wrapping_sub(self.anchor_ns);
        if (ahead as i64) < 0 || self.step_ns == 0 {
            return self.floor_ns;
        }
        self.floor_ns.max(
            self.anchor_ns
                .wrapping_add(ahead / self.step_ns * self.step_ns),
        )
    }
}

impl Layout {
    /// Replaces the content by what `next` makes of the TSC at the switch. There must be one writer.
    ///
    /// Readers spin from the odd sequence to the next even one, so `next` is short arithmetic.
    fn publish(&self, next: impl FnOnce(u64) -> Published) {
        let sequence = self.sequence.load(Ordering::Relaxed) | 1;
        self.sequence.store(sequence, Ordering::Relaxed);
        // Both ways: no store below may be seen before the odd sequence, and the TSC is read after
        // every processor can see it (`host::tsc` begins with MFENCE).
        fence(Ordering::SeqCst);
        let new = next(host::tsc());
        for (field, value) in [
            (&self.tsc_base, new.mono.tsc_base),
            (&self.mono_base_ns, new.mono.base_ns),
            (&self.mono_mult, new.mono.mult),
            (&self.raw_base_ns, new.raw.base_ns),
            (&self.raw_mult, new.raw.mult),
            (&self.realtime_offset_ns, new.realtime_offset),
            (&self.boottime_offset_ns, new.boottime_offset),
            (&self.tai_offset_ns, new.tai_offset),
            (&self.coarse_anchor_ns, new.coarse.anchor_ns),
            (&self.coarse_floor_ns, new.coarse.floor_ns),
            (&self.coarse_step_ns, new.coarse.step_ns),
            (&self.resolution_ns, new.resolution_ns),
        ] {
            field.store(value, Ordering::Relaxed);
        }
        self.mode.store(MODE_TSC, Ordering::Relaxed);
        self.sequence
            .store(sequence.wrapping_add(1), Ordering::Release);
    }
}

/// The monitor's writable mapping of the page.
#[derive(Debug)]
pub(super) struct Mapping(NonNull<Layout>);

// SAFETY: the mapping belongs to no thread, and everything in it is atomic.
unsafe impl Send for Mapping {}
// SAFETY: as above.
unsafe impl Sync for Mapping {}

impl Mapping {
    /// Maps the page, then lets nobody else map it writable: neither the guest by `mprotect` nor through
    /// /proc.
    fn new(file: &File) -> io::Result<Self> {
        // SAFETY: a new mapping, which replaces nothing.
        let page = unsafe {
            libc::mmap(
                ptr::null_mut(),
                CLOCK_PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                file.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let mapping = NonNull::new(page.cast())
            .map(Self)
            .ok_or_else(|| io::Error::other("the clock page is mapped at zero"))?;
        let seals =
            libc::F_SEAL_SHRINK | libc::F_SEAL_GROW | libc::F_SEAL_FUTURE_WRITE | libc::F_SEAL_SEAL;
        // SAFETY: an fcntl on our own descriptor, without pointers.
        if unsafe { libc::fcntl(file.as_raw_fd(), libc::F_ADD_SEALS, seals) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(mapping)
    }

    fn layout(&self) -> &Layout {
        // SAFETY: from `new` until `drop` there are CLOCK_PAGE_SIZE mapped, writable, page-aligned bytes
        // here, of which every value is a valid `Layout` (integers). Only atomics are accessed, so the
        // guest's reading is no data race. The file cannot shrink (F_SEAL_SHRINK).
        unsafe { self.0.as_ref() }
    }

    /// See [`Layout::publish`].
    pub(super) fn publish(&self, next: impl FnOnce(u64) -> Published) {
        self.layout().publish(next);
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the page was mapped by `new` and nobody can use it any more: `layout` borrows self.
        unsafe { libc::munmap(self.0.as_ptr().cast(), CLOCK_PAGE_SIZE) };
    }
}

/// A new memory file of one page.
fn create_file() -> io::Result<File> {
    let fd = crate::host::memory_file(c"vmsrs-clock", libc::MFD_ALLOW_SEALING)?;
    let file = File::from(reserved_fd(fd)?);
    file.set_len(CLOCK_PAGE_SIZE as u64)?;
    Ok(file)
}

/// The clock page, not yet kept current: the vDSO makes system calls until it is.
#[derive(Debug)]
pub struct ClockPage {
    file: File,
    mapping: Arc<Mapping>,
    created: Instant,
    created_at: Birth,
}

/// The host's clocks when the page was made: the first half of the rates' first estimate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Birth {
    pub(super) mono: Point,
    pub(super) raw: Point,
}

impl Birth {
    fn now() -> Self {
        Self {
            mono: host::point(libc::CLOCK_MONOTONIC),
            raw: host::point(libc::CLOCK_MONOTONIC_RAW),
        }
    }
}

impl ClockPage {
    /// Makes the page. Doing so a millisecond or more before [`super::GuestClock::start`] makes that call
    /// immediate.
    pub fn create() -> io::Result<Self> {
        let file = create_file()?;
        let mapping = Arc::new(Mapping::new(&file)?);
        Ok(Self {
            file,
            mapping,
            created: Instant::now(),
            created_at: Birth::now(),
        })
    }

    pub(super) fn mapping(&self) -> Arc<Mapping> {
        Arc::clone(&self.mapping)
    }

    pub(super) fn created_at(&self) -> Birth {
        self.created_at
    }

    pub(super) fn age(&self) -> Duration {
        self.created.elapsed()
    }
}

/// The memory file of the page: one page, sealed, to be mapped shared and read-only.
impl AsFd for ClockPage {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    impl Layout {
        /// The content as the vDSO reads it; None in system-call mode.
        fn load(&self) -> Option<Published> {
            loop {
                let sequence = self.sequence.load(Ordering::Acquire);
                let mode = self.mode.load(Ordering::Relaxed);
                let get = |field: &AtomicU64| field.load(Ordering::Relaxed);
                let tsc_base = get(&self.tsc_base);
                let line = |base: &AtomicU64, mult: &AtomicU64| Line {
                    tsc_base,
                    base_ns: get(base),
                    mult: get(mult),
                };
                let published = Published {
                    mono: line(&self.mono_base_ns, &self.mono_mult),
                    raw: line(&self.raw_base_ns, &self.raw_mult),
                    realtime_offset: get(&self.realtime_offset_ns),
                    boottime_offset: get(&self.boottime_offset_ns),
                    tai_offset: get(&self.tai_offset_ns),
                    coarse: Coarse {
                        anchor_ns: get(&self.coarse_anchor_ns),
                        floor_ns: get(&self.coarse_floor_ns),
                        step_ns: get(&self.coarse_step_ns),
                    },
                    resolution_ns: get(&self.resolution_ns),
                };
                fence(Ordering::Acquire);
                if sequence & 1 == 0 && self.sequence.load(Ordering::Relaxed) == sequence {
                    return (mode == MODE_TSC).then_some(published);
                }
                std::hint::spin_loop();
            }
        }
    }

    impl ClockPage {
        /// What the page says; None in system-call mode.
        pub(in crate::clock) fn snapshot(&self) -> Option<Published> {
            self.mapping.layout().load()
        }
    }

    #[test]
    fn layout_is_that_of_the_c_header() {
        let header = include_str!("../../vdso/clock_page.h");
        let (_, body) = header.split_once("struct clock_page {").unwrap();
        let (body, _) = body.split_once("};").unwrap();
        let mut offset = 0;
        let mut fields = Vec::new();
        for line in body.lines() {
            let line = line.trim();
            let (size, rest) = match line.split_once(' ') {
                Some(("uint32_t", rest)) => (4, rest),
                Some(("uint64_t", rest)) => (8, rest),
                _ => continue,
            };
            fields.push((rest.split(';').next().unwrap(), offset));
            offset += size;
        }
        macro_rules! layout {
            ($($field:ident)*) => { vec![$((stringify!($field), offset_of!(Layout, $field))),*] };
        }
        let expected = layout!(
            sequence mode tsc_base mono_base_ns mono_mult raw_base_ns raw_mult realtime_offset_ns
            boottime_offset_ns tai_offset_ns coarse_anchor_ns coarse_floor_ns coarse_step_ns resolution_ns
        );
        assert_eq!(fields, expected);
        assert_eq!(offset, size_of::<Layout>());
        assert!(header.contains(&format!(
            "#define CLOCK_MULT_SHIFT {}",
            super::super::track::MULT_SHIFT
        )));
    }

    #[test]
    fn published_content_is_read_back() {
        let page = ClockPage::create().unwrap();
        assert_eq!(page.snapshot(), None);
        let line = Line {
            tsc_base: 1,
            base_ns: 2,
            mult: 3,
        };
        let coarse = Coarse {
            anchor_ns: 9,
            floor_ns: 8,
            step_ns: 7,
        };
        let content = Published {
            mono: line,
            raw: Line {
                base_ns: 4,
                mult: 5,
                ..line
            },
            realtime_offset: 10,
            boottime_offset: 11,
            tai_offset: 12,
            coarse,
            resolution_ns: 1,
        };
        page.mapping().publish(|_| content);
        assert_eq!(page.snapshot(), Some(content));
    }

    #[test]
    fn coarse_advances_by_ticks_and_not_below_its_floor() {
        let coarse = Coarse {
            anchor_ns: 1000,
            floor_ns: 990,
            step_ns: 100,
        };
        assert_eq!(coarse.at(995), 990);
        assert_eq!(coarse.at(1099), 1000);
        assert_eq!(coarse.at(1100), 1100);
        assert_eq!(
            Coarse {
                floor_ns: 1003,
                ..coarse
            }
            .at(1099),
            1003
        );
    }

    #[test]
    fn nobody_else_can_write() {
        let page = ClockPage::create().unwrap();
        // SAFETY: a new mapping of a sealed file; nothing is replaced.
        let mapped = unsafe {
            libc::mmap(
                ptr::null_mut(),
                CLOCK_PAGE_SIZE,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                page.as_fd().as_raw_fd(),
                0,
            )
        };
        assert_eq!(mapped, libc::MAP_FAILED);
    }
}
