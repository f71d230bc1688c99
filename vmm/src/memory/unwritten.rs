//! Memory that nobody in the guest can have written: code above all. It is what its file has, or it is damaged.
//!
//! A request's writes are undone with it, but damage that was there before (a flipped bit, or a write by whoever
//! else can reach the process) stays, and when it is in code every request runs into it: each would be abandoned,
//! and none would get through.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::time::{Duration, Instant};

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber, Vma};

use super::AddressSpace;

/// How often all of it is looked through at most.
const PERIOD: Duration = Duration::from_millis(100);
/// Pages that are looked at; a limit for the time that it takes, of 8 bytes read for each.
const PAGES_MAX: u64 = 1 << 18;
/// Entries of the page map that are read at once.
const ENTRIES: usize = 512;

/// What was looked at before.
#[derive(Debug, Default)]
pub struct Looked {
    /// Where the last fault was.
    rip: u64,
    /// When all was looked through.
    all: Option<Instant>,
}

impl Looked {
    /// Whether all has to be looked through for a fault at `rip`, and not only the mapping that it is in: because
    /// that has not helped.
    fn has_to_see_all(&mut self, rip: u64, now: Instant) -> bool {
        let again = std::mem::replace(&mut self.rip, rip) == rip;
        let is_due = |last| now.duration_since(last) >= PERIOD;
        let all = again && self.all.is_none_or(is_due);
        if all {
            self.all = Some(now);
        }
        all
    }
}

impl AddressSpace {
    /// After a fault at `rip`: lets pages of private mappings of files, where no mapping has ever been writable, show their file again.
    /// Returns those that had not. The first time only the mapping at `rip` is looked at. `own_memory` and `page_map` are the process's.
    ///
    /// A breakpoint is such damage, so none may be planted.
    pub fn put_back_unwritten(
        &mut self,
        rip: u64,
        own_memory: &File,
        page_map: &File,
    ) -> Vec<PageNumber> {
        let mut copied = Vec::new();
        let mut left = PAGES_MAX;
        let all = self.looked.has_to_see_all(rip, Instant::now());
        let to_see = |vma: &&Vma| vma.equals_file() && (all || vma.range.contains(rip));
        for vma in self.vmas.iter().filter(to_see) {
            let pages = vma.range.len() / PAGE_SIZE;
            let Some(rest) = left.checked_sub(pages) else {
                continue;
            };
            left = rest;
            copies_in(vma.range, page_map, &mut copied);
        }
        copied.retain(|page| self.put_back(*page, own_memory));
        copied
    }

    /// Whether `page` is another now that it shows its file.
    fn put_back(&mut self, page: PageNumber, own_memory: &File) -> bool {
        let address = page.address().0;
        let mut before = [0; PAGE_SIZE as usize];
        let mut after = before;
        if own_memory.read_exact_at(&mut before, address).is_err()
            || self
                .discard(GuestRange::from_bounds(address, address + PAGE_SIZE))
                .is_err()
        {
            return false;
        }
        match own_memory.read_exact_at(&mut after, address) {
            Ok(()) => before != after,
            // The file has become shorter.
            Err(_) => {
                let _ = own_memory.write_all_at(&before, address);
                false
            }
        }
    }
}

/// Adds the pages of `range` that are copies of their file's pages (proc(5), `/proc/PID/pagemap`).
fn copies_in(range: GuestRange, page_map: &File, copies: &mut Vec<PageNumber>) {
    const PRESENT: u64 = 1 << 63;
    const SWAPPED: u64 = 1 << 62;
    const OF_FILE: u64 = 1 << 61;
    let mut entries = [0; ENTRIES * 8];
    let mut page = range.start() / PAGE_SIZE;
    let end = range.end() / PAGE_SIZE;
    while page < end {
        let count = (end - page).min(ENTRIES as u64);
        let buffer = &mut entries[..count as usize * 8];
        if page_map.read_exact_at(buffer, page * 8).is_err() {
            return;
        }
        let (entries, _) = buffer.as_chunks();
        for (number, entry) in (page..).zip(entries) {
            let entry = u64::from_ne_bytes(*entry);
            // The pages of a file are never swapped out, copies of them are.
            if entry & SWAPPED != 0 || entry & (PRESENT | OF_FILE) == PRESENT {
                copies.push(PageNumber(number));
            }
        }
        page += count;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_is_looked_through_where_a_fault_comes_again_and_not_too_often() {
        let mut looked = Looked::default();
        let start = Instant::now();
        let mut at = |rip, ms| looked.has_to_see_all(rip, start + Duration::from_millis(ms));
        assert!(!at(1, 0));
        assert!(!at(2, 1));
        assert!(at(2, 2));
        assert!(!at(2, 3));
        assert!(!at(1, 300));
        assert!(at(1, 301));
        assert!(!at(1, 400));
        assert!(at(1, 401));
    }
}
