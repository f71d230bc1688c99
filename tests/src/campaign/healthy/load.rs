//! Healthy clients at work, each in a thread of its own.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::Healthy;
use crate::{
    campaign::{target::Keys, trial::Failure},
    load::Random,
    oracle::{History, Log, Recorder},
};

/// Between two requests of a client: a server that is always busy has no time to be attacked.
const BREATH: Duration = Duration::from_micros(500);
/// After a failure.
const LONG_BREATH: Duration = Duration::from_millis(20);
/// Failures that are kept; more do not say more.
const FAILURES_MAX: usize = 100;

/// The clients.
pub struct Load {
    stop: Arc<AtomicBool>,
    workers: Vec<Worker>,
    failures: Arc<Mutex<Vec<Failure>>>,
    recorder: Recorder,
}

struct Worker {
    done: Arc<AtomicU64>,
    thread: JoinHandle<Left>,
}

/// What a client leaves.
struct Left {
    failures: Vec<Failure>,
    keys: (Vec<String>, Vec<String>),
    log: Option<Log>,
}

/// What the clients leave.
pub struct Finished {
    /// What they saw that they should not have seen, and nobody has taken yet.
    pub failures: Vec<Failure>,
    /// What they have stored.
    pub keys: Keys,
    /// What they did to shared keys.
    pub history: History,
    /// Requests that were answered.
    pub requests: u64,
}

impl Load {
    /// Sets `clients` to work. `recorder` is theirs.
    pub fn start(clients: Vec<Box<dyn Healthy>>, recorder: Recorder) -> Load {
        let stop = Arc::new(AtomicBool::new(false));
        let failures = Arc::new(Mutex::new(Vec::new()));
        let workers = clients
            .into_iter()
            .enumerate()
            .map(|(ident, client)| {
                let done = Arc::new(AtomicU64::new(0));
                let shared = (Arc::clone(&stop), Arc::clone(&done), Arc::clone(&failures));
                Worker {
                    done,
                    thread: thread::spawn(move || {
                        work(client, ident, &shared.0, &shared.1, &shared.2)
                    }),
                }
            })
            .collect();
        Load {
            stop,
            workers,
            failures,
            recorder,
        }
    }

    /// Requests that were answered so far.
    pub fn requests(&self) -> u64 {
        self.workers
            .iter()
            .map(|worker| worker.done.load(Ordering::Relaxed))
            .sum()
    }

    /// Waits until every client has been answered `requests` more times; false if one was not within `limit`.
    pub fn wait(&self, requests: u64, limit: Duration) -> bool {
        let goals: Vec<u64> = self
            .workers
            .iter()
            .map(|worker| worker.done.load(Ordering::Relaxed) + requests)
            .collect();
        let deadline = Instant::now() + limit;
        loop {
            let mut workers = self.workers.iter().zip(&goals);
            if workers.all(|(worker, goal)| worker.done.load(Ordering::Relaxed) >= *goal) {
                return true;
            }
            if Instant::now() > deadline {
                return false;
            }
            thread::sleep(BREATH);
        }
    }

    /// The failures since the last call.
    pub fn take_failures(&self) -> Vec<Failure> {
        std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Ends the clients, after each has checked all that it has stored; the log of the attacks belongs to the same
    /// history.
    pub fn finish(self, attacks: Log) -> Finished {
        self.stop.store(true, Ordering::Relaxed);
        let mut keys = Keys::default();
        let mut logs = vec![attacks];
        let requests = self.requests();
        let mut failures = Vec::new();
        for worker in self.workers {
            // A client that panics has said why, and is an error of the harness.
            let Ok(left) = worker.thread.join() else {
                continue;
            };
            failures.extend(left.failures);
            keys.present.extend(left.keys.0);
            keys.possible.extend(left.keys.1);
            logs.extend(left.log);
        }
        let mut seen =
            std::mem::take(&mut *self.failures.lock().unwrap_or_else(PoisonError::into_inner));
        seen.append(&mut failures);
        Finished {
            failures: seen,
            keys,
            history: self.recorder.merge(logs),
            requests,
        }
    }
}

fn work(
    mut client: Box<dyn Healthy>,
    ident: usize,
    stop: &AtomicBool,
    done: &AtomicU64,
    failures: &Mutex<Vec<Failure>>,
) -> Left {
    let mut random = Random::new(ident as u64);
    while !stop.load(Ordering::Relaxed) {
        match client.step(&mut random) {
            Ok(()) => {
                done.fetch_add(1, Ordering::Relaxed);
                thread::sleep(BREATH);
            }
            Err(failure) => {
                let mut failures = failures.lock().unwrap_or_else(PoisonError::into_inner);
                if failures.len() < FAILURES_MAX {
                    failures.push(failure);
                }
                drop(failures);
                thread::sleep(LONG_BREATH);
            }
        }
    }
    let failures = client.check_all();
    Left {
        failures,
        keys: client.keys(),
        log: client.into_log(),
    }
}
