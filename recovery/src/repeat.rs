//! Which faults are the same bug, and how often each has happened.
//!
//! A request that completed long ago may have left something on which every later reader trips. Each is
//! recovered from; an operator has to see one bug and not a thousand. [`FaultId`] says what makes two faults
//! the same, [`Repeats`] counts them and says which of them deserve a report of their own.

use std::collections::HashMap;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use siphasher::sip::SipHasher13;

use crate::event::{FaultKind, Outcome};
use crate::report::{Frame, ReportId, program_frame};

/// Frames that tell two faults apart at most.
const FRAMES_LIMIT: usize = 16;

/// Bugs that are remembered at most; past it, the one that was quiet for longest is forgotten.
pub const BUGS_LIMIT: usize = 256;

/// Reports in full of one bug and outcome; later faults only count up.
pub const FULL_REPORTS: u32 = 3;

/// Reports in full of a bug of that kind and outcome. Where nothing went wrong in memory, one says it all.
fn full_reports(kind: FaultKind) -> u32 {
    match kind {
        FaultKind::Exit | FaultKind::Timeout | FaultKind::Memory => 1,
        _ => FULL_REPORTS,
    }
}

/// A bug that was quiet for this long is forgotten: when it comes back it is news again.
pub const FORGET_AFTER: Duration = Duration::from_secs(24 * 60 * 60);

/// What two faults of the same bug have in common: the kind, and the place in the program.
///
/// The place is the faulting instruction, relative to its function or file, so that it is the same in every
/// run. Where that lies in a shared library (`strlen` of a null pointer) or in no file at all (a wild jump), the
/// callers up to the first that is in the program itself belong to it. Where the program raised the fault itself (`abort`), the whole chain of callers
/// does: it ends in the same few instructions for every failed assertion. A request that was ended because of what it
/// used (time, memory) was somewhere in a loop: its place is the function of the program that it was in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct FaultId(u64);

impl FaultId {
    /// The bug behind a fault of that kind with that stack, innermost frame first.
    pub fn new(kind: FaultKind, rip: u64, stack: &[Frame]) -> FaultId {
        // Fixed keys: the same bug has the same identifier in every run.
        let mut hasher = SipHasher13::new();
        kind.as_str().hash(&mut hasher);
        let raised = matches!(
            kind,
            FaultKind::Abort | FaultKind::CrashPath | FaultKind::Exit | FaultKind::Signal
        );
        if matches!(kind, FaultKind::Timeout | FaultKind::Memory) {
            let frame = program_frame(stack);
            let module = frame.and_then(|frame| frame.module.as_deref());
            (module, frame.and_then(|frame| frame.symbol.as_deref())).hash(&mut hasher);
            return FaultId(hasher.finish());
        }
        let mut located = false;
        for frame in stack.iter().take(FRAMES_LIMIT) {
            // Where nothing, or no file, is mapped, an address says nothing: somewhere a jump went wild.
            let Some(module) = frame.module.as_deref().filter(|m| m.starts_with('/')) else {
                continue;
            };
            located = true;
            (module, frame.symbol.as_deref(), frame.offset.0).hash(&mut hasher);
            if !raised && !is_library(module) {
                break;
            }
        }
        if !located {
            rip.hash(&mut hasher);
        }
        FaultId(hasher.finish())
    }
}

impl FaultId {
    /// The identifier as a number.
    pub fn number(self) -> u64 {
        self.0
    }
}

/// Faults that one process of a server has told of, for all of them: in memory that they share. All zero is none.
#[derive(Debug)]
#[repr(C)]
pub struct News([AtomicU64; NEWS_LIMIT]);

/// Faults that are remembered as told.
const NEWS_LIMIT: usize = 256;

impl Default for News {
    fn default() -> News {
        News(std::array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl News {
    /// Whether nobody has told of `fault` with that outcome before; it is told now.
    pub fn is_new(&self, fault: FaultId, outcome: Outcome) -> bool {
        let mut hasher = SipHasher13::new();
        (fault.0, outcome).hash(&mut hasher);
        let key = hasher.finish() | 1;
        let start = (key >> 32) as usize;
        let place = |n: usize| &self.0[(start + n) % NEWS_LIMIT];
        for n in 0..NEWS_LIMIT {
            match place(n).compare_exchange(0, key, Ordering::AcqRel, Ordering::Acquire) {
                Ok(_) => return true,
                Err(known) if known == key => return false,
                Err(_) => {}
            }
        }
        // Full: one is forgotten.
        place(0).store(key, Ordering::Release);
        true
    }
}

/// Whether a mapped file is a shared library, by its name: `libc.so.6`.
fn is_library(module: &str) -> bool {
    let name = module.rsplit('/').next().unwrap_or(module);
    name.ends_with(".so") || name.contains(".so.")
}

/// The form used in events and reports: sixteen hexadecimal digits.
impl fmt::Display for FaultId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

/// How much is to be written about a fault.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Detail {
    /// A report in full.
    Full,
    /// Nothing but that it happened again, in the first report of its kind.
    Tally {
        /// That report.
        first: ReportId,
        /// How many faults only counted up so far, this one included.
        more: u64,
    },
}

/// What is known of a fault's bug when it happens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Repeat {
    /// How often it has happened before.
    pub count: u64,
    /// How much is to be written about it.
    pub detail: Detail,
}

/// The reports about the faults of one bug that had the same outcome.
#[derive(Debug, Default)]
struct Reports {
    full: u32,
    first: Option<ReportId>,
    more: u64,
}

#[derive(Debug)]
struct Bug {
    count: u64,
    last: Instant,
    /// By outcome, so that a report never speaks for one that ended otherwise.
    recovered: Reports,
    degraded: Reports,
}

/// The bugs that have shown themselves.
#[derive(Debug, Default)]
pub struct Repeats {
    bugs: HashMap<FaultId, Bug>,
}

impl Repeats {
    /// A fault of the bug `fault`, which is of that kind, happened at `now`, and ended as `outcome` says.
    pub fn note(
        &mut self,
        fault: FaultId,
        kind: FaultKind,
        outcome: Outcome,
        now: Instant,
    ) -> Repeat {
        self.forget_old(fault, now);
        let bug = self.bugs.entry(fault).or_insert_with(|| Bug {
            count: 0,
            last: now,
            recovered: Reports::default(),
            degraded: Reports::default(),
        });
        let count = bug.count;
        bug.count = bug.count.saturating_add(1);
        bug.last = now;
        let detail = match bug.reports(outcome) {
            Some(reports) if reports.full >= full_reports(kind) => match &reports.first {
                Some(first) => {
                    reports.more = reports.more.saturating_add(1);
                    Detail::Tally {
                        first: first.clone(),
                        more: reports.more,
                    }
                }
                None => Detail::Full,
            },
            _ => Detail::Full,
        };
        Repeat { count, detail }
    }

    /// A report in full was saved for the fault that was noted last.
    pub fn saved(&mut self, fault: FaultId, outcome: Outcome, report: &ReportId) {
        if let Some(reports) = self.reports(fault, outcome) {
            reports.full = reports.full.saturating_add(1);
            reports.first.get_or_insert_with(|| report.clone());
        }
    }

    /// The first report is gone (retention has removed it): the next ones are written in full again.
    pub fn lost(&mut self, fault: FaultId, outcome: Outcome) {
        if let Some(reports) = self.reports(fault, outcome) {
            *reports = Reports::default();
        }
    }

    fn reports(&mut self, fault: FaultId, outcome: Outcome) -> Option<&mut Reports> {
        self.bugs.get_mut(&fault)?.reports(outcome)
    }

    /// Makes room for `fault`, if it is new.
    fn forget_old(&mut self, fault: FaultId, now: Instant) {
        let is_old = |bug: &Bug| now.saturating_duration_since(bug.last) >= FORGET_AFTER;
        match self.bugs.get(&fault) {
            Some(bug) if is_old(bug) => drop(self.bugs.remove(&fault)),
            Some(_) => return,
            None => {}
        }
        if self.bugs.len() < BUGS_LIMIT {
            return;
        }
        self.bugs.retain(|_, bug| !is_old(bug));
        let quietest = self.bugs.iter().min_by_key(|(_, bug)| bug.last);
        if let Some(id) = quietest.map(|(id, _)| *id)
            && self.bugs.len() >= BUGS_LIMIT
        {
            self.bugs.remove(&id);
        }
    }
}

impl Bug {
    /// An escalated fault ends the server, so each is reported in full.
    fn reports(&mut self, outcome: Outcome) -> Option<&mut Reports> {
        match outcome {
            Outcome::Recovered => Some(&mut self.recovered),
            Outcome::Degraded => Some(&mut self.degraded),
            Outcome::Escalated => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::Hex;
    use proptest::prelude::*;
    use std::time::UNIX_EPOCH;

    fn frame(module: &str, offset: u64) -> Frame {
        Frame {
            address: Hex(0x7000_0000 + offset),
            module: Some(module.into()),
            symbol: None,
            offset: Hex(offset),
            file: None,
            line: None,
        }
    }

    fn id(kind: FaultKind, stack: &[Frame]) -> FaultId {
        FaultId::new(kind, 0, stack)
    }

    #[test]
    fn the_place_in_the_program_makes_a_bug() {
        let direct = |caller| [frame("/bin/server", 1), frame("/bin/server", caller)];
        let kind = FaultKind::NullRead;
        assert_eq!(id(kind, &direct(5)), id(kind, &direct(6)));
        let mut moved = direct(5);
        moved[0].address = Hex(0x9999);
        assert_eq!(
            id(kind, &direct(5)),
            id(kind, &moved),
            "where it is loaded is nothing"
        );
        assert_ne!(id(kind, &direct(5)), id(FaultKind::NullWrite, &direct(5)));
        assert_ne!(
            id(kind, &[frame("/bin/a", 1)]),
            id(kind, &[frame("/bin/a", 2)])
        );
        assert_ne!(
            id(kind, &[frame("/bin/a", 1)]),
            id(kind, &[frame("/bin/b", 1)])
        );
        assert_ne!(FaultId::new(kind, 1, &[]), FaultId::new(kind, 2, &[]));
    }

    #[test]
    fn in_a_library_the_caller_counts_too() {
        let through = |caller| {
            [
                frame("/lib/libc.so.6", 1),
                frame("/bin/server", caller),
                frame("/bin/server", 9),
            ]
        };
        let kind = FaultKind::NullRead;
        assert_ne!(id(kind, &through(5)), id(kind, &through(6)));
        let mut other = through(5);
        other[2] = frame("/bin/server", 10);
        assert_eq!(id(kind, &through(5)), id(kind, &other));
        let wild = |address, caller| {
            let nowhere = Frame {
                module: None,
                ..frame("", address)
            };
            id(FaultKind::Execute, &[nowhere, frame("/bin/server", caller)])
        };
        assert_eq!(wild(0x41, 5), wild(0x42, 5));
        assert_ne!(wild(0x41, 5), wild(0x41, 6));
        // Assertions share their handler, so all callers count.
        assert_ne!(
            id(FaultKind::Abort, &through(5)),
            id(FaultKind::Abort, &other)
        );
    }

    #[test]
    fn a_fault_is_news_once_for_each_outcome() {
        let news = News::default();
        assert!(news.is_new(FaultId(7), Outcome::Recovered));
        assert!(!news.is_new(FaultId(7), Outcome::Recovered));
        assert!(news.is_new(FaultId(7), Outcome::Degraded));
        for n in 0..1000 {
            news.is_new(FaultId(n), Outcome::Degraded);
        }
        assert!(!news.is_new(FaultId(999), Outcome::Degraded));
    }

    #[test]
    fn a_hang_is_its_function_wherever_it_is_found() {
        let at = |function: &str, offset| Frame {
            symbol: Some(function.into()),
            ..frame("/bin/server", offset)
        };
        let through = |function, offset| [frame("/lib/libc.so.6", offset), at(function, 7)];
        let kind = FaultKind::Timeout;
        assert_eq!(id(kind, &[at("spin", 1)]), id(kind, &[at("spin", 2)]));
        assert_eq!(id(kind, &[at("spin", 1)]), id(kind, &through("spin", 9)));
        assert_ne!(id(kind, &[at("spin", 1)]), id(kind, &[at("other", 1)]));
    }

    #[test]
    fn hangs_and_refused_exits_are_reported_once() {
        for kind in [FaultKind::Timeout, FaultKind::Exit] {
            let now = Instant::now();
            let mut repeats = Repeats::default();
            let first = repeats.note(FaultId(1), kind, Outcome::Recovered, now);
            assert_eq!(first.detail, Detail::Full);
            repeats.saved(FaultId(1), Outcome::Recovered, &report(1));
            let second = repeats.note(FaultId(1), kind, Outcome::Recovered, now);
            assert!(matches!(second.detail, Detail::Tally { more: 1, .. }));
        }
    }

    #[test]
    fn the_identifier_is_the_same_in_every_run() {
        let text = id(FaultKind::NullRead, &[frame("/bin/server", 1)]).to_string();
        assert_eq!(text, "03e79ed1f23f231a");
    }

    fn report(n: u64) -> ReportId {
        ReportId::new(UNIX_EPOCH + Duration::from_secs(n))
    }

    /// Notes a fault and saves its report, if it is to have one.
    fn fault(repeats: &mut Repeats, outcome: Outcome, n: u64, now: Instant) -> Repeat {
        let id = FaultId(n);
        let repeat = repeats.note(id, FaultKind::NullRead, outcome, now);
        if repeat.detail == Detail::Full {
            repeats.saved(id, outcome, &report(repeat.count));
        }
        repeat
    }

    #[test]
    fn the_first_few_are_told_in_full() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        for n in 0..1000 {
            let repeat = fault(&mut repeats, Outcome::Recovered, 1, now);
            assert_eq!(repeat.count, n);
            match repeat.detail {
                Detail::Full => assert!(n < u64::from(FULL_REPORTS)),
                Detail::Tally { first, more } => {
                    assert!(first < report(1));
                    assert_eq!(more, n + 1 - u64::from(FULL_REPORTS));
                }
            }
        }
        let other = fault(&mut repeats, Outcome::Recovered, 2, now);
        assert_eq!((other.count, other.detail), (0, Detail::Full));
    }

    #[test]
    fn another_outcome_has_reports_of_its_own() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        for _ in 0..10 {
            fault(&mut repeats, Outcome::Recovered, 1, now);
        }
        let degraded = fault(&mut repeats, Outcome::Degraded, 1, now);
        assert_eq!((degraded.count, degraded.detail), (10, Detail::Full));
        for _ in 0..10 {
            let escalated = fault(&mut repeats, Outcome::Escalated, 1, now);
            assert_eq!(escalated.detail, Detail::Full);
        }
    }

    #[test]
    fn a_report_that_is_gone_or_was_not_saved_is_written_again() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        let id = FaultId(1);
        for _ in 0..10 {
            let repeat = repeats.note(id, FaultKind::NullRead, Outcome::Recovered, now);
            assert_eq!(repeat.detail, Detail::Full, "none was saved");
        }
        for _ in 0..10 {
            fault(&mut repeats, Outcome::Recovered, 1, now);
        }
        repeats.lost(id, Outcome::Recovered);
        let repeat = repeats.note(id, FaultKind::NullRead, Outcome::Recovered, now);
        assert_eq!((repeat.count, repeat.detail), (20, Detail::Full));
    }

    #[test]
    fn a_quiet_bug_is_forgotten() {
        let now = Instant::now();
        let mut repeats = Repeats::default();
        fault(&mut repeats, Outcome::Recovered, 1, now);
        let soon = now + FORGET_AFTER / 2;
        assert_eq!(fault(&mut repeats, Outcome::Recovered, 1, soon).count, 1);
        let late = soon + FORGET_AFTER;
        assert_eq!(fault(&mut repeats, Outcome::Recovered, 1, late).count, 0);
    }

    proptest! {
        /// Memory is bounded, and what is remembered is what happened last.
        #[test]
        fn only_so_many_bugs_are_remembered(bugs in prop::collection::vec(0u64..600, 0..2000)) {
            let start = Instant::now();
            let mut repeats = Repeats::default();
            for (n, bug) in bugs.iter().enumerate() {
                let now = start + Duration::from_millis(n as u64);
                fault(&mut repeats, Outcome::Recovered, *bug, now);
                prop_assert!(repeats.bugs.len() <= BUGS_LIMIT);
            }
            let mut newest: Vec<u64> = Vec::new();
            for bug in bugs.iter().rev() {
                if newest.len() < BUGS_LIMIT && !newest.contains(bug) {
                    newest.push(*bug);
                }
            }
            for bug in newest {
                prop_assert!(repeats.bugs.contains_key(&FaultId(bug)));
            }
        }
    }
}
