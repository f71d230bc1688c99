//! What a suspended domain has written, so that it can still be undone although others have run since.
//!
//! While a domain is suspended nobody else may touch the pages it has written without being noticed. A page
//! that was touched is *shared*: others may have written next to what the domain wrote there. If one of the words that
//! the domain has changed was touched, or may have been, the page is *used*: others may have read what it wrote, or
//! written over it. For each page two contents are kept: as the domain *left* it, and as it would be
//! *without* the domain. What others write is taken over into the second, word by word, when the domain is
//! resumed.
//!
//! Where both have written the same word, the numbers of both are taken for counters, and only the share of the
//! domain is taken out. Where that word is an address, others have built on what the domain made (a list
//! that it had put an element into), so that it can no longer be taken out: the pages are *entangled*.

use std::collections::{BTreeMap, BTreeSet};

use guest_agentless::{GuestRange, PageNumber};

use crate::tracker::PageContent;

/// Bytes of a word: the unit in which writes of different threads are told apart.
pub const WORD: usize = 4;

/// What becomes of a word that the domain and others have written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Merge {
    /// A number: what others added or subtracted stays.
    Add,
    /// The number of those who hold a lock: likewise, and no sign that others have built on anything.
    Holders,
    /// A word of a lock: what it holds now stays. Whether the domain holds the lock is told by the owner.
    Keep,
    /// A word that looks like one of a lock: what it holds now stays, and it counts as a number.
    Doubt,
    /// An address.
    Entangle,
}

struct SuspendedPage {
    without: Box<PageContent>,
    left: Box<PageContent>,
    shared: bool,
    used: bool,
}

/// The pages that one suspended domain has written.
#[derive(Default)]
pub struct SuspendedPages {
    pages: BTreeMap<PageNumber, SuspendedPage>,
    entangled: bool,
    /// Numbers were merged.
    merged: bool,
    /// Words of locks that both have written.
    contended: BTreeSet<u64>,
}

impl SuspendedPages {
    /// Whether the domain has not been suspended, or had written nothing.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// The domain is suspended; since it began or was resumed it has changed `page` from `base` to `content`.
    pub fn leave(&mut self, page: PageNumber, base: &PageContent, content: &PageContent) {
        let content = Box::new(content.clone());
        match self.pages.get_mut(&page) {
            Some(known) => known.left = content,
            None => {
                let without = Box::new(base.clone());
                let state = SuspendedPage {
                    without,
                    left: content,
                    shared: false,
                    used: false,
                };
                self.pages.insert(page, state);
            }
        }
    }

    /// Somebody else touches `range`, and with it words that the domain has changed, as far as is known.
    pub fn share(&mut self, range: GuestRange) {
        for page in range.pages() {
            if let Some(known) = self.pages.get_mut(&page) {
                known.shared = true;
                known.used = true;
            }
        }
    }

    /// Somebody else touches `range`, and with it none of the words that the domain has changed.
    pub fn touch(&mut self, range: GuestRange) {
        for page in range.pages() {
            if let Some(known) = self.pages.get_mut(&page) {
                known.shared = true;
            }
        }
    }

    /// The addresses of the words in `range`, or partly in it, that the domain has changed.
    pub fn changed(&self, range: GuestRange) -> impl Iterator<Item = u64> + '_ {
        let pages = range
            .pages()
            .filter_map(|page| Some((page, self.pages.get(&page)?)));
        pages.flat_map(move |(page, state)| {
            let start = page.address().0;
            let from = range.start().max(start) & !(WORD as u64 - 1);
            let end = range.end().min(start + 4096);
            (from..end).step_by(WORD).filter(move |address| {
                let at = (address - start) as usize;
                word(&state.left, at) != word(&state.without, at)
            })
        })
    }

    /// The pages of which others have used nothing that the domain has written, in ascending order.
    pub fn unused(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.of(|state| !state.used)
    }

    /// The pages of which others have used what the domain has written, in ascending order.
    pub fn used(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.of(|state| state.used)
    }

    /// The pages that others have touched, in ascending order.
    pub fn shared(&self) -> impl Iterator<Item = PageNumber> + '_ {
        self.of(|state| state.shared)
    }

    fn of(&self, which: impl Fn(&SuspendedPage) -> bool) -> impl Iterator<Item = PageNumber> {
        let pages = self.pages.iter();
        pages
            .filter(move |(_, state)| which(state))
            .map(|(page, _)| *page)
    }

    /// Whether others have built on what the domain wrote.
    pub fn is_entangled(&self) -> bool {
        self.entangled
    }

    /// Whether both the domain and others have written words that were taken for numbers.
    pub fn is_merged(&self) -> bool {
        self.merged
    }

    /// The addresses of words of locks that both the domain and others have written.
    pub fn contended(&self) -> impl Iterator<Item = u64> + '_ {
        self.contended.iter().copied()
    }

    /// Whether the domain has written `page` before it was suspended.
    pub fn contains(&self, page: PageNumber) -> bool {
        self.pages.contains_key(&page)
    }

    /// Whether others have touched `page`.
    pub fn is_shared(&self, page: PageNumber) -> bool {
        self.pages.get(&page).is_some_and(|state| state.shared)
    }

    /// Whether the domain has written `page`, and others have used nothing of that.
    pub fn is_unused(&self, page: PageNumber) -> bool {
        self.pages.get(&page).is_some_and(|state| !state.used)
    }

    /// What `page` would hold without the domain.
    pub fn without(&self, page: PageNumber) -> Option<&PageContent> {
        self.pages.get(&page).map(|state| &*state.without)
    }

    /// What `page` held when the domain was suspended or resumed last.
    pub fn left(&self, page: PageNumber) -> Option<&PageContent> {
        self.pages.get(&page).map(|state| &*state.left)
    }

    /// All pages with what they would hold without the domain.
    pub fn iter(&self) -> impl Iterator<Item = (PageNumber, &PageContent)> {
        self.pages
            .iter()
            .map(|(page, state)| (*page, &*state.without))
    }

    /// The domain goes on: takes over what others have written meanwhile. `read` reads a page as it is;
    /// `merge` decides about a word at an address, given the eight bytes around it as the domain left them
    /// and as they are.
    pub fn resume(
        &mut self,
        mut read: impl FnMut(PageNumber, &mut PageContent) -> bool,
        mut merge: impl FnMut(u64, u64, u64) -> Merge,
    ) {
        let mut now = PageContent::boxed();
        for (page, state) in self.pages.iter_mut().filter(|(_, state)| state.shared) {
            if !read(*page, &mut now) {
                continue;
            }
            for at in (0..4096).step_by(WORD) {
                let is = word(&now, at);
                let (left, without) = (word(&state.left, at), word(&state.without, at));
                if is == left {
                    continue;
                }
                let merged = if left == without {
                    is
                } else {
                    let address = page.address().0 + at as u64;
                    match merge(address, around(&state.left, at), around(&now, at)) {
                        Merge::Add => {
                            self.merged = true;
                            without.wrapping_add(is.wrapping_sub(left))
                        }
                        Merge::Holders => without.wrapping_add(is.wrapping_sub(left)),
                        Merge::Keep => {
                            self.contended.insert(address);
                            is
                        }
                        Merge::Doubt => {
                            self.merged = true;
                            is
                        }
                        Merge::Entangle => {
                            self.entangled = true;
                            is
                        }
                    }
                };
                state.without.bytes_mut()[at..at + WORD].copy_from_slice(&merged.to_ne_bytes());
            }
            std::mem::swap(&mut state.left, &mut now);
        }
    }

    /// Takes the pages of `range` out, because their mapping is replaced.
    pub fn take(&mut self, range: GuestRange) -> SuspendedPages {
        let mut taken = SuspendedPages::default();
        if self.pages.is_empty() {
            return taken;
        }
        let mut rest = self.pages.split_off(&PageNumber(range.start() / 4096));
        let above = rest.split_off(&PageNumber(range.end().div_ceil(4096)));
        taken.pages = rest;
        self.pages.extend(above);
        taken
    }

    /// Puts pages back that were taken out. What has been written at the same place since has been taken out
    /// itself, with its mapping.
    pub fn put_back(&mut self, taken: SuspendedPages) {
        self.pages.extend(taken.pages);
    }
}

fn word(content: &PageContent, at: usize) -> u32 {
    let mut bytes = [0; WORD];
    bytes.copy_from_slice(&content.bytes()[at..at + WORD]);
    u32::from_ne_bytes(bytes)
}

/// The aligned eight bytes that the word at `at` is part of.
fn around(content: &PageContent, at: usize) -> u64 {
    let at = at & !7;
    let mut bytes = [0; 8];
    bytes.copy_from_slice(&content.bytes()[at..at + 8]);
    u64::from_ne_bytes(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: PageNumber = PageNumber(5);

    fn content(words: &[(usize, u32)]) -> PageContent {
        let mut content = PageContent::zero().clone();
        for (at, value) in words {
            content.bytes_mut()[*at..*at + 4].copy_from_slice(&value.to_ne_bytes());
        }
        content
    }

    fn resumed(base: &PageContent, left: &PageContent, now: &PageContent) -> SuspendedPages {
        let mut pages = SuspendedPages::default();
        pages.leave(PAGE, base, left);
        pages.share(GuestRange::from_bounds(5 * 4096, 6 * 4096));
        let is_address = |value: u64| (0x1_0000..0x2_0000).contains(&value);
        pages.resume(
            |_, into| {
                into.clone_from(now);
                true
            },
            |_, left, now| match is_address(left) || is_address(now) {
                true => Merge::Entangle,
                false => Merge::Add,
            },
        );
        pages
    }

    #[test]
    fn what_others_write_elsewhere_stays_and_what_the_domain_wrote_goes() {
        let base = content(&[(0, 1), (8, 2)]);
        let left = content(&[(0, 7), (8, 2)]);
        let now = content(&[(0, 7), (8, 3), (100, 9)]);
        let pages = resumed(&base, &left, &now);
        let expected = content(&[(0, 1), (8, 3), (100, 9)]);
        assert_eq!(pages.without(PAGE).unwrap().bytes(), expected.bytes());
        assert!(!pages.is_entangled());
    }

    #[test]
    fn of_a_counter_only_the_share_of_the_domain_is_taken_out() {
        let pages = resumed(
            &content(&[(16, 100)]),
            &content(&[(16, 101)]),
            &content(&[(16, 106)]),
        );
        assert_eq!(word(pages.without(PAGE).unwrap(), 16), 105);
    }

    #[test]
    fn an_address_that_both_have_written_entangles() {
        let pages = resumed(
            &content(&[(16, 0x1_0010)]),
            &content(&[(16, 0x1_0020)]),
            &content(&[(16, 0x1_0030)]),
        );
        assert!(pages.is_entangled());
    }

    #[test]
    fn a_page_that_nobody_touched_goes_back_to_its_first_base() {
        let mut pages = SuspendedPages::default();
        pages.leave(PAGE, &content(&[(0, 1)]), &content(&[(0, 2)]));
        pages.resume(|_, _| panic!("nothing is shared"), |_, _, _| Merge::Add);
        pages.leave(PAGE, &content(&[(0, 2)]), &content(&[(0, 3)]));
        assert_eq!(word(pages.without(PAGE).unwrap(), 0), 1);
        assert_eq!(pages.unused().count(), 1);
    }

    #[test]
    fn what_lies_next_to_the_words_of_the_domain_may_be_touched() {
        let mut pages = SuspendedPages::default();
        pages.leave(
            PAGE,
            &content(&[(16, 1), (20, 2)]),
            &content(&[(16, 3), (20, 2)]),
        );
        let start = PAGE.address().0;
        let changed = |pages: &SuspendedPages, from: u64, end: u64| -> Vec<u64> {
            let range = GuestRange::from_bounds(start + from, start + end);
            pages
                .changed(range)
                .map(|address| address - start)
                .collect()
        };
        assert_eq!(changed(&pages, 0, 16), [0; 0]);
        assert_eq!(changed(&pages, 20, 4096), [0; 0]);
        assert_eq!(changed(&pages, 19, 20), [16]);
        assert_eq!(changed(&pages, 0, 8192), [16]);
        pages.touch(GuestRange::from_bounds(start, start + 4));
        assert_eq!((pages.shared().count(), pages.used().count()), (1, 0));
        // Others write there.
        let now = content(&[(16, 3), (20, 9)]);
        let read = |_: PageNumber, into: &mut PageContent| {
            into.clone_from(&now);
            true
        };
        pages.resume(read, |_, _, _| panic!("nobody else has written the word"));
        assert_eq!(changed(&pages, 0, 4096), [16]);
        assert_eq!(word(pages.without(PAGE).unwrap(), 16), 1);
        assert_eq!(word(pages.without(PAGE).unwrap(), 20), 9);
    }

    #[test]
    fn pages_of_a_replaced_mapping_come_back() {
        let range = GuestRange::from_bounds(5 * 4096, 6 * 4096);
        let mut pages = SuspendedPages::default();
        pages.leave(PAGE, &content(&[(0, 1)]), &content(&[(0, 2)]));
        pages.leave(PageNumber(6), &content(&[]), &content(&[(0, 2)]));
        let taken = pages.take(range);
        assert!(pages.without(PAGE).is_none() && pages.without(PageNumber(6)).is_some());
        pages.leave(PAGE, &content(&[(0, 8)]), &content(&[(0, 9)]));
        drop(pages.take(range));
        pages.put_back(taken);
        assert_eq!(word(pages.without(PAGE).unwrap(), 0), 1);
    }

    proptest! {
        /// Threads that keep to their own words and add to common counters, in any order: without the
        /// domain, memory is what the others alone would have made of it.
        #[test]
        fn without_the_domain_is_what_the_others_did(
            steps in prop::collection::vec((any::<bool>(), 0usize..8, any::<u32>(), any::<bool>()), 0..60)
        ) {
            let mut pages = SuspendedPages::default();
            let mut memory = PageContent::zero().clone();
            let mut alone = PageContent::zero().clone();
            let add = |content: &mut PageContent, at: usize, value: u32| {
                let sum = word(content, at).wrapping_add(value);
                content.bytes_mut()[at..at + 4].copy_from_slice(&sum.to_ne_bytes());
            };
            let mut base = memory.clone();
            for (domain, slot, value, counter) in steps {
                // Own words: 0.. of the domain, 64.. of others; counters at 128..
                let at = if counter { 128 } else if domain { 0 } else { 64 } + slot * 4;
                add(&mut memory, at, value);
                if domain {
                    if base.bytes() != memory.bytes() {
                        pages.leave(PAGE, &base, &memory);
                        pages.share(GuestRange::from_bounds(5 * 4096, 6 * 4096));
                    }
                } else {
                    add(&mut alone, at, value);
                    let now = memory.clone();
                    pages.resume(|_, into| { into.clone_from(&now); true }, |_, _, _| Merge::Add);
                }
                base = memory.clone();
            }
            let without = pages.without(PAGE).map_or(memory.clone(), Clone::clone);
            let expected = if pages.is_empty() { memory } else { alone };
            prop_assert_eq!(without.differences(&expected), 0);
        }
    }
}
