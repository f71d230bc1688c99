//! What a forked child knows of its memory, which is a copy of its parent's.

use super::Tracker;
use super::pages::Base;

impl Tracker {
    /// Turns the child's copy of its parent's tracker into its own: not armed, and with itself as the base of every page
    /// that may hold something.
    ///
    /// All writes have to be known ([`Tracker::note_written`]), none of them of a running domain, and nothing may wait to
    /// be restored.
    pub fn for_child(&mut self) -> Tracker {
        let epoch = self.epoch;
        let mut pages = std::mem::take(&mut self.pages);
        pages.for_each(|state| {
            if state.base != Base::Zero || state.epoch == epoch {
                state.base = Base::Itself;
            }
            state.epoch = 0;
        });
        Tracker {
            pages,
            shadow_limit: self.shadow_limit,
            ..Tracker::new()
        }
    }
}
