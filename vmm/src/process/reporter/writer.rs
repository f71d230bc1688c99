//! Writes events and saves reports.

use std::error::Error;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use recovery::event::EventLog;
use recovery::repeat::{Detail, Repeats};
use recovery::report::{FaultReport, Frame, ReportId, ReportStore, SaveError, Tally};

use super::FaultRecord;
use super::compose;
use super::queue::Item;
use super::symbolize::Symbolizer;

/// Where events and reports go.
#[derive(Debug)]
pub(super) struct Writer {
    events: EventLog,
    store: Option<ReportStore>,
    repeats: Mutex<Repeats>,
    /// The kinds of failure to save a report that were logged: each is logged once.
    logged: Mutex<Vec<io::ErrorKind>>,
}

impl Writer {
    /// A writer to `events` and `store`.
    pub(super) fn new(events: EventLog, store: Option<ReportStore>) -> Writer {
        Writer {
            events,
            store,
            repeats: Mutex::default(),
            logged: Mutex::default(),
        }
    }

    /// Writes `item`. For a fault the report comes first, so that whoever sees the event finds it.
    pub(super) fn write(&self, symbolizer: &mut Symbolizer, item: Item) {
        match item {
            Item::Event(event) => self.events.emit(&event),
            Item::Fault(record) => {
                let frames = frames(symbolizer, &record);
                let mut report = compose::report(*record, frames);
                let told = self.tell(&mut report);
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
    fn tell(&self, report: &mut FaultReport) -> Option<ReportId> {
        let fault = report.identify();
        report.fault = fault.to_string();
        let mut repeats = self.repeats.lock().unwrap_or_else(PoisonError::into_inner);
        let repeat = repeats.note(fault, report.outcome, Instant::now());
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
