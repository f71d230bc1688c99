//! The structures of glibc's malloc on x86-64 (`malloc/malloc.c`, `malloc/arena.c`), 2.27 to 2.41.

use super::memory::{Memory, word_at};
use crate::GuestRange;

/// Alignment of chunks, and bytes of a chunk's header: the size of the previous chunk and its own.
pub const ALIGN: u64 = 16;
/// The smallest chunk.
pub const MIN_CHUNK: u64 = 32;
/// Sizes from here on have bins with links by size.
pub const LARGE: u64 = 1024;
/// The chunk before is in use.
pub const PREVIOUS_IN_USE: u64 = 1;
/// The chunk has a mapping of its own.
pub const MAPPED: u64 = 2;
/// The chunk belongs to the arena of a thread.
pub const THREAD_ARENA: u64 = 4;
/// The flags in a size field.
pub const FLAGS: u64 = 7;
/// Size and alignment of a thread arena's heaps.
pub const HEAP_MAX: u64 = 64 << 20;

/// Bytes of `struct malloc_state`.
pub const ARENA_SIZE: usize = 2200;
/// Offsets in it.
pub const FASTBINS: usize = 16;
pub const TOP: usize = 96;
pub const BINS: usize = 112;
pub const NEXT: usize = 2160;
pub const SYSTEM_MEMORY: usize = 2184;
/// Bins: unsorted, small, large. Bin 0 does not exist.
pub const BIN_COUNT: usize = 127;
pub const FASTBIN_COUNT: usize = 10;

/// A copy of an arena's `struct malloc_state`.
pub struct Arena {
    pub address: u64,
    bytes: Box<[u8]>,
}

impl Arena {
    pub fn read(memory: &impl Memory, address: u64) -> Option<Arena> {
        let mut bytes = vec![0; ARENA_SIZE].into_boxed_slice();
        address.checked_add(ARENA_SIZE as u64)?;
        memory
            .read(address, &mut bytes)
            .then_some(Arena { address, bytes })
    }

    pub fn is_locked(&self) -> bool {
        word_at(&self.bytes, 0) as u32 != 0
    }

    pub fn top(&self) -> u64 {
        word_at(&self.bytes, TOP)
    }

    pub fn system_memory(&self) -> u64 {
        word_at(&self.bytes, SYSTEM_MEMORY)
    }

    /// The address of fastbin `index`, and what it points to.
    pub fn fastbin(&self, index: usize) -> (u64, u64) {
        let offset = FASTBINS + index * 8;
        (self.address + offset as u64, word_at(&self.bytes, offset))
    }

    /// Bin `index`, from 0: the address that its chunks know it by, and its first and last chunk.
    pub fn bin(&self, index: usize) -> (u64, u64, u64) {
        let offset = BINS + index * 16;
        // The links of a bin lie where those of a chunk would.
        let head = self.address + offset as u64 - 16;
        (
            head,
            word_at(&self.bytes, offset),
            word_at(&self.bytes, offset + 8),
        )
    }
}

/// The arena after the one at `arena`, in the ring of arenas.
pub fn next_arena(memory: &impl Memory, arena: u64) -> Option<u64> {
    memory.word(arena.checked_add(NEXT as u64)?)
}

/// The top chunk of the arena at `arena`.
pub fn top_of(memory: &impl Memory, arena: u64) -> Option<u64> {
    memory.word(arena.checked_add(TOP as u64)?)
}

/// Where a thread arena lies in its first heap: right after `struct heap_info`, which has grown in 2.35.
pub fn may_be_thread_arena(address: u64) -> bool {
    address > HEAP_MAX && matches!(address % HEAP_MAX, 0x20 | 0x30)
}

/// `struct heap_info`.
#[derive(Clone, Copy)]
pub struct HeapInfo {
    pub arena: u64,
    pub previous: u64,
    pub size: u64,
}

impl HeapInfo {
    pub fn read(memory: &impl Memory, base: u64) -> Option<HeapInfo> {
        let (arena, previous) = memory.pair(base)?;
        let size = memory.word(base.checked_add(16)?)?;
        let is_plausible = (4096..=HEAP_MAX).contains(&size)
            && previous.is_multiple_of(HEAP_MAX)
            && base.checked_add(HEAP_MAX).is_some();
        is_plausible.then_some(HeapInfo {
            arena,
            previous,
            size,
        })
    }

    /// The part of the heap at `base` that is in use.
    pub fn range(&self, base: u64) -> GuestRange {
        GuestRange::from_bounds(base, base.saturating_add(self.size))
    }
}

/// Where the first chunk lies in the heap at `base` of the thread arena at `arena`, which lies in its
/// first heap.
pub fn first_chunk(arena: u64, base: u64) -> u64 {
    let info = arena % HEAP_MAX;
    match arena - info == base {
        true => (arena + ARENA_SIZE as u64).next_multiple_of(ALIGN),
        false => base + info,
    }
}
