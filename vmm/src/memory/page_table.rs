//! The guest's page tables: four levels, 4 KiB pages.
//!
//! Loosening an entry needs no flush: the CPU or KVM walks the tables again on the fault. Tightening one
//! does, and the flush is the caller's: an mmu-notifier event on the page's host mapping (`munmap`,
//! `mprotect`), or the write-protection by a dirty-ring reset.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber};

use super::MonitorRegion;
use super::apart::Apart;
use crate::kvm::{KvmError, layout};

pub(super) const PRESENT: u64 = 1 << 0;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const ACCESSED: u64 = 1 << 5;
const NO_EXECUTE: u64 = 1 << 63;
pub(super) const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
pub(super) const ENTRIES: u64 = 512;
/// The flags of an entry that points to the next table.
pub(super) const TABLE: u64 = PRESENT | WRITE | USER | ACCESSED;

/// What ring 3 may do with a page that is present.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    /// It may write.
    pub write: bool,
    /// It may execute.
    pub execute: bool,
}

/// What a walk through the upper tables comes to.
enum Walk {
    /// A last-level table.
    Leaf(u64),
    /// There is none, nor for any other page up to this one.
    Absent(u64),
}

/// The tables.
pub struct PageTable {
    pub(super) region: Arc<MonitorRegion>,
    /// The first-level table that vCPUs run with.
    pub(super) root: u64,
    /// One with the stubs and nothing of the guest.
    pub(super) bare_root: u64,
    next_free: u64,
    /// Tables that may be used again.
    pub(super) free: Vec<u64>,
    /// Tables that are not in use any more but that KVM may still know.
    pub(super) retired: Vec<u64>,
    /// The hidden regions of 2 MiB by number, with their last-level tables (see [`super::hide`]).
    pub(super) hidden: BTreeMap<u64, Option<u64>>,
    /// The view without shared memory, where there is one (see [`super::apart`]).
    pub(super) apart: Option<Apart>,
}

impl PageTable {
    /// Tables that map the stubs and nothing else.
    pub fn new(region: Arc<MonitorRegion>) -> Result<PageTable, KvmError> {
        let mut tables = PageTable {
            region,
            root: layout::PAGE_TABLES,
            bare_root: layout::PAGE_TABLES,
            next_free: layout::PAGE_TABLES + PAGE_SIZE,
            free: Vec::new(),
            retired: Vec::new(),
            hidden: BTreeMap::new(),
            apart: None,
        };
        tables.map_stubs()?;
        tables.root = tables.take_table()?;
        tables.map_stubs()?;
        Ok(tables)
    }

    fn map_stubs(&mut self) -> Result<(), KvmError> {
        let page = |address: u64| PageNumber(address / PAGE_SIZE);
        for user in [layout::SYSCALL_STUB, layout::PROBE_CODE] {
            self.put(page(user), PRESENT | USER | ACCESSED | (user & ADDRESS))?;
        }
        for kernel in [layout::EXCEPTION_STUBS, layout::IDT, layout::GDT] {
            self.put(page(kernel), PRESENT | ACCESSED | (kernel & ADDRESS))?;
        }
        for index in 0..layout::MAX_VCPUS {
            let address = layout::vcpu_page(index);
            self.put(
                page(address),
                PRESENT | WRITE | ACCESSED | NO_EXECUTE | address,
            )?;
        }
        Ok(())
    }

    /// The same tables in the copy of the region that a forked child has.
    pub fn take_over(&self, region: Arc<MonitorRegion>) -> PageTable {
        PageTable {
            region,
            root: self.root,
            bare_root: self.bare_root,
            next_free: self.next_free,
            free: Vec::new(),
            retired: Vec::new(),
            hidden: self.hidden.clone(),
            apart: self.apart.clone(),
        }
    }

    /// Makes `page` present with `access`; it is at the guest-physical address `physical`, and in a shared mapping if it
    /// `is_shared`.
    pub fn map(
        &mut self,
        page: PageNumber,
        physical: u64,
        access: Access,
        is_shared: bool,
    ) -> Result<(), KvmError> {
        let mut entry = PRESENT | USER | ACCESSED | (physical & ADDRESS);
        if access.write {
            entry |= WRITE;
        }
        if !access.execute {
            entry |= NO_EXECUTE;
        }
        self.put(page, entry)?;
        self.put_apart(page, entry, is_shared)
    }

    /// What ring 3 may do with `page`; none while it is not present.
    pub fn access(&self, page: PageNumber) -> Option<Access> {
        let entry = self
            .region
            .read_u64(self.leaf(page)? + index(page, 0) * 8)
            .ok()?;
        (entry & PRESENT != 0).then_some(Access {
            write: entry & WRITE != 0,
            execute: entry & NO_EXECUTE == 0,
        })
    }

    /// Makes a present page writable, or read-only. Making it read-only needs a flush.
    pub fn set_writable(&mut self, page: PageNumber, writable: bool) -> Result<(), KvmError> {
        let Some(leaf) = self.leaf(page) else {
            return Ok(());
        };
        let address = leaf + index(page, 0) * 8;
        let entry = self.region.read_u64(address)?;
        let changed = if writable {
            entry | WRITE
        } else {
            entry & !WRITE
        };
        if entry & PRESENT != 0 && changed != entry {
            self.region.write_u64(address, changed)?;
            self.update_apart(page, changed)?;
        }
        Ok(())
    }

    /// Makes the pages of `range` not present. Needs a flush.
    pub fn unmap(&mut self, range: GuestRange) -> Result<(), KvmError> {
        let mut outcome = Ok(());
        self.for_each_leaf(range, |leaf, pages| {
            for page in pages.map(PageNumber) {
                if let Err(e) = self.region.write_u64(leaf + index(page, 0) * 8, 0) {
                    outcome = Err(e);
                }
            }
        });
        outcome.and_then(|()| self.unmap_apart(range))
    }

    /// Adds the pages of `range` that are present and writable to `pages`.
    pub fn writable_pages(&self, range: GuestRange, pages: &mut Vec<PageNumber>) {
        self.for_each_leaf(range, |leaf, numbers| {
            for page in numbers.map(PageNumber) {
                let entry = self.region.read_u64(leaf + index(page, 0) * 8).unwrap_or(0);
                if entry & (PRESENT | WRITE) == PRESENT | WRITE {
                    pages.push(page);
                }
            }
        });
    }

    /// Whether a page of `range` is present, hidden or not.
    pub fn has_pages(&self, range: GuestRange) -> bool {
        let mut found = false;
        self.for_each_leaf(range, |leaf, numbers| {
            let mut pages = numbers.map(PageNumber);
            found = found
                || pages.any(|page| {
                    let entry = self.region.read_u64(leaf + index(page, 0) * 8);
                    entry.unwrap_or(PRESENT) & PRESENT != 0
                });
        });
        found
    }

    /// Calls `each` with every last-level table that exists for `range`, and the page numbers of the range
    /// that it maps.
    pub(super) fn for_each_leaf(
        &self,
        range: GuestRange,
        mut each: impl FnMut(u64, std::ops::Range<u64>),
    ) {
        let mut page = range.start() / PAGE_SIZE;
        let end = range.end().div_ceil(PAGE_SIZE);
        while page < end {
            let leaf_end = (page / ENTRIES + 1) * ENTRIES;
            page = match self.walk(PageNumber(page)) {
                Walk::Leaf(leaf) => {
                    each(leaf, page..end.min(leaf_end));
                    leaf_end
                }
                // Ranges may have terabytes. Of a hidden region there may be a table with none above it.
                Walk::Absent(until) => {
                    let mut hidden = self.hidden.range(leaf_end / ENTRIES..);
                    let hidden = hidden.next().map(|(region, _)| region * ENTRIES);
                    hidden.map_or(until, |hidden| until.min(hidden))
                }
            };
        }
    }

    /// Makes `leaf` the last-level table for `page`, which has none.
    pub(super) fn put_leaf(&mut self, page: PageNumber, leaf: u64) -> Result<(), KvmError> {
        let table = self.tables_above(page, &[3, 2])?;
        self.region
            .write_u64(table + index(page, 1) * 8, leaf | TABLE)
    }

    fn put(&mut self, page: PageNumber, entry: u64) -> Result<(), KvmError> {
        if let Some(leaf) = self.hidden.get(&(page.0 / ENTRIES)) {
            let leaf = match leaf {
                Some(leaf) => *leaf,
                None => {
                    let fresh = self.take_table()?;
                    self.hidden.insert(page.0 / ENTRIES, Some(fresh));
                    fresh
                }
            };
            return self.region.write_u64(leaf + index(page, 0) * 8, entry);
        }
        let table = self.tables_above(page, &[3, 2, 1])?;
        self.region.write_u64(table + index(page, 0) * 8, entry)
    }

    /// The table that the entries of `levels` lead to; what is missing on the way is made.
    fn tables_above(&mut self, page: PageNumber, levels: &[u32]) -> Result<u64, KvmError> {
        self.tables_below(self.root, page, levels)
    }

    /// As [`PageTable::tables_above`], from the first-level table `root` on.
    pub(super) fn tables_below(
        &mut self,
        root: u64,
        page: PageNumber,
        levels: &[u32],
    ) -> Result<u64, KvmError> {
        let mut table = root;
        for level in levels {
            let address = table + index(page, *level) * 8;
            let upper = self.region.read_u64(address)?;
            table = match upper & PRESENT {
                0 => {
                    let fresh = self.take_table()?;
                    self.region.write_u64(address, fresh | TABLE)?;
                    fresh
                }
                _ => upper & ADDRESS,
            };
        }
        Ok(table)
    }

    /// The last-level table for `page`, if there is one.
    pub(super) fn leaf(&self, page: PageNumber) -> Option<u64> {
        match self.walk(page) {
            Walk::Leaf(leaf) => Some(leaf),
            Walk::Absent(_) => None,
        }
    }

    fn walk(&self, page: PageNumber) -> Walk {
        let absent = |level: u32| {
            let pages = 1 << (9 * level);
            Walk::Absent((page.0 / pages + 1) * pages)
        };
        if let Some(leaf) = self.hidden.get(&(page.0 / ENTRIES)) {
            return leaf.map_or(absent(1), Walk::Leaf);
        }
        let mut table = self.root;
        for level in [3, 2, 1] {
            let entry = self.region.read_u64(table + index(page, level) * 8);
            match entry {
                Ok(entry) if entry & PRESENT != 0 => table = entry & ADDRESS,
                _ => return absent(level),
            }
        }
        Walk::Leaf(table)
    }

    pub(super) fn take_table(&mut self) -> Result<u64, KvmError> {
        if let Some(table) = self.free.pop() {
            self.region.write_page(table, &[0; PAGE_SIZE as usize])?;
            return Ok(table);
        }
        let table = self.next_free;
        if !self.region.contains(table, PAGE_SIZE) {
            return Err(KvmError::TablesFull);
        }
        self.next_free += PAGE_SIZE;
        Ok(table)
    }
}

pub(super) fn index(page: PageNumber, level: u32) -> u64 {
    (page.0 >> (9 * level)) & (ENTRIES - 1)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::super::window;
    use super::*;

    const READ: Access = Access {
        write: false,
        execute: false,
    };

    fn tables() -> PageTable {
        PageTable::new(Arc::new(MonitorRegion::create().unwrap())).unwrap()
    }

    fn entry(tables: &PageTable, page: PageNumber) -> u64 {
        let leaf = tables.leaf(page).unwrap();
        tables.region.read_u64(leaf + index(page, 0) * 8).unwrap()
    }

    #[test]
    fn a_page_is_where_it_is_put() {
        let mut tables = tables();
        let far = PageNumber((window::FAR.1 - (8 << 40)) / PAGE_SIZE);
        let physical = 0x61_0000_3000;
        tables.map(far, physical, READ, false).unwrap();
        assert_eq!(tables.access(far), Some(READ));
        assert_eq!(entry(&tables, far) & ADDRESS, physical);
        tables.set_writable(far, true).unwrap();
        assert_eq!(entry(&tables, far) & ADDRESS, physical);
        assert_eq!(tables.access(PageNumber(far.0 + 1)), None);
    }

    #[test]
    fn terabytes_without_pages_take_no_time() {
        let mut tables = tables();
        let all = GuestRange::from_bounds(window::FAR.0, window::FAR.1);
        let pages: Vec<PageNumber> = [0, 511, 512, 1 << 18, (1 << 27) + 7, (16 << 28) - 1]
            .into_iter()
            .map(|n| PageNumber(window::FAR.0 / PAGE_SIZE + n))
            .collect();
        for page in &pages {
            let write = Access {
                write: true,
                ..READ
            };
            tables.map(*page, 0x61_0000_0000, write, false).unwrap();
        }
        let begin = Instant::now();
        let mut found = Vec::new();
        tables.writable_pages(all, &mut found);
        assert_eq!(found, pages);
        assert!(tables.has_pages(all));
        tables.unmap(all).unwrap();
        assert!(!tables.has_pages(all));
        assert!(pages.iter().all(|page| tables.access(*page).is_none()));
        // Region by region it would be twenty million steps each time.
        assert!(begin.elapsed() < Duration::from_millis(100));
    }

    #[test]
    fn a_hidden_table_is_found_where_none_is_above_it() {
        let mut tables = tables();
        let page = PageNumber(window::FAR.0 / PAGE_SIZE + 5 * (1 << 18) + 3);
        tables.hidden.insert(page.0 / ENTRIES, None);
        tables.map(page, 0x61_0000_0000, READ, false).unwrap();
        let all = GuestRange::from_bounds(window::FAR.0, window::FAR.1);
        tables.unmap(all).unwrap();
        assert_eq!(tables.access(page), None);
    }
}
