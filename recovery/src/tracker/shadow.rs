//! The store of shadow pages.

/// The content of one page.
#[repr(C, align(64))]
#[derive(Clone)]
pub struct PageContent([u8; 4096]);

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

/// All shadow pages of a process.
#[derive(Default)]
pub struct ShadowStore {
    frames: Vec<Box<PageContent>>,
    free: Vec<Frame>,
}

impl ShadowStore {
    pub fn allocate(&mut self) -> Frame {
        self.free.pop().unwrap_or_else(|| {
            self.frames.push(PageContent::boxed());
            Frame((self.frames.len() - 1) as u32)
        })
    }

    pub fn free(&mut self, frame: Frame) {
        self.free.push(frame);
    }

    pub fn get(&self, frame: Frame) -> &PageContent {
        &self.frames[frame.0 as usize]
    }

    pub fn get_mut(&mut self, frame: Frame) -> &mut PageContent {
        &mut self.frames[frame.0 as usize]
    }

    /// Bytes in use.
    pub fn bytes(&self) -> u64 {
        (self.frames.len() - self.free.len()) as u64 * 4096
    }
}
