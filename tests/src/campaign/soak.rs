//! A soak: healthy clients as fast as they can, and a share of requests that crash, for as long as one says.
//!
//! Windows with and without crashes take turns, so that what the crashes cost is measured in the same run.

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
    /// How many of 100 requests crash, in every second window.
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
    pub ratios: Vec<f64>,
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

impl fmt::Display for Soaked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} healthy requests, {} crashes; the monitor tells of {:?}.",
            self.requests, self.crashes, self.outcomes
        )?;
        let mut ratios = self.ratios.clone();
        ratios.sort_unstable_by(f64::total_cmp);
        if let (Some(least), Some(most)) = (ratios.first(), ratios.last()) {
            writeln!(
                f,
                "Healthy throughput with crashes, of that without: median {:.1} %, {:.1} to {:.1} % in {} windows.",
                ratios[ratios.len() / 2] * 100.0,
                least * 100.0,
                most * 100.0,
                ratios.len()
            )?;
        }
        for failure in &self.failures {
            writeln!(f, "- failure: {:?}: {}", failure.kind, failure.detail)?;
        }
        for surprise in &self.surprises {
            writeln!(f, "- surprise: {surprise}")?;
        }
        Ok(())
    }
}

/// What the threads share.
struct Shared {
    stop: AtomicBool,
    crashing: AtomicBool,
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
            scope.spawn(|| self.crash(target, &server, &shared));
            let samples = self.watch(&server, control, &shared, &mut show);
            shared.stop.store(true, Ordering::Relaxed);
            samples
        });
        let mut soaked = Soaked {
            ratios: ratios(samples.as_deref().unwrap_or_default(), self.window),
            samples: samples.map_err(failed)?,
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

    /// Sends requests that crash, so many that they are the share that was asked for.
    fn crash(&self, target: &dyn Target, server: &Monitored, shared: &Shared) {
        let mut random = Random::new(1);
        let (mut before, mut owed, mut number) = (0, 0.0, 0u64);
        while !shared.stop.load(Ordering::Relaxed) {
            let now = shared.requests.load(Ordering::Relaxed);
            if shared.crashing.load(Ordering::Relaxed) {
                owed += (now - before) as f64 * self.percent / (100.0 - self.percent);
            }
            before = now;
            if owed < 1.0 {
                thread::sleep(Duration::from_millis(1));
                continue;
            }
            owed -= 1.0;
            number += 1;
            let attack = target.attack(&mut random, &format!("{MARK}-{number}"), (0, number));
            let answer = exchange(target, server.address(), &attack, LATE);
            if !matches!(answer, Ok((Answer::Reset, _))) {
                let mut surprises = lock(&shared.surprises);
                if surprises.len() < FAILURES_MAX {
                    surprises.push(format!("{}: {answer:?}", attack.description));
                }
            }
            shared.crashes.fetch_add(1, Ordering::Relaxed);
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
            let crashing = samples.len() / self.window % 2 == 1;
            shared.crashing.store(crashing, Ordering::Relaxed);
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

/// Windows of `window` samples take turns, the first without crashes.
fn ratios(samples: &[Sample], window: usize) -> Vec<f64> {
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
    let with_both = windows.windows(3).enumerate().step_by(2);
    with_both
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
        let rates = [1.0, 100.0, 2.0, 95.0, 3.0, 90.0, 4.0, 45.0, 5.0, 110.0, 6.0];
        let samples: Vec<Sample> = rates.into_iter().map(sample).collect();
        assert_eq!(ratios(&samples, 2), [1.0, 0.45]);
        assert_eq!(ratios(&samples[..5], 2), [0.0; 0]);
    }
}
