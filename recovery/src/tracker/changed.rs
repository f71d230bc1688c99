//! What the running domain has changed so far, for checks before it commits.

use guest_agentless::PageNumber;

use super::{Machine, PageContent, Tracker};

impl Tracker {
    /// From now on, each commit lists the pages that it has changed.
    pub fn list_changes(&mut self) {
        self.changes.get_or_insert_default();
    }

    /// The pages that the last commit has changed, if it was asked to list them.
    pub fn last_changes(&self) -> &[PageNumber] {
        self.changes.as_deref().unwrap_or_default()
    }

    /// Shows the pages that differ from their base, each with that base, of those that are `of_interest`. Costs
    /// a comparison for each of these in the write set. Returns how many pages were newly reported as written.
    pub fn changed(
        &mut self,
        machine: &mut impl Machine,
        of_interest: impl Fn(PageNumber) -> bool,
        mut show: impl FnMut(PageNumber, &PageContent),
    ) -> u64 {
        if !self.armed {
            return 0;
        }
        let harvested = self.take_harvest(machine);
        for entry in self.active.iter().filter(|entry| of_interest(entry.page)) {
            let base = match entry.frame {
                Some(frame) => self.shadows.get(frame),
                None => PageContent::zero(),
            };
            if machine.read(entry.page, &mut self.scratch) && self.scratch.bytes() != base.bytes() {
                show(entry.page, base);
            }
        }
        harvested
    }
}
