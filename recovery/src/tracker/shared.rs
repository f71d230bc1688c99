//! Pages of shared mappings.
//!
//! The same memory may be mapped at two addresses, and be changed without a write to either: by a `write` to the
//! file, or by another process. So a shadow of such a page is only right for as long as its page is active, and in
//! order:
//!
//! - The shadow is taken by a trap, and the page is active at once. What several of the active pages have in common
//!   gets the oldest shadow back, since the newest is restored first.
//! - When a domain begins, memory is the base: the shadows of active pages are taken anew.
//! - A page that is not active any more is trapped, and its own base.
//!
//! - What the domain unmaps keeps its place in this order, and has it again when it is put back.
//! - Before a shared mapping that the domain has made goes because the domain is undone, all that was written to shared
//!   pages since the first write to it is undone: it shows elsewhere, and only while all are there is the order known.
//!
//! What another process writes while a domain runs is undone with the domain if it is in a page that is active. Processes
//! of one server take turns: between [`Tracker::leave_shared`] and [`Tracker::enter_shared`] pages of shared mappings are
//! neither read nor written here.

use guest_agentless::GuestRange;

use super::pages::{Base, PageMap, PageState};
use super::shadow::ShadowStore;
use super::{Abandoned, Active, Machine, PageContent, Tracker};

impl Tracker {
    /// A domain begins: what shared pages hold is their base.
    pub(super) fn refresh_shared(&mut self, machine: &mut impl Machine) {
        if !self.shared || self.shared_away {
            return;
        }
        for entry in self.active.iter().filter(|entry| entry.shared) {
            if let Some(frame) = entry.frame {
                machine.read(entry.page, self.shadows.get_mut(frame));
            }
        }
    }

    /// From now on other processes may write shared mappings. The guest cannot, and the running domain has written none that
    /// it has not committed.
    pub fn leave_shared(&mut self) {
        self.shared_away = true;
    }

    /// No other process writes shared mappings any more: what they hold is their base.
    pub fn enter_shared(&mut self, machine: &mut impl Machine) {
        self.shared_away = false;
        self.refresh_shared(machine);
    }

    /// Whether the running domain has changed shared mappings elsewhere than in the aligned word of 8 bytes at `except`.
    pub fn has_changed_shared(&mut self, machine: &mut impl Machine, except: Option<u64>) -> bool {
        self.take_harvest(machine);
        if !self.shared || self.shared_away {
            return false;
        }
        let scratch = &mut self.scratch;
        let mut shared = self.active.iter().filter(|entry| entry.shared);
        shared.any(|entry| {
            let base = entry.frame.map(|frame| self.shadows.get(frame));
            let base = base.unwrap_or(PageContent::zero());
            if !machine.read(entry.page, scratch) || scratch.bytes() == base.bytes() {
                return false;
            }
            let start = entry.page.address().0;
            let words = scratch.bytes().chunks(8).zip(base.bytes().chunks(8));
            let mut changed = words
                .zip((start..).step_by(8))
                .filter(|((now, base), _)| now != base);
            changed.any(|(_, address)| Some(address) != except)
        })
    }

    /// The running domain is being undone, and `range`, a shared mapping that it has made, is about to go: what it wrote
    /// there is elsewhere, too. Shared pages get their bases back, as in [`Tracker::abandon`], down to the first that was
    /// written in `range`, and are not active any more. What came before waits for mappings that are put back later: the
    /// domain had unmapped those before it made this one.
    pub fn restore_shared(&mut self, machine: &mut impl Machine, range: GuestRange) -> Abandoned {
        if !self.shared {
            return Abandoned::default();
        }
        self.take_harvest(machine);
        let in_range = |entry: &&Active| range.contains(entry.page.address().0);
        let Some(first) = self.active.iter().find(in_range).map(|entry| entry.order) else {
            return Abandoned::default();
        };
        let is_newer = |entry: &Active| entry.shared && entry.order >= first;
        let outcome = self.restore_now(machine, is_newer, |_, _| {});
        for entry in self.active.extract_if(.., |entry| is_newer(entry)) {
            trap(&mut self.pages, &mut self.shadows, machine, &entry);
            let base = Base::Itself;
            self.pages.set(entry.page, PageState { base, epoch: 0 });
        }
        // No thread may write them any more by what its processor remembers of the page tables.
        machine.reprotect();
        outcome
    }

    /// No page will be active any more: the next write to a shared one takes a new shadow. Takes effect as
    /// [`Machine::set_writable`] does.
    pub(super) fn trap_shared(&mut self, machine: &mut impl Machine) {
        if !self.shared {
            return;
        }
        for entry in self.active.iter().filter(|entry| entry.shared) {
            trap(&mut self.pages, &mut self.shadows, machine, entry);
        }
    }
}

fn trap(
    pages: &mut PageMap,
    shadows: &mut ShadowStore,
    machine: &mut impl Machine,
    entry: &Active,
) {
    machine.set_writable(entry.page, false);
    pages.set_base(entry.page, Base::Itself);
    if let Some(frame) = entry.frame {
        shadows.free(frame);
    }
}
