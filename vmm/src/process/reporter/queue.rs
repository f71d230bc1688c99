//! The queue between the threads that report and the one that writes.

use std::collections::VecDeque;
use std::mem::size_of;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use guest_agentless::Vma;
use recovery::event::Event;

use super::FaultRecord;

/// Items that wait at most.
pub(super) const MAX_ITEMS: usize = 4096;

/// Bytes that the waiting items hold at most, about. A record with a whole stack has some 100 KiB.
pub(super) const MAX_BYTES: usize = 64 << 20;

/// Something to write.
#[derive(Debug)]
pub(super) enum Item {
    /// An event as it is.
    Event(Box<Event>),
    /// A fault, of which report and event are still to be made.
    Fault(Box<FaultRecord>),
    /// Nothing: room is to be made for the memory of the first fault.
    Room,
}

/// A bounded queue of [`Item`]s with one reader, which can be closed.
#[derive(Debug)]
pub(super) struct Queue {
    state: Mutex<State>,
    /// There is something to take, or nothing will come any more.
    ready: Condvar,
    /// There is room, or the reader has ended.
    room: Condvar,
}

#[derive(Debug, Default)]
struct State {
    items: VecDeque<Item>,
    bytes: usize,
    /// The most that `bytes` has been since the queue had last drained of much.
    peak: usize,
    phase: Phase,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Phase {
    #[default]
    Open,
    /// The reader takes what is there, and nothing is added, so that this ends.
    Closing,
    /// The reader is gone.
    Ended,
}

impl Queue {
    /// An empty, open queue.
    pub(super) fn new() -> Queue {
        Queue {
            state: Mutex::default(),
            ready: Condvar::new(),
            room: Condvar::new(),
        }
    }

    /// Adds `item`, and waits for room first. A closed queue gives it back, but not before the reader has
    /// ended: what the caller then does with it still comes after everything that was queued.
    pub(super) fn push(&self, item: Item) -> Result<(), Item> {
        let bytes = item.bytes();
        let mut state = self.lock();
        while !state.accepts(bytes) {
            if state.phase == Phase::Ended {
                return Err(item);
            }
            state = self
                .room
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
        state.bytes += bytes;
        state.peak = state.peak.max(state.bytes);
        state.items.push_back(item);
        self.ready.notify_one();
        Ok(())
    }

    /// Takes the oldest item, and waits for one; none when the queue is closed and empty.
    #[cfg(test)]
    pub(super) fn pop(&self) -> Option<Item> {
        self.pop_or(Duration::from_secs(3600), || Duration::from_secs(3600))
    }

    /// The next item; calls `idle` when nothing came for `period`, and again after the time that this returns.
    pub(super) fn pop_or(
        &self,
        mut period: Duration,
        mut idle: impl FnMut() -> Duration,
    ) -> Option<Item> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.items.pop_front() {
                state.bytes = state.bytes.saturating_sub(item.bytes());
                self.room.notify_all();
                return Some(item);
            }
            if state.phase != Phase::Open {
                return None;
            }
            let (after, waited) = self
                .ready
                .wait_timeout(state, period)
                .unwrap_or_else(PoisonError::into_inner);
            state = after;
            if waited.timed_out() {
                drop(state);
                period = idle();
                state = self.lock();
            }
        }
    }

    /// Bytes of what waits.
    pub(super) fn bytes(&self) -> usize {
        self.lock().bytes
    }

    /// Whether nothing waits any more after there were more than `bytes` at some time; says so once.
    pub(super) fn has_drained(&self, bytes: usize) -> bool {
        let mut state = self.lock();
        let drained = state.items.is_empty() && state.peak > bytes;
        if drained {
            state.peak = 0;
        }
        drained
    }

    /// Takes no more items.
    pub(super) fn close(&self) {
        let mut state = self.lock();
        if state.phase == Phase::Open {
            state.phase = Phase::Closing;
        }
        self.ready.notify_one();
    }

    /// There is no reader, or none any more: it takes nothing.
    pub(super) fn end(&self) {
        self.lock().phase = Phase::Ended;
        self.room.notify_all();
    }

    /// For the reader to hold: when it ends, for whatever reason, nobody waits for it any more.
    pub(super) fn ended_on_drop(&self) -> impl Drop + '_ {
        Ended(self)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

struct Ended<'a>(&'a Queue);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl State {
    /// Whether an item of so many bytes can be added. The first one always can, however large.
    fn accepts(&self, bytes: usize) -> bool {
        let room = self.items.len() < MAX_ITEMS && self.bytes.saturating_add(bytes) <= MAX_BYTES;
        self.phase == Phase::Open && (room || self.items.is_empty())
    }
}

impl Item {
    /// Bytes that it holds, about. It does not change while it waits.
    fn bytes(&self) -> usize {
        let strings = |list: &[String]| -> usize {
            list.iter()
                .map(|text| size_of::<String>() + text.capacity())
                .sum()
        };
        match self {
            Item::Event(_) | Item::Room => size_of::<Event>(),
            Item::Fault(record) => {
                size_of::<FaultRecord>()
                    + record.stack.capacity()
                    + record.quarantine.as_ref().map_or(0, |q| q.size())
                    + record.input.capacity()
                    + record.dropped_output.capacity()
                    + record.mappings.capacity() * size_of::<Vma>()
                    + size_of_val(&*record.written)
                    + strings(&record.undone)
                    + strings(&record.kept)
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::record;
    use super::*;
    use std::sync::atomic::{AtomicBool, Ordering};
    use std::thread;

    fn listening(n: usize) -> Item {
        Item::Event(Box::new(Event::Listening {
            address: n.to_string(),
        }))
    }

    fn large() -> Item {
        let mut record = record();
        record.stack = vec![0; MAX_BYTES];
        Item::Fault(Box::new(record))
    }

    /// Whether `push` has to wait until something is taken.
    fn waits(queue: &Queue, item: Item) -> bool {
        let pushed = AtomicBool::new(false);
        thread::scope(|scope| {
            scope.spawn(|| {
                assert!(queue.push(item).is_ok());
                pushed.store(true, Ordering::SeqCst);
            });
            thread::sleep(Duration::from_millis(50));
            let waited = !pushed.load(Ordering::SeqCst);
            assert!(queue.pop().is_some());
            waited
        })
    }

    #[test]
    fn a_full_queue_makes_its_writers_wait() {
        let queue = Queue::new();
        assert!(!waits(&queue, listening(0)));
        (0..MAX_ITEMS).for_each(|n| queue.push(listening(n)).unwrap());
        assert!(waits(&queue, listening(MAX_ITEMS)));
    }

    #[test]
    fn bytes_count_too_but_one_item_always_fits() {
        let queue = Queue::new();
        queue.push(large()).unwrap();
        assert!(waits(&queue, large()));
        assert!(queue.pop().is_some());
        assert_eq!(queue.lock().bytes, 0);
    }

    #[test]
    fn a_closed_queue_is_emptied_and_refuses_only_then() {
        let queue = Queue::new();
        queue.push(listening(0)).unwrap();
        queue.close();
        thread::scope(|scope| {
            let late = scope.spawn(|| queue.push(listening(1)));
            thread::sleep(Duration::from_millis(50));
            assert!(!late.is_finished());
            let ended = queue.ended_on_drop();
            assert!(matches!(queue.pop(), Some(Item::Event(_))));
            assert!(queue.pop().is_none());
            drop(ended);
            assert!(late.join().unwrap().is_err());
        });
    }
}
