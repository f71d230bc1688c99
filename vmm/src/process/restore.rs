//! Demand-driven restoration: a large write set is hidden at once, and restored when it is touched or by the
//! cleaner (`recovery::tracker`, `memory/hide.rs`).

use std::collections::BTreeSet;

use guest_agentless::{Errno, GuestRange, PAGE_SIZE, PageNumber};
use recovery::tracker::Abandoned;

use super::thread::Thread;
use super::tracked::HostMemory;
use super::{Process, State};
use crate::memory::{runs, window};

/// Pages of a write set that are restored at once: about as long as it takes to hide more.
pub const AT_ONCE: usize = 512;

impl State {
    /// Restores a hidden region and shows it again. Returns how many pages were waiting.
    pub(super) fn restore(&mut self, process: &Process, region: u64) -> u64 {
        let before = self.tracker.waiting_pages();
        let mut memory = HostMemory {
            space: &mut self.space,
            own_memory: &process.own_memory,
        };
        let done = self.tracker.restore_region(&mut memory, region);
        self.space.reveal(region);
        if let Some(range) = self.space.finish_unmap(region) {
            self.tracker.forget_unused(range);
        }
        let stats = &process.stats;
        stats.pages.restored.add(done.restored + done.given_back);
        stats.restoration.given_back.add(done.given_back);
        stats.restoration.waiting.set(self.tracker.waiting_pages());
        if done.lost > 0 {
            stats.restoration.lost.add(done.lost);
            log::error!(
                "{} pages of an abandoned request could not be restored",
                done.lost
            );
        }
        before - self.tracker.waiting_pages()
    }

    /// The monitor is about to read `range` for a purpose of its own: what waits there is restored. Nobody has
    /// touched what is guarded there.
    pub fn restore_in(&mut self, process: &Process, range: GuestRange) {
        for region in self.space.hidden_in(range) {
            self.restore(process, region);
        }
    }
}

impl Thread {
    /// Gives memory back what the running domain has written. What is too much to be done at once is hidden
    /// and left for later if `may_hide` says so; returns how many pages that are, besides.
    pub(super) fn restore_or_hide(
        &mut self,
        state: &mut State,
        may_hide: bool,
    ) -> (Abandoned, u64) {
        let limit = self.process.options.restore_at_once;
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.note_written(&mut memory);
        if may_hide && tracker.active_count() > limit {
            tracker.close_write_set(&mut memory);
            let regions: Vec<u64> = tracker.active_regions().to_vec();
            // Who shares memory with the guest must not see the request's writes.
            let regions: Vec<u64> = regions
                .into_iter()
                .filter(|region| !state.space.is_shared(*region))
                .collect();
            match state.space.hide(&self.process.vm, &regions) {
                Ok(()) => {
                    let hidden: BTreeSet<u64> = regions.into_iter().collect();
                    self.finish_unmapping(state, |region| !hidden.contains(&region));
                    let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                    let (outcome, waiting) = tracker.postpone(&mut memory, &hidden, |_, _| {});
                    self.process
                        .stats
                        .restoration
                        .waiting
                        .set(tracker.waiting_pages());
                    self.process.stats.restoration.postponed.inc();
                    return (outcome, waiting);
                }
                Err(error) => log::warn!("a large write set is restored at once: {error}"),
            }
        }
        self.finish_unmapping(state, |_| true);
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        (tracker.abandon(&mut memory, |_, _| {}), 0)
    }

    /// A mapping that the running domain had made is gone. Freeing a large one takes long: it waits until the
    /// write set is restored or hidden.
    pub(super) fn unmap_again(
        &mut self,
        state: &mut State,
        range: GuestRange,
    ) -> Result<(), Errno> {
        let large = range.len() / PAGE_SIZE > self.process.options.restore_at_once as u64;
        let parts = match large {
            true => {
                let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                tracker.note_written(&mut memory);
                let written = tracker.written_regions(range);
                state.space.condemn(range, &written)
            }
            false => vec![range],
        };
        let mut outcome = Ok(());
        for part in parts {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            tracker.forget(&mut memory, part);
            outcome = outcome.and(state.space.unmap(part));
        }
        outcome
    }

    /// Really unmaps what was condemned of the regions that `which` names.
    fn finish_unmapping(&mut self, state: &mut State, which: impl Fn(u64) -> bool) {
        for window in window::windows() {
            let mut regions = state.space.condemned_in(window);
            regions.retain(|region| which(*region));
            self.unmap_condemned(state, regions);
        }
    }

    /// Something else is about to be mapped in `range`.
    pub(super) fn unmap_now(&mut self, state: &mut State, range: GuestRange) {
        let regions = state.space.condemned_in(range);
        self.unmap_condemned(state, regions);
    }

    fn unmap_condemned(&mut self, state: &mut State, regions: Vec<u64>) {
        for region in regions {
            if let Some(range) = state.space.finish_unmap(region) {
                let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                tracker.forget(&mut memory, range);
            }
        }
    }

    /// Restores what waits of `pages`, and around them.
    pub(super) fn restore_pages(&mut self, state: &mut State, pages: Vec<PageNumber>) {
        if !state.space.hides() {
            return;
        }
        for range in runs(pages.into_iter()) {
            for region in state.space.hidden_in(range) {
                state.restore(&self.process, region);
            }
        }
    }

    /// Restores everything that waits.
    pub(super) fn restore_all(&mut self, state: &mut State) {
        for window in window::windows() {
            for region in state.space.hidden_in(window) {
                state.restore(&self.process, region);
            }
        }
    }
}
