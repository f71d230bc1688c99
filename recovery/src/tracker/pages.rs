//! What is known of each page, by page number.

use std::collections::HashMap;

use guest_agentless::{GuestRange, PageNumber};

use super::shadow::Frame;

/// Where the content comes from that an abandon gives back to a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Base {
    /// All zero.
    #[default]
    Zero,
    /// What the page holds: it is trapped and has not been written since the last commit.
    Itself,
    /// A shadow page.
    Shadow(Frame),
}

/// What is known of one page.
#[derive(Debug, Clone, Copy, Default)]
pub struct PageState {
    /// See [`Base`].
    pub base: Base,
    /// The epoch of the tracker in which the page became active last; 0 if it never did.
    pub epoch: u64,
}

impl PageState {
    /// The shadow page, if there is one.
    pub fn frame(self) -> Option<Frame> {
        match self.base {
            Base::Shadow(frame) => Some(frame),
            _ => None,
        }
    }
}

/// Pages of a region: as many as one last-level page table maps.
pub const REGION: u64 = 512;

/// What is known of the pages of 2 MiB.
struct Region {
    states: [Option<PageState>; REGION as usize],
    /// The epoch in which a page of it became active last, and how many did in that epoch.
    epoch: u64,
    active: u32,
}

/// Page states in regions of 2 MiB.
#[derive(Default)]
pub struct PageMap {
    regions: HashMap<u64, Box<Region>>,
}

/// What became of a page that was to be active.
pub enum Activated {
    /// It was already.
    Before,
    /// It is now.
    Now(PageState),
    /// It is now, and is the first of its region.
    First(PageState),
}

/// What was known of the pages of a range (see [`super::Tracker::save`]).
pub struct SavedPages {
    range: GuestRange,
    pages: Vec<(PageNumber, PageState)>,
    /// Those of the write set, in the order in which they came to it (see [`super::Active::order`]).
    pub(super) active: Vec<(PageNumber, u64)>,
    /// The parts of the range that show mappings of the image of the process.
    pub(super) image: Vec<GuestRange>,
}

impl SavedPages {
    /// The range.
    pub fn range(&self) -> GuestRange {
        self.range
    }

    pub(super) fn new(
        range: GuestRange,
        pages: Vec<(PageNumber, PageState)>,
        image: Vec<GuestRange>,
    ) -> SavedPages {
        SavedPages {
            range,
            pages,
            active: Vec::new(),
            image,
        }
    }

    pub(super) fn add(&mut self, page: PageNumber, state: PageState) {
        self.pages.push((page, state));
    }

    /// Whether the image of the process needs what was mapped there.
    pub fn is_of_image(&self) -> bool {
        !self.image.is_empty()
    }

    pub(super) fn into_pages(self) -> impl Iterator<Item = (PageNumber, PageState)> {
        self.pages.into_iter()
    }

    pub(super) fn into_states(self) -> impl Iterator<Item = PageState> {
        self.pages.into_iter().map(|(_, state)| state)
    }
}

impl PageMap {
    pub fn get(&self, page: PageNumber) -> Option<PageState> {
        self.regions.get(&(page.0 / REGION))?.states[slot(page)]
    }

    pub fn entry(&mut self, page: PageNumber) -> &mut PageState {
        self.region(page).states[slot(page)].get_or_insert_default()
    }

    fn region(&mut self, page: PageNumber) -> &mut Region {
        self.regions.entry(page.0 / REGION).or_insert_with(|| {
            Box::new(Region {
                states: [None; REGION as usize],
                epoch: 0,
                active: 0,
            })
        })
    }

    pub fn set(&mut self, page: PageNumber, state: PageState) {
        *self.entry(page) = state;
    }

    pub fn set_base(&mut self, page: PageNumber, base: Base) {
        self.entry(page).base = base;
    }

    /// Changes everything that is known. No page is active afterwards, whatever `change` says.
    pub fn for_each(&mut self, mut change: impl FnMut(&mut PageState)) {
        for region in self.regions.values_mut() {
            region.epoch = 0;
            region.active = 0;
            region.states.iter_mut().flatten().for_each(&mut change);
        }
    }

    /// Makes `page` active in `epoch`.
    pub fn activate(&mut self, page: PageNumber, epoch: u64) -> Activated {
        let region = self.region(page);
        let state = region.states[slot(page)].get_or_insert_default();
        if state.epoch == epoch {
            return Activated::Before;
        }
        state.epoch = epoch;
        let state = *state;
        if std::mem::replace(&mut region.epoch, epoch) != epoch {
            region.active = 1;
            return Activated::First(state);
        }
        region.active += 1;
        Activated::Now(state)
    }

    /// How many pages of the region became active in `epoch`. Too many by those that were removed since.
    pub fn active_in(&self, region: u64, epoch: u64) -> u32 {
        let region = self.regions.get(&region).filter(|r| r.epoch == epoch);
        region.map_or(0, |region| region.active)
    }

    /// The pages of the region that became active in `epoch`.
    pub fn of_epoch(
        &self,
        region: u64,
        epoch: u64,
    ) -> impl Iterator<Item = (PageNumber, Base)> + use<'_> {
        let states = self.regions.get(&region).map(|region| &region.states);
        states
            .into_iter()
            .flatten()
            .enumerate()
            .filter_map(move |(i, state)| {
                let state = state.filter(|state| state.epoch == epoch)?;
                Some((PageNumber(region * REGION + i as u64), state.base))
            })
    }

    /// The pages of `range` of which something is known, in ascending order.
    pub fn known(&self, range: GuestRange) -> impl Iterator<Item = PageNumber> + use<'_> {
        let (first, end) = (range.start() / 4096, range.end().div_ceil(4096));
        let regions = self.regions_in(first, end).into_iter();
        let regions =
            regions.filter_map(|number| Some((number * REGION, self.regions.get(&number)?)));
        regions.flat_map(move |(base, region)| {
            let from = first.saturating_sub(base).min(REGION);
            let to = end.saturating_sub(base).min(REGION);
            (from..to)
                .filter(|slot| region.states[*slot as usize].is_some())
                .map(move |slot| PageNumber(base + slot))
        })
    }

    /// The regions of which something is known that have pages of `range`, in ascending order.
    pub fn regions_of(&self, range: GuestRange) -> Vec<u64> {
        self.regions_in(range.start() / 4096, range.end().div_ceil(4096))
    }

    /// The numbers of the regions that exist among those that pages `first` to `end` lie in, ascending.
    fn regions_in(&self, first: u64, end: u64) -> Vec<u64> {
        let touched = first / REGION..end.div_ceil(REGION);
        // Whichever is shorter: the regions of the range, or those that exist.
        let mut numbers: Vec<u64> =
            match touched.end.saturating_sub(touched.start) < self.regions.len() as u64 {
                true => touched.filter(|n| self.regions.contains_key(n)).collect(),
                false => {
                    let known = self.regions.keys().copied();
                    known.filter(|number| touched.contains(number)).collect()
                }
            };
        numbers.sort_unstable();
        numbers
    }

    /// Nothing is known of `page` any more.
    pub fn clear(&mut self, page: PageNumber) {
        if let Some(region) = self.regions.get_mut(&(page.0 / REGION)) {
            region.states[slot(page)] = None;
        }
    }

    /// Takes out what is known of `page`.
    pub fn take(&mut self, page: PageNumber) -> Option<PageState> {
        let region = self.regions.get_mut(&(page.0 / REGION))?;
        region.states[slot(page)].take()
    }

    /// Lets go of the region if nothing is known of its pages.
    pub fn drop_if_empty(&mut self, region: u64) {
        let empty = |region: &Region| region.states.iter().all(Option::is_none);
        if self.regions.get(&region).is_some_and(|r| empty(r)) {
            self.regions.remove(&region);
        }
    }

    /// Takes out all that is known of `range`.
    pub fn remove(&mut self, range: GuestRange) -> SavedPages {
        let mut pages = Vec::new();
        let (first, end) = (range.start() / 4096, range.end().div_ceil(4096));
        for number in self.regions_in(first, end) {
            let Some(region) = self.regions.get_mut(&number) else {
                continue;
            };
            let base = number * REGION;
            let from = first.saturating_sub(base).min(REGION) as usize;
            let to = end.saturating_sub(base).min(REGION) as usize;
            for (i, state) in region.states.iter_mut().enumerate().take(to).skip(from) {
                if let Some(state) = state.take() {
                    pages.push((PageNumber(base + i as u64), state));
                }
            }
            self.drop_if_empty(number);
        }
        SavedPages::new(range, pages, Vec::new())
    }
}

fn slot(page: PageNumber) -> usize {
    (page.0 % REGION) as usize
}
