//! From chunk to chunk.
//!
//! A chunk's size says where the next one begins, so one has to begin at a known one. [`Chunks`] keeps, for
//! each page in which a chunk begins, where the first one does. A changed page is checked from the last such
//! page before it until the walk is in step with the index again on a page that has not changed: from there on
//! nothing can be different.

use std::collections::BTreeMap;

use super::corruption::{Corruption, Damage};
use super::layout::{
    ALIGN, Arena, FLAGS, HeapInfo, LARGE, MAPPED, MIN_CHUNK, PREVIOUS_IN_USE, THREAD_ARENA,
    first_chunk,
};
use super::memory::{Memory, Paged};
use crate::GuestRange;

/// Chunks of a heap that is not too large to be checked.
const CHUNKS_MAX: u64 = 1 << 24;

/// Where chunks lie.
pub struct Area {
    arena: u64,
    first: u64,
    /// Where what `brk` gave begins, as far as the arena's own books tell.
    pub origin: Option<u64>,
    /// The top chunk, if it lies here, and where it must end, if that is known.
    top: Option<(u64, Option<u64>)>,
    end: u64,
    is_main: bool,
}

/// Why a walk ended early.
#[derive(Debug)]
pub enum Stop {
    /// The heap is corrupt.
    Corrupt(Corruption),
    /// It is too large, or not laid out as known.
    LeftOut,
}

impl Area {
    /// The chunks of the heap at `base`; `brk` is its range if it is the main arena's, and `origin` what was
    /// found out earlier. None if it is not laid out as known.
    pub fn of(
        memory: &impl Memory,
        arena: &Arena,
        base: u64,
        brk: GuestRange,
        origin: Option<u64>,
    ) -> Option<Area> {
        let top = arena.top();
        let info = HeapInfo::read(memory, base).filter(|info| info.arena == arena.address);
        if let Some(info) = info {
            let range = info.range(base);
            return Some(Area {
                arena: arena.address,
                first: first_chunk(arena.address, base),
                origin: None,
                top: range.contains(top).then_some((top, Some(range.end()))),
                end: range.end(),
                is_main: false,
            });
        }
        if !brk.contains(top) || !top.is_multiple_of(ALIGN) {
            return None;
        }
        // All that `brk` gave, without gaps, ends with the top chunk; a static program has used some of it
        // before malloc did.
        let end = match origin {
            Some(origin) => Some(origin.checked_add(arena.system_memory())?),
            None => None,
        };
        let origin = origin.or_else(|| {
            let size = memory.word(top.checked_add(8)?)? & !FLAGS;
            let origin = top.checked_add(size)?.checked_sub(arena.system_memory())?;
            brk.contains(origin).then_some(origin)
        });
        Some(Area {
            arena: arena.address,
            first: origin.unwrap_or(brk.start()).next_multiple_of(ALIGN),
            origin,
            top: Some((top, end)),
            end: brk.end(),
            is_main: true,
        })
    }

    fn corrupt(&self, damage: Damage, chunk: u64, field: u64, found: u64) -> Corruption {
        Corruption {
            damage,
            chunk,
            arena: self.arena,
            field,
            found,
            expected: None,
            committed: None,
            via: None,
        }
    }
}

/// The first chunk of a page, or none: what it was before a change.
pub type Entry = (u64, Option<u16>);

/// Where the first chunk of each page begins.
#[derive(Default, Debug)]
pub struct Chunks {
    first_in: BTreeMap<u64, u16>,
    changes: Vec<Entry>,
}

#[derive(Clone, Copy)]
struct Chunk {
    at: u64,
    field: u64,
}

impl Chunk {
    fn size(self) -> u64 {
        self.field & !FLAGS
    }
}

impl Chunks {
    /// Whether the heap has been walked from its start.
    pub fn is_built(&self) -> bool {
        !self.first_in.is_empty()
    }

    /// What the last check has changed.
    pub fn take_changes(&mut self) -> impl Iterator<Item = Entry> + use<> {
        std::mem::take(&mut self.changes).into_iter()
    }

    /// Undoes a change.
    pub fn put_back(&mut self, (page, offset): Entry) {
        match offset {
            Some(offset) => self.first_in.insert(page, offset),
            None => self.first_in.remove(&page),
        };
    }

    /// Walks the whole heap. Returns how many chunks there are.
    pub fn rebuild(&mut self, memory: &impl Memory, area: &Area) -> Result<u64, Stop> {
        self.first_in.clear();
        let mut paged = Paged::new(memory);
        let walked = self.walk(memory, &mut paged, area, area.first, None);
        self.changes.clear();
        walked.map(|(chunks, _)| chunks)
    }

    /// Checks the chunks that the changed `pages` hold, which are sorted.
    pub fn check(&mut self, memory: &impl Memory, area: &Area, pages: &[u64]) -> Result<u64, Stop> {
        let mut paged = Paged::new(memory);
        let mut chunks = 0;
        let mut done = 0;
        for page in pages {
            if *page < done {
                continue;
            }
            if *page * 4096 > area.end {
                break;
            }
            let from = match self.first_in.range(..*page).next_back() {
                Some((page, offset)) => page * 4096 + u64::from(*offset),
                None => area.first,
            };
            let (walked, reached) =
                self.walk(memory, &mut paged, area, from, Some((*page, pages)))?;
            chunks += walked;
            done = reached;
        }
        Ok(chunks)
    }

    /// Walks from `from`, where a chunk begins, to the end, or past a page until it is in step with the
    /// index on a page that is not among those. Returns the number of chunks and the page reached.
    fn walk<M: Memory>(
        &mut self,
        memory: &M,
        paged: &mut Paged<'_, M>,
        area: &Area,
        from: u64,
        until: Option<(u64, &[u64])>,
    ) -> Result<(u64, u64), Stop> {
        let mut previous: Option<Chunk> = None;
        let mut at = from;
        for walked in 0..CHUNKS_MAX {
            let page = at / 4096;
            let mut in_step = false;
            if previous.is_none_or(|chunk| chunk.at / 4096 != page) {
                let known = self.note(previous.map(|chunk| chunk.at / 4096), at);
                in_step = known
                    && until.is_some_and(|(target, pages)| {
                        page > target && pages.binary_search(&page).is_err()
                    });
            }
            let via = previous.map(|chunk| chunk.at);
            let corrupt = |corruption| Err(Stop::Corrupt(Corruption { via, ..corruption }));
            let Some((before, field)) = paged.pair(at) else {
                return corrupt(area.corrupt(Damage::Size, at, at + 8, 0));
            };
            let chunk = Chunk { at, field };
            if let Err(corruption) = check_previous(memory, area, previous, chunk, before) {
                return corrupt(corruption);
            }
            if in_step {
                return Ok((walked, page));
            }
            if let Some((top, end)) = area.top.filter(|(top, _)| *top == at) {
                let reached = top.checked_add(chunk.size());
                if let Err(corruption) = check_top(area, chunk, end, reached) {
                    return corrupt(corruption);
                }
                self.forget_above(page);
                return Ok((walked + 1, u64::MAX));
            }
            if area.is_main && is_fence(paged, chunk) {
                return Err(Stop::LeftOut);
            }
            match check_size(area, chunk) {
                Ok(Some(next)) => {
                    previous = Some(chunk);
                    at = next;
                }
                // The end of a heap that is full.
                Ok(None) => {
                    self.forget_above(page);
                    return Ok((walked + 1, u64::MAX));
                }
                Err(corruption) => return corrupt(corruption),
            }
        }
        Err(Stop::LeftOut)
    }

    /// Takes note that the first chunk of a page begins at `at`, and none in the pages between `last` and
    /// it. Returns whether that was known.
    fn note(&mut self, last: Option<u64>, at: u64) -> bool {
        let (page, offset) = (at / 4096, (at % 4096) as u16);
        if let Some(last) = last.filter(|last| *last + 1 < page) {
            let stale: Vec<u64> = self
                .first_in
                .range(last + 1..page)
                .map(|(page, _)| *page)
                .collect();
            for page in stale {
                self.changes.push((page, self.first_in.remove(&page)));
            }
        }
        let old = self.first_in.insert(page, offset);
        if old != Some(offset) {
            self.changes.push((page, old));
        }
        old == Some(offset)
    }

    fn forget_above(&mut self, page: u64) {
        let above = self.first_in.split_off(&(page + 1));
        let gone = above.into_iter().map(|(page, offset)| (page, Some(offset)));
        self.changes.extend(gone);
    }
}

/// The top chunk reaches to the end of the heap.
fn check_top(
    area: &Area,
    top: Chunk,
    end: Option<u64>,
    reached: Option<u64>,
) -> Result<(), Corruption> {
    let corrupt = area.corrupt(Damage::Top, top.at, top.at + 8, top.field);
    let is_sane = top.field & (PREVIOUS_IN_USE | MAPPED | 8) == PREVIOUS_IN_USE
        && reached.is_some_and(|reached| reached <= area.end && reached.is_multiple_of(4096));
    if !is_sane {
        return Err(corrupt);
    }
    match end {
        Some(end) if reached != Some(end) => Err(Corruption {
            expected: end.checked_sub(top.at).map(|size| size | PREVIOUS_IN_USE),
            ..corrupt
        }),
        _ => Ok(()),
    }
}

/// What `chunk` says of the one before it: whether it is free, and then its size and its links.
fn check_previous(
    memory: &impl Memory,
    area: &Area,
    previous: Option<Chunk>,
    chunk: Chunk,
    before: u64,
) -> Result<(), Corruption> {
    let previous_in_use = chunk.field & PREVIOUS_IN_USE != 0;
    let Some(previous) = previous else {
        return match chunk.at == area.first && !previous_in_use {
            true => Err(area.corrupt(Damage::Size, chunk.at, chunk.at + 8, chunk.field)),
            false => Ok(()),
        };
    };
    if previous_in_use {
        // At the end of a full heap, the last chunks are not what they are elsewhere.
        let marked = previous.field & THREAD_ARENA != 0 || is_near_end(area, chunk.at);
        return match area.is_main || marked {
            true => Ok(()),
            false => Err(area.corrupt(Damage::Size, previous.at, previous.at + 8, previous.field)),
        };
    }
    if before != previous.size() {
        return Err(Corruption {
            expected: Some(previous.size()),
            ..area.corrupt(Damage::PreviousSize, chunk.at, chunk.at, before)
        });
    }
    if previous.field & PREVIOUS_IN_USE == 0 {
        return Err(area.corrupt(Damage::Size, previous.at, previous.at + 8, previous.field));
    }
    check_links(memory, area, previous)
}

/// The neighbours of a free chunk in its bin link back to it.
fn check_links(memory: &impl Memory, area: &Area, free: Chunk) -> Result<(), Corruption> {
    let check = |field: u64| {
        let (forward, back) = memory.pair(field).unwrap_or((0, 0));
        let offset = field - free.at;
        // Each link points to a chunk; the link back is the other of the same pair.
        let returns = |link: u64, other: u64| {
            let word = link
                .checked_add(offset + other)
                .and_then(|word| memory.word(word));
            word == Some(free.at)
        };
        if !returns(forward, 8) {
            return Err(area.corrupt(Damage::Links, free.at, field, forward));
        }
        match returns(back, 0) {
            true => Ok(()),
            false => Err(area.corrupt(Damage::Links, free.at, field + 8, back)),
        }
    };
    check(free.at + 16)?;
    if free.size() >= LARGE && memory.word(free.at + 32) != Some(0) {
        check(free.at + 32)?;
    }
    Ok(())
}

/// Where the chunk after this one begins; none at the end of a heap that is full.
fn check_size(area: &Area, chunk: Chunk) -> Result<Option<u64>, Corruption> {
    let limit = area.top.map_or(area.end, |(top, _)| top);
    let size = chunk.size();
    if size < MIN_CHUNK && area.top.is_none() && is_near_end(area, chunk.at) {
        return Ok(None);
    }
    let foreign = match area.is_main {
        true => THREAD_ARENA,
        false => 0,
    };
    let next = chunk.at.checked_add(size).filter(|next| *next <= limit);
    match next {
        Some(next)
            if size >= MIN_CHUNK
                && size.is_multiple_of(ALIGN)
                && chunk.field & (MAPPED | foreign) == 0 =>
        {
            // A heap that is full ends with a chunk of no size.
            Ok((next < area.end || area.top.is_some()).then_some(next))
        }
        _ => Err(area.corrupt(Damage::Size, chunk.at, chunk.at + 8, chunk.field)),
    }
}

/// Whether the program has called `sbrk` itself: malloc fences off what lies below with two headers.
fn is_fence<M: Memory>(paged: &mut Paged<'_, M>, chunk: Chunk) -> bool {
    const FENCE: u64 = 16 | PREVIOUS_IN_USE;
    let second = chunk.at.checked_add(16).filter(|_| chunk.size() == 16);
    second
        .and_then(|at| paged.pair(at))
        .is_some_and(|(_, field)| field == FENCE)
}

fn is_near_end(area: &Area, chunk: u64) -> bool {
    area.top.is_none() && chunk.saturating_add(2 * MIN_CHUNK) >= area.end
}
