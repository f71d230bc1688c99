//! What the tracker can tell of memory that the running domain has not written.

use guest_agentless::{GuestRange, PageNumber};

use super::Tracker;

impl Tracker {
    /// The pages of `range` that may have been written since they were mapped, in ascending order. All others
    /// are as their file has them, or zero.
    pub fn written_since_mapped(&self, range: GuestRange) -> impl Iterator<Item = PageNumber> {
        self.pages.known(range)
    }

    /// The regions with pages of `range` that may have been written since they were mapped, in ascending order.
    pub fn written_regions(&self, range: GuestRange) -> Vec<u64> {
        self.pages.regions_of(range)
    }

    /// Whether `page` is in the write set, as far as that is known without a harvest.
    pub fn is_in_write_set(&self, page: PageNumber) -> bool {
        self.is_active(page)
    }
}
