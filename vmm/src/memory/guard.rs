//! Guarded pages: mapped, but nobody may touch them until it is decided what becomes of their content.
//!
//! The guest's page tables hold no entry for them: the guest leaves with a page fault
//! ([`Resolution::Guarded`](super::Resolution)). The host's mapping stays as it is, because the suspended thread
//! itself may wait for a futex in such a page; so every access on behalf of the guest has to ask first
//! (`Thread::touch`).

use std::collections::BTreeMap;

use guest_agentless::{Errno, GuestRange, PAGE_SIZE, PageNumber, Protection};
use recovery::Tracker;

use super::space::{AddressSpace, host_protect, is_common, is_zero_based};

/// The guarded pages, as ranges that do not overlap and of which each lies in one mapping: suspended domains have
/// written them.
#[derive(Debug, Default)]
pub struct Guards {
    /// By start address: the end.
    ranges: BTreeMap<u64, u64>,
}

impl Guards {
    /// Whether nothing is guarded.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// The guarded parts of `range`, lowest first.
    pub fn overlapping(&self, range: GuestRange) -> impl Iterator<Item = GuestRange> + use<'_> {
        let first = match self.ranges.range(..=range.start()).next_back() {
            Some((start, end)) if *end > range.start() => *start,
            _ => range.start(),
        };
        let end = if range.is_empty() { first } else { range.end() };
        self.ranges
            .range(first..end)
            .filter_map(move |(start, end)| {
                GuestRange::from_bounds(*start, *end).intersection(range)
            })
    }

    /// Whether `page` is guarded.
    pub fn contains(&self, page: PageNumber) -> bool {
        !self.is_empty() && self.overlapping(page_range(page)).next().is_some()
    }

    fn insert(&mut self, range: GuestRange) {
        if !range.is_empty() {
            self.ranges.insert(range.start(), range.end());
        }
    }

    /// Takes `part` out, which lies in one of the ranges or is one.
    fn remove(&mut self, part: GuestRange) {
        let Some((&start, &end)) = self.ranges.range(..=part.start()).next_back() else {
            return;
        };
        if end < part.end() {
            return;
        }
        self.ranges.remove(&start);
        self.insert(GuestRange::from_bounds(start, part.start()));
        self.insert(GuestRange::from_bounds(part.end(), end));
    }
}

/// The addresses of a page.
pub fn page_range(page: PageNumber) -> GuestRange {
    let start = page.address().0;
    GuestRange::from_bounds(start, start.saturating_add(PAGE_SIZE))
}

/// Joins neighbours among `pages`, which are in ascending order, into ranges.
pub fn runs(pages: impl Iterator<Item = PageNumber>) -> Vec<GuestRange> {
    let mut runs: Vec<GuestRange> = Vec::new();
    for range in pages.map(page_range) {
        match runs.last_mut() {
            Some(last) if last.end() == range.start() => {
                *last = GuestRange::from_bounds(last.start(), range.end());
            }
            _ => runs.push(range),
        }
    }
    runs
}

/// Pages between two parts that KVM drops with them, at most: to enter them again costs less than two more calls.
const BETWEEN: u64 = 16;

/// Whether so little lies between `first` and `second` that both are dropped at once.
fn is_near(first: GuestRange, second: GuestRange) -> bool {
    let between = second.start().checked_sub(first.end());
    between.is_some_and(|bytes| bytes <= BETWEEN * PAGE_SIZE)
}

impl AddressSpace {
    /// The guarded pages.
    pub fn guards(&self) -> &Guards {
        &self.guards
    }

    /// Guards the mapped parts of `ranges`, which are in ascending order, that are not guarded yet.
    pub fn guard(&mut self, ranges: &[GuestRange]) -> Result<(), Errno> {
        let mut parts: Vec<GuestRange> = Vec::new();
        let mut wholes: Vec<(GuestRange, Protection)> = Vec::new();
        for range in ranges {
            for vma in self.vmas.overlapping(*range) {
                let Some(mut rest) = vma.range.intersection(*range) else {
                    continue;
                };
                match wholes.last_mut().map(|(whole, _)| whole) {
                    Some(last) if is_near(*last, rest) && vma.range.encloses(*last) => {
                        *last = GuestRange::from_bounds(last.start(), rest.end());
                    }
                    _ => wholes.push((rest, vma.protection)),
                }
                for guarded in self.guards.overlapping(rest) {
                    parts.push(GuestRange::from_bounds(rest.start(), guarded.start()));
                    rest = GuestRange::from_bounds(guarded.end(), rest.end());
                }
                parts.push(rest);
            }
        }
        parts.retain(|part| !part.is_empty());
        for part in &parts {
            self.table.unmap(*part).map_err(|_| Errno::ENOMEM)?;
        }
        for (whole, protection) in wholes {
            // A change of the host's mapping makes KVM drop its own entries for the pages. They stay readable if
            // possible: a thread without the run token may be about to wait for a futex there.
            let for_a_moment = match protection.is_writable() {
                true => Protection::READ,
                false => Protection::NONE,
            };
            host_protect(whole, for_a_moment)?;
            host_protect(whole, protection)?;
        }
        for part in parts {
            self.guards.insert(part);
        }
        Ok(())
    }

    /// Lets `part`, which is guarded as a whole, be used again.
    pub fn unguard(&mut self, tracker: &Tracker, part: GuestRange) {
        self.guards.remove(part);
        let Some(vma) = self.vmas.find(part.start()) else {
            return;
        };
        let (protection, zero_based, shared) = (vma.protection, is_zero_based(vma), is_common(vma));
        if protection == Protection::NONE {
            return;
        }
        // Whoever unguards pages is about to use them: without an exit for each 2 MiB.
        for page in part.pages() {
            let write = protection.is_writable() && tracker.is_writable(page, zero_based);
            // Where the guest itself has never been, only the host has written.
            let Some(slot) = self.slots.find(page.address().0) else {
                continue;
            };
            if self
                .map_page(slot, page, protection, write, shared)
                .is_err()
            {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(start: u64, end: u64) -> GuestRange {
        GuestRange::from_bounds(start * PAGE_SIZE, end * PAGE_SIZE)
    }

    #[test]
    fn parts_come_out_of_the_middle_of_a_range() {
        let mut guards = Guards::default();
        guards.insert(range(10, 20));
        guards.remove(range(13, 15));
        let left: Vec<_> = guards.overlapping(range(0, 100)).collect();
        assert_eq!(left, [range(10, 13), range(15, 20)]);
        assert!(!guards.contains(PageNumber(14)) && guards.contains(PageNumber(15)));
        let clipped: Vec<_> = guards.overlapping(range(12, 16)).collect();
        assert_eq!(clipped, [range(12, 13), range(15, 16)]);
        for part in left {
            guards.remove(part);
        }
        assert!(guards.is_empty());
    }

    #[test]
    fn what_is_far_away_or_overlaps_is_not_near() {
        assert!(is_near(range(1, 3), range(3, 4)) && is_near(range(1, 3), range(19, 20)));
        assert!(!is_near(range(1, 3), range(20, 21)) && !is_near(range(1, 3), range(2, 4)));
    }

    #[test]
    fn neighbours_are_joined() {
        let pages = [1, 2, 3, 7, 9, 10].map(PageNumber);
        assert_eq!(
            runs(pages.into_iter()),
            [range(1, 4), range(7, 8), range(9, 11)]
        );
    }
}
