//! Every access to guest memory on behalf of the guest asks here first, for the sake of guarded pages.

use guest_agentless::{GuestRange, GuestVa, PAGE_SIZE};

use super::State;
use super::thread::Thread;

impl Thread {
    /// `range` is about to be read or written: by this thread, or for it by the monitor or the host. What
    /// is guarded there is so no longer.
    pub fn touch(&mut self, state: &mut State, range: GuestRange) {
        self.enter_shared(state, range);
        self.reveal(state, range);
        if state.space.guards().is_empty() {
            return;
        }
        let Some(pages) = range.to_pages() else {
            return;
        };
        let parts: Vec<_> = state.space.guards().overlapping(pages).collect();
        for part in parts {
            if let Some(exactly) = part.intersection(range) {
                state.note_access(exactly);
            }
            state.unguard_unwatched(part);
        }
    }

    /// Restores what waits in `range`.
    pub(super) fn reveal(&mut self, state: &mut State, range: GuestRange) {
        if state.space.hides() {
            for region in state.space.hidden_in(range) {
                let done = state.restore(&self.process, region);
                self.process.stats.restoration.on_touch.add(done);
            }
        }
    }

    /// Likewise, for a string whose length is not known: up to the end of the next page at most.
    pub fn touch_string(&mut self, state: &mut State, address: u64) {
        if let Some(range) = GuestRange::new(GuestVa(address), PAGE_SIZE) {
            self.touch(state, range);
        }
    }
}
