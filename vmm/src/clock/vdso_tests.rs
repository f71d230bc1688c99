//! Tests of the vDSO called as a program calls it, in this process, against the host's clocks.

use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::image_tests::functions;
use super::keeper::Calibration;
use super::page::CLOCK_PAGE_SIZE;
use super::track::Steering;
use super::{ClockPage, GuestClock, VDSO_IMAGE, host};

type ClockFn = unsafe extern "C" fn(libc::c_int, *mut libc::timespec) -> libc::c_int;

/// The clock page and the image as the loader maps them.
struct Vdso {
    base: *mut u8,
    size: usize,
    clock_gettime: ClockFn,
    clock_getres: ClockFn,
    gettimeofday: unsafe extern "C" fn(*mut libc::timeval, *mut i32) -> libc::c_int,
    time: unsafe extern "C" fn(*mut libc::time_t) -> libc::time_t,
    getcpu: unsafe extern "C" fn(*mut u32, *mut u32, *mut libc::c_void) -> libc::c_long,
}

// SAFETY: the mapping belongs to no thread and is only read and executed.
unsafe impl Sync for Vdso {}

impl Vdso {
    fn map(page: BorrowedFd<'_>) -> Self {
        let size = CLOCK_PAGE_SIZE + VDSO_IMAGE.len().next_multiple_of(CLOCK_PAGE_SIZE);
        let private = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping of `size` bytes, into which the image fits after the first page, and whose
        // first page is then replaced.
        let base = unsafe {
            let base = libc::mmap(
                ptr::null_mut(),
                size,
                libc::PROT_READ | libc::PROT_WRITE,
                private,
                -1,
                0,
            );
            assert_ne!(base, libc::MAP_FAILED);
            let image = base.byte_add(CLOCK_PAGE_SIZE);
            ptr::copy_nonoverlapping(VDSO_IMAGE.as_ptr(), image.cast(), VDSO_IMAGE.len());
            assert_eq!(
                libc::mprotect(
                    image,
                    size - CLOCK_PAGE_SIZE,
                    libc::PROT_READ | libc::PROT_EXEC
                ),
                0
            );
            let mapped = libc::mmap(
                base,
                CLOCK_PAGE_SIZE,
                libc::PROT_READ,
                libc::MAP_SHARED | libc::MAP_FIXED,
                page.as_raw_fd(),
                0,
            );
            assert_eq!(mapped, base);
            base.cast::<u8>()
        };
        let functions = functions();
        let address = |name: &str| base.wrapping_add(CLOCK_PAGE_SIZE + functions[name].0 as usize);
        // SAFETY: these are the entry points of functions with these signatures, mapped until `drop`.
        unsafe {
            Self {
                base,
                size,
                clock_gettime: std::mem::transmute::<*mut u8, ClockFn>(address(
                    "__vdso_clock_gettime",
                )),
                clock_getres: std::mem::transmute::<*mut u8, ClockFn>(address(
                    "__vdso_clock_getres",
                )),
                gettimeofday: std::mem::transmute::<
                    *mut u8,
                    unsafe extern "C" fn(*mut libc::timeval, *mut i32) -> libc::c_int,
                >(address("__vdso_gettimeofday")),
                time: std::mem::transmute::<
                    *mut u8,
                    unsafe extern "C" fn(*mut libc::time_t) -> libc::time_t,
                >(address("__vdso_time")),
                getcpu: std::mem::transmute::<
                    *mut u8,
                    unsafe extern "C" fn(*mut u32, *mut u32, *mut libc::c_void) -> libc::c_long,
                >(address("__vdso_getcpu")),
            }
        }
    }

    fn call(function: ClockFn, clock: libc::clockid_t) -> Result<u64, libc::c_int> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: a vDSO function of this signature and a valid pointer.
        match unsafe { function(clock, &mut time) } {
            0 => {
                assert!((0..1_000_000_000).contains(&time.tv_nsec));
                Ok(time.tv_sec as u64 * 1_000_000_000 + time.tv_nsec as u64)
            }
            error => Err(error),
        }
    }

    fn ns(&self, clock: libc::clockid_t) -> u64 {
        Self::call(self.clock_gettime, clock).unwrap()
    }

    fn resolution(&self, clock: libc::clockid_t) -> Result<u64, libc::c_int> {
        Self::call(self.clock_getres, clock)
    }

    /// How far the clock is outside what the host's clock says just before and just after.
    fn error_ns(&self, clock: libc::clockid_t) -> i64 {
        let before = host::clock_ns(clock);
        let ns = self.ns(clock);
        let after = host::clock_ns(clock);
        if ns < before {
            -((before - ns) as i64)
        } else {
            ns.saturating_sub(after) as i64
        }
    }

    fn time_of_day_us(&self) -> u64 {
        let mut time = libc::timeval {
            tv_sec: 0,
            tv_usec: 0,
        };
        // SAFETY: valid pointers; the time zone may be null.
        let result = unsafe { (self.gettimeofday)(&mut time, ptr::null_mut()) };
        assert_eq!(result, 0);
        assert!((0..1_000_000).contains(&time.tv_usec));
        time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64
    }
}

impl Drop for Vdso {
    fn drop(&mut self) {
        // SAFETY: mapped by `map`; nobody calls into it any more.
        unsafe { libc::munmap(self.base.cast(), self.size) };
    }
}

/// Every call, compared with the host's: the same in both modes.
fn check_all_calls(vdso: &Vdso) {
    for clock in [
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_MONOTONIC_RAW,
        libc::CLOCK_BOOTTIME,
        libc::CLOCK_TAI,
    ] {
        let error = vdso.error_ns(clock);
        assert!(error.abs() < 50_000, "clock {clock}: {error} ns");
        assert_eq!(vdso.resolution(clock), Ok(host::resolution_ns(clock)));
    }
    for (coarse, fine) in [
        (libc::CLOCK_REALTIME_COARSE, libc::CLOCK_REALTIME),
        (libc::CLOCK_MONOTONIC_COARSE, libc::CLOCK_MONOTONIC),
    ] {
        let tick = host::resolution_ns(coarse);
        assert_eq!(vdso.resolution(coarse), Ok(tick));
        let (value, now) = (vdso.ns(coarse), vdso.ns(fine));
        // A busy host is late with its ticks; ours are on time.
        assert!(
            value <= now && now - value < 2 * tick + 5_000_000,
            "clock {coarse}: {value} at {now}"
        );
    }
    // CPU-time clocks and unknown ones are the kernel's.
    assert!(vdso.ns(libc::CLOCK_PROCESS_CPUTIME_ID) > 0);
    assert!(vdso.error_ns(libc::CLOCK_THREAD_CPUTIME_ID).abs() < 50_000);
    assert_eq!(Vdso::call(vdso.clock_gettime, 4711), Err(-libc::EINVAL));
    assert_eq!(vdso.resolution(4711), Err(-libc::EINVAL));

    let before = host::clock_ns(libc::CLOCK_REALTIME) / 1000;
    let us = vdso.time_of_day_us();
    assert!(us + 50 >= before && us <= host::clock_ns(libc::CLOCK_REALTIME) / 1000 + 50);

    // `struct timezone`: two integers.
    let mut zone = [i32::MIN; 2];
    let mut seconds = 0;
    let (mut cpu, mut node) = (u32::MAX, u32::MAX);
    // SAFETY: every pointer is null, which these calls allow, or valid.
    unsafe {
        assert_eq!((vdso.gettimeofday)(ptr::null_mut(), ptr::null_mut()), 0);
        assert_eq!((vdso.gettimeofday)(ptr::null_mut(), zone.as_mut_ptr()), 0);
        assert_eq!(
            (vdso.clock_getres)(libc::CLOCK_MONOTONIC, ptr::null_mut()),
            0
        );
        let begin = (vdso.time)(ptr::null_mut());
        let now = (vdso.time)(&mut seconds);
        assert_eq!(now, seconds);
        assert!(begin <= now && now - begin <= 1);
        assert!(now as u64 <= host::clock_ns(libc::CLOCK_REALTIME) / 1_000_000_000);
        assert_eq!((vdso.getcpu)(&mut cpu, &mut node, ptr::null_mut()), 0);
    }
    assert!(!zone.contains(&i32::MIN));
    assert!(cpu != u32::MAX && node != u32::MAX);
}

#[test]
fn calls_without_the_tsc_are_system_calls() {
    let clock = GuestClock::start(ClockPage::create().unwrap(), false).unwrap();
    check_all_calls(&Vdso::map(clock.as_fd()));
}

#[test]
fn calls_agree_with_the_host() {
    let clock = GuestClock::start(ClockPage::create().unwrap(), true).unwrap();
    let vdso = Vdso::map(clock.as_fd());
    check_all_calls(&vdso);
    let end = Instant::now() + Duration::from_secs(2);
    let mut errors = Vec::new();
    let mut previous = [0; 2];
    while Instant::now() < end {
        errors.push(vdso.error_ns(libc::CLOCK_MONOTONIC).abs());
        for (clock, previous) in [libc::CLOCK_MONOTONIC, libc::CLOCK_MONOTONIC_COARSE]
            .into_iter()
            .zip(&mut previous)
        {
            let now = vdso.ns(clock);
            assert!(now >= *previous, "clock {clock}: {now} after {previous}");
            *previous = now;
        }
        assert!(vdso.error_ns(libc::CLOCK_REALTIME).abs() < 50_000);
        assert!(vdso.error_ns(libc::CLOCK_MONOTONIC_RAW).abs() < 50_000);
        std::thread::sleep(Duration::from_micros(50));
    }
    check_all_calls(&vdso);
    errors.sort_unstable();
    let (median, worst) = (errors[errors.len() / 2], errors[errors.len() - 1]);
    println!(
        "CLOCK_MONOTONIC against the host: median {median} ns, worst {worst} ns of {}",
        errors.len()
    );
    assert!(worst < 50_000, "{worst} ns");
}

/// The page, its writer and the mapped vDSO, without a keeper thread: the test publishes.
fn calibrated() -> (ClockPage, Calibration, Vdso) {
    let page = ClockPage::create().unwrap();
    std::thread::sleep(Duration::from_millis(1));
    let mut calibration = Calibration::first(page.created_at());
    calibration.publish(&page.mapping(), Duration::from_millis(1));
    let vdso = Vdso::map(page.as_fd());
    (page, calibration, vdso)
}

/// Updates as fast as they can be made, each with twice or half the rate of the one before, so that a
/// reader who mixes two lines, or a line with a TSC from outside of it, is far off. Two threads hand the
/// largest value seen to each other.
#[test]
fn monotonic_never_decreases_across_threads_and_updates() {
    if !host::tsc_is_clock() {
        return;
    }
    let (page, _, vdso) = calibrated();
    let mut content = page.snapshot().unwrap();
    let mults = [content.mono.mult, 2 * content.mono.mult];
    let latest = AtomicU64::new(0);
    let stop = AtomicBool::new(false);
    let reader = || {
        let mut calls = 0u64;
        while !stop.load(Ordering::Relaxed) {
            let seen = latest.load(Ordering::SeqCst);
            let now = vdso.ns(libc::CLOCK_MONOTONIC);
            assert!(now >= seen, "{now} after {seen}");
            latest.fetch_max(now, Ordering::SeqCst);
            calls += 1;
        }
        calls
    };
    let (calls, updates) = std::thread::scope(|scope| {
        let readers = [scope.spawn(reader), scope.spawn(reader)];
        let end = Instant::now() + Duration::from_secs(1);
        let mut updates = 0usize;
        while Instant::now() < end && readers.iter().all(|reader| !reader.is_finished()) {
            let steering = Steering {
                mult: mults[updates % 2],
                jump_ns: 0,
            };
            page.mapping().publish(|tsc| {
                content.mono = content.mono.switch(tsc, steering);
                content
            });
            updates += 1;
            if updates.is_multiple_of(64) {
                std::thread::yield_now();
            }
        }
        stop.store(true, Ordering::Relaxed);
        (
            readers
                .into_iter()
                .map(|reader| reader.join().unwrap())
                .sum::<u64>(),
            updates,
        )
    });
    println!("{calls} readings across {updates} updates");
    assert!(calls > 1000 && updates > 100);
}

/// After a storm of updates much too close for good rates, the clock is soon right again.
#[test]
fn a_bad_rate_is_recovered_from() {
    if !host::tsc_is_clock() {
        return;
    }
    let (page, mut calibration, vdso) = calibrated();
    for _ in 0..1000 {
        calibration.observe();
        calibration.publish(&page.mapping(), Duration::from_micros(50));
    }
    for _ in 0..10 {
        std::thread::sleep(Duration::from_millis(10));
        calibration.observe();
        calibration.publish(&page.mapping(), Duration::from_millis(10));
    }
    assert!(vdso.error_ns(libc::CLOCK_MONOTONIC).abs() < 50_000);
}

#[test]
fn a_call_costs_tens_of_nanoseconds() {
    const CALLS: u32 = 200_000;
    let clock = GuestClock::start(ClockPage::create().unwrap(), true).unwrap();
    let vdso = Vdso::map(clock.as_fd());
    let per_call = |call: &dyn Fn() -> u64| {
        let begin = Instant::now();
        for _ in 0..CALLS {
            std::hint::black_box(call());
        }
        begin.elapsed().as_nanos() as u64 / u64::from(CALLS)
    };
    for clock in [
        libc::CLOCK_MONOTONIC,
        libc::CLOCK_REALTIME,
        libc::CLOCK_MONOTONIC_COARSE,
    ] {
        let (ours, hosts) = (
            per_call(&|| vdso.ns(clock)),
            per_call(&|| host::clock_ns(clock)),
        );
        println!("clock {clock}: {ours} ns per call, the host's {hosts} ns");
        // A system call here would be far more expensive than ten of the host's vDSO calls.
        assert!(!host::tsc_is_clock() || ours < 1000, "{ours} ns");
    }
    println!(
        "gettimeofday: {} ns per call",
        per_call(&|| vdso.time_of_day_us())
    );
}
