//! When there is no room for shadow pages: the running domain is committed early, and the episode is told.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_agentless::{GuestRange, PageNumber};
use recovery::event::Event;
use recovery::tracker::FirstWrite;

use super::State;
use super::domain::Early;
use super::thread::Thread;

impl Thread {
    /// The guest is about to write a trapped page. False if the page cannot be read.
    pub(super) fn first_write(&mut self, state: &mut State, page: PageNumber) -> bool {
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        let mut outcome = tracker.first_write(&mut memory, page);
        if outcome == FirstWrite::NoRoom {
            self.commit_for_room(state);
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            outcome = match tracker.first_write(&mut memory, page) {
                FirstWrite::NoRoom => tracker.first_write_anyway(&mut memory, page),
                outcome => outcome,
            };
        }
        outcome == FirstWrite::Taken
    }

    /// The host is about to write `range`, which is mapped, on behalf of the guest.
    pub(super) fn host_write(&mut self, state: &mut State, mut range: GuestRange) {
        loop {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            let done = tracker.host_write(&mut memory, range);
            self.process.stats.pages.host_written.add(done.activated);
            let Some(page) = done.stopped else {
                return;
            };
            self.commit_for_room(state);
            // Progress, even if there is still no room.
            if !self.first_write(state, page) {
                return;
            }
            let next = page.address().0.max(range.start());
            range = GuestRange::from_bounds(next, range.end());
        }
    }

    fn commit_for_room(&mut self, state: &mut State) {
        let process = Arc::clone(&self.process);
        if !process.degraded.swap(true, Ordering::Relaxed) {
            process.reporter.emit(Event::ProtectionDegraded {
                reason: "the shadow pages of the running request have reached their limit".into(),
                shadow_bytes: state.tracker.shadow_bytes(),
                limit: state.tracker.shadow_limit(),
            });
        }
        self.commit_early(state, Early::ShadowLimit);
    }

    /// A domain has been committed; `whole` says that it was not committed early.
    pub(super) fn note_room(&mut self, state: &State, whole: bool) {
        let process = &self.process;
        process.stats.shadow_evicted.raise(state.tracker.evicted());
        let over = process.degraded.load(Ordering::Relaxed);
        if over && whole && self.continues.is_none() && state.tracker.has_room() {
            process.degraded.store(false, Ordering::Relaxed);
            process.reporter.emit(Event::ProtectionRestored {
                shadow_bytes: state.tracker.shadow_bytes(),
                limit: state.tracker.shadow_limit(),
            });
        }
    }
}
