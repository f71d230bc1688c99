//! Which words of memory were last written by which connection's requests.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use guest_agentless::PageNumber;

use crate::Origin;
use crate::tracker::PageContent;

const WORD: u64 = 8;

/// A connection, told apart from a later one with the same descriptor.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Producer {
    /// What its requests are charged to.
    pub origin: Origin,
    /// A number that no other connection of the process has.
    pub generation: u64,
}

/// What one request has written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// Whose request it was.
    pub producer: Producer,
    /// The address of its client, which may be gone when it is needed.
    pub peer: Option<String>,
    /// The start of what the client had sent.
    pub input: Arc<[u8]>,
}

/// The words that requests have written, and nobody else since. It is bounded: the oldest are forgotten.
#[derive(Debug, Default)]
pub struct Provenance {
    /// The batch of each word, by the word's address divided by its size.
    words: HashMap<u64, u64>,
    /// Every entry of `words`, and entries that were replaced, oldest first.
    order: VecDeque<(u64, u64)>,
    batches: VecDeque<Batch>,
    /// The number of the first of `batches`.
    first: u64,
    /// Commits that are still recorded, unless there is another hand-off.
    remaining: u32,
}

impl Provenance {
    /// Words that are remembered.
    pub const WORDS_MAX: usize = 1 << 16;
    /// Requests that are remembered.
    pub const BATCHES_MAX: usize = 4096;
    /// Words of one page that are remembered of one request: what is written in bulk is not what leads to it.
    const PAGE_MAX: usize = 256;
    /// Commits without any hand-off after which recording ends.
    const QUIET_MAX: u32 = 16_384;

    /// A thread has handed something to another: what requests write is recorded from now on.
    pub fn handed_off(&mut self) {
        self.remaining = Self::QUIET_MAX;
    }

    /// Whether what commits is to be recorded.
    pub fn is_recording(&self) -> bool {
        self.remaining > 0
    }

    /// Whether nothing is known.
    pub fn is_empty(&self) -> bool {
        self.words.is_empty()
    }

    /// How many words are known.
    pub fn len(&self) -> usize {
        self.words.len()
    }

    /// A domain commits, and [`Provenance::changed`] is called for each page that it changed. The result is
    /// for that, if it was a request.
    pub fn commits(&mut self, batch: Option<Batch>) -> Option<u64> {
        self.remaining = self.remaining.saturating_sub(1);
        if self.remaining == 0 {
            *self = Provenance::default();
            return None;
        }
        self.batches.push_back(batch?);
        if self.batches.len() > Self::BATCHES_MAX {
            self.batches.pop_front();
            self.first += 1;
        }
        Some(self.first + self.batches.len() as u64 - 1)
    }

    /// What a commit changed in a page. Words that are written by no request are nobody's any more. Returns
    /// how many words have been recorded.
    pub fn changed(
        &mut self,
        batch: Option<u64>,
        page: PageNumber,
        before: &PageContent,
        after: &PageContent,
    ) -> usize {
        let first = page.address().0 / WORD;
        let (before, _) = before.bytes().as_chunks::<{ WORD as usize }>();
        let (after, _) = after.bytes().as_chunks::<{ WORD as usize }>();
        let mut recorded = 0;
        for (i, (old, new)) in before.iter().zip(after).enumerate() {
            if old == new {
                continue;
            }
            let word = first + i as u64;
            match batch.filter(|_| recorded < Self::PAGE_MAX) {
                Some(batch) => {
                    recorded += 1;
                    self.words.insert(word, batch);
                    self.order.push_back((word, batch));
                }
                None => drop(self.words.remove(&word)),
            }
        }
        self.forget_oldest();
        recorded
    }

    fn forget_oldest(&mut self) {
        while self.order.len() > Self::WORDS_MAX {
            let Some((word, batch)) = self.order.pop_front() else {
                return;
            };
            if self.words.get(&word) == Some(&batch) {
                self.words.remove(&word);
            }
        }
    }

    /// The number of the request that has written the word at `address`.
    pub fn writer(&self, address: u64) -> Option<u64> {
        let batch = *self.words.get(&(address / WORD))?;
        (batch >= self.first).then_some(batch)
    }

    /// A request by its number.
    pub fn batch(&self, number: u64) -> Option<&Batch> {
        self.batches
            .get(usize::try_from(number.checked_sub(self.first)?).ok()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap as Model;

    fn batch(fd: i32) -> Option<Batch> {
        Some(Batch {
            producer: Producer {
                origin: Origin::Stream(fd),
                generation: 1,
            },
            peer: None,
            input: Arc::from(&b""[..]),
        })
    }

    fn page_with(words: &[(usize, u64)]) -> Box<PageContent> {
        let mut page = PageContent::boxed();
        for (at, value) in words {
            page.bytes_mut()[at * 8..at * 8 + 8].copy_from_slice(&value.to_ne_bytes());
        }
        page
    }

    fn fd_of(p: &Provenance, address: u64) -> Option<i32> {
        p.batch(p.writer(address)?)?.producer.origin.fd()
    }

    #[test]
    fn nothing_is_recorded_before_a_hand_off_and_long_after() {
        let mut p = Provenance::default();
        assert_eq!(p.commits(batch(5)), None);
        p.handed_off();
        assert!(p.commits(batch(5)).is_some());
        for _ in 0..Provenance::QUIET_MAX {
            p.commits(None);
        }
        assert!(!p.is_recording());
        assert!(p.is_empty());
    }

    #[test]
    fn the_last_writer_owns_a_word_and_internal_work_owns_nothing() {
        let mut p = Provenance::default();
        p.handed_off();
        let (zero, page) = (PageContent::zero(), PageNumber(3));
        let a = p.commits(batch(5));
        let both = page_with(&[(0, 1), (1, 1)]);
        assert_eq!(p.changed(a, page, zero, &both), 2);
        let b = p.commits(batch(6));
        let second = page_with(&[(0, 1), (1, 2)]);
        p.changed(b, page, &both, &second);
        assert_eq!(fd_of(&p, 3 * 4096 + 4), Some(5));
        assert_eq!(fd_of(&p, 3 * 4096 + 8), Some(6));
        assert_eq!(fd_of(&p, 3 * 4096 + 16), None);
        p.commits(None);
        p.changed(None, page, &second, zero);
        assert!(p.is_empty());
    }

    #[test]
    fn the_oldest_are_forgotten() {
        let mut p = Provenance::default();
        p.handed_off();
        let full: Vec<_> = (0..512).map(|i| (i, 7)).collect();
        let full = page_with(&full);
        for i in 0..2000 {
            let b = p.commits(batch(i));
            p.changed(b, PageNumber(i as u64), PageContent::zero(), &full);
            assert!(p.order.len() <= Provenance::WORDS_MAX);
        }
        assert_eq!(fd_of(&p, 0), None);
        assert_eq!(fd_of(&p, 1999 * 4096), Some(1999));
        for i in 0..2 * Provenance::BATCHES_MAX as i32 {
            p.handed_off();
            p.commits(batch(i));
        }
        assert_eq!(p.batches.len(), Provenance::BATCHES_MAX);
        assert_eq!(fd_of(&p, 1999 * 4096), None);
    }

    proptest! {
        /// Every word belongs to the last request that changed it, or to nobody.
        #[test]
        fn words_belong_to_the_last_writer(
            commits in prop::collection::vec(
                (prop::option::of(0..8i32), prop::collection::vec((0..2u64, 0..16usize, 0..4u64), 0..12)),
                0..40),
        ) {
            let mut p = Provenance::default();
            p.handed_off();
            let mut pages = [PageContent::boxed(), PageContent::boxed()];
            let mut model: Model<u64, i32> = Model::new();
            for (fd, writes) in commits {
                let number = p.commits(fd.and_then(batch));
                let before = pages.clone();
                for (page, word, value) in writes {
                    let at = word * 8;
                    pages[page as usize].bytes_mut()[at..at + 8].copy_from_slice(&value.to_ne_bytes());
                }
                for (i, (old, new)) in before.iter().zip(&pages).enumerate() {
                    p.changed(number, PageNumber(i as u64), old, new);
                    for word in (0..16).filter(|w| old.bytes()[w * 8..w * 8 + 8] != new.bytes()[w * 8..w * 8 + 8]) {
                        let address = (i * 4096 + word * 8) as u64;
                        match fd {
                            Some(fd) => model.insert(address, fd),
                            None => model.remove(&address),
                        };
                    }
                }
            }
            for address in (0..2u64).flat_map(|p| (0..16u64).map(move |w| p * 4096 + w * 8)) {
                prop_assert_eq!(fd_of(&p, address), model.get(&address).copied());
            }
        }
    }
}
