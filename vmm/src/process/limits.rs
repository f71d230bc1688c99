//! What a client's request may use: time, CPU time, memory; and whether it may end the process.
//!
//! The thread numbers its requests; the watchdog (`process/watchdog.rs`) says which number has run for too long,
//! and the thread looks before it enters the guest and while it waits. The number outlives a suspension.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::State;
use super::domain::Domain;
use super::fault::Fault;
use super::thread::Thread;
use crate::host;

/// Wall time of a request, unless the user says otherwise: far beyond what a client waits for.
pub const DEFAULT_TIMEOUT: Duration = Duration::from_secs(300);
/// CPU time of a request, unless the user says otherwise. A request that computes keeps others waiting, so
/// it gets less than one that waits.
pub const DEFAULT_CPU: Duration = Duration::from_secs(30);

/// The limits of every client's request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Limits {
    /// From its first byte until it asks for more work.
    pub timeout: Option<Duration>,
    /// CPU time in that.
    pub cpu: Option<Duration>,
    /// Bytes of pages that it writes for the first time.
    pub memory: Option<u64>,
    /// `exit` in a request ends the process, as without the monitor.
    pub allow_exit: bool,
}

impl Limits {
    /// A quarter of the machine's memory: what one request may write by default.
    pub fn default_memory() -> Option<u64> {
        host::physical_memory().map(|bytes| bytes / 4)
    }
}

/// The request that a thread is in, for the watchdog to look at.
///
/// The number is odd while there is one, and grows with each.
#[derive(Default)]
pub struct RequestNumber {
    current: AtomicU64,
    overdue: AtomicU64,
}

impl RequestNumber {
    /// A request begins. Only the thread itself says so.
    pub fn begin(&self) {
        let last = self.current.load(Ordering::Relaxed);
        self.current.store((last + 1) | 1, Ordering::SeqCst);
    }

    /// The request has ended, if there was one.
    pub fn end(&self) {
        let last = self.current.load(Ordering::Relaxed);
        self.current.store((last + 1) & !1, Ordering::Release);
    }

    /// Request `number` has not ended after all.
    pub fn goes_on(&self, number: u64) {
        self.current.store(number, Ordering::SeqCst);
    }

    /// The number of the running request.
    pub fn running(&self) -> Option<u64> {
        let number = self.current.load(Ordering::SeqCst);
        (number % 2 == 1).then_some(number)
    }

    /// The watchdog finds that request `number` has run for too long.
    pub fn set_overdue(&self, number: u64) {
        self.overdue.store(number, Ordering::SeqCst);
    }

    /// The running request gets time until the next look.
    pub fn spare(&self) {
        self.overdue.store(0, Ordering::SeqCst);
    }

    /// Whether the running request has run for too long.
    pub fn is_overdue(&self) -> bool {
        self.running() == Some(self.overdue.load(Ordering::SeqCst))
    }
}

impl Thread {
    /// A client's request begins, and with it its time.
    pub fn begin_limits(&self) {
        self.control.request.begin();
        self.process.watchdog.notice();
    }

    /// The running request has got on with its answer: its time begins anew.
    pub fn limits_anew(&self) {
        if self.control.request.running().is_some() {
            self.begin_limits();
        }
    }

    /// Whether the running request has used up its time.
    pub fn overdue(&self) -> bool {
        self.control.request.is_overdue()
    }

    /// The domain is suspended or committed early: what it has written until now still counts.
    pub fn count_written(&mut self, state: &mut State) {
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.note_written(&mut memory);
        self.written += tracker.take_written_bytes();
    }

    /// The request has ended.
    pub fn end_limits(&mut self) {
        self.control.request.end();
        self.written = 0;
        self.memory_waived = false;
    }

    /// What the running request has used of its limits, for [`Thread::still_used`].
    pub fn used(&self) -> (Option<u64>, u64, bool) {
        (
            self.control.request.running(),
            self.written,
            self.memory_waived,
        )
    }

    /// What was committed early goes on with the limits that it had.
    pub fn still_used(&mut self, used: (Option<u64>, u64, bool)) {
        if let Some(number) = used.0 {
            self.control.request.goes_on(number);
            self.process.watchdog.notice();
        }
        (self.written, self.memory_waived) = (used.1, used.2);
    }

    /// Whether the running request has written more than it may. `harvest` looks at what the machine has to
    /// tell, too, which costs a little.
    pub fn over_memory(&mut self, state: &mut State, harvest: bool) -> bool {
        let Some(limit) = self.process.options.limits.memory else {
            return false;
        };
        if !in_request(state) || self.memory_waived {
            return false;
        }
        if harvest {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            tracker.note_written(&mut memory);
        }
        self.written + state.tracker.written_bytes() > limit
    }

    /// The limit that the running request has gone past, as a fault.
    pub fn past_limit(&mut self, state: &mut State, harvest: bool) -> Option<Fault> {
        if self.overdue() {
            return Some(Fault::timeout());
        }
        self.over_memory(state, harvest).then(Fault::memory)
    }

    /// Nothing can be done about a request that is past its limits: it goes on without.
    pub fn waive_limits(&mut self) {
        self.control.request.end();
        self.memory_waived = true;
    }
}

fn in_request(state: &State) -> bool {
    state.domain.as_ref().is_some_and(Domain::is_request)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_request_that_was_judged_is_overdue() {
        let request = RequestNumber::default();
        assert_eq!(request.running(), None);
        assert!(!request.is_overdue());
        request.begin();
        let first = request.running().unwrap();
        request.set_overdue(first);
        assert!(request.is_overdue());
        request.begin();
        assert_ne!(request.running(), Some(first));
        assert!(!request.is_overdue());
        request.end();
        assert_eq!(request.running(), None);
        request.end();
        assert!(!request.is_overdue());
        request.begin();
        assert!(!request.is_overdue());
        let third = request.running().unwrap();
        request.set_overdue(third);
        request.spare();
        assert!(!request.is_overdue());
        request.set_overdue(third);
        assert!(request.is_overdue());
    }
}
