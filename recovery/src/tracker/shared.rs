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
//! What another process writes while a domain runs is undone with the domain if it is in a page that is active.

use super::pages::Base;
use super::{Machine, Tracker};

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
