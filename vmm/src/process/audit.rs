//! The self-check of the write set (`--audit`): all memory that the guest can write, against a full copy.

use std::collections::{BTreeMap, BTreeSet};

use guest_agentless::PageNumber;
use recovery::tracker::PageContent;

use super::State;
use super::thread::Thread;
use crate::memory::copy;

/// A copy of all memory that the guest can write, for the audit.
pub struct Image(BTreeMap<PageNumber, Box<PageContent>>);

impl Image {
    /// Copies all writable pages that are not untouched.
    pub fn take(state: &State) -> Image {
        let mut pages = BTreeMap::new();
        let mut content = PageContent::boxed();
        let writable = state
            .space
            .vmas()
            .iter()
            .filter(|vma| vma.protection.is_writable())
            // Others write that as well.
            .filter(|vma| state.shared.is_none() || !vma.shared);
        for page in writable.flat_map(|vma| vma.range.pages()) {
            if copy::read(page.address().0, content.bytes_mut()).is_ok()
                && content.bytes() != PageContent::zero().bytes()
            {
                pages.insert(page, std::mem::replace(&mut content, PageContent::boxed()));
            }
        }
        Image(pages)
    }

    /// The pages that differ; one that is missing is all zero.
    fn differences(&self, other: &Image) -> Vec<PageNumber> {
        let all: BTreeSet<_> = self.0.keys().chain(other.0.keys()).collect();
        all.into_iter()
            .copied()
            .filter(|page| {
                let content = |image: &Image| image.0.get(page).map(|content| *content.bytes());
                content(self) != content(other)
            })
            .collect()
    }
}

impl Thread {
    /// The domain that began with `image` has been undone: counts and tells what is not as it was.
    pub(super) fn check_audit(&mut self, state: &mut State, image: &Image) {
        self.restore_all(state);
        let audit = &self.process.stats.audit;
        audit.checks.inc();
        let now = Image::take(state);
        for page in image.differences(&now) {
            audit.mismatches.inc();
            log::error!(
                "audit: page {:?} is not what it was at the checkpoint",
                page.address()
            );
        }
    }
}
