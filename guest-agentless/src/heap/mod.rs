//! The heap of glibc's malloc, checked from outside: chunk headers, bins, fastbins and tcache.
//!
//! A buffer overflow on the heap is silent: it spoils the header of the next chunk, and whoever frees or
//! allocates that chunk later trips over it. [`Heaps`] finds the arenas without symbols and checks the chunks
//! on the pages that a request has written, before the request is committed, so that the damage is charged
//! to the request that did it.
//!
//! - `layout`: the structures, the same from glibc 2.27 to 2.41 on x86-64;
//! - `find`: the main arena, by what its bins look like;
//! - `walk`: from chunk to chunk, with an index of where each page's first chunk begins;
//! - `lists`: bins and fastbins; `tcache`: the calling thread's cache.
//!
//! Everything read is the guest's and may be anything: loops are bounded, arithmetic is checked, and the
//! worst that hostile memory can do is to be called corrupt.
//!
//! Not checked: an arena whose mutex is held (a thread stands in the middle of malloc), caches of other
//! threads, chunks with a mapping of their own, and what an overflow leaves consistent by chance.

mod corruption;
mod find;
mod layout;
mod lists;
mod memory;
mod tcache;
#[cfg(test)]
mod tests;
mod walk;

use std::collections::{BTreeMap, BTreeSet};

use crate::{GuestRange, PageNumber};

pub use corruption::{Corruption, Damage};
pub use find::{NotFound, find};
pub use memory::{Memory, Overlay};

use layout::{Arena, HEAP_MAX, HeapInfo};
use tcache::Caches;
use walk::{Area, Chunks, Stop};

/// Arenas of a process, at most: glibc makes eight for each processor.
const ARENAS_MAX: usize = 4096;
/// Heaps of one arena, at most.
const HEAPS_MAX: usize = 4096;
/// Pages that may wait for their check; past that, all chunks are looked at again.
const PENDING_MAX: usize = 1 << 16;

/// What a check did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Checked {
    /// Chunks looked at.
    pub chunks: u64,
    /// Arenas left out, because a thread stands in the middle of malloc.
    pub locked: u64,
}

/// The heaps of a process that uses glibc's malloc.
pub struct Heaps {
    main: u64,
    arenas: BTreeMap<u64, u64>,
    heaps: BTreeMap<u64, Heap>,
    caches: Caches,
    /// Pages that were committed without a check.
    pending: BTreeSet<u64>,
    undo: Undo,
}

/// The chunks of one heap: what `brk` made for the main arena, or an area of [`HEAP_MAX`] bytes.
struct Heap {
    arena: u64,
    range: GuestRange,
    /// See [`Area::origin`].
    origin: Option<u64>,
    chunks: Chunks,
    /// Its state is not what is known here: it was corrupt already, or is not understood.
    left_out: bool,
}

/// What the checks since the last commit have changed here.
#[derive(Default)]
struct Undo {
    entries: Vec<(u64, walk::Entry)>,
    rebuilt: Vec<u64>,
    pending: Vec<u64>,
}

impl Heaps {
    /// The heaps of the process whose main arena is at `main` (see [`find()`]).
    pub fn new(main: u64) -> Heaps {
        Heaps {
            main,
            arenas: BTreeMap::new(),
            heaps: BTreeMap::new(),
            caches: Caches::default(),
            pending: BTreeSet::new(),
            undo: Undo::default(),
        }
    }

    /// Brings the list of heaps up to date. `brk` is what `brk` has made.
    pub fn refresh(&mut self, memory: &impl Memory, brk: GuestRange) {
        let key = brk.start();
        match self.heaps.get_mut(&key) {
            Some(heap) => heap.range = brk,
            None if !brk.is_empty() => {
                self.heaps.insert(key, Heap::new(self.main, brk));
            }
            None => {}
        }
        let mut at = self.main;
        let mut ring = Vec::new();
        for _ in 0..ARENAS_MAX {
            match layout::next_arena(memory, at) {
                Some(next) if next != self.main => at = next,
                _ => break,
            }
            let Some(top) = layout::top_of(memory, at) else {
                break;
            };
            let newest = top & !(HEAP_MAX - 1);
            ring.push(at);
            if self.arenas.insert(at, newest) != Some(newest) {
                self.list_heaps(memory, at, newest);
            }
        }
        // An arena goes away only if the request that made it is abandoned.
        if self.arenas.len() > ring.len() {
            self.arenas.retain(|arena, _| ring.contains(arena));
            self.heaps
                .retain(|_, heap| heap.arena == self.main || ring.contains(&heap.arena));
        }
    }

    fn list_heaps(&mut self, memory: &impl Memory, arena: u64, newest: u64) {
        let mut found = Vec::new();
        let mut at = newest;
        for _ in 0..HEAPS_MAX {
            let Some(info) = HeapInfo::read(memory, at).filter(|info| info.arena == arena) else {
                break;
            };
            found.push((at, info.range(at)));
            if info.previous == 0 {
                break;
            }
            at = info.previous;
        }
        let is_gone = |base: &u64, heap: &Heap| {
            heap.arena == arena && !found.iter().any(|(known, _)| known == base)
        };
        self.heaps.retain(|base, heap| !is_gone(base, heap));
        for (base, range) in found {
            let heap = self
                .heaps
                .entry(base)
                .or_insert_with(|| Heap::new(arena, range));
            heap.arena = arena;
        }
    }

    /// Whether what is written to `page` can be checked.
    pub fn contains(&self, page: PageNumber) -> bool {
        self.heap_of(page).is_some()
    }

    fn heap_of(&self, page: PageNumber) -> Option<u64> {
        let address = page.address().0;
        let (base, heap) = self.heaps.range(..=address).next_back()?;
        let end = match heap.arena == self.main {
            true => heap.range.end(),
            false => base.saturating_add(HEAP_MAX),
        };
        (address < end).then_some(*base)
    }

    /// Checks what has been written to `changed` since the last commit, and to pages that were committed
    /// without a check. `fs_base` is the running thread's, which stands in a system call outside of malloc.
    ///
    /// After an error, all that was learnt since the last commit is forgotten.
    pub fn check(
        &mut self,
        memory: &impl Memory,
        fs_base: u64,
        changed: impl IntoIterator<Item = PageNumber>,
    ) -> Result<Checked, Corruption> {
        let checked = self.check_pages(memory, fs_base, changed);
        if checked.is_err() {
            self.abandoned();
        }
        checked
    }

    fn check_pages(
        &mut self,
        memory: &impl Memory,
        fs_base: u64,
        changed: impl IntoIterator<Item = PageNumber>,
    ) -> Result<Checked, Corruption> {
        let mut checked = Checked::default();
        let waiting = std::mem::take(&mut self.pending);
        self.undo.pending.extend(&waiting);
        let changed = changed.into_iter().map(|page| page.0).chain(waiting);
        let changed: BTreeSet<u64> = changed.collect();
        let mut by_heap: BTreeMap<u64, Vec<u64>> = BTreeMap::new();
        for page in &changed {
            if let Some(base) = self.heap_of(PageNumber(*page)) {
                by_heap.entry(base).or_default().push(*page);
            }
        }
        let mut touched: BTreeMap<u64, Option<Arena>> = BTreeMap::new();
        for (base, pages) in by_heap {
            let Some(heap) = self.heaps.get_mut(&base).filter(|heap| !heap.left_out) else {
                continue;
            };
            let arena = touched.entry(heap.arena).or_insert_with(|| {
                Arena::read(memory, heap.arena).filter(|arena| !arena.is_locked())
            });
            let Some(arena) = arena else {
                checked.locked += 1;
                self.pending.extend(pages);
                continue;
            };
            match heap.check(memory, arena, base, &pages, &mut self.undo) {
                Ok(chunks) => checked.chunks += chunks,
                Err(Stop::Corrupt(corruption)) => return Err(corruption),
                Err(Stop::LeftOut) => heap.left_out = true,
            }
        }
        let mut free = Vec::new();
        let is_new = |address: u64| changed.contains(&(address / 4096));
        self.caches
            .check(memory, fs_base, &mut free, is_new, |chunk| {
                self.heaps
                    .range(..=chunk)
                    .next_back()
                    .is_some_and(|(base, heap)| {
                        chunk < base.saturating_add(HEAP_MAX).max(heap.range.end())
                    })
            })?;
        for arena in touched.values().flatten() {
            if self.is_left_out(arena.address) {
                continue;
            }
            lists::check_bins(memory, arena)?;
            lists::check_fastbins(memory, arena, self.caches.linking(), &mut free)?;
        }
        lists::check_twice(&mut free)?;
        Ok(checked)
    }

    fn is_left_out(&self, arena: u64) -> bool {
        let mut heaps = self.heaps.values().filter(|heap| heap.arena == arena);
        heaps.any(|heap| heap.left_out)
    }

    /// Whether the committed state had a corruption at the same place already, so that the running request
    /// is not to blame.
    pub fn was_corrupt(
        &self,
        committed: &impl Memory,
        corruption: &Corruption,
        fs_base: u64,
    ) -> bool {
        let mut free = Vec::new();
        match corruption.damage {
            Damage::Tcache => {
                let cache = self
                    .caches
                    .check_known(committed, fs_base, &mut free, |_| true);
                return cache.is_err();
            }
            Damage::Twice => {
                let _ = self
                    .caches
                    .check_known(committed, fs_base, &mut free, |_| true);
            }
            _ => {}
        }
        // The state was committed in the middle of malloc: what is wrong has become so since.
        let Some(arena) =
            Arena::read(committed, corruption.arena).filter(|arena| !arena.is_locked())
        else {
            return false;
        };
        match corruption.damage {
            Damage::Tcache => true,
            Damage::Twice | Damage::Fastbin => {
                lists::check_fastbins(committed, &arena, self.caches.linking(), &mut free).is_err()
                    || lists::check_twice(&mut free).is_err()
            }
            Damage::Bin => lists::check_bins(committed, &arena).is_err(),
            Damage::Size | Damage::PreviousSize | Damage::Links | Damage::Top => {
                let heap = self.heap_of(PageNumber(corruption.chunk / 4096));
                let heap = heap.and_then(|base| Some((base, self.heaps.get(&base)?)));
                heap.is_some_and(|(base, heap)| {
                    let Some(area) = Area::of(committed, &arena, base, heap.range, heap.origin)
                    else {
                        return false;
                    };
                    let walked = Chunks::default().rebuild(committed, &area);
                    matches!(walked, Err(Stop::Corrupt(_)))
                })
            }
        }
    }

    /// What the corruption concerns is not checked any more: it is there to stay.
    pub fn leave_out(&mut self, corruption: &Corruption) {
        match corruption.damage {
            Damage::Tcache => self.caches.leave_out(),
            _ => {
                let of_arena = |heap: &&mut Heap| heap.arena == corruption.arena;
                for heap in self.heaps.values_mut().filter(of_arena) {
                    heap.left_out = true;
                }
            }
        }
    }

    /// What was checked since the last commit is committed.
    pub fn committed(&mut self) {
        self.undo = Undo::default();
    }

    /// What was written since the last commit is undone, and what was learnt from it with it.
    pub fn abandoned(&mut self) {
        let undo = std::mem::take(&mut self.undo);
        for (base, entry) in undo.entries.into_iter().rev() {
            if let Some(heap) = self.heaps.get_mut(&base) {
                heap.chunks.put_back(entry);
            }
        }
        for base in undo.rebuilt {
            if let Some(heap) = self.heaps.get_mut(&base) {
                heap.chunks = Chunks::default();
            }
        }
        self.pending.extend(undo.pending);
    }

    /// These pages are committed without a check.
    pub fn unchecked(&mut self, pages: impl IntoIterator<Item = PageNumber>) {
        self.committed();
        self.pending.extend(pages.into_iter().map(|page| page.0));
        if self.pending.len() > PENDING_MAX {
            self.pending.clear();
            for heap in self.heaps.values_mut() {
                heap.chunks = Chunks::default();
            }
        }
    }
}

impl Heap {
    fn new(arena: u64, range: GuestRange) -> Heap {
        Heap {
            arena,
            range,
            origin: None,
            chunks: Chunks::default(),
            left_out: false,
        }
    }

    fn check(
        &mut self,
        memory: &impl Memory,
        arena: &Arena,
        base: u64,
        pages: &[u64],
        undo: &mut Undo,
    ) -> Result<u64, Stop> {
        let area = Area::of(memory, arena, base, self.range, self.origin).ok_or(Stop::LeftOut)?;
        if self.chunks.is_built() {
            let checked = self.chunks.check(memory, &area, pages);
            // What is known of the chunks may be out of date: only memory itself has the last word.
            if !matches!(checked, Err(Stop::Corrupt(_))) {
                let changes = self.chunks.take_changes();
                undo.entries.extend(changes.map(|entry| (base, entry)));
                return checked;
            }
        }
        self.chunks = Chunks::default();
        undo.rebuilt.push(base);
        let chunks = self.chunks.rebuild(memory, &area)?;
        self.origin = self.origin.or(area.origin);
        Ok(chunks)
    }
}
