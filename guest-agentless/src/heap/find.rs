//! Finds the main arena, which has no symbol in a stripped libc.
//!
//! `main_arena` lies in the initialised data of libc, or of a static program. Most of its bins are empty,
//! and an empty bin points to itself: nothing else in a program looks like 64 such pairs in a row of 127.

use super::layout::{ARENA_SIZE, Arena, BIN_COUNT, BINS, NEXT, TOP, may_be_thread_arena};
use super::memory::{Memory, word_at};
use crate::GuestRange;

/// Bytes of data searched, at most.
const SEARCH_MAX: u64 = 64 << 20;
const EMPTY_BINS: usize = 64;

/// Why there is no main arena.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotFound {
    /// There is none, or none of a known layout.
    #[error("the program does not use the malloc of a known glibc")]
    Unknown,
    /// There is one, but nothing has been allocated from it: the program has an allocator of its own.
    #[error("the program does not use its glibc's malloc")]
    Unused,
}

/// The address of the main arena, somewhere in `data`: the writable private mappings of files.
pub fn find(
    memory: &impl Memory,
    data: impl IntoIterator<Item = GuestRange>,
) -> Result<u64, NotFound> {
    let mut left = SEARCH_MAX;
    let mut unused = false;
    for range in data {
        let len = range.len().min(left);
        left -= len;
        let mut bytes = vec![0; len as usize];
        if !memory.read(range.start(), &mut bytes) {
            continue;
        }
        for offset in (0..bytes.len()).step_by(16) {
            let Some(bytes) = bytes.get(offset..offset + ARENA_SIZE) else {
                break;
            };
            match kind(bytes, range.start() + offset as u64) {
                Some(Candidate::InUse(address)) if has_ring(memory, address) => {
                    return Ok(address);
                }
                Some(Candidate::Unused) => unused = true,
                _ => {}
            }
        }
    }
    Err(match unused {
        true => NotFound::Unused,
        false => NotFound::Unknown,
    })
}

enum Candidate {
    InUse(u64),
    Unused,
}

fn kind(bytes: &[u8], address: u64) -> Option<Candidate> {
    let next = word_at(bytes, NEXT);
    let (mutex, flags) = (word_at(bytes, 0) as u32, word_at(bytes, 0) >> 32);
    if next != address && !may_be_thread_arena(next) || mutex > 2 || flags > 7 {
        return None;
    }
    if next == address && bytes[16..NEXT].iter().all(|byte| *byte == 0) {
        return Some(Candidate::Unused);
    }
    let is_empty = |index: &usize| {
        let offset = BINS + index * 16;
        let head = address + offset as u64 - 16;
        word_at(bytes, offset) == head && word_at(bytes, offset + 8) == head
    };
    let empty = (0..BIN_COUNT).filter(is_empty).count();
    let is_top_aligned = word_at(bytes, TOP).is_multiple_of(16);
    (empty >= EMPTY_BINS && is_top_aligned).then_some(Candidate::InUse(address))
}

/// Whether the arenas from `main` on form a ring.
fn has_ring(memory: &impl Memory, main: u64) -> bool {
    let mut at = main;
    for _ in 0..super::ARENAS_MAX {
        match Arena::read(memory, at).and_then(|_| super::layout::next_arena(memory, at)) {
            Some(next) if next == main => return true,
            Some(next) if may_be_thread_arena(next) => at = next,
            _ => return false,
        }
    }
    false
}
