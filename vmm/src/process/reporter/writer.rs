//! Writes events and saves reports.

use std::collections::HashSet;
use std::error::Error;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use guest_agentless::Vma;
use recovery::event::{EventLog, FaultKind};
use recovery::repeat::{Detail, News, Repeats};
use recovery::report::{FaultReport, Frame, Notice, ReportId, ReportStore, SaveError, Tally};
use recovery::tracker::PageContent;

use super::FaultRecord;
use super::compose;
use super::core;
use super::queue::Item;
use super::symbolize::Symbolizer;
use crate::process::quarantine::Quarantine;

/// Pages that are mapped in advance at most.
const MAPPED_LIMIT: usize = 1024;

/// A refused `exit` has a line again after this time: whoever has tried it looks for the reason.
const EXIT_LINE_AFTER: Duration = Duration::from_secs(1);

/// A line about a refused `exit` is put off for so long: a program that ends all the same, once the connection is
/// reset, has nothing to be told.
const EXIT_LINE_DELAY: Duration = Duration::from_millis(300);

/// Places that are remembered.
const TOLD_LIMIT: usize = 1024;

/// Where events and reports go.
#[derive(Debug)]
pub(super) struct Writer {
    events: EventLog,
    store: Option<ReportStore>,
    /// Pages of memory that a core may hold.
    core_pages: usize,
    repeats: Mutex<Repeats>,
    /// The kinds of failure to save a report that were logged: each is logged once.
    logged: Mutex<Vec<io::ErrorKind>>,
    /// Room for the memory of the next fault, of a record that is done with: for the host to map it anew would take
    /// longer than to copy to it.
    spare: Mutex<Option<Vec<PageContent>>>,
    /// Places (instruction and stack pointer) of faults that only counted up: no cores are made of them.
    told: Mutex<HashSet<(u64, u64)>>,
    /// The faults that standard error has a line of.
    news: &'static News,
    /// It writes for a forked child, whose `exit` ends no server.
    is_child: bool,
    /// A line about a refused `exit`, and when it was refused.
    pending: Mutex<Option<(Instant, Notice)>>,
    /// When the last line about a refused `exit` was written.
    exit_line: Mutex<Option<Instant>>,
}

impl Writer {
    /// A writer to `events` and `store`, with cores of so many pages.
    pub(super) fn new(
        events: EventLog,
        store: Option<ReportStore>,
        core_pages: usize,
        news: &'static News,
    ) -> Writer {
        Writer {
            events,
            store,
            core_pages,
            repeats: Mutex::default(),
            logged: Mutex::default(),
            spare: Mutex::default(),
            told: Mutex::default(),
            news,
            is_child: false,
            pending: Mutex::default(),
            exit_line: Mutex::default(),
        }
    }

    /// The store of reports, if they are saved.
    pub(super) fn store(&self) -> Option<&ReportStore> {
        self.store.as_ref()
    }

    /// A writer of a forked child to the same places; `events` is its own descriptor of the file of events.
    pub(super) fn for_child(&self, events: EventLog) -> Writer {
        let events = events.of(self.events.sender().clone());
        Writer {
            is_child: true,
            ..Writer::new(events, self.store.clone(), self.core_pages, self.news)
        }
    }

    /// Writes `item`. For a fault the report comes first, so that whoever sees the event finds it.
    pub(super) fn write(&self, symbolizer: &mut Symbolizer, item: Item) {
        if self.is_pending_due() {
            self.say_pending();
        }
        match item {
            Item::Event(event) => {
                say(Notice::of_event(&event));
                self.events.emit(&event);
            }
            Item::Room => self.prepare_room(),
            Item::Fault(mut record) => {
                let frames = frames(symbolizer, &record);
                let quarantine = record.quarantine.take();
                let mappings = record.mappings.clone();
                let site = (record.rip, record.rsp);
                let mut report = compose::report(*record, frames);
                let told = self.tell(&mut report, quarantine.as_deref(), &mappings);
                let is_new = self.is_news(&report);
                let id = told.as_ref().map(ReportId::as_str);
                let notice = Notice::of_fault(&report, is_new, id);
                match report.kind {
                    FaultKind::Exit if notice.is_some() => self.put_off(notice),
                    _ => say(notice),
                }
                self.note_told(site, told.as_ref().is_some_and(|id| *id != report.id));
                if let Some(quarantine) = quarantine {
                    self.give_room(quarantine.contents);
                }
                self.events.emit(&report.to_event(told.as_ref()));
            }
        }
    }

    /// Removes reports that have become too old.
    pub(super) fn prune(&self) {
        if let Some(store) = &self.store {
            store.prune();
        }
    }

    /// Saves the report, or counts the fault in the first one of the same bug; says which report there is now.
    fn tell(
        &self,
        report: &mut FaultReport,
        quarantine: Option<&Quarantine>,
        mappings: &[Vma],
    ) -> Option<ReportId> {
        let fault = report.identify();
        report.fault = fault.to_string();
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        let repeat = repeats.note(fault, report.kind, report.outcome, Instant::now());
        report.repeat = repeat.count;
        let store = self.store.as_ref()?;
        if let Detail::Tally { first, more } = repeat.detail {
            let tally = Tally {
                count: more,
                last: report.time.clone(),
                last_peer: report.peer.clone(),
            };
            if store.save_tally(&first, &tally).is_ok() {
                return Some(first);
            }
            repeats.lost(fault, report.outcome);
        }
        if let Some(quarantine) = quarantine {
            match core::save(store, &report.id, quarantine, mappings) {
                Ok(core) => report.core = Some(core),
                Err(error) => {
                    report.core_missing = error.source().map(ToString::to_string);
                    self.log_once(&error);
                }
            }
        }
        match store.save(report) {
            Ok(_) => {
                repeats.saved(fault, report.outcome, &report.id);
                Some(report.id.clone())
            }
            Err(error) => {
                self.log_once(&error);
                None
            }
        }
    }

    /// Whether standard error is to have a line about the fault.
    fn is_news(&self, report: &FaultReport) -> bool {
        let is_new = self.news.is_new(report.identify(), report.outcome);
        if report.kind != FaultKind::Exit {
            return is_new;
        }
        if self.is_child {
            return false;
        }
        let mut last = self
            .exit_line
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let is_due = last.is_none_or(|at| at.elapsed() >= EXIT_LINE_AFTER);
        if is_new || is_due {
            *last = Some(Instant::now());
        }
        is_new || is_due
    }

    fn put_off(&self, notice: Option<Notice>) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        if pending.is_none() {
            *pending = notice.map(|notice| (Instant::now(), notice));
        }
    }

    /// How long the thread may wait for the next item, if it may for `longest`.
    pub(super) fn patience(&self, longest: Duration) -> Duration {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        match *pending {
            Some(_) => EXIT_LINE_DELAY,
            None => longest,
        }
    }

    fn is_pending_due(&self) -> bool {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending
            .as_ref()
            .is_some_and(|(since, _)| since.elapsed() >= EXIT_LINE_DELAY)
    }

    /// Writes the line that was put off.
    pub(super) fn say_pending(&self) {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        say(pending.take().map(|(_, notice)| notice));
    }

    /// Whether reports are saved.
    pub(super) fn saves(&self) -> bool {
        self.store.is_some()
    }

    /// Whether the last fault at that place only counted up.
    pub(super) fn is_told(&self, site: (u64, u64)) -> bool {
        let told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        told.contains(&site)
    }

    fn note_told(&self, site: (u64, u64), counted_up: bool) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !counted_up {
            told.remove(&site);
            return;
        }
        if told.len() >= TOLD_LIMIT {
            told.clear();
        }
        told.insert(site);
    }

    /// Makes sure that there is room for the memory of the next fault, and that the host has mapped it.
    pub(super) fn prepare_room(&self) {
        let pages = self.core_pages.min(MAPPED_LIMIT);
        let is_missing = || {
            let spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
            spare.as_ref().is_none_or(|room| room.len() < pages)
        };
        if self.saves() && pages > 0 && is_missing() {
            self.give_room(vec![PageContent::zero().clone(); pages]);
        }
    }

    /// Room for the memory of a fault.
    pub(super) fn take_room(&self) -> Vec<PageContent> {
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        spare.take().unwrap_or_default()
    }

    fn give_room(&self, mut room: Vec<PageContent>) {
        // What a higher limit has needed once is not kept.
        room.truncate(MAPPED_LIMIT);
        room.shrink_to(MAPPED_LIMIT);
        let mut spare = self.spare.lock().unwrap_or_else(PoisonError::into_inner);
        // What was made in haste, while there was none, is smaller.
        if spare.as_ref().is_none_or(|kept| kept.len() < room.len()) {
            *spare = Some(room);
        }
    }

    fn log_once(&self, error: &SaveError) {
        let cause = error.source().and_then(|e| e.downcast_ref::<io::Error>());
        let kind = cause.map_or(io::ErrorKind::Other, io::Error::kind);
        let mut logged = self.logged.lock().unwrap_or_else(PoisonError::into_inner);
        if !logged.contains(&kind) {
            logged.push(kind);
            let cause = cause.map_or_else(String::new, |cause| format!(": {cause}"));
            log::warn!("{error}{cause}; further failures of this kind are not logged");
        }
    }
}

/// Writes the line, if there is one, to standard error.
fn say(notice: Option<Notice>) {
    if let Some(Notice { level, text }) = notice {
        log::log!(target: "vmsrs", level, "{text}");
    }
}

/// The call stack of `record`, or none if one of the parsers does not survive the files that the guest has
/// mapped. These are not the monitor's own, and a report without a stack is better than none.
fn frames(symbolizer: &mut Symbolizer, record: &FaultRecord) -> Vec<Frame> {
    let walk = AssertUnwindSafe(|| symbolizer.frames(record));
    panic::catch_unwind(walk).unwrap_or_else(|_| {
        log::error!(
            "the stack of a fault at {:#x} could not be read",
            record.rip
        );
        // It may be in any state now.
        *symbolizer = Symbolizer::default();
        Vec::new()
    })
}
