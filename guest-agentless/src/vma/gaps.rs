//! The unmapped ranges of an address space, indexed by size.
//!
//! A search that walks the mappings costs as much as there are mappings. Here gaps are kept in classes
//! by the logarithm of their length: in every class above that of the wanted length the first gap looked
//! at is large enough, so that a search takes one look into each class.

use std::collections::BTreeMap;

use crate::{GuestRange, PAGE_SIZE};

/// What is wanted of [`Gaps::find`].
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// Bytes.
    pub len: u64,
    /// The start is a multiple of this power of two.
    pub align: u64,
    /// Where to look.
    pub window: GuestRange,
}

impl Wanted {
    /// The highest place for it in the gap `start..end`.
    fn highest_in(&self, start: u64, end: u64) -> Option<u64> {
        let low = start.max(self.window.start());
        let high = end.min(self.window.end());
        let place = high.checked_sub(self.len)? & !(self.align - 1);
        (place >= low).then_some(place)
    }

    /// The lowest place for it in the gap `start..end`.
    fn lowest_in(&self, start: u64, end: u64) -> Option<u64> {
        let place = start
            .max(self.window.start())
            .checked_next_multiple_of(self.align)?;
        let high = end.min(self.window.end());
        (place.checked_add(self.len)? <= high).then_some(place)
    }
}

/// The set of gaps. Gaps neither overlap nor touch.
#[derive(Debug, Clone)]
pub(super) struct Gaps {
    /// By the binary logarithm of the length: start to end.
    classes: Vec<BTreeMap<u64, u64>>,
}

fn class(len: u64) -> usize {
    len.checked_ilog2().unwrap_or(0) as usize
}

impl Gaps {
    /// One gap that is everything but the page at address zero, which no search may ever find.
    pub fn new() -> Gaps {
        let mut gaps = Gaps {
            classes: vec![BTreeMap::new(); 64],
        };
        gaps.insert(PAGE_SIZE, u64::MAX);
        gaps
    }

    fn insert(&mut self, start: u64, end: u64) {
        if start < end {
            self.classes[class(end - start)].insert(start, end);
        }
    }

    fn remove(&mut self, start: u64, end: u64) {
        if start < end {
            self.classes[class(end - start)].remove(&start);
        }
    }

    /// Records that `taken`, in the gap `gap`, is now mapped.
    pub fn take(&mut self, gap: GuestRange, taken: GuestRange) {
        let floor = |address: u64| address.max(PAGE_SIZE);
        self.remove(floor(gap.start()), gap.end());
        self.insert(floor(gap.start()), taken.start());
        self.insert(floor(taken.end()), gap.end());
    }

    /// Records that `freed` is no longer mapped, which makes `gap` (around it) one gap.
    pub fn release(&mut self, gap: GuestRange, freed: GuestRange) {
        let floor = |address: u64| address.max(PAGE_SIZE);
        self.remove(floor(gap.start()), freed.start());
        self.remove(floor(freed.end()), gap.end());
        self.insert(floor(gap.start()), gap.end());
    }

    /// The highest (`top_down`) or lowest start of a place that satisfies `wanted`.
    pub fn find(&self, wanted: Wanted, top_down: bool) -> Option<u64> {
        let classes = &self.classes[class(wanted.len)..];
        if top_down {
            classes
                .iter()
                .filter_map(|class| highest(class, wanted))
                .max()
        } else {
            classes
                .iter()
                .filter_map(|class| lowest(class, wanted))
                .min()
        }
    }
}

fn highest(class: &BTreeMap<u64, u64>, wanted: Wanted) -> Option<u64> {
    class
        .range(..wanted.window.end())
        .rev()
        .take_while(|(_, end)| **end > wanted.window.start())
        .find_map(|(start, end)| wanted.highest_in(*start, *end))
}

fn lowest(class: &BTreeMap<u64, u64>, wanted: Wanted) -> Option<u64> {
    // The gap that begins below the window may reach into it.
    let below = class.range(..wanted.window.start()).next_back();
    let inside = class.range(wanted.window.start()..wanted.window.end());
    below
        .into_iter()
        .chain(inside)
        .find_map(|(start, end)| wanted.lowest_in(*start, *end))
}
