//! Bins and fastbins: the lists of free chunks of an arena.

use super::corruption::{Corruption, Damage};
use super::layout::{ALIGN, Arena, BIN_COUNT, FASTBIN_COUNT, FLAGS, MIN_CHUNK, PREVIOUS_IN_USE};
use super::memory::Memory;

/// Entries of a fastbin that are looked at.
const FASTBIN_DEPTH: usize = 64;

/// How the links of fastbins and tcache are stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Linking {
    /// As they are (before glibc 2.32).
    Plain,
    /// Exclusive-or the link's own address without its last 12 bits ("safe linking").
    Protected,
}

impl Linking {
    /// The link that is stored as `stored` at `place`.
    pub fn decode(self, place: u64, stored: u64) -> u64 {
        match self {
            Linking::Plain => stored,
            Linking::Protected => place >> 12 ^ stored,
        }
    }
}

/// A free chunk of which one of the lists knows.
#[derive(Debug, Clone, Copy)]
pub struct Free {
    pub chunk: u64,
    pub arena: u64,
}

/// The first and the last chunk of each bin link back to it.
pub fn check_bins(memory: &impl Memory, arena: &Arena) -> Result<(), Corruption> {
    for index in 0..BIN_COUNT {
        let (head, first, last) = arena.bin(index);
        if first == head && last == head {
            continue;
        }
        let broken = |field, found| Corruption {
            damage: Damage::Bin,
            chunk: head,
            arena: arena.address,
            field,
            found,
            expected: None,
            committed: None,
            via: None,
        };
        let links = |chunk: u64| memory.pair(chunk.checked_add(16)?);
        if first == head || links(first).is_none_or(|(_, back)| back != head) {
            return Err(broken(head + 16, first));
        }
        if last == head || links(last).is_none_or(|(forward, _)| forward != head) {
            return Err(broken(head + 24, last));
        }
    }
    Ok(())
}

/// Every entry of a fastbin is a chunk of its size, in use as far as its neighbour knows.
pub fn check_fastbins(
    memory: &impl Memory,
    arena: &Arena,
    linking: Option<Linking>,
    free: &mut Vec<Free>,
) -> Result<(), Corruption> {
    let Some(linking) = linking else {
        return Ok(());
    };
    for index in 0..FASTBIN_COUNT {
        let (mut place, mut chunk) = arena.fastbin(index);
        for _ in 0..FASTBIN_DEPTH {
            if chunk == 0 {
                break;
            }
            let size = MIN_CHUNK + index as u64 * ALIGN;
            if !is_free_entry(memory, chunk, size) {
                return Err(Corruption {
                    damage: Damage::Fastbin,
                    chunk: place.wrapping_sub(16),
                    arena: arena.address,
                    field: place,
                    found: chunk,
                    expected: None,
                    committed: None,
                    via: None,
                });
            }
            free.push(Free {
                chunk,
                arena: arena.address,
            });
            place = chunk + 16;
            chunk = linking.decode(place, memory.word(place).unwrap_or(0));
        }
    }
    Ok(())
}

/// Whether `chunk` can be an entry of a list of chunks of `size` whose neighbours take them for in use.
pub fn is_free_entry(memory: &impl Memory, chunk: u64, size: u64) -> bool {
    let header = |chunk: u64| memory.word(chunk.checked_add(8)?);
    let next = chunk.checked_add(size);
    chunk.is_multiple_of(ALIGN)
        && header(chunk).is_some_and(|field| field & !FLAGS == size)
        && next
            .and_then(header)
            .is_some_and(|field| field & PREVIOUS_IN_USE != 0)
}

/// No chunk is an entry of two lists, or twice of one.
pub fn check_twice(free: &mut [Free]) -> Result<(), Corruption> {
    free.sort_unstable_by_key(|entry| entry.chunk);
    for pair in free.windows(2) {
        if pair[0].chunk == pair[1].chunk {
            return Err(Corruption {
                damage: Damage::Twice,
                chunk: pair[0].chunk,
                arena: pair[0].arena.max(pair[1].arena),
                field: pair[0].chunk.wrapping_add(16),
                found: 0,
                expected: None,
                committed: None,
                via: None,
            });
        }
    }
    Ok(())
}
