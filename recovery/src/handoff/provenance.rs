//! Which words of memory were last changed by which connection's requests, and where its bytes were received.

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;

use guest_agentless::{GuestRange, PageNumber};

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

#[derive(Debug, Clone, Copy)]
struct Buffer {
    end: u64,
    producer: Producer,
    /// Counts the receptions.
    number: u64,
}

/// The words that requests have written, and nobody else since. It is bounded: the oldest are forgotten.
#[derive(Debug, Default)]
pub struct Provenance {
    /// The batch of each word, by the word's address divided by its size.
    words: HashMap<u64, u64>,
    /// Every entry of `words`, and entries that were replaced, oldest first.
    order: VecDeque<(u64, u64)>,
    /// Where bytes were received, by the first address; none overlap.
    buffers: BTreeMap<u64, Buffer>,
    /// The starts of `buffers`, oldest first, and of some that were replaced.
    buffer_order: VecDeque<(u64, u64)>,
    received: u64,
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
    /// Buffers that are remembered.
    pub const BUFFERS_MAX: usize = 4096;
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
        self.words.is_empty() && self.buffers.is_empty()
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
        let mut words = Vec::new();
        for (i, (old, new)) in before.iter().zip(after).enumerate() {
            if old == new {
                continue;
            }
            let word = first + i as u64;
            words.push(word);
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
        if let Some(batch) = batch {
            self.reuse(batch, page, &words);
        }
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

    /// Bytes of a connection have been received into `range`. Unlike the words of a commit, this is known even
    /// where the same bytes were there before.
    pub fn received(&mut self, range: GuestRange, producer: Producer) {
        if !self.is_recording() || range.is_empty() {
            return;
        }
        let overlapping =
            |(start, buffer): (&u64, &Buffer)| (buffer.end > range.start()).then_some(*start);
        while let Some(start) = self
            .buffers
            .range(..range.end())
            .next_back()
            .and_then(overlapping)
        {
            self.buffers.remove(&start);
        }
        self.received += 1;
        let buffer = Buffer {
            end: range.end(),
            producer,
            number: self.received,
        };
        self.buffers.insert(range.start(), buffer);
        self.buffer_order.push_back((range.start(), self.received));
        while self.buffer_order.len() > Self::BUFFERS_MAX {
            if let Some((start, number)) = self.buffer_order.pop_front()
                && self.buffers.get(&start).is_some_and(|b| b.number == number)
            {
                self.buffers.remove(&start);
            }
        }
    }

    /// The connections whose bytes were received into the `len` bytes at `address`, or into memory that has
    /// them in it.
    pub fn receivers(&self, address: u64, len: u64) -> impl Iterator<Item = Producer> {
        let around = self.buffers.range(..address).next_back();
        let around = around.filter(|(_, buffer)| buffer.end > address);
        let end = address.saturating_add(len.max(1));
        let inside = self.buffers.range(address..end);
        around.into_iter().chain(inside).map(|(_, b)| b.producer)
    }

    /// Memory that another connection's request has changed has become something else.
    fn reuse(&mut self, batch: u64, page: PageNumber, changed: &[u64]) {
        let (start, end) = (page.address().0, page.address().0.saturating_add(4096));
        let Some(producer) = self.batch(batch).map(|b| b.producer) else {
            return;
        };
        let before = self.buffers.range(..start).next_back();
        let overlapping = before.into_iter().chain(self.buffers.range(start..end));
        let is_changed = |from: u64, to: u64| {
            let at = changed.partition_point(|word| word * WORD + WORD <= from);
            changed.get(at).is_some_and(|word| word * WORD < to)
        };
        let reused: Vec<u64> = overlapping
            .filter(|(from, buffer)| buffer.producer != producer && is_changed(**from, buffer.end))
            .map(|(from, _)| *from)
            .collect();
        for from in reused {
            self.buffers.remove(&from);
        }
    }

    /// The number of the latest request of a connection that is known.
    pub fn latest(&self, producer: Producer) -> Option<u64> {
        let at = self.batches.iter().rposition(|b| b.producer == producer)?;
        Some(self.first + at as u64)
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

    fn first(p: &Provenance, address: u64, len: u64) -> Option<Producer> {
        p.receivers(address, len).next()
    }

    #[test]
    fn memory_that_another_request_changes_is_no_buffer_any_more() {
        let mut p = Provenance::default();
        p.handed_off();
        let producer = |fd| batch(fd).unwrap().producer;
        for (fd, start) in [(5, 0x1010), (6, 0x1ff8)] {
            p.received(GuestRange::from_bounds(start, start + 16), producer(fd));
        }
        let written = page_with(&[(1, 7), (3, 7)]);
        let own = p.commits(batch(5));
        p.changed(own, PageNumber(1), PageContent::zero(), &written);
        p.changed(None, PageNumber(1), PageContent::zero(), &written);
        assert_eq!(first(&p, 0x1010, 1), Some(producer(5)));
        let other = p.commits(batch(7));
        p.changed(other, PageNumber(1), PageContent::zero(), &written);
        assert_eq!(first(&p, 0x1010, 1), None);
        assert_eq!(first(&p, 0x1ff8, 1), Some(producer(6)));
        let written = page_with(&[(0, 7)]);
        p.changed(other, PageNumber(2), PageContent::zero(), &written);
        assert_eq!(first(&p, 0x1ff8, 1), None);
    }

    #[test]
    fn buffers_belong_to_who_was_received_last() {
        let mut p = Provenance::default();
        let producer = |fd| batch(fd).unwrap().producer;
        let range = |from, to| GuestRange::from_bounds(from, to);
        p.received(range(100, 200), producer(5));
        assert_eq!(first(&p, 100, 1), None, "nothing is recorded yet");
        p.handed_off();
        p.received(range(100, 200), producer(5));
        p.received(range(300, 310), producer(6));
        assert_eq!(first(&p, 150, 1), Some(producer(5)));
        assert_eq!(first(&p, 200, 100), None);
        assert_eq!(first(&p, 200, 101), Some(producer(6)));
        p.received(range(150, 305), producer(7));
        assert_eq!(first(&p, 100, 1), None);
        assert_eq!(first(&p, 100, 51), Some(producer(7)));
        assert_eq!(first(&p, 309, 8), None);
        for i in 0..3 * Provenance::BUFFERS_MAX as u64 {
            p.received(range(i % 5000 * 16, i % 5000 * 16 + 8), producer(9));
            assert!(p.buffers.len() <= Provenance::BUFFERS_MAX);
            assert!(p.buffer_order.len() <= Provenance::BUFFERS_MAX);
        }
        assert_eq!(first(&p, u64::MAX, u64::MAX), None);
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
