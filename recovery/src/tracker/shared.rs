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
//! - Before a shared mapping that the domain has made goes because the domain is undone, all that it wrote to shared pages is
//!   undone: it shows elsewhere, and only while all are there is the order known.
//!
//! What another process writes while a domain runs is undone with the domain if it is in a page that is active.

use std::collections::BTreeSet;

use super::pages::{Base, PageState};
use super::{Abandoned, Machine, Tracker};

impl Tracker {
    /// A domain begins: what shared pages hold is their base.
    pub(super) fn refresh_shared(&mut self, machine: &mut impl Machine) {
        if !self.shared {
            return;
        }
        for entry in self.active.iter().filter(|entry| entry.shared) {
            if let Some(frame) = entry.frame {
                machine.read(entry.page, self.shadows.get_mut(frame));
            }
        }
    }

    /// The running domain is being undone, and a shared mapping that it has made is about to go: what it wrote there is
    /// elsewhere, too. All shared pages get their bases back, as in [`Tracker::abandon`], and are not active any more.
    pub fn restore_shared(&mut self, machine: &mut impl Machine) -> Abandoned {
        if !self.shared {
            return Abandoned::default();
        }
        self.take_harvest(machine);
        let shared = self.active.iter().filter(|entry| entry.shared);
        let shared: BTreeSet<_> = shared.map(|entry| entry.page).collect();
        let outcome = self.restore_now(machine, |page| shared.contains(&page), |_, _| {});
        self.trap_shared(machine);
        // No thread may write them any more by what its processor remembers of the page tables.
        machine.reprotect();
        self.active.retain(|entry| !entry.shared);
        for page in shared {
            let base = Base::Itself;
            self.pages.set(page, PageState { base, epoch: 0 });
        }
        self.shared = false;
        outcome
    }

    /// No page will be active any more: the next write to a shared one takes a new shadow. Takes effect as
    /// [`Machine::set_writable`] does.
    pub(super) fn trap_shared(&mut self, machine: &mut impl Machine) {
        if !self.shared {
            return;
        }
        for entry in self.active.iter().filter(|entry| entry.shared) {
            machine.set_writable(entry.page, false);
            self.pages.set_base(entry.page, Base::Itself);
            if let Some(frame) = entry.frame {
                self.shadows.free(frame);
            }
        }
    }
}
