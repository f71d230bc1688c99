//! The view without shared memory: a second first-level page table, for a process that does not hold the shared-memory
//! token ([`super::token`]).
//!
//! A vCPU that runs with it leaves with a page fault when the guest touches a page of a shared mapping, however often the
//! process has had that page before. Nothing is cleared and flushed when the token is given back: the vCPU changes to the other
//! root.
//!
//! Regions of 2 MiB without a shared mapping have the same last-level table in both views. The others are *split*: this
//! view has a last-level table of its own, without the shared pages. The tables above are its own throughout. KVM does not
//! see that an entry which it knows is tightened, so they are made anew when a region is split or hidden that they lead to
//! (as in [`super::hide`]).

use std::collections::BTreeMap;
use std::ops::Range;

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber};

use super::page_table::{ADDRESS, ENTRIES, PRESENT, PageTable, TABLE, index};
use super::space::{AddressSpace, is_common};
use crate::kvm::{KvmError, Vm};

/// Bytes of a region.
const REGION_SIZE: u64 = ENTRIES * PAGE_SIZE;

/// The view.
#[derive(Debug, Clone)]
pub struct Apart {
    /// Its first-level table.
    root: u64,
    /// The numbers of the split regions, as ranges by their start. Shared mappings may have terabytes.
    split: BTreeMap<u64, u64>,
    /// The last-level tables of split regions in this view, by region.
    leaves: BTreeMap<u64, u64>,
    /// The last region that is not split and that the view is known to lead to.
    known: Option<u64>,
}

impl Apart {
    fn new() -> Apart {
        Apart {
            root: 0,
            split: BTreeMap::new(),
            leaves: BTreeMap::new(),
            known: None,
        }
    }

    fn is_split(&self, region: u64) -> bool {
        let below = self.split.range(..=region).next_back();
        below.is_some_and(|(_, end)| region < *end)
    }

    /// Adds regions to the split ones, which must not be among them.
    fn add_split(&mut self, regions: Range<u64>) {
        self.split.insert(regions.start, regions.end);
    }

    /// The parts of `regions` that are not split.
    fn whole_in(&self, regions: Range<u64>) -> Vec<Range<u64>> {
        let mut parts = Vec::new();
        let mut at = regions.start;
        while at < regions.end {
            let below = self.split.range(..=at).next_back();
            if let Some((_, end)) = below.filter(|(_, end)| at < **end) {
                at = *end;
                continue;
            }
            let next = self.split.range(at..regions.end).next();
            let end = next.map_or(regions.end, |(start, _)| *start);
            parts.push(at..end);
            at = end;
        }
        parts
    }
}

/// The regions that `range` reaches into.
fn regions(range: GuestRange) -> Range<u64> {
    range.start() / REGION_SIZE..range.end().div_ceil(REGION_SIZE)
}

impl PageTable {
    /// The first-level table of a process that holds the token, or of one that does not.
    pub fn root(&self, holds_token: bool) -> u64 {
        match &self.apart {
            Some(apart) if !holds_token => apart.root,
            _ => self.root,
        }
    }

    /// Splits the regions of `ranges`: all shared mappings that there are in regions which are not split yet.
    fn split(&mut self, ranges: &[GuestRange]) -> Result<(), KvmError> {
        let Some(apart) = &mut self.apart else {
            return Ok(());
        };
        let mut parts = Vec::new();
        for range in ranges {
            for part in apart.whole_in(regions(*range)) {
                apart.add_split(part.clone());
                parts.push(part);
            }
        }
        let mut tables: Vec<(u64, u64)> = Vec::new();
        for part in parts {
            let pages = GuestRange::from_bounds(part.start * REGION_SIZE, part.end * REGION_SIZE);
            self.for_each_leaf(pages, |leaf, pages| {
                tables.push((pages.start / ENTRIES, leaf))
            });
        }
        for (region, table) in &tables {
            let own = self.take_table()?;
            let first = region * ENTRIES;
            let here = ranges
                .iter()
                .filter(|range| regions(**range).contains(region));
            let here: Vec<&GuestRange> = here.collect();
            for page in (first..first + ENTRIES).map(PageNumber) {
                if !here.iter().any(|range| range.contains(page.address().0)) {
                    let offset = index(page, 0) * 8;
                    let entry = self.region.read_u64(table + offset)?;
                    self.region.write_u64(own + offset, entry)?;
                }
            }
            if let Some(apart) = &mut self.apart {
                apart.leaves.insert(*region, own);
            }
        }
        match tables.is_empty() {
            true => Ok(()),
            false => self.remake_apart(),
        }
    }

    /// Makes the tables of the view above the last level anew.
    pub(super) fn remake_apart(&mut self) -> Result<(), KvmError> {
        let Some(mut apart) = self.apart.take() else {
            return Ok(());
        };
        apart.known = None;
        let outcome = self.copy_upper(self.root, 3, 0, &apart);
        if let Ok(root) = outcome {
            let old = std::mem::replace(&mut apart.root, root);
            self.retire_upper(old, 3);
        }
        self.apart = Some(apart);
        outcome.map(drop)
    }

    /// A copy of `table`, of level `level`, for the pages from `first` on.
    fn copy_upper(
        &mut self,
        table: u64,
        level: u32,
        first: u64,
        apart: &Apart,
    ) -> Result<u64, KvmError> {
        let copy = self.take_table()?;
        for i in 0..ENTRIES {
            let entry = self.region.read_u64(table + i * 8)?;
            if entry & PRESENT == 0 {
                continue;
            }
            let pages = first + (i << (9 * level));
            let own = match level {
                1 if apart.is_split(pages / ENTRIES) => {
                    match apart.leaves.get(&(pages / ENTRIES)) {
                        Some(leaf) => leaf | TABLE,
                        None => continue,
                    }
                }
                1 => entry,
                _ => self.copy_upper(entry & ADDRESS, level - 1, pages, apart)? | TABLE,
            };
            self.region.write_u64(copy + i * 8, own)?;
        }
        Ok(copy)
    }

    /// The tables from `table`, of level `level`, down to above the last level are not in use any more.
    fn retire_upper(&mut self, table: u64, level: u32) {
        if table == 0 {
            return;
        }
        for i in 0..ENTRIES {
            let entry = self.region.read_u64(table + i * 8).unwrap_or(0);
            if level > 1 && entry & PRESENT != 0 {
                self.retire_upper(entry & ADDRESS, level - 1);
            }
        }
        self.retired.push(table);
    }

    /// `page` has the entry `entry` in the other view.
    pub(super) fn put_apart(
        &mut self,
        page: PageNumber,
        entry: u64,
        is_shared: bool,
    ) -> Result<(), KvmError> {
        let region = page.0 / ENTRIES;
        let Some(apart) = &self.apart else {
            return Ok(());
        };
        let is_split = apart.is_split(region);
        if apart.known == Some(region) || is_split && is_shared {
            return Ok(());
        }
        let leaf = match is_split {
            false => self.leaf(page),
            true => apart.leaves.get(&region).copied(),
        };
        let leaf = match leaf {
            Some(leaf) => leaf,
            None => {
                let fresh = self.take_table()?;
                if let Some(apart) = &mut self.apart {
                    apart.leaves.insert(region, fresh);
                }
                fresh
            }
        };
        if is_split {
            self.region.write_u64(leaf + index(page, 0) * 8, entry)?;
        }
        match self.hidden.contains_key(&region) {
            true => Ok(()),
            false => self.lead_to(page, leaf),
        }
    }

    /// The view leads to `leaf` for `page`. Nothing is tightened: an entry that is there is the same.
    fn lead_to(&mut self, page: PageNumber, leaf: u64) -> Result<(), KvmError> {
        let Some(root) = self.apart.as_ref().map(|apart| apart.root) else {
            return Ok(());
        };
        let table = self.tables_below(root, page, &[3, 2])?;
        let address = table + index(page, 1) * 8;
        if self.region.read_u64(address)? & PRESENT == 0 {
            self.region.write_u64(address, leaf | TABLE)?;
        }
        if let Some(apart) = &mut self.apart {
            let region = page.0 / ENTRIES;
            apart.known = (!apart.is_split(region)).then_some(region);
        }
        Ok(())
    }

    /// A region is no longer hidden.
    pub(super) fn reveal_apart(&mut self, region: u64) -> Result<(), KvmError> {
        let page = PageNumber(region * ENTRIES);
        let Some(apart) = &self.apart else {
            return Ok(());
        };
        let leaf = match apart.is_split(region) {
            false => self.leaf(page),
            true => apart.leaves.get(&region).copied(),
        };
        match leaf {
            Some(leaf) => self.lead_to(page, leaf),
            None => Ok(()),
        }
    }

    /// `page`, which is present in the other view, has the entry `entry` there now.
    pub(super) fn update_apart(&mut self, page: PageNumber, entry: u64) -> Result<(), KvmError> {
        let leaves = self.apart.as_ref().map(|apart| &apart.leaves);
        let Some(leaf) = leaves.and_then(|leaves| leaves.get(&(page.0 / ENTRIES))) else {
            return Ok(());
        };
        let address = leaf + index(page, 0) * 8;
        if self.region.read_u64(address)? & PRESENT != 0 {
            self.region.write_u64(address, entry)?;
        }
        Ok(())
    }

    /// The pages of `range` are not present any more.
    pub(super) fn unmap_apart(&mut self, range: GuestRange) -> Result<(), KvmError> {
        let Some(apart) = &self.apart else {
            return Ok(());
        };
        for (region, leaf) in apart.leaves.range(regions(range)) {
            for page in (region * ENTRIES..(region + 1) * ENTRIES).map(PageNumber) {
                if range.contains(page.address().0) {
                    self.region.write_u64(leaf + index(page, 0) * 8, 0)?;
                }
            }
        }
        Ok(())
    }
}

impl AddressSpace {
    /// From now on there is a view without shared memory.
    pub fn set_apart(&mut self, vm: &Vm) -> Result<(), KvmError> {
        if self.table.apart.is_some() {
            return Ok(());
        }
        self.table.apart = Some(Apart::new());
        let shared: Vec<GuestRange> = self
            .vmas()
            .iter()
            .filter(|vma| is_common(vma))
            .map(|vma| vma.range)
            .collect();
        self.table.split(&shared)?;
        self.table.remake_apart()?;
        self.recycle_tables(vm)
    }

    /// `range` is a shared mapping that has just been made, or put back.
    pub(super) fn split_shared(&mut self, range: GuestRange) -> Result<(), KvmError> {
        self.table.split(&[range])
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::MonitorRegion;
    use super::super::page_table::Access;
    use super::super::window;
    use super::*;

    const WRITE: Access = Access {
        write: true,
        execute: false,
    };
    const FIRST: u64 = window::HIGH.0 / PAGE_SIZE + 7 * ENTRIES;

    fn tables() -> PageTable {
        PageTable::new(Arc::new(MonitorRegion::create().unwrap())).unwrap()
    }

    fn begin(tables: &mut PageTable, shared: &[GuestRange]) {
        tables.apart = Some(Apart::new());
        tables.split(shared).unwrap();
        tables.remake_apart().unwrap();
    }

    fn pages(from: u64, to: u64) -> GuestRange {
        GuestRange::from_bounds((FIRST + from) * PAGE_SIZE, (FIRST + to) * PAGE_SIZE)
    }

    fn map(tables: &mut PageTable, page: u64, is_shared: bool) {
        let page = PageNumber(FIRST + page);
        tables
            .map(page, page.address().0, WRITE, is_shared)
            .unwrap();
    }

    /// The entry that a vCPU finds for the page.
    fn entry(tables: &PageTable, holds_token: bool, page: u64) -> u64 {
        let page = PageNumber(FIRST + page);
        let mut table = tables.root(holds_token);
        for level in [3, 2, 1, 0] {
            let entry = tables.region.read_u64(table + index(page, level) * 8);
            let entry = entry.unwrap();
            if entry & PRESENT == 0 || level == 0 {
                return entry;
            }
            table = entry & ADDRESS;
        }
        0
    }

    fn seen(tables: &PageTable, page: u64) -> (bool, bool) {
        let is_present = |holds| entry(tables, holds, page) & PRESENT != 0;
        (is_present(true), is_present(false))
    }

    #[test]
    fn what_is_not_split_yet_is_found() {
        let mut apart = Apart::new();
        for part in [3..5, 8..9] {
            apart.add_split(part);
        }
        assert_eq!(apart.whole_in(0..10), [0..3, 5..8, 9..10]);
        assert_eq!(apart.whole_in(4..8), vec![5..8; 1]);
        assert!(apart.whole_in(3..5).is_empty());
        let split: Vec<u64> = (0..10).filter(|region| apart.is_split(*region)).collect();
        assert_eq!(split, [3, 4, 8]);
    }

    #[test]
    fn shared_pages_are_in_one_view_and_all_others_in_both() {
        let mut tables = tables();
        for page in [1, 2, 600] {
            map(&mut tables, page, page == 2);
        }
        begin(&mut tables, &[pages(2, 5)]);
        for page in [3, 6, 601, 2000] {
            map(&mut tables, page, page == 3);
        }
        for page in [1, 6, 600, 601, 2000] {
            assert_eq!(seen(&tables, page), (true, true), "{page}");
            assert_eq!(entry(&tables, true, page), entry(&tables, false, page));
        }
        assert_eq!(seen(&tables, 2), (true, false));
        assert_eq!(seen(&tables, 3), (true, false));
    }

    #[test]
    fn mappings_in_one_region_are_all_split_off() {
        let mut tables = tables();
        for page in [1, 2, 9] {
            map(&mut tables, page, page > 1);
        }
        begin(&mut tables, &[pages(2, 5), pages(8, 10)]);
        assert_eq!(seen(&tables, 1), (true, true));
        assert_eq!(seen(&tables, 2), (true, false));
        assert_eq!(seen(&tables, 9), (true, false));
    }

    #[test]
    fn changes_are_seen_in_both_views() {
        let mut tables = tables();
        begin(&mut tables, &[pages(2, 5)]);
        for page in [1, 2, 600] {
            map(&mut tables, page, page == 2);
        }
        for page in [1, 600] {
            let number = PageNumber(FIRST + page);
            tables.set_writable(number, false).unwrap();
            assert_eq!(
                tables.access(number).map(|access| access.write),
                Some(false)
            );
            assert_eq!(entry(&tables, true, page), entry(&tables, false, page));
        }
        tables.unmap(pages(0, 1000)).unwrap();
        for page in [1, 2, 600] {
            assert_eq!(seen(&tables, page), (false, false), "{page}");
        }
    }

    #[test]
    fn a_mapping_made_later_is_split_off() {
        let mut tables = tables();
        begin(&mut tables, &[pages(2, 5)]);
        map(&mut tables, 1030, false);
        tables.split(&[pages(1040, 1050)]).unwrap();
        map(&mut tables, 1041, true);
        map(&mut tables, 1031, false);
        assert_eq!(seen(&tables, 1041), (true, false));
        assert_eq!(seen(&tables, 1030), (true, true));
        assert_eq!(seen(&tables, 1031), (true, true));
    }
}
