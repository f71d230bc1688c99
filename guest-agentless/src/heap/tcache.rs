//! The running thread's cache of free chunks (`struct tcache_perthread_struct`, 2.30 to 2.41).
//!
//! Only the running thread's own is looked at: it stands in a system call outside of malloc, while another
//! thread may have been stopped between two writes to its cache, for which it takes no lock.
//!
//! The cache is a chunk on the heap, and libc's thread-local variable `tcache` points to it. It is found
//! once, as the word below the thread pointer that points to a chunk of the right size with consistent and
//! not empty lists, and from then on by its place.

use super::corruption::{Corruption, Damage};
use super::layout::{ALIGN, FLAGS, MIN_CHUNK};
use super::lists::{Free, Linking, is_free_entry};
use super::memory::{Memory, word_at};

/// Lists, by size.
const LISTS: usize = 64;
/// Bytes of the cache: a 16-bit count and a pointer for each list.
const SIZE: usize = LISTS * 10;
/// The chunk that holds it.
const CHUNK: u64 = 0x290;
/// Bytes below the thread pointer that are searched for the variable.
const SEARCHED: u64 = 4096;
/// Entries of a list that are looked at: the default limit is 7.
const DEPTH: usize = 127;

/// How the running thread's cache is found, once that is known.
#[derive(Default)]
pub struct Caches {
    known: Option<Known>,
    left_out: bool,
}

#[derive(Clone, Copy)]
struct Known {
    /// How far below the thread pointer the variable lies.
    below: u64,
    linking: Linking,
    /// The word that marks a cached chunk: since 2.34 the same for all threads.
    key: u64,
    /// Before that, it was the cache's address.
    key_is_cache: bool,
}

impl Caches {
    /// How links are stored, once that is known.
    pub fn linking(&self) -> Option<Linking> {
        self.known.map(|known| known.linking)
    }

    /// Caches are not checked any more.
    pub fn leave_out(&mut self) {
        self.left_out = true;
    }

    /// Checks the cache of the thread at `fs_base`, as far as `is_new` says that an address may have been written
    /// since the last check; its chunks there are added to `free`. `is_heap` tells heaps.
    pub fn check(
        &mut self,
        memory: &impl Memory,
        fs_base: u64,
        free: &mut Vec<Free>,
        is_new: impl Fn(u64) -> bool,
        is_heap: impl Fn(u64) -> bool,
    ) -> Result<(), Corruption> {
        if self.known.is_none() {
            self.known = find(memory, fs_base, is_heap);
        }
        self.check_known(memory, fs_base, free, is_new)
    }

    /// The same, unless it is not known yet how to find it.
    pub fn check_known(
        &self,
        memory: &impl Memory,
        fs_base: u64,
        free: &mut Vec<Free>,
        is_new: impl Fn(u64) -> bool,
    ) -> Result<(), Corruption> {
        let Some(known) = self.known.filter(|_| !self.left_out) else {
            return Ok(());
        };
        let variable = fs_base.checked_sub(known.below);
        let Some(cache) = variable.and_then(|variable| cache_at(memory, variable)) else {
            return Ok(());
        };
        let mut bytes = [0; SIZE];
        if !memory.read(cache, &mut bytes) {
            return Ok(());
        }
        let key = match known.key_is_cache {
            true => cache,
            false => known.key,
        };
        for list in 0..LISTS {
            check_list(
                memory,
                &bytes,
                cache,
                list,
                (known.linking, key),
                free,
                &is_new,
            )?;
        }
        Ok(())
    }
}

/// The cache that the variable points to; none if the thread has none (yet, or any more).
fn cache_at(memory: &impl Memory, variable: u64) -> Option<u64> {
    let cache = memory.word(variable)?;
    let header = cache
        .checked_sub(8)
        .filter(|_| cache.is_multiple_of(ALIGN))?;
    (memory.word(header)? & !FLAGS == CHUNK).then_some(cache)
}

fn check_list(
    memory: &impl Memory,
    bytes: &[u8; SIZE],
    cache: u64,
    list: usize,
    (linking, key): (Linking, u64),
    free: &mut Vec<Free>,
    is_new: impl Fn(u64) -> bool,
) -> Result<(), Corruption> {
    let count = u16::from_le_bytes([bytes[list * 2], bytes[list * 2 + 1]]);
    let offset = LISTS * 2 + list * 8;
    let size = MIN_CHUNK + list as u64 * ALIGN;
    let mut place = cache + offset as u64;
    let mut entry = word_at(bytes, offset);
    let broken = |place: u64, found| Corruption {
        damage: Damage::Tcache,
        chunk: match place < cache + SIZE as u64 && place >= cache {
            true => place,
            false => place.wrapping_sub(16),
        },
        arena: 0,
        field: place,
        found,
        expected: None,
        committed: None,
        via: None,
    };
    for _ in 0..usize::from(count).min(DEPTH) {
        let chunk = entry.wrapping_sub(16);
        let is_new = is_new(place) || is_new(chunk) || is_new(chunk.wrapping_add(size));
        if entry == 0 || is_new && !is_free_entry(memory, chunk, size) {
            return Err(broken(place, entry));
        }
        let Some((next, mark)) = memory.pair(entry) else {
            return Err(broken(place, entry));
        };
        if mark != key {
            return Err(Corruption {
                expected: Some(key),
                ..broken(entry + 8, mark)
            });
        }
        if is_new {
            free.push(Free { chunk, arena: 0 });
        }
        place = entry;
        entry = linking.decode(place, next);
    }
    match usize::from(count) <= DEPTH && entry != 0 {
        true => Err(Corruption {
            expected: Some(0),
            ..broken(place, entry)
        }),
        false => Ok(()),
    }
}

fn find(memory: &impl Memory, fs_base: u64, is_heap: impl Fn(u64) -> bool) -> Option<Known> {
    let start = fs_base.checked_sub(SEARCHED)?;
    let mut words = [0; SEARCHED as usize];
    // The page of the thread pointer is enough if the one below is another mapping's.
    let first = match memory.read(start, &mut words) {
        true => 0,
        false => {
            let first = (SEARCHED - fs_base % 4096) as usize;
            let read = memory.read(fs_base & !4095, &mut words[first..]);
            if !read {
                return None;
            }
            first
        }
    };
    for offset in (first.next_multiple_of(8)..words.len()).step_by(8).rev() {
        let cache = word_at(&words, offset);
        if cache == 0 || !is_heap(cache) || cache_at(memory, start + offset as u64).is_none() {
            continue;
        }
        let mut bytes = [0; SIZE];
        if !memory.read(cache, &mut bytes) {
            continue;
        }
        let used = (0..LISTS).find(|list| bytes[list * 2] != 0);
        let Some(head) = used.map(|list| word_at(&bytes, LISTS * 2 + list * 8)) else {
            continue;
        };
        let Some((_, key)) = memory.pair(head).filter(|(_, key)| *key != 0) else {
            continue;
        };
        for linking in [Linking::Protected, Linking::Plain] {
            let fits = |list| {
                let (found, all) = (&mut Vec::new(), |_| true);
                check_list(memory, &bytes, cache, list, (linking, key), found, all).is_ok()
            };
            if (0..LISTS).all(fits) {
                return Some(Known {
                    below: SEARCHED - offset as u64,
                    linking,
                    key,
                    key_is_cache: key == cache,
                });
            }
        }
    }
    None
}
