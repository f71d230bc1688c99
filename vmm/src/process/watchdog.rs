//! The thread that finds requests which run for too long, and kicks their threads.
//!
//! It looks several times in the shortest limit while there are requests, and sleeps while there are none. A
//! request costs its thread two stores: the watchdog reads the clocks, so that a limit is kept to within one
//! look.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::thread::{self, Builder};
use std::time::{Duration, Instant};

use super::Process;
use super::control::ThreadControl;
use super::limits::Limits;
use crate::host;

/// Looks in the shortest limit, and the bounds of the time between two.
const LOOKS: u32 = 8;
const SHORTEST: Duration = Duration::from_millis(10);
const LONGEST: Duration = Duration::from_secs(1);
/// The part of the limit that a request which has run for too long gets once another one has ended for that: it may have
/// waited for that one, and be one of many that did.
const GRACE: u32 = 2;

/// How the threads of a process reach its watchdog.
#[derive(Default)]
pub struct Watchdog {
    started: AtomicBool,
    thread: OnceLock<thread::Thread>,
    asleep: AtomicBool,
}

impl Watchdog {
    /// A request has begun.
    pub fn notice(&self) {
        if self.asleep.load(Ordering::SeqCst)
            && self.asleep.swap(false, Ordering::SeqCst)
            && let Some(thread) = self.thread.get()
        {
            thread.unpark();
        }
    }
}

/// Starts the watchdog of `process`, with every signal blocked, before its first request; nothing if it has started, or
/// if requests have no time limits.
pub fn ensure(process: &Arc<Process>) {
    let limits = process.options.limits;
    let Some(period) = period(limits) else {
        return;
    };
    if process.watchdog.started.swap(true, Ordering::AcqRel) {
        return;
    }
    let watched = Arc::clone(process);
    let started = host::with_signals_blocked(|| {
        Builder::new()
            .name("vmsrs-watchdog".into())
            .stack_size(64 << 10)
            .spawn(move || watch(&watched, limits, period))
    });
    if let Err(error) = started {
        log::error!("requests have no time limits, for want of a thread: {error}");
    }
}

fn period(limits: Limits) -> Option<Duration> {
    let shortest = limits.timeout.into_iter().chain(limits.cpu).min()?;
    Some((shortest / LOOKS).clamp(SHORTEST, LONGEST))
}

fn watch(process: &Process, limits: Limits, period: Duration) {
    let watchdog = &process.watchdog;
    let _ = watchdog.thread.set(thread::current());
    let mut seen: HashMap<i32, Seen> = HashMap::new();
    let mut last = Instant::now();
    loop {
        // A process that was stopped, or a machine that was, has not used up its requests' time.
        let passed = last.elapsed().min(period * 2);
        last = Instant::now();
        look(process, limits, passed, &mut seen);
        if seen.is_empty() {
            watchdog.asleep.store(true, Ordering::SeqCst);
            // One that began before it could know that it has to tell.
            look(process, limits, Duration::ZERO, &mut seen);
            while seen.is_empty() && watchdog.asleep.load(Ordering::SeqCst) {
                thread::park();
            }
            watchdog.asleep.store(false, Ordering::SeqCst);
            last = Instant::now();
        }
        thread::sleep(period);
    }
}

/// What is known of a running request.
struct Seen {
    number: u64,
    wall: Duration,
    /// CPU time of the thread when the request was first seen.
    cpu: Duration,
}

/// Looks at every thread once; `passed` is the time since the last look.
///
/// Of requests that have run for too long only the oldest is ended at a time: the others may have waited for it, and get
/// some time to go on without it.
fn look(process: &Process, limits: Limits, passed: Duration, seen: &mut HashMap<i32, Seen>) {
    let past = |limit: Option<Duration>, used| limit.is_some_and(|limit| used >= limit);
    let threads = process.threads();
    let mut oldest: Option<(Duration, &ThreadControl, u64)> = None;
    let mut is_one_ending = false;
    seen.retain(|tid, _| threads.contains_key(tid));
    for (tid, control) in threads.iter() {
        let running = control.request.running();
        let (Some(number), Some(cpu)) = (running, host::cpu_time_of(*tid)) else {
            seen.remove(tid);
            continue;
        };
        let entry = seen
            .entry(*tid)
            .and_modify(|entry| entry.wall += passed)
            .or_insert(Seen {
                number,
                wall: Duration::ZERO,
                cpu,
            });
        if entry.number != number {
            *entry = Seen {
                number,
                wall: Duration::ZERO,
                cpu,
            };
        }
        if past(limits.cpu, cpu.saturating_sub(entry.cpu)) {
            control.request.set_overdue(number);
        }
        if control.request.is_overdue() {
            // Again at every look, until the thread has seen to it.
            control.kick();
            is_one_ending = true;
        } else if past(limits.timeout, entry.wall)
            && oldest.is_none_or(|(wall, ..)| entry.wall > wall)
        {
            oldest = Some((entry.wall, control, number));
        }
    }
    let Some(limit) = limits.timeout else {
        return;
    };
    if let (Some((_, control, number)), false) = (oldest, is_one_ending) {
        control.request.set_overdue(number);
        control.kick();
        is_one_ending = true;
    }
    if is_one_ending {
        for entry in seen.values_mut() {
            entry.wall = entry.wall.min(limit - limit / GRACE);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_follow_the_shortest_limit() {
        let limits = |timeout, cpu| Limits {
            timeout,
            cpu,
            ..Limits::default()
        };
        let ms = Duration::from_millis;
        assert_eq!(period(limits(None, None)), None);
        assert_eq!(period(limits(Some(ms(800)), None)), Some(ms(100)));
        assert_eq!(period(limits(Some(ms(800)), Some(ms(400)))), Some(ms(50)));
        assert_eq!(period(limits(None, Some(ms(1)))), Some(SHORTEST));
        assert_eq!(period(limits(Some(ms(300_000)), None)), Some(LONGEST));
    }
}
