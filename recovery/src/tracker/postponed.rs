//! Large write sets: restored when somebody touches them, or bit by bit.
//!
//! An abandon that restored every page of a large write set at once would make everybody wait in proportion
//! to it. Instead the machine hides the regions of 2 MiB that the write set reaches into, and the active set
//! as a whole becomes the *backlog*: nothing here is done page by page. Whoever touches a hidden region has it
//! restored first ([`Tracker::restore_region`]); a background worker restores the rest.
//!
//! A region either waits or has active pages, never both: it has to be restored before anything in it is
//! read, written, mapped or unmapped.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};

use guest_agentless::{GuestRange, PageNumber};

use super::pages::{Base, REGION};
use super::{Abandoned, Machine, Memory, PageContent, Tracker};

/// Bytes of a region.
pub const REGION_SIZE: u64 = REGION * 4096;

/// The regions that wait.
#[derive(Default)]
pub(super) struct Waiting {
    /// By number: the epoch of the active set that the region belongs to, and the number of pages.
    regions: BTreeMap<u64, (u64, u32)>,
    pages: u64,
}

impl Waiting {
    pub(super) fn contains(&self, region: u64) -> bool {
        self.regions.contains_key(&region)
    }
}

/// What restoring some of the backlog did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Pages that were copied back.
    pub restored: u64,
    /// Pages of zeros whose memory was given back to the host.
    pub given_back: u64,
    /// Pages that could not be restored: the invariant is broken.
    pub lost: u64,
}

impl std::ops::AddAssign for Progress {
    fn add_assign(&mut self, other: Progress) {
        self.restored += other.restored;
        self.given_back += other.given_back;
        self.lost += other.lost;
    }
}

impl Tracker {
    /// How many pages the running domain's write set has now, and earlier ones that are still active.
    pub fn active_count(&self) -> usize {
        self.active.len()
    }

    /// Completes the write set, and protects all of it again: what [`Tracker::postpone`] needs.
    pub fn close_write_set(&mut self, machine: &mut impl Machine) {
        self.make_room(machine);
    }

    /// The regions that the write set reaches into.
    pub fn active_regions(&self) -> &[u64] {
        &self.active_regions
    }

    /// The running domain is undone, like [`Tracker::abandon`], but the pages of the regions in `hidden`, which
    /// nobody can touch any more and none of which has shared pages, are left for [`Tracker::restore_region`]. The write set is closed. Returns
    /// how many pages wait, besides.
    pub fn postpone(
        &mut self,
        machine: &mut impl Machine,
        hidden: &BTreeSet<u64>,
        examine: impl FnMut(PageNumber, &PageContent),
    ) -> (Abandoned, u64) {
        self.host_written.clear();
        self.written = 0;
        let in_sight = self.active_regions.iter().any(|r| !hidden.contains(r));
        let outcome = match in_sight {
            true => self.restore_now(
                machine,
                |entry| !hidden.contains(&(entry.page.0 / REGION)),
                examine,
            ),
            false => Abandoned::default(),
        };
        let mut postponed = 0;
        for region in self.active_regions.iter().filter(|r| hidden.contains(r)) {
            let pages = self.pages.active_in(*region, self.epoch);
            // One that was forgotten in between is listed twice.
            if let Entry::Vacant(entry) = self.waiting.regions.entry(*region) {
                entry.insert((self.epoch, pages));
                postponed += u64::from(pages);
            }
        }
        self.waiting.pages += postponed;
        self.wasted = 0;
        self.trap_shared(machine);
        self.begin_epoch();
        (outcome, postponed)
    }

    /// Nothing is known any more of `range`, which lies in a region that was restored and has not been used
    /// since.
    pub fn forget_unused(&mut self, range: GuestRange) {
        for state in self.pages.remove(range).into_states() {
            if let Base::Shadow(frame) = state.base {
                self.shadows.free(frame);
            }
        }
    }

    /// Pages that wait to be restored.
    pub fn waiting_pages(&self) -> u64 {
        self.waiting.pages
    }

    /// The regions that wait.
    pub fn waiting_regions(&self) -> impl Iterator<Item = u64> {
        self.waiting.regions.keys().copied()
    }

    /// A region that waits, if any does.
    pub fn next_waiting(&self) -> Option<u64> {
        self.waiting.regions.keys().next().copied()
    }

    /// Gives the pages of `region` their base back, if it waits.
    pub fn restore_region(&mut self, memory: &mut impl Memory, region: u64) -> Progress {
        let Some((epoch, counted)) = self.waiting.regions.remove(&region) else {
            return Progress::default();
        };
        self.waiting.pages -= u64::from(counted);
        let mut progress = Progress::default();
        let mut zero: Vec<PageNumber> = Vec::new();
        for (page, base) in self.pages.of_epoch(region, epoch) {
            match base {
                Base::Zero => zero.push(page),
                Base::Shadow(frame) => match memory.write(page, self.shadows.get(frame)) {
                    true => progress.restored += 1,
                    false => progress.lost += 1,
                },
                // Trapped since: it holds its base.
                Base::Itself => {}
            }
        }
        for run in zero.chunk_by(|a, b| a.0 + 1 == b.0) {
            let (Some(first), Some(last)) = (run.first(), run.last()) else {
                continue;
            };
            let range = GuestRange::from_bounds(first.0 * 4096, (last.0 + 1) * 4096);
            if memory.give_back(range) {
                progress.given_back += run.len() as u64;
                continue;
            }
            for page in run {
                match memory.write(*page, PageContent::zero()) {
                    true => progress.restored += 1,
                    false => progress.lost += 1,
                }
            }
        }
        for page in zero {
            self.pages.clear(page);
        }
        self.pages.drop_if_empty(region);
        progress
    }
}
