//! The guest's page tables: four levels, 4 KiB pages, guest-virtual = guest-physical.
//!
//! Loosening an entry needs no flush: the CPU or KVM walks the tables again on the fault. Tightening one
//! does, and the flush is the caller's: an mmu-notifier event on the page's host mapping (`munmap`,
//! `mprotect`), or the write-protection by a dirty-ring reset.

use std::collections::BTreeMap;
use std::sync::Arc;

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber};

use super::MonitorRegion;
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
        }
    }

    /// Makes `page` present with `access`.
    pub fn map(&mut self, page: PageNumber, access: Access) -> Result<(), KvmError> {
        let mut entry = PRESENT | USER | ACCESSED | (page.address().0 & ADDRESS);
        if access.write {
            entry |= WRITE;
        }
        if !access.execute {
            entry |= NO_EXECUTE;
        }
        self.put(page, entry)
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
        outcome
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

    /// Calls `each` with every last-level table that exists for `range`, and the page numbers of the range
    /// that it maps.
    fn for_each_leaf(&self, range: GuestRange, mut each: impl FnMut(u64, std::ops::Range<u64>)) {
        let mut page = range.start() / PAGE_SIZE;
        let end = range.end().div_ceil(PAGE_SIZE);
        while page < end {
            let leaf_end = (page / ENTRIES + 1) * ENTRIES;
            if let Some(leaf) = self.leaf(PageNumber(page)) {
                each(leaf, page..end.min(leaf_end));
            }
            page = leaf_end;
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
        let mut table = self.root;
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
    fn leaf(&self, page: PageNumber) -> Option<u64> {
        if let Some(leaf) = self.hidden.get(&(page.0 / ENTRIES)) {
            return *leaf;
        }
        let mut table = self.root;
        for level in [3, 2, 1] {
            let entry = self.region.read_u64(table + index(page, level) * 8).ok()?;
            if entry & PRESENT == 0 {
                return None;
            }
            table = entry & ADDRESS;
        }
        Some(table)
    }

    pub(super) fn take_table(&mut self) -> Result<u64, KvmError> {
        if let Some(table) = self.free.pop() {
            self.region.write_page(table, &[0; PAGE_SIZE as usize])?;
            return Ok(table);
        }
        let table = self.next_free;
        if !self.region.contains(table, PAGE_SIZE) {
            return Err(KvmError::Memory("the guest's page tables are full".into()));
        }
        self.next_free += PAGE_SIZE;
        Ok(table)
    }
}

pub(super) fn index(page: PageNumber, level: u32) -> u64 {
    (page.0 >> (9 * level)) & (ENTRIES - 1)
}
