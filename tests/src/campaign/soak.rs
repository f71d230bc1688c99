//! A soak: healthy clients as fast as they can, and a share of requests that crash, for as long as one says.
//!
//! A request that crashes comes on a connection of its own, and a new connection costs more than a request on one that
//! is there. So windows of three kinds take turns in one run, each between two in which just as many such requests come
//! and do not crash: what a crash costs is the difference to those, and what its connection costs the difference to
//! windows with none of them.

use std::{
    collections::BTreeMap,
    fmt, fs, io,
    path::{Path, PathBuf},
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use hdrhistogram::Histogram;

use super::{
    SHARED_KEYS,
    control::Control,
    exchange::{Answer, exchange},
    generation::{LATE, launch},
    healthy::Healthy,
    report::timeline::Sample,
    target::{Target, shared_key},
    trial::Failure,
};
use crate::{Monitored, StartError, interrupt, load::Random, oracle::Recorder};

/// What makes a request crash.
const MARK: &str = "CRASH-ME";
/// What is in its place in one that does not.
const NO_MARK: &str = "SPARE-ME";
/// Between two looks at everything.
const PERIOD: Duration = Duration::from_secs(1);
/// Samples of a window that count: in the first, the last window's last crashes may still be felt.
const SKIPPED: usize = 1;
/// Failures that are told.
const FAILURES_MAX: usize = 20;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Soak {
    /// For how long.
    pub duration: Duration,
    /// How many of 100 requests come on connections of their own, but for quiet windows.
    pub percent: f64,
    /// Samples of a window.
    pub window: usize,
    /// Healthy clients.
    pub clients: usize,
    /// The monitor.
    pub vmsrs: PathBuf,
}

/// What came of it.
#[derive(Clone, Debug, Default)]
pub struct Soaked {
    /// What was seen, second by second.
    pub samples: Vec<Sample>,
    /// Throughput of healthy clients in each window with crashes, as a part of that in the windows before and after.
    pub crashing: Vec<f64>,
    /// Likewise in each quiet window.
    pub quiet: Vec<f64>,
    /// Requests that were answered as they should be.
    pub requests: u64,
    /// Requests that crashed.
    pub crashes: u64,
    /// How often the monitor told of each outcome.
    pub outcomes: BTreeMap<String, u64>,
    /// What healthy clients saw and should not have seen.
    pub failures: Vec<Failure>,
    /// Crashing requests whose connection was not reset.
    pub surprises: Vec<String>,
}

impl Soaked {
    /// Whether no healthy client saw anything wrong, and every crash was one connection reset.
    pub fn is_good(&self) -> bool {
        let recovered = self.outcomes.get("recovered").copied().unwrap_or(0);
        self.failures.is_empty()
            && self.surprises.is_empty()
            && self.outcomes.keys().all(|outcome| outcome == "recovered")
            && recovered == self.crashes
    }
}

impl Soaked {
    /// Throughput of healthy clients in each window with crashes, as a part of that in quiet ones: by way of the windows
    /// between, since the two kinds are not neighbours.
    fn of_quiet(&self) -> Vec<f64> {
        let pairs = self.crashing.iter().zip(&self.quiet);
        pairs.map(|(crashing, quiet)| crashing / quiet).collect()
    }
}

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} healthy requests, {} crashes; the monitor tells of {:?}.",
            self.requests, self.crashes, self.outcomes
        )?;
        write_ratios(
            f,
            "Healthy throughput with crashes, of that when the same requests do not crash",
            &self.crashing,
        )?;
        write_ratios(
            f,
            "Healthy throughput with crashes, of that when there are no such requests",
            &self.of_quiet(),
        )?;
        for failure in &self.failures {
            writeln!(f, "- failure: {:?}: {}", failure.kind, failure.detail)?;
        }
        for surprise in &self.surprises {
            writeln!(f, "- surprise: {surprise}")?;
        }
        Ok(())
    }
}

fn write_ratios(f: &mut fmt::Formatter<'_>, what: &str, ratios: &[f64]) -> fmt::Result {
    let mut ratios = ratios.to_vec();
    ratios.sort_unstable_by(f64::total_cmp);
    let (Some(least), Some(most)) = (ratios.first(), ratios.last()) else {
        return Ok(());
    };
    writeln!(
        f,
        "{what}: median {:.1} %, {:.1} to {:.1} % in {} windows.",
        ratios[ratios.len() / 2] * 100.0,
        least * 100.0,
        most * 100.0,
        ratios.len()
    )
}

/// What comes besides the healthy clients.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Window {
    /// Requests on connections of their own that do not crash.
    Harmless,
    /// The same, and they crash.
    Crashing,
    /// Nothing.
    Quiet,
}

impl Window {
    /// The kind of the `number`th.
    fn nth(number: usize) -> Self {
        match number % 4 {
            1 => Self::Crashing,
            3 => Self::Quiet,
            _ => Self::Harmless,
        }
    }
}

/// What the threads share.
struct Shared {
    stop: AtomicBool,
    /// Of the present window, whether its requests crash, and whether there are any.
    crashing: AtomicBool,
    quiet: AtomicBool,
    requests: AtomicU64,
    crashes: AtomicU64,
    latencies: Mutex<Histogram<u64>>,
    failures: Mutex<Vec<Failure>>,
    surprises: Mutex<Vec<String>>,
}

impl Soak {
    /// Runs it. `show` is told of each sample.
    ///
    /// # Errors
    ///
    /// If the server does not start, or its counters cannot be read any more.
    pub fn run(
        &self,
        target: &dyn Target,
        mut show: impl FnMut(&Sample),
    ) -> Result<Soaked, StartError> {
        let failed = |source| StartError::Spawn {
            program: target.name().to_owned(),
            source,
        };
        let inject = format!("--inject=rip=null:match={MARK}");
        let (mut server, control, _sockets) = launch(target, &self.vmsrs, &[&inject])?;
        let shared = Shared {
            stop: AtomicBool::new(false),
            crashing: AtomicBool::new(false),
            quiet: AtomicBool::new(false),
            requests: AtomicU64::new(0),
            crashes: AtomicU64::new(0),
            latencies: Mutex::new(histogram()),
            failures: Mutex::default(),
            surprises: Mutex::default(),
        };
        let recorder = Recorder::new((0..SHARED_KEYS).map(shared_key));
        let clients: Vec<Box<dyn Healthy>> = (0..self.clients)
            .map(|ident| {
                target
                    .clients()
                    .healthy(server.address(), ident, LATE, &recorder)
            })
            .collect();
        let samples = thread::scope(|scope| {
            for (ident, client) in clients.into_iter().enumerate() {
                let shared = &shared;
                scope.spawn(move || work(client, ident, shared));
            }
            scope.spawn(|| self.come_and_go(target, &server, &shared));
            let samples = self.watch(&server, control, &shared, &mut show);
            shared.stop.store(true, Ordering::Relaxed);
            samples
        });
        let samples = samples.map_err(failed)?;
        let mut soaked = Soaked {
            crashing: ratios(&samples, self.window, Window::Crashing),
            quiet: ratios(&samples, self.window, Window::Quiet),
            samples,
            requests: shared.requests.into_inner(),
            crashes: shared.crashes.into_inner(),
            outcomes: BTreeMap::new(),
            failures: shared.failures.into_inner().unwrap_or_default(),
            surprises: shared.surprises.into_inner().unwrap_or_default(),
        };
        if let Err(error) = server.terminate() {
            soaked.surprises.push(format!("its end: {error}"));
        }
        for event in server.events().map_err(failed)? {
            if matches!(event.event.as_str(), "recovered" | "degraded" | "escalated") {
                *soaked.outcomes.entry(event.event).or_default() += 1;
            }
        }
        Ok(soaked)
    }

    /// Sends requests on connections of their own, so many that they are the share that was asked for.
    fn come_and_go(&self, target: &dyn Target, server: &Monitored, shared: &Shared) {
        let mut random = Random::new(1);
        let (mut before, mut owed, mut number) = (0, 0.0, 0u64);
        while !shared.stop.load(Ordering::Relaxed) {
            let now = shared.requests.load(Ordering::Relaxed);
            if !shared.quiet.load(Ordering::Relaxed) {
                owed += (now - before) as f64 * self.percent / (100.0 - self.percent);
            }
            before = now;
            if owed < 1.0 {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            owed -= 1.0;
            number += 1;
            let crashes = shared.crashing.load(Ordering::Relaxed);
            let mark = if crashes { MARK } else { NO_MARK };
            let tag = format!("{mark}-{number}");
            // What does not crash must store nothing: the server would grow, and the model not know of it.
            let request = loop {
                let request = target.attack(&mut random, &tag, (0, number));
                if crashes || request.write.is_none() {
                    break request;
                }
            };
            let answer = exchange(target, server.address(), &request, LATE);
            let expected = if crashes {
                Answer::Reset
            } else {
                Answer::Right
            };
            if !matches!(&answer, Ok((got, _)) if *got == expected) {
                let mut surprises = lock(&shared.surprises);
                if surprises.len() < FAILURES_MAX {
                    surprises.push(format!("{}: {answer:?}", request.description));
                }
            }
            if crashes {
                shared.crashes.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    fn watch(
        &self,
        server: &Monitored,
        mut control: Control,
        shared: &Shared,
        show: &mut impl FnMut(&Sample),
    ) -> io::Result<Vec<Sample>> {
        let begin = Instant::now();
        let mut samples: Vec<Sample> = Vec::new();
        let (mut requests, mut crashes, mut last) = (0, 0, begin);
        while begin.elapsed() < self.duration && !interrupt::requested() {
            let window = Window::nth(samples.len() / self.window);
            let is = |kind| window == kind;
            shared
                .crashing
                .store(is(Window::Crashing), Ordering::Relaxed);
            shared.quiet.store(is(Window::Quiet), Ordering::Relaxed);
            thread::sleep(PERIOD);
            let latencies = std::mem::replace(&mut *lock(&shared.latencies), histogram());
            let passed = last.elapsed().as_secs_f64();
            last = Instant::now();
            let (all, crashed) = (
                shared.requests.load(Ordering::Relaxed),
                shared.crashes.load(Ordering::Relaxed),
            );
            let stats = control.ask("stats")?;
            let sample = Sample {
                at_s: begin.elapsed().as_secs_f64(),
                healthy_per_s: (all - requests) as f64 / passed,
                p50_us: latencies.value_at_quantile(0.5) as f64,
                p99_us: latencies.value_at_quantile(0.99) as f64,
                max_us: latencies.max() as f64,
                resident_bytes: server.resident_kib()? * 1024,
                descriptors: descriptors(server.pid())?,
                backlog_pages: stats["restoration"]["waiting"].as_u64().unwrap_or(0),
                crashes: crashed - crashes,
            };
            (requests, crashes) = (all, crashed);
            show(&sample);
            samples.push(sample);
        }
        Ok(samples)
    }
}

fn work(mut client: Box<dyn Healthy>, ident: usize, shared: &Shared) {
    let mut random = Random::new(ident as u64);
    while !shared.stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        match client.step(&mut random) {
            Ok(()) => {
                shared.requests.fetch_add(1, Ordering::Relaxed);
                lock(&shared.latencies).saturating_record(begin.elapsed().as_micros() as u64);
            }
            Err(failure) => {
                let mut failures = lock(&shared.failures);
                if failures.len() < FAILURES_MAX {
                    failures.push(failure);
                }
            }
        }
    }
    lock(&shared.failures).extend(client.check_all());
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Of microseconds up to a minute, to two digits.
fn histogram() -> Histogram<u64> {
    let made = Histogram::new_with_max(60_000_000, 2);
    made.unwrap_or_else(|error| unreachable!("the bounds are fixed: {error:?}"))
}

/// Open descriptors of a process.
fn descriptors(pid: u32) -> io::Result<u64> {
    Ok(fs::read_dir(Path::new("/proc").join(pid.to_string()).join("fd"))?.count() as u64)
}

/// Throughput in each window of `kind`, as a part of that in the two beside it; windows have `window` samples.
fn ratios(samples: &[Sample], window: usize, kind: Window) -> Vec<f64> {
    let windows: Vec<f64> = samples
        .chunks_exact(window)
        .map(|window| {
            let counted = &window[SKIPPED.min(window.len() - 1)..];
            counted
                .iter()
                .map(|sample| sample.healthy_per_s)
                .sum::<f64>()
                / counted.len() as f64
        })
        .collect();
    let of_kind = windows.windows(3).enumerate();
    of_kind
        .filter(|(number, _)| Window::nth(number + 1) == kind)
        .map(|(_, three)| three[1] / three[0].midpoint(three[2]))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_with_crashes_is_compared_with_both_of_its_neighbours() {
        let sample = |healthy_per_s| Sample {
            healthy_per_s,
            ..Sample::default()
        };
        // Windows of two, of which the first sample does not count.
        let rates = [
            1.0, 100.0, 2.0, 95.0, 3.0, 90.0, 4.0, 108.0, 5.0, 110.0, 6.0,
        ];
        let samples: Vec<Sample> = rates.into_iter().map(sample).collect();
        assert_eq!(ratios(&samples, 2, Window::Crashing), [1.0]);
        assert_eq!(ratios(&samples, 2, Window::Quiet), [1.08]);
        assert_eq!(ratios(&samples[..5], 2, Window::Crashing), [0.0; 0]);
    }
}
