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
    /// Whether it is in the active set.
    pub active: bool,
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

const REGION: u64 = 512;

type Region = [Option<PageState>; REGION as usize];

/// Page states in regions of 2 MiB.
#[derive(Default)]
pub struct PageMap {
    regions: HashMap<u64, Box<Region>>,
}

/// What was known of the pages of a range (see [`super::Tracker::save`]).
pub struct SavedPages {
    range: GuestRange,
    pages: Vec<(PageNumber, PageState)>,
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
        self.regions.get(&(page.0 / REGION))?[slot(page)]
    }

    pub fn entry(&mut self, page: PageNumber) -> &mut PageState {
        let region = self
            .regions
            .entry(page.0 / REGION)
            .or_insert_with(|| Box::new([None; REGION as usize]));
        region[slot(page)].get_or_insert_default()
    }

    pub fn set(&mut self, page: PageNumber, state: PageState) {
        *self.entry(page) = state;
    }

    pub fn set_base(&mut self, page: PageNumber, base: Base) {
        self.entry(page).base = base;
    }

    /// Takes out what is known of `page`.
    pub fn take(&mut self, page: PageNumber) -> Option<PageState> {
        self.regions.get_mut(&(page.0 / REGION))?[slot(page)].take()
    }

    /// Takes out all that is known of `range`.
    pub fn remove(&mut self, range: GuestRange) -> SavedPages {
        let mut pages = Vec::new();
        let (first, end) = (range.start() / 4096, range.end().div_ceil(4096));
        let mut take = |number: u64, region: &mut Region| {
            let base = number * REGION;
            let from = first.saturating_sub(base).min(REGION) as usize;
            let to = end.saturating_sub(base).min(REGION) as usize;
            for (i, state) in region.iter_mut().enumerate().take(to).skip(from) {
                if let Some(state) = state.take() {
                    pages.push((PageNumber(base + i as u64), state));
                }
            }
        };
        let touched = first / REGION..end.div_ceil(REGION);
        // Whichever is shorter: the regions of the range, or those that exist.
        if touched.end.saturating_sub(touched.start) < self.regions.len() as u64 {
            for number in touched {
                if let Some(region) = self.regions.get_mut(&number) {
                    take(number, region);
                }
            }
        } else {
            for (&number, region) in &mut self.regions {
                if touched.contains(&number) {
                    take(number, region);
                }
            }
        }
        SavedPages::new(range, pages, Vec::new())
    }
}

fn slot(page: PageNumber) -> usize {
    (page.0 % REGION) as usize
}
