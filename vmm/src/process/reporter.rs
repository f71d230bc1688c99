//! Tells the outside world about faults, away from the path that recovers from them.
//!
//! The recovering thread hands over a [`FaultRecord`]: plain copies, cheap to make. Everything slow happens on
//! the reporter's own thread: walking the stack, reading symbols, saving the report, writing the event.
//! Events of every kind go through the same queue, so that their order is that of the calls.
//!
//! The queue is bounded in records and in bytes. When it is full the caller waits: to lose an event would be
//! a lie, and to keep them all would let a storm of faults eat the memory.

mod compose;
mod core;
mod module;
mod queue;
mod symbolize;
#[cfg(test)]
mod tests;
mod writer;

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::{Duration, SystemTime};

use guest_agentless::{PageNumber, Vma};
use recovery::Origin;
use recovery::event::{Event, EventLog, FaultKind, Outcome};
use recovery::repeat::News;
use recovery::report::ReportStore;
use recovery::tracker::PageContent;

use super::quarantine::Quarantine;
use crate::host::handles;
pub(super) use module::read as read_module;
use queue::{Item, Queue};
use symbolize::Symbolizer;
use writer::Writer;

/// What is known of a fault when the guest goes on. It holds copies only, and no symbols yet.
#[derive(Debug, Clone)]
pub struct FaultRecord {
    /// When it happened.
    pub time: SystemTime,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not end as recovered, if so.
    pub reason: Option<String>,
    /// The signal's number, if the fault raises one.
    pub signal: Option<i32>,
    /// What went wrong.
    pub kind: FaultKind,
    /// The address of the faulting access, if there was one.
    pub address: Option<u64>,
    /// What more is known of what went wrong.
    pub detail: Option<String>,
    /// The guest thread (TID).
    pub thread: i32,
    /// Its name.
    pub thread_name: String,
    /// The registers, in the order in which they are to be shown.
    pub registers: Vec<(&'static str, u64)>,
    /// The faulting instruction.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The base pointer.
    pub rbp: u64,
    /// What was done about it: the rung of the ladder.
    pub rung: &'static str,
    /// What the domain was charged to.
    pub origin: Origin,
    /// Whose request it was.
    pub peer: Option<String>,
    /// What the request had received.
    pub input: Vec<u8>,
    /// The stack from `rsp` upwards, as far as it was copied.
    pub stack: Vec<u8>,
    /// The guest's mappings.
    pub mappings: Vec<Vma>,
    /// What its core is to be made of.
    pub quarantine: Option<Box<Quarantine>>,
    /// Why there will be none.
    pub core_missing: Option<String>,
    /// Pages of the write set, and how many bytes of each had changed.
    pub written: Vec<(PageNumber, u32)>,
    /// Pages in the write set.
    pub pages_written: u64,
    /// Pages given back their committed content.
    pub pages_restored: u64,
    /// Actions that were undone or forgotten.
    pub undone: Vec<String>,
    /// Output that was held and never sent.
    pub dropped_output: Vec<u8>,
    /// What the request did that stays done.
    pub kept: Vec<String>,
    /// Whether the client was sent the configured error reply.
    pub replied: bool,
    /// How long the faulting thread stood still.
    pub pause: Duration,
    /// The program that the process runs.
    pub program: String,
}

/// Whether the memory of a fault is to be kept.
pub enum Room {
    /// Here.
    Given(Vec<PageContent>),
    /// No, because of this.
    Refused(&'static str),
}

/// How often reports are looked through for old ones while there is nothing to write.
const PRUNE_PERIOD: Duration = Duration::from_secs(600);

/// Bytes that have waited to be written, behind a disk that stood still for instance, for their memory to be given
/// back to the host afterwards.
const BACKLOG: usize = 1 << 20;

/// Writes events and fault reports in order, on a thread of its own that begins when there is something to write.
#[derive(Debug)]
pub struct Reporter {
    writer: Arc<Writer>,
    queue: Arc<Queue>,
    thread: Mutex<Option<JoinHandle<()>>>,
    /// Whether the thread has been started, or is not to be any more.
    started: AtomicBool,
}

impl Reporter {
    /// Without a `store` no reports are saved; their cores hold `core_pages` pages of memory at most.
    /// `news` are the faults that standard error has a line of.
    pub fn new(
        events: EventLog,
        store: Option<ReportStore>,
        core_pages: usize,
        news: &'static News,
    ) -> Reporter {
        Reporter::of(Writer::new(events, store, core_pages, news))
    }

    /// The store of reports, if they are saved.
    pub fn store(&self) -> Option<&ReportStore> {
        self.writer.store()
    }

    fn of(writer: Writer) -> Reporter {
        Reporter {
            writer: Arc::new(writer),
            queue: Arc::new(Queue::new()),
            thread: Mutex::new(None),
            started: AtomicBool::new(false),
        }
    }

    /// In a forked child, whose parent has this one: a reporter to the same places.
    pub fn for_child(&self) -> io::Result<Reporter> {
        let events = handles::events()?.map_or_else(EventLog::disabled, |file| {
            EventLog::new(file).reopened_by(Box::new(handles::reopen_events))
        });
        Ok(Reporter::of(self.writer.for_child(events)))
    }

    /// Starts the thread, which has every signal blocked, if it has not been. Where that fails everybody writes for himself.
    ///
    /// It keeps the rights and the root directory that its starter has at that time.
    pub fn start(&self) {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if self.started.swap(true, Ordering::AcqRel) {
            return;
        }
        let (writer, queue) = (Arc::clone(&self.writer), Arc::clone(&self.queue));
        let (apart, is_apart) = mpsc::channel();
        let started = crate::host::with_signals_blocked(|| {
            thread::Builder::new()
                .name("vmsrs-reporter".to_owned())
                .spawn(move || work(&writer, &queue, apart))
        });
        match started {
            Ok(handle) => {
                *thread = Some(handle);
                // An error says that it is, too, and has ended.
                let _ = is_apart.recv();
            }
            Err(error) => {
                log::error!("the reporter thread cannot be started: {error}");
                self.queue.end();
            }
        }
    }

    /// Writes `event` after everything that was handed over before.
    pub fn emit(&self, event: Event) {
        self.hand_over(Item::Event(Box::new(event)));
    }

    /// Writes the report and the event of a fault after everything that was handed over before. It does not
    /// touch the disk, but waits while the queue is full.
    pub fn fault(&self, record: FaultRecord) {
        self.hand_over(Item::Fault(Box::new(record)));
    }

    /// The server begins to serve: its first fault is not to wait for the host to map the room for its memory. Who is
    /// forked for each client does without.
    pub fn make_room(&self) {
        self.hand_over(Item::Room);
    }

    /// Room for the memory of a fault at `site`: its instruction and stack pointer. None is given if nothing would
    /// come of it, or if so much waits to be written that the server had better not be made to wait for more.
    pub fn room_for_memory(&self, site: Option<(u64, u64)>) -> Room {
        if !self.writer.saves() {
            return Room::Refused("reports are not saved");
        }
        if site.is_some_and(|site| self.writer.is_told(site)) {
            return Room::Refused("the first reports of a fault at this place have theirs");
        }
        if self.queue.bytes() > queue::MAX_BYTES / 4 {
            return Room::Refused("earlier reports were still being written");
        }
        Room::Given(self.writer.take_room())
    }

    /// Waits until all that was handed over is written, and ends the thread. What comes later is written by
    /// its caller, at once. To finish again does nothing.
    pub fn finish(&self) {
        self.queue.close();
        if !self.started.swap(true, Ordering::AcqRel) {
            self.queue.end();
        }
        // The lock is held while joining, so that a second caller also waits.
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(thread) = thread.take()
            && thread.join().is_err()
        {
            log::error!("the reporter thread has failed, events are lost");
        }
    }

    fn hand_over(&self, item: Item) {
        if !self.started.load(Ordering::Acquire) {
            self.start();
        }
        if let Err(item) = self.queue.push(item) {
            self.writer.write(&mut Symbolizer::default(), item);
        }
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.finish();
    }
}

/// The reporter thread. It says when the guest cannot change its root directory any more.
fn work(writer: &Writer, queue: &Queue, apart: mpsc::Sender<()>) {
    let _ended = queue.ended_on_drop();
    if let Err(error) = crate::host::leave_guests_tables(crate::memory::own_descriptors()) {
        log::warn!("the reporter shares the guest's descriptors and directories: {error}");
    }
    let _ = apart.send(());
    let mut symbolizer = Symbolizer::default();
    let idle = || {
        writer.say_pending();
        writer.prune();
        PRUNE_PERIOD
    };
    while let Some(item) = queue.pop_or(writer.patience(PRUNE_PERIOD), idle) {
        if matches!(item, Item::Fault(_)) {
            writer.prepare_room();
        }
        writer.write(&mut symbolizer, item);
        if queue.has_drained(BACKLOG) {
            crate::host::return_free_memory();
        }
    }
}
