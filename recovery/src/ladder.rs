//! The ladder: which recovery strategy a fault gets.
//!
//! A pure state machine: it is told about faults and about progress, knows no guest and takes the time as an
//! argument. Each kind of origin has a strictly ascending list of rungs. A fault starts at the first rung;
//! when it repeats at the same site of the same thread with nothing committed in between, that rung did not
//! help, and the next one is tried. Past the last rung is [`Rung::GiveUp`].
//!
//! A rung that is not there at the moment (no connection to reset, no image to restart from) is left out: the
//! caller says which are.
//!
//! Limits make every climb end, whatever the guest does: a thread may fault at [`SITES_LIMIT`] different sites
//! without progress, and the process may fault [`Ladder::storm_limit`] times in one second without any commit;
//! both lead to a restart. A process is restarted [`Ladder::restart_limit`] times in a minute.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::time::{Duration, Instant};

use crate::origin::OriginKind;

/// How many different sites of one thread may fault before that thread commits something.
pub const SITES_LIMIT: usize = 16;

/// Default of [`Ladder::storm_limit`]: far above what recoverable faults reach, so that only a loop hits it.
pub const DEFAULT_STORM_LIMIT: u32 = 10_000;

/// The period over which the storm limit counts.
const STORM_PERIOD: Duration = Duration::from_secs(1);

/// Default of [`Ladder::restart_limit`].
pub const DEFAULT_RESTART_LIMIT: u32 = 3;

/// The period over which restarts are counted.
const RESTART_PERIOD: Duration = Duration::from_secs(60);

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
    /// Give the whole process back the state that it had when it began to serve.
    Restart,
    /// Write the report and end the process as the signal would have.
    GiveUp(GiveUpReason),
}

impl Rung {
    /// The name used in events and statistics.
    pub fn name(self) -> &'static str {
        match self {
            Self::Rerun => "rerun",
            Self::Abandon => "abandon",
            Self::Handoff => "handoff",
            Self::ResetDelivered => "reset-delivered",
            Self::Restart => "restart",
            Self::GiveUp(_) => "give-up",
        }
    }
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
    /// The process has been restarted as often as it may be in one minute.
    Restarts {
        /// The limit.
        limit: u32,
    },
}

impl fmt::Display for GiveUpReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Repeated { rip } => {
                write!(f, "nothing lesser helps with the fault at {rip:#x}")
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
            Self::Restarts { limit } => {
                write!(f, "it was restarted {limit} times in one minute")
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

/// A site that faulted since its thread last made progress.
#[derive(Debug)]
struct Tried {
    rip: u64,
    origin: OriginKind,
    /// Index of the rung that comes next.
    next: usize,
}

/// The state of the ladder of one guest process.
#[derive(Debug)]
pub struct Ladder {
    storm_limit: u32,
    restart_limit: u32,
    /// When the process was restarted, within the last period.
    restarts: VecDeque<Instant>,
    /// By thread; a thread that makes progress has no entry.
    tried: HashMap<i32, Vec<Tried>>,
    /// Start of the current storm period, and the faults in it since the last progress of any thread.
    storm_start: Option<Instant>,
    storm_faults: u32,
}

impl Default for Ladder {
    fn default() -> Self {
        Self::new(DEFAULT_STORM_LIMIT, DEFAULT_RESTART_LIMIT)
    }
}

impl Ladder {
    /// A ladder that calls more than `storm_limit` faults in one second without a commit a storm, and
    /// restarts the process at most `restart_limit` times in a minute.
    pub fn new(storm_limit: u32, restart_limit: u32) -> Self {
        Self {
            storm_limit,
            restart_limit,
            restarts: VecDeque::new(),
            tried: HashMap::new(),
            storm_start: None,
            storm_faults: 0,
        }
    }

    /// The storm limit, in faults per second.
    pub fn storm_limit(&self) -> u32 {
        self.storm_limit
    }

    /// How often the process may be restarted in one minute.
    pub fn restart_limit(&self) -> u32 {
        self.restart_limit
    }

    /// A domain faulted at `site`: the next rung of those for which `available` is true.
    pub fn next(
        &mut self,
        site: FaultSite,
        now: Instant,
        available: impl Fn(Rung) -> bool,
    ) -> Rung {
        let rung = match (self.count_storm(now), self.tried_at(site)) {
            (true, _) => Err(GiveUpReason::Storm {
                limit: self.storm_limit,
            }),
            (false, None) => Err(GiveUpReason::NoProgress { sites: SITES_LIMIT }),
            (false, Some(tried)) => {
                let rungs = rungs(site.origin);
                let left = rungs.iter().enumerate().skip(tried.next);
                match left.into_iter().find(|(_, rung)| available(**rung)) {
                    Some((at, rung)) => {
                        tried.next = at + 1;
                        Ok(*rung)
                    }
                    None => Err(GiveUpReason::Repeated { rip: site.rip }),
                }
            }
        };
        match rung {
            Ok(Rung::Restart) => self.restart(now),
            // No thread gets anywhere: only a restart can help all of them.
            Err(GiveUpReason::Storm { .. } | GiveUpReason::NoProgress { .. })
                if available(Rung::Restart) =>
            {
                self.restart(now)
            }
            Ok(rung) => rung,
            Err(reason) => Rung::GiveUp(reason),
        }
    }

    /// What was tried at `site`; none if its thread has faulted at too many others.
    fn tried_at(&mut self, site: FaultSite) -> Option<&mut Tried> {
        let tried = self.tried.entry(site.thread).or_default();
        let known = tried
            .iter()
            .position(|t| t.rip == site.rip && t.origin == site.origin);
        match known {
            Some(index) => tried.get_mut(index),
            None if tried.len() < SITES_LIMIT => {
                tried.push(Tried {
                    rip: site.rip,
                    origin: site.origin,
                    next: 0,
                });
                tried.last_mut()
            }
            None => None,
        }
    }

    /// A restart, unless there were too many.
    fn restart(&mut self, now: Instant) -> Rung {
        let is_old = |at: &Instant| now.saturating_duration_since(*at) >= RESTART_PERIOD;
        while self.restarts.front().is_some_and(is_old) {
            self.restarts.pop_front();
        }
        if self.restarts.len() >= self.restart_limit as usize {
            return Rung::GiveUp(GiveUpReason::Restarts {
                limit: self.restart_limit,
            });
        }
        self.restarts.push_back(now);
        self.storm_faults = 0;
        Rung::Restart
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
        OriginKind::Stream | OriginKind::Accept | OriginKind::Datagram => {
            &[Rung::Abandon, Rung::ResetDelivered, Rung::Restart]
        }
        OriginKind::Internal | OriginKind::Handoff => &[
            Rung::Rerun,
            Rung::Handoff,
            Rung::ResetDelivered,
            Rung::Restart,
        ],
        OriginKind::Timer => &[Rung::Rerun, Rung::Handoff, Rung::Restart],
    }
}

#[cfg(test)]
mod tests;
