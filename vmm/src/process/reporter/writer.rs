//! Writes events and saves reports.

use std::error::Error;
use std::io;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use guest_agentless::Vma;
use recovery::event::EventLog;
use recovery::repeat::{Detail, Repeats};
use recovery::report::{FaultReport, Frame, ReportId, ReportStore, SaveError, Tally};

use super::FaultRecord;
use super::compose;
use super::core;
use super::queue::Item;
use super::symbolize::Symbolizer;
use crate::process::quarantine::Quarantine;

/// Where events and reports go.
#[derive(Debug)]
pub(super) struct Writer {
    events: EventLog,
    store: Option<ReportStore>,
    repeats: Mutex<Repeats>,
    /// The kinds of failure to save a report that were logged: each is logged once.
    logged: Mutex<Vec<io::ErrorKind>>,
    /// Room for the memory of a fault, of a record that is done with: the host need not map it anew.
    spare: Mutex<Vec<u8>>,
}

impl Writer {
    /// A writer to `events` and `store`.
    pub(super) fn new(events: EventLog, store: Option<ReportStore>) -> Writer {
        Writer {
            events,
            store,
            repeats: Mutex::default(),
            logged: Mutex::default(),
            spare: Mutex::default(),
        }
    }

    /// Writes `item`. For a fault the report comes first, so that whoever sees the event finds it.
    pub(super) fn write(&self, symbolizer: &mut Symbolizer, item: Item) {
        match item {
            Item::Event(event) => self.events.emit(&event),
            Item::Fault(mut record) => {
                let frames = frames(symbolizer, &record);
                let quarantine = record.quarantine.take();
                let mappings = record.mappings.clone();
                let mut report = compose::report(*record, frames);
                let told = self.tell(&mut report, quarantine.as_deref(), &mappings);
                if let Some(quarantine) = quarantine {
                    self.give_room(quarantine.bytes);
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

    /// Whether reports are saved.
    pub(super) fn saves(&self) -> bool {
        self.store.is_some()
    }

    /// Room for the memory of a fault, empty.
    pub(super) fn take_room(&self) -> Vec<u8> {
        std::mem::take(&mut *self.spare.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn give_room(&self, mut bytes: Vec<u8>) {
        bytes.clear();
        *self.spare.lock().unwrap_or_else(PoisonError::into_inner) = bytes;
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
