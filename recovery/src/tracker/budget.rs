//! The limit on shadow pages.
//!
//! Near the limit, shadows of pages that are not in use are *evicted*: such a page is trapped again and is its
//! own base. Where all are in use nothing can be evicted; then the running domain has to be committed
//! ([`FirstWrite::NoRoom`]), after which everything can. So the limit never makes a request fail, but what
//! came before such a commit cannot be undone.

use guest_agentless::{GuestRange, PageNumber};

use super::pages::{Base, REGION};
use super::{Machine, Tracker};

/// Frames looked at for one first write at most.
const SCAN: usize = 4096;
/// Pages evicted for one first write, so that the next ones need not look.
const BATCH: usize = 64;
/// Pages evicted by one commit at most.
const COMMIT_BATCH: usize = 1024;

/// What came of a first write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FirstWrite {
    /// The page has a shadow and can be written.
    Taken,
    /// The page cannot be read.
    Unreadable,
    /// There is no room for a shadow.
    NoRoom,
}

/// What came of a write by the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct HostWrite {
    /// Pages that became active.
    pub activated: u64,
    /// Where it stopped, for want of room for a shadow.
    pub stopped: Option<PageNumber>,
}

impl Tracker {
    /// Sets the limit on shadow pages, in bytes.
    pub fn set_shadow_limit(&mut self, bytes: u64) {
        self.shadow_limit = bytes;
    }

    /// The limit on shadow pages, in bytes.
    pub fn shadow_limit(&self) -> u64 {
        self.shadow_limit
    }

    /// Shadows that were evicted so far.
    pub fn evicted(&self) -> u64 {
        self.evicted
    }

    /// Whether the shadows are well below the limit.
    pub fn has_room(&self) -> bool {
        self.shadows.bytes() <= self.roomy()
    }

    fn roomy(&self) -> u64 {
        self.shadow_limit / 8 * 7
    }

    /// Between two domains: traps all pages, so that each one's first write by the next domain exits. For fault
    /// injection; pages of shared mappings, and those that nobody has written yet, are left as they are.
    pub fn trap_all(&mut self, machine: &mut impl Machine) {
        if !self.armed {
            return;
        }
        self.take_harvest(machine);
        let everything = GuestRange::from_bounds(0, u64::MAX);
        let pages: Vec<PageNumber> = self.pages.known(everything).collect();
        for page in pages {
            let Some(Base::Shadow(frame)) = self.pages.get(page).map(|state| state.base) else {
                continue;
            };
            if self.waiting.contains(page.0 / REGION) || machine.is_shared(page) {
                continue;
            }
            machine.set_writable(page, false);
            self.pages.set_base(page, Base::Itself);
            self.shadows.free(frame);
        }
        self.deactivate_all(machine);
    }

    /// Whether one more shadow may be taken.
    pub(super) fn is_full(&self) -> bool {
        self.shadows.bytes().saturating_add(4096) > self.shadow_limit
    }

    /// Makes room for a shadow if that is needed and possible.
    pub(super) fn find_room(&mut self, machine: &mut impl Machine) -> bool {
        if !self.is_full() {
            return true;
        }
        // What was written unnoticed would be taken for its own base.
        self.take_harvest(machine);
        self.evict(machine, BATCH, false);
        if self.is_full() {
            self.evict(machine, BATCH, true);
        }
        if self.is_full() {
            self.cramped = true;
        }
        !self.is_full()
    }

    /// Between two domains: evicts until there is room again, some pages at a time.
    pub(super) fn trim(&mut self, machine: &mut impl Machine) {
        if self.has_room() {
            return;
        }
        let excess = (self.shadows.bytes() - self.roomy()) / 4096;
        let wanted = COMMIT_BATCH.min(excess as usize + 1);
        if self.evict(machine, wanted, false) < wanted {
            self.evict(machine, wanted, true);
        }
    }

    /// Evicts up to `wanted` shadows; with `recent` also those of pages that were in the last active set.
    fn evict(&mut self, machine: &mut impl Machine, wanted: usize, recent: bool) -> usize {
        let mut count = 0;
        for _ in 0..SCAN {
            if count >= wanted {
                break;
            }
            let Some((frame, page)) = self.shadows.next_in_turn() else {
                continue;
            };
            let state = self.pages.get(page);
            let Some(state) = state.filter(|state| state.base == Base::Shadow(frame)) else {
                continue;
            };
            let in_use = state.epoch == self.epoch || !recent && state.epoch + 1 == self.epoch;
            if in_use || self.waiting.contains(page.0 / REGION) {
                continue;
            }
            // The page is not active, so the next write to it walks the page tables again.
            machine.set_writable(page, false);
            self.pages.set_base(page, Base::Itself);
            self.shadows.free(frame);
            count += 1;
        }
        self.evicted += count as u64;
        count
    }
}
