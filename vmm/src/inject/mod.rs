//! Fault injection: which requests are to be struck, and with what. `process/strike.rs` does it to the guest.
//!
//! Injections are given on the command line or at run time (`control/`). All choices come from their seeds, in
//! the order of the requests.

mod routines;
mod spec;
pub mod target;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use recovery::OriginKind;
use serde::Serialize;
use thiserror::Error;

pub use routines::{Routines, with_routines};
pub use spec::{BadSpec, Corruption, Memory, Point, Spec, What, Wild};

use crate::rng::Rng;

/// Injections that there may be at the same time.
const PLANS_MAX: usize = 1024;

/// There are too many injections.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("there are {PLANS_MAX} injections already; `clear` takes them away")]
pub struct TooMany;

/// The injections of a process.
pub struct Injector {
    /// The code that endless requests execute.
    pub routines: Routines,
    plans: Mutex<Plans>,
    /// Whether there are any, for those who have no time to look.
    active: AtomicBool,
}

#[derive(Default)]
struct Plans {
    last: u64,
    plans: Vec<Plan>,
}

struct Plan {
    id: u64,
    spec: Spec,
    rng: Rng,
    /// A request that it waits for has been there, and what comes after it is to be struck.
    prepared: bool,
    /// Its time has come.
    due: bool,
    counts: Counts,
}

/// What came of an injection so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Counts {
    /// Requests that could be it: that matched, if there is something to match.
    pub matched: u64,
    /// Requests that were chosen.
    pub chosen: u64,
    /// Requests that were struck.
    pub struck: u64,
    /// Requests that were chosen and ended without passing a place to strike them at.
    pub missed: u64,
}

/// An injection and what came of it so far.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Status {
    /// Its number.
    pub id: u64,
    /// What it is.
    pub spec: String,
    /// What came of it.
    #[serde(flatten)]
    pub counts: Counts,
}

/// A request that is to be struck.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Armed {
    /// The injection.
    pub id: u64,
    /// What is done.
    pub what: What,
    /// Where in the request.
    pub point: Point,
    /// Where all further choices come from.
    pub seed: u64,
}

impl Injector {
    /// An injector with these injections.
    pub fn new(routines: Routines, specs: impl IntoIterator<Item = Spec>) -> Injector {
        let injector = Injector {
            routines,
            plans: Mutex::default(),
            active: AtomicBool::new(false),
        };
        for spec in specs {
            // The command line cannot carry so many.
            let _ = injector.add(spec);
        }
        injector
    }

    /// The same injections for a forked child, which counts its own requests from the first.
    pub fn for_child(&self) -> Injector {
        let plans = self.plans();
        let specs = plans.plans.iter().map(|plan| plan.spec.clone());
        Injector::new(self.routines, specs)
    }

    fn plans(&self) -> MutexGuard<'_, Plans> {
        self.plans.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is anything to inject.
    pub fn is_active(&self) -> bool {
        self.active.load(Ordering::Acquire)
    }

    /// Adds an injection; its number.
    pub fn add(&self, spec: Spec) -> Result<u64, TooMany> {
        let mut plans = self.plans();
        if plans.plans.len() >= PLANS_MAX {
            return Err(TooMany);
        }
        plans.last += 1;
        let id = plans.last;
        plans.plans.push(Plan {
            id,
            rng: Rng::new(spec.seed, 0),
            spec,
            prepared: false,
            due: false,
            counts: Counts::default(),
        });
        self.active.store(true, Ordering::Release);
        Ok(id)
    }

    /// Takes an injection away, or all; how many there were.
    pub fn clear(&self, id: Option<u64>) -> usize {
        let mut plans = self.plans();
        let before = plans.plans.len();
        plans
            .plans
            .retain(|plan| id.is_some_and(|id| plan.id != id));
        self.active
            .store(!plans.plans.is_empty(), Ordering::Release);
        before - plans.plans.len()
    }

    /// All injections.
    pub fn status(&self) -> Vec<Status> {
        let status = |plan: &Plan| Status {
            id: plan.id,
            spec: plan.spec.to_string(),
            counts: plan.counts,
        };
        self.plans().plans.iter().map(status).collect()
    }

    /// The injection, if any, for a domain with this origin and input, of which `known` bytes have been looked at
    /// before, if it has been.
    pub fn choose(&self, origin: OriginKind, input: &[u8], known: Option<usize>) -> Option<Armed> {
        let mut plans = self.plans();
        let mut plans = plans.plans.iter_mut();
        plans.find_map(|plan| plan.choose(origin, input, known))
    }

    /// Likewise, for a domain that has been looked at already, of those injections whose time has come.
    pub fn choose_due(&self, origin: OriginKind, input: &[u8]) -> Option<Armed> {
        let mut plans = self.plans();
        let mut due = plans.plans.iter_mut().filter(|plan| plan.due);
        due.find_map(|plan| plan.choose(origin, input, None))
    }

    /// Whether the armed request may be struck now: it has not been taken away, and it is not too often.
    pub fn strikes(&self, armed: &Armed) -> bool {
        let mut plans = self.plans();
        let Some(plan) = plans.plans.iter_mut().find(|plan| plan.id == armed.id) else {
            return false;
        };
        let strikes = !plan.is_used_up();
        plan.counts.struck += u64::from(strikes);
        strikes
    }

    /// An armed request has ended, or found nothing to strike.
    pub fn missed(&self, armed: &Armed) {
        let mut plans = self.plans();
        if let Some(plan) = plans.plans.iter_mut().find(|plan| plan.id == armed.id) {
            plan.counts.missed += 1;
        }
    }

    /// It has struck nothing after all.
    pub fn take_back(&self, armed: &Armed) {
        let mut plans = self.plans();
        if let Some(plan) = plans.plans.iter_mut().find(|plan| plan.id == armed.id) {
            plan.counts.struck = plan.counts.struck.saturating_sub(1);
            plan.counts.missed += 1;
        }
    }

    /// The time that an injection waits for.
    pub fn time(&self, id: u64) -> Option<Duration> {
        let plans = self.plans();
        let plan = plans.plans.iter().find(|plan| plan.id == id)?;
        match plan.spec.point {
            Point::Time(time) if !plan.due => Some(time),
            _ => None,
        }
    }

    /// The time of an injection has come.
    pub fn set_due(&self, id: u64) {
        let mut plans = self.plans();
        if let Some(plan) = plans.plans.iter_mut().find(|plan| plan.id == id) {
            plan.due = true;
        }
    }
}

impl Plan {
    fn is_used_up(&self) -> bool {
        self.spec
            .times
            .is_some_and(|times| self.counts.struck >= times)
    }

    fn choose(&mut self, origin: OriginKind, input: &[u8], known: Option<usize>) -> Option<Armed> {
        if self.is_used_up() {
            return None;
        }
        let who = &self.spec.who;
        let is_client = !matches!(origin, OriginKind::Internal | OriginKind::Timer);
        let matches = |input| is_client && contains(input, &who.matching);
        let known = known.and_then(|known| input.get(..known));
        let matches = matches(input) && !known.is_some_and(matches);
        let chosen = match who.origin {
            Some(wanted) => {
                let prepared = self.prepared;
                self.prepared |= matches;
                prepared && origin == wanted
            }
            None if matches && self.is_timely() => {
                self.counts.matched += 1;
                let drawn = who.probability.is_none_or(|p| self.rng.chance(p));
                drawn && who.nth.is_none_or(|nth| self.counts.matched == nth)
            }
            None => false,
        };
        chosen.then(|| {
            self.counts.chosen += 1;
            Armed {
                id: self.id,
                what: self.spec.what,
                point: self.spec.point.clone(),
                seed: self.rng.number(),
            }
        })
    }

    fn is_timely(&self) -> bool {
        self.due || !matches!(self.spec.point, Point::Time(_))
    }
}

/// Whether `part` is somewhere in `whole`; nothing is everywhere.
fn contains(whole: &[u8], part: &[u8]) -> bool {
    part.is_empty() || whole.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests {
    use super::*;
    use OriginKind::{Internal, Stream, Timer};

    fn injector(specs: &[&str]) -> Injector {
        let specs = specs.iter().map(|spec| spec.parse().unwrap());
        Injector::new(Routines::at(0x1000), specs)
    }

    fn strikes(injector: &Injector, origin: OriginKind, input: &[u8]) -> bool {
        let armed = injector.choose(origin, input, None);
        armed.is_some_and(|armed| injector.strikes(&armed))
    }

    #[test]
    fn the_nth_of_the_matching_requests_is_struck_once() {
        let injector = injector(&["abort:match=boom,nth=2"]);
        let struck: Vec<bool> = [&b"boom"[..], b"tick", b"a boom", b"boom"]
            .iter()
            .map(|input| strikes(&injector, Stream, input))
            .collect();
        assert_eq!(struck, [false, false, true, false]);
        assert_eq!(injector.status()[0].counts.struck, 1);
    }

    #[test]
    fn a_request_in_pieces_counts_once() {
        let injector = injector(&["abort:match=ab,nth=2"]);
        let choose = |input: &[u8], known| injector.choose(Stream, input, known).is_some();
        assert!(!choose(b"a", None) && !choose(b"ab", Some(1)) && !choose(b"abc", Some(2)));
        assert!(choose(b"ab", None));
    }

    #[test]
    fn a_probability_is_about_kept_and_follows_from_the_seed() {
        let run = |seed: u64| -> Vec<bool> {
            let injector = injector(&[&format!("abort:probability=0.1,seed={seed}")]);
            (0..2000)
                .map(|_| strikes(&injector, Stream, b"x"))
                .collect()
        };
        let count = run(1).iter().filter(|struck| **struck).count();
        assert!((140..=260).contains(&count), "{count}");
        assert_eq!(run(1), run(1));
        assert_ne!(run(1), run(2));
    }

    #[test]
    fn work_of_another_origin_is_struck_after_the_request_and_so_many_times() {
        let injector = injector(&["rip:match=boom,origin=timer,times=2"]);
        assert!(!strikes(&injector, Timer, b""));
        assert!(!strikes(&injector, Stream, b"boom"));
        assert!(!strikes(&injector, Internal, b""));
        for expected in [true, true, false] {
            assert_eq!(strikes(&injector, Timer, b""), expected);
        }
    }

    #[test]
    fn a_time_strikes_whoever_comes_then() {
        let injector = injector(&["rip:at=1s"]);
        assert!(!strikes(&injector, Stream, b"x"));
        assert_eq!(injector.time(1), Some(Duration::from_secs(1)));
        assert_eq!(injector.choose_due(Stream, b"x"), None);
        injector.set_due(1);
        assert_eq!(injector.time(1), None);
        assert!(injector.choose_due(Stream, b"x").is_some());
        assert!(strikes(&injector, Stream, b"x") && !strikes(&injector, Stream, b"x"));
    }

    #[test]
    fn what_was_taken_away_strikes_no_more() {
        let injector = injector(&["abort:match=a", "abort:match=b"]);
        let armed = injector.choose(Stream, b"a", None).unwrap();
        assert_eq!(injector.clear(Some(armed.id)), 1);
        assert!(!injector.strikes(&armed) && injector.is_active());
        assert_eq!(injector.clear(None), 1);
        assert!(!injector.is_active());
        for _ in 0..PLANS_MAX {
            injector.add("abort:nth=1".parse().unwrap()).unwrap();
        }
        assert_eq!(injector.add("abort:nth=1".parse().unwrap()), Err(TooMany));
    }
}
