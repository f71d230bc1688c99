//! Guest memory as the checks see it.

use std::collections::BTreeMap;

/// Guest memory, to be read. Any address may be asked for.
pub trait Memory {
    /// Fills `into` from `address`. False if not all of it can be read.
    fn read(&self, address: u64, into: &mut [u8]) -> bool;

    /// The 64-bit word at `address`.
    fn word(&self, address: u64) -> Option<u64> {
        let mut bytes = [0; 8];
        self.read(address, &mut bytes)
            .then(|| u64::from_le_bytes(bytes))
    }

    /// The two words at `address`.
    fn pair(&self, address: u64) -> Option<(u64, u64)> {
        let mut bytes = [0; 16];
        self.read(address, &mut bytes)
            .then(|| (word_at(&bytes, 0), word_at(&bytes, 8)))
    }
}

/// The little-endian word at `offset`; 0 where `bytes` end.
pub(super) fn word_at(bytes: &[u8], offset: usize) -> u64 {
    let word = bytes.get(offset..).and_then(|rest| rest.first_chunk());
    u64::from_le_bytes(word.copied().unwrap_or_default())
}

/// Memory in which some pages have another content.
pub struct Overlay<'a, M> {
    /// What shows through.
    pub memory: &'a M,
    /// Pages by number.
    pub pages: BTreeMap<u64, Box<[u8; 4096]>>,
}

impl<M: Memory> Memory for Overlay<'_, M> {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        let mut at = address;
        let mut rest = into;
        while !rest.is_empty() {
            let offset = (at % 4096) as usize;
            let len = rest.len().min(4096 - offset);
            let (part, after) = rest.split_at_mut(len);
            match self.pages.get(&(at / 4096)) {
                Some(page) => part.copy_from_slice(&page[offset..offset + len]),
                None if self.memory.read(at, part) => {}
                None => return false,
            }
            let Some(next) = at.checked_add(len as u64) else {
                return after.is_empty();
            };
            (at, rest) = (next, after);
        }
        true
    }
}

/// Reads words of one page after the other, each page once.
pub(super) struct Paged<'a, M> {
    memory: &'a M,
    page: Option<u64>,
    bytes: Box<[u8; 4096]>,
}

impl<'a, M: Memory> Paged<'a, M> {
    pub fn new(memory: &'a M) -> Self {
        Self {
            memory,
            page: None,
            bytes: Box::new([0; 4096]),
        }
    }

    /// The two words at `address`, a multiple of 16.
    pub fn pair(&mut self, address: u64) -> Option<(u64, u64)> {
        let page = address / 4096;
        if self.page != Some(page) {
            self.page = None;
            if !self.memory.read(page * 4096, &mut self.bytes[..]) {
                return None;
            }
            self.page = Some(page);
        }
        let offset = (address % 4096) as usize;
        Some((
            word_at(&self.bytes[..], offset),
            word_at(&self.bytes[..], offset + 8),
        ))
    }
}
