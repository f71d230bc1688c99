//! The ladder: which recovery strategy a fault gets.
//!
//! A pure state machine: it is told about faults and about progress, knows no guest and takes the time as an
//! argument. Each kind of origin has a strictly ascending list of rungs. A fault starts at the first rung;
//! when it repeats at the same site of the same thread with nothing committed in between, that rung did not
//! help, and the next one is tried. Past the last rung is [`Rung::GiveUp`].
//!
//! Two limits make every climb end, whatever the guest does: a thread may fault at [`SITES_LIMIT`] different
//! sites without progress, and the process may fault [`Ladder::storm_limit`] times in one second without any
//! commit.

use std::collections::HashMap;
use std::fmt;
use std::time::{Duration, Instant};

use crate::origin::OriginKind;

/// How many different sites of one thread may fault before that thread commits something.
pub const SITES_LIMIT: usize = 16;

/// Default of [`Ladder::storm_limit`]: far above what recoverable faults reach, so that only a loop hits it.
pub const DEFAULT_STORM_LIMIT: u32 = 10_000;

/// The period over which the storm limit counts.
const STORM_PERIOD: Duration = Duration::from_secs(1);

/// A recovery strategy, in ascending order of what it costs the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rung {
    /// Undo the domain and run it again with the same results delivered.
    Rerun,
    /// Undo the domain and complete its origin with an error: connection reset, packet dropped.
    Abandon,
    /// Undo the domain and run it again without the call that faulted, at the expense of the connection whose
    /// bytes led to it. Where no connection is found, the next rung is to be tried at once.
    Handoff,
    /// Undo the domain, reset every connection that was delivered in the wake-up it began with, and run it
    /// again.
    ResetDelivered,
    /// Write the report and end the process as the signal would have.
    GiveUp(GiveUpReason),
}

/// Why there is no rung left.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum GiveUpReason {
    /// The same site faulted again right after the last rung that its origin has.
    Repeated {
        /// The instruction pointer of the site.
        rip: u64,
    },
    /// The thread faulted at this many different sites without committing anything.
    NoProgress {
        /// How many sites.
        sites: usize,
    },
    /// More faults than the storm limit in one second, and nothing committed in between.
    Storm {
        /// The limit that was exceeded.
        limit: u32,
    },
}

impl fmt::Display for GiveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeated { rip } => {
                write!(
                    f,
                    "the fault at {rip:#x} repeated right after it was recovered"
                )
            }
            Self::NoProgress { sites } => {
                write!(
                    f,
                    "the thread faulted at {sites} sites without completing anything"
                )
            }
            Self::Storm { limit } => {
                write!(
                    f,
                    "more than {limit} faults in one second without a completed request"
                )
            }
        }
    }
}

/// Where a fault happened, as far as the ladder tells faults apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FaultSite {
    /// The guest thread (TID).
    pub thread: i32,
    /// The faulting instruction.
    pub rip: u64,
    /// What the domain was charged to.
    pub origin: OriginKind,
}

/// A site that faulted since its thread last made progress, and how often.
#[derive(Debug)]
struct Tried {
    rip: u64,
    origin: OriginKind,
    faults: usize,
}

/// The state of the ladder of one guest process.
#[derive(Debug)]
pub struct Ladder {
    storm_limit: u32,
    /// By thread; a thread that makes progress has no entry.
    tried: HashMap<i32, Vec<Tried>>,
    /// Start of the current storm period, and the faults in it since the last progress of any thread.
    storm_start: Option<Instant>,
    storm_faults: u32,
}

impl Default for Ladder {
    fn default() -> Self {
        Self::new(DEFAULT_STORM_LIMIT)
    }
}

impl Ladder {
    /// A ladder that gives up past `storm_limit` faults in one second without a commit.
    pub fn new(storm_limit: u32) -> Self {
        Self {
            storm_limit,
            tried: HashMap::new(),
            storm_start: None,
            storm_faults: 0,
        }
    }

    /// The storm limit, in faults per second.
    pub fn storm_limit(&self) -> u32 {
        self.storm_limit
    }

    /// A domain faulted at `site`: what to do about it.
    pub fn next(&mut self, site: FaultSite, now: Instant) -> Rung {
        if self.count_storm(now) {
            return Rung::GiveUp(GiveUpReason::Storm {
                limit: self.storm_limit,
            });
        }
        let tried = self.tried.entry(site.thread).or_default();
        let known = tried
            .iter()
            .position(|t| t.rip == site.rip && t.origin == site.origin);
        let index = match known {
            Some(index) => index,
            None if tried.len() < SITES_LIMIT => {
                tried.push(Tried {
                    rip: site.rip,
                    origin: site.origin,
                    faults: 0,
                });
                tried.len() - 1
            }
            None => return Rung::GiveUp(GiveUpReason::NoProgress { sites: SITES_LIMIT }),
        };
        let faults = &mut tried[index].faults;
        let rung = rungs(site.origin).get(*faults).copied();
        *faults = faults.saturating_add(1);
        rung.unwrap_or(Rung::GiveUp(GiveUpReason::Repeated { rip: site.rip }))
    }

    /// A domain of `thread` was committed: its next fault starts at the first rung again.
    ///
    /// What a thread runs after an abandon (the server's disconnect path) counts when it ends well.
    pub fn progress(&mut self, thread: i32) {
        self.storm_faults = 0;
        if !self.tried.is_empty() {
            self.tried.remove(&thread);
        }
    }

    /// `thread` has ended: forget it, since the kernel may use its TID again.
    pub fn thread_ended(&mut self, thread: i32) {
        self.tried.remove(&thread);
    }

    /// Counts a fault; true when that makes a storm.
    fn count_storm(&mut self, now: Instant) -> bool {
        let same_period = self
            .storm_start
            .is_some_and(|start| now.saturating_duration_since(start) < STORM_PERIOD);
        if !same_period {
            self.storm_start = Some(now);
            self.storm_faults = 0;
        }
        self.storm_faults = self.storm_faults.saturating_add(1);
        self.storm_faults > self.storm_limit
    }
}

/// The rungs that exist for an origin, in ascending order; giving up comes after the last.
///
/// Internal work and timers have no client to whom a failure could be reported, unless they were handed
/// over by one, so they cannot be abandoned as a whole.
fn rungs(origin: OriginKind) -> &'static [Rung] {
    match origin {
        OriginKind::Stream | OriginKind::Accept | OriginKind::Datagram => &[Rung::Abandon],
        OriginKind::Internal | OriginKind::Handoff => {
            &[Rung::Rerun, Rung::Handoff, Rung::ResetDelivered]
        }
        OriginKind::Timer => &[Rung::Rerun, Rung::Handoff],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn site(thread: i32, rip: u64, origin: OriginKind) -> FaultSite {
        FaultSite {
            thread,
            rip,
            origin,
        }
    }

    /// Rungs of the kind of origin that has most.
    const LONGEST_CLIMB: usize = 3;

    const KINDS: [OriginKind; 6] = [
        OriginKind::Stream,
        OriginKind::Accept,
        OriginKind::Datagram,
        OriginKind::Handoff,
        OriginKind::Internal,
        OriginKind::Timer,
    ];

    #[test]
    fn rungs_ascend_and_end_below_giving_up() {
        let give_up = Rung::GiveUp(GiveUpReason::Repeated { rip: 0 });
        for kind in KINDS {
            assert!(rungs(kind).is_sorted_by(|a, b| a < b));
            assert!(rungs(kind).len() <= LONGEST_CLIMB);
            assert!(rungs(kind).iter().all(|rung| *rung < give_up));
        }
    }

    #[test]
    fn client_origins_are_abandoned_first() {
        let now = Instant::now();
        for kind in [OriginKind::Stream, OriginKind::Accept, OriginKind::Datagram] {
            assert_eq!(
                Ladder::default().next(site(1, 0x10, kind), now),
                Rung::Abandon
            );
        }
    }

    #[test]
    fn the_same_site_right_after_an_abandon_gives_up() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let s = site(1, 0x10, OriginKind::Stream);
        assert_eq!(ladder.next(s, now), Rung::Abandon);
        assert_eq!(
            ladder.next(s, now),
            Rung::GiveUp(GiveUpReason::Repeated { rip: 0x10 })
        );
        assert_eq!(
            ladder.next(s, now),
            Rung::GiveUp(GiveUpReason::Repeated { rip: 0x10 })
        );
    }

    #[test]
    fn internal_work_is_run_again_once() {
        let now = Instant::now();
        for kind in [OriginKind::Internal, OriginKind::Timer] {
            let mut ladder = Ladder::default();
            assert_eq!(ladder.next(site(1, 0x10, kind), now), Rung::Rerun);
            assert_eq!(ladder.next(site(1, 0x10, kind), now), Rung::Handoff);
            if kind == OriginKind::Internal {
                let rung = ladder.next(site(1, 0x10, kind), now);
                assert_eq!(rung, Rung::ResetDelivered);
            }
            assert!(matches!(
                ladder.next(site(1, 0x10, kind), now),
                Rung::GiveUp(_)
            ));
        }
    }

    #[test]
    fn progress_starts_over() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let s = site(1, 0x10, OriginKind::Stream);
        for _ in 0..3 {
            assert_eq!(ladder.next(s, now), Rung::Abandon);
            ladder.progress(1);
        }
    }

    #[test]
    fn progress_of_another_thread_does_not_excuse_a_repeat() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let s = site(1, 0x10, OriginKind::Stream);
        assert_eq!(ladder.next(s, now), Rung::Abandon);
        ladder.progress(2);
        assert!(matches!(ladder.next(s, now), Rung::GiveUp(_)));
    }

    #[test]
    fn thread_site_and_origin_tell_faults_apart() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        assert_eq!(
            ladder.next(site(1, 0x10, OriginKind::Stream), now),
            Rung::Abandon
        );
        assert_eq!(
            ladder.next(site(2, 0x10, OriginKind::Stream), now),
            Rung::Abandon
        );
        assert_eq!(
            ladder.next(site(1, 0x20, OriginKind::Stream), now),
            Rung::Abandon
        );
        assert_eq!(
            ladder.next(site(1, 0x10, OriginKind::Timer), now),
            Rung::Rerun
        );
    }

    #[test]
    fn alternating_sites_are_repeats_too() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        assert_eq!(
            ladder.next(site(1, 0x10, OriginKind::Stream), now),
            Rung::Abandon
        );
        assert_eq!(
            ladder.next(site(1, 0x20, OriginKind::Stream), now),
            Rung::Abandon
        );
        assert!(matches!(
            ladder.next(site(1, 0x10, OriginKind::Stream), now),
            Rung::GiveUp(_)
        ));
    }

    #[test]
    fn ever_new_sites_without_progress_give_up() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        for rip in 0..SITES_LIMIT as u64 {
            assert_eq!(
                ladder.next(site(1, rip, OriginKind::Stream), now),
                Rung::Abandon
            );
        }
        assert_eq!(
            ladder.next(site(1, 0x1000, OriginKind::Stream), now),
            Rung::GiveUp(GiveUpReason::NoProgress { sites: SITES_LIMIT })
        );
    }

    #[test]
    fn a_storm_over_many_threads_gives_up_and_a_quiet_second_ends_it() {
        let now = Instant::now();
        let mut ladder = Ladder::new(3);
        for thread in 0..3 {
            assert_eq!(
                ladder.next(site(thread, 0x10, OriginKind::Stream), now),
                Rung::Abandon
            );
        }
        let storm = Rung::GiveUp(GiveUpReason::Storm { limit: 3 });
        assert_eq!(ladder.next(site(3, 0x10, OriginKind::Stream), now), storm);
        let later = now + STORM_PERIOD;
        assert_eq!(
            ladder.next(site(4, 0x10, OriginKind::Stream), later),
            Rung::Abandon
        );
    }

    #[test]
    fn progress_of_any_thread_ends_a_storm() {
        let now = Instant::now();
        let mut ladder = Ladder::new(3);
        for thread in 0..100 {
            assert_eq!(
                ladder.next(site(thread, 0x10, OriginKind::Stream), now),
                Rung::Abandon
            );
            ladder.progress(1000);
        }
    }

    #[test]
    fn a_reused_tid_starts_over() {
        let now = Instant::now();
        let mut ladder = Ladder::default();
        let s = site(1, 0x10, OriginKind::Stream);
        assert_eq!(ladder.next(s, now), Rung::Abandon);
        ladder.thread_ended(1);
        assert_eq!(ladder.next(s, now), Rung::Abandon);
        ladder.thread_ended(1);
        assert!(ladder.tried.is_empty());
    }

    proptest! {
        /// Without progress, a thread is given up after a bounded number of faults.
        #[test]
        fn every_climb_ends(faults in prop::collection::vec((0u64..64, 0usize..6), 200)) {
            let now = Instant::now();
            let mut ladder = Ladder::default();
            let helped = faults
                .iter()
                .filter(|(rip, kind)| {
                    !matches!(ladder.next(site(1, *rip, KINDS[*kind]), now), Rung::GiveUp(_))
                })
                .count();
            prop_assert!(helped <= SITES_LIMIT * LONGEST_CLIMB);
        }
    }
}
