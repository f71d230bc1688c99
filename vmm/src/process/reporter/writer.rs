//! Writes events and saves reports.

use std::error::Error;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};

use recovery::event::EventLog;
use recovery::report::{FaultReport, Frame, ReportStore, SaveError};

use super::FaultRecord;
use super::compose;
use super::queue::Item;
use super::symbolize::Symbolizer;

/// Where events and reports go.
#[derive(Debug)]
pub(super) struct Writer {
    events: EventLog,
    store: Option<ReportStore>,
    /// The kinds of failure to save a report that were logged: each is logged once.
    logged: Mutex<Vec<io::ErrorKind>>,
}

impl Writer {
    /// A writer to `events` and `store`.
    pub(super) fn new(events: EventLog, store: Option<ReportStore>) -> Writer {
        Writer {
            events,
            store,
            logged: Mutex::default(),
        }
    }

    /// Writes `item`. For a fault the report comes first, so that whoever sees the event finds it.
    pub(super) fn write(&self, symbolizer: &mut Symbolizer, item: Item) {
        match item {
            Item::Event(event) => self.events.emit(&event),
            Item::Fault(record) => {
                let frames = frames(symbolizer, &record);
                let report = compose::report(*record, frames);
                let saved = self.save(&report);
                self.events.emit(&report.to_event(saved));
            }
        }
    }

    /// Removes reports that have become too old.
    pub(super) fn prune(&self) {
        if let Some(store) = &self.store {
            store.prune();
        }
    }

    /// Whether there is a saved report now.
    fn save(&self, report: &FaultReport) -> bool {
        let Some(store) = &self.store else {
            return false;
        };
        match store.save(report) {
            Ok(_) => true,
            Err(error) => {
                self.log_once(&error);
                false
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
