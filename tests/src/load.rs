//! Healthy load: clients that each keep a model of what they stored and check every reply against
//! it, while something else crashes the server. Any surprise, a closed connection included, is a
//! problem of the monitor.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use crate::net::Address;

/// What a healthy client saw that it should not have seen.
pub type Surprise = Box<dyn std::error::Error + Send + Sync>;

/// A client that uses the server and knows what every reply must be.
pub trait HealthyClient: Sized + Send {
    /// Connects as the client number `ident`, whose keys no other client uses.
    fn connect(address: &Address, ident: usize, patience: Duration) -> Result<Self, Surprise>;

    /// Sends one request and checks its reply.
    fn step(&mut self, random: &mut Random) -> Result<(), Surprise>;

    /// Checks everything the client has stored.
    fn check_all(&mut self) -> Result<(), Surprise>;
}

/// Healthy clients at work, each in a thread of its own.
#[derive(Debug)]
pub struct Load {
    stop: Arc<AtomicBool>,
    problems: Arc<Mutex<Vec<String>>>,
    threads: Vec<JoinHandle<Tally>>,
}

/// What the healthy clients did and saw.
#[derive(Clone, Debug, Default)]
pub struct LoadOutcome {
    /// Requests answered as the models said.
    pub requests: u64,
    /// The slowest of them: it bounds the pause that a healthy client noticed.
    pub slowest: Duration,
    /// One line for each client that was surprised.
    pub problems: Vec<String>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    requests: u64,
    slowest: Duration,
}

impl Load {
    /// Connects `clients` healthy clients to the server at `address` and sets them to work. A reply
    /// that takes longer than `patience` is a problem.
    pub fn start<C: HealthyClient + 'static>(
        address: impl Into<Address>,
        clients: usize,
        patience: Duration,
    ) -> Self {
        let address = address.into();
        let stop = Arc::new(AtomicBool::new(false));
        let problems = Arc::new(Mutex::new(Vec::new()));
        let threads = (0..clients)
            .map(|ident| {
                let (stop, problems) = (Arc::clone(&stop), Arc::clone(&problems));
                let address = address.clone();
                thread::spawn(move || {
                    let mut tally = Tally::default();
                    if let Err(surprise) = work::<C>(&address, ident, patience, &stop, &mut tally) {
                        let problem = format!("healthy client {ident}: {surprise}");
                        problems
                            .lock()
                            .unwrap_or_else(PoisonError::into_inner)
                            .push(problem);
                    }
                    tally
                })
            })
            .collect();
        Self {
            stop,
            problems,
            threads,
        }
    }

    /// Whether no client has been surprised yet.
    pub fn is_well(&self) -> bool {
        self.problems
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .is_empty()
    }

    /// Stops the clients, after each has checked everything it stored.
    pub fn finish(self) -> LoadOutcome {
        self.stop.store(true, Ordering::Relaxed);
        let mut outcome = LoadOutcome::default();
        for thread in self.threads {
            match thread.join() {
                Ok(tally) => {
                    outcome.requests += tally.requests;
                    outcome.slowest = outcome.slowest.max(tally.slowest);
                }
                Err(_) => outcome
                    .problems
                    .push("a healthy client panicked".to_owned()),
            }
        }
        let mut problems = self.problems.lock().unwrap_or_else(PoisonError::into_inner);
        outcome.problems.append(&mut problems);
        outcome
    }
}

fn work<C: HealthyClient>(
    address: &Address,
    ident: usize,
    patience: Duration,
    stop: &AtomicBool,
    tally: &mut Tally,
) -> Result<(), Surprise> {
    let mut client = C::connect(address, ident, patience)?;
    let mut random = Random::new(ident as u64);
    while !stop.load(Ordering::Relaxed) {
        let begin = Instant::now();
        client.step(&mut random)?;
        tally.slowest = tally.slowest.max(begin.elapsed());
        tally.requests += 1;
    }
    client.check_all()
}

/// A small deterministic generator (SplitMix64): a failing run can be repeated.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// The sequence that belongs to `seed`.
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// A number in `0..bound`; 0 if `bound` is 0.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next().checked_rem(bound).unwrap_or(0)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Scripted {
        steps_left: u32,
    }

    impl HealthyClient for Scripted {
        fn connect(_: &Address, ident: usize, _: Duration) -> Result<Self, Surprise> {
            Ok(Self {
                steps_left: if ident == 1 { 3 } else { u32::MAX },
            })
        }

        fn step(&mut self, _: &mut Random) -> Result<(), Surprise> {
            self.steps_left = self
                .steps_left
                .checked_sub(1)
                .ok_or("closed by the server")?;
            thread::yield_now();
            Ok(())
        }

        fn check_all(&mut self) -> Result<(), Surprise> {
            Ok(())
        }
    }

    #[test]
    fn a_surprised_client_is_a_problem_and_the_others_go_on() {
        let load = Load::start::<Scripted>(0u16, 3, Duration::from_secs(1));
        while load.is_well() {
            thread::yield_now();
        }
        let outcome = load.finish();
        assert_eq!(outcome.problems, ["healthy client 1: closed by the server"]);
        assert!(outcome.requests >= 3);
    }

    #[test]
    fn random_numbers_stay_below_their_bound() {
        let mut random = Random::new(7);
        assert!((0..1000).all(|_| random.below(10) < 10));
        assert_eq!(random.below(0), 0);
    }
}
