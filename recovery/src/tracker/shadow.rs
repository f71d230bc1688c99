//! The store of shadow pages.

use std::collections::BTreeSet;

use guest_agentless::PageNumber;

/// The content of one page. Aligned, because `rep movsb` to an address a few bytes past its source, modulo the size
/// of a page, takes ten times as long on some processors.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct PageContent([u8; 4096]);

impl std::fmt::Debug for PageContent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PageContent")
    }
}

static ZERO: PageContent = PageContent([0; 4096]);

impl PageContent {
    /// A page of zeros on the heap.
    pub fn boxed() -> Box<PageContent> {
        Box::new(ZERO.clone())
    }

    /// A page of zeros.
    pub fn zero() -> &'static PageContent {
        &ZERO
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8; 4096] {
        &self.0
    }

    /// The bytes, to be filled in.
    pub fn bytes_mut(&mut self) -> &mut [u8; 4096] {
        &mut self.0
    }

    /// How many bytes differ from those of `other`.
    pub fn differences(&self, other: &PageContent) -> u32 {
        if self.0 == other.0 {
            return 0;
        }
        self.0.iter().zip(&other.0).filter(|(a, b)| a != b).count() as u32
    }
}

/// Names a shadow page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame(u32);

/// Shadow pages that are allocated, and given back, together.
const CHUNK: usize = 256;

struct Chunk {
    content: Vec<PageContent>,
    /// Whose shadow each frame is, of those in use.
    owners: [Option<PageNumber>; CHUNK],
    free: Vec<u8>,
}

/// All shadow pages of a process.
#[derive(Default)]
pub struct ShadowStore {
    chunks: Vec<Option<Box<Chunk>>>,
    /// Chunks with free frames. The lowest are used first, so that the others become empty.
    open: BTreeSet<usize>,
    used: usize,
    /// Where the search for a page to evict goes on.
    hand: usize,
}

impl ShadowStore {
    /// A frame for `page`.
    pub fn allocate(&mut self, page: PageNumber) -> Frame {
        let number = match self.open.first() {
            Some(number) => *number,
            None => self.add_chunk(),
        };
        let Some(chunk) = self.chunks.get_mut(number).and_then(Option::as_mut) else {
            unreachable!("an open chunk exists");
        };
        let Some(index) = chunk.free.pop() else {
            unreachable!("an open chunk has a free frame");
        };
        chunk.owners[usize::from(index)] = Some(page);
        if chunk.free.is_empty() {
            self.open.remove(&number);
        }
        self.used += 1;
        Frame((number * CHUNK + usize::from(index)) as u32)
    }

    fn add_chunk(&mut self) -> usize {
        let chunk = Box::new(Chunk {
            content: vec![ZERO.clone(); CHUNK],
            owners: [None; CHUNK],
            free: (0..=u8::MAX).rev().collect(),
        });
        let number = match self.chunks.iter().position(Option::is_none) {
            Some(number) => number,
            None => {
                self.chunks.push(None);
                self.chunks.len() - 1
            }
        };
        self.chunks[number] = Some(chunk);
        self.open.insert(number);
        number
    }

    /// Gives a frame back; its chunk goes with its last one.
    pub fn free(&mut self, frame: Frame) {
        let (number, index) = place(frame);
        let Some(chunk) = self.chunks[number].as_mut() else {
            return;
        };
        if chunk.owners[index].take().is_none() {
            return;
        }
        chunk.free.push(index as u8);
        self.used -= 1;
        self.open.insert(number);
        // One empty chunk stays, so that a page more or less does not allocate each time.
        if chunk.free.len() == CHUNK && self.open.len() > 1 {
            self.chunks[number] = None;
            self.open.remove(&number);
        }
    }

    pub fn get(&self, frame: Frame) -> &PageContent {
        let (number, index) = place(frame);
        match &self.chunks[number] {
            Some(chunk) => &chunk.content[index],
            None => unreachable!("a frame in use has a chunk"),
        }
    }

    pub fn get_mut(&mut self, frame: Frame) -> &mut PageContent {
        let (number, index) = place(frame);
        match &mut self.chunks[number] {
            Some(chunk) => &mut chunk.content[index],
            None => unreachable!("a frame in use has a chunk"),
        }
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        self.used as u64 * 4096
    }

    /// The next of all frames in turn, with its owner if it is in use.
    pub fn next_in_turn(&mut self) -> Option<(Frame, PageNumber)> {
        self.hand = match self.hand + 1 {
            next if next < self.chunks.len() * CHUNK => next,
            _ => 0,
        };
        let chunk = self.chunks.get(self.hand / CHUNK)?.as_ref()?;
        let owner = chunk.owners[self.hand % CHUNK]?;
        Some((Frame(self.hand as u32), owner))
    }
}

fn place(frame: Frame) -> (usize, usize) {
    (frame.0 as usize / CHUNK, frame.0 as usize % CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunks_go_with_their_last_frame() {
        let mut store = ShadowStore::default();
        let frames: Vec<Frame> = (0..3 * CHUNK as u64)
            .map(|page| store.allocate(PageNumber(page)))
            .collect();
        assert_eq!(store.bytes(), 3 * CHUNK as u64 * 4096);
        store.get_mut(frames[700]).bytes_mut()[5] = 7;
        for frame in &frames[..600] {
            store.free(*frame);
        }
        assert_eq!(store.get(frames[700]).bytes()[5], 7);
        let chunks = |store: &ShadowStore| store.chunks.iter().flatten().count();
        assert_eq!(chunks(&store), 2, "one of the empty ones stays");
        for frame in &frames[600..] {
            store.free(*frame);
            store.free(*frame);
        }
        assert_eq!((store.bytes(), chunks(&store)), (0, 1));
        assert_eq!(store.next_in_turn(), None);
        let frame = store.allocate(PageNumber(9));
        let found = (0..3 * CHUNK).find_map(|_| store.next_in_turn());
        assert_eq!(found, Some((frame, PageNumber(9))));
    }
}
