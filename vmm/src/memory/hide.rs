//! Hidden regions: 2 MiB each, out of the guest's sight until they have been restored.
//!
//! To hide a region its entry in the table above has to go, and KVM has to notice. Neither may cost anything
//! per page, so nothing that KVM has built is taken apart: the tables above the region are made anew, without
//! it, and the vCPUs change to the new root before they run again ([`AddressSpace::root`]). The region's own
//! last-level table stays as it is and is put back when the region is revealed; to everybody else in this
//! module it looks as if it were in place.
//!
//! The old upper tables are *retired*. KVM under shadow paging remembers what they said and does not see that
//! they are written, so they are used again only after KVM has dropped all that it knows ([`Vm::forget_tables`]).

use std::collections::BTreeMap;

use guest_agentless::{GuestRange, PageNumber};

use super::page_table::{ADDRESS, ENTRIES, PRESENT, PageTable, TABLE, index};
use super::space::AddressSpace;
use crate::kvm::{KvmError, Vm};

/// Retired tables beyond which KVM is made to forget them: 4 MiB, or some 300 large write sets.
const RETIRED_LIMIT: usize = 1024;

/// Bytes of a region.
const REGION_SIZE: u64 = recovery::tracker::REGION_SIZE;

impl PageTable {
    /// Copies `table` to a fresh one, which takes its place.
    fn renew(&mut self, table: u64) -> Result<u64, KvmError> {
        let fresh = self.take_table()?;
        let content = self.region.read_page(table)?;
        self.region.write_page(fresh, &content)?;
        self.retired.push(table);
        Ok(fresh)
    }

    /// Hides regions. If that fails nothing is hidden.
    fn hide(&mut self, regions: &[u64]) -> Result<(), KvmError> {
        let root = self.renew(self.root)?;
        // The tables that are fresh already, by the entry that points to them.
        let mut renewed: BTreeMap<u64, u64> = BTreeMap::new();
        let mut hidden = Vec::with_capacity(regions.len());
        for region in regions {
            if self.hidden.contains_key(region) {
                continue;
            }
            let page = PageNumber(region * ENTRIES);
            let mut table = Some(root);
            for level in [3, 2] {
                let Some(upper) = table else { break };
                let entry = upper + index(page, level) * 8;
                if let Some(fresh) = renewed.get(&entry) {
                    table = Some(*fresh);
                    continue;
                }
                table = match self.region.read_u64(entry)? {
                    old if old & PRESENT == 0 => None,
                    old => {
                        let fresh = self.renew(old & ADDRESS)?;
                        self.region.write_u64(entry, fresh | TABLE)?;
                        renewed.insert(entry, fresh);
                        Some(fresh)
                    }
                };
            }
            let leaf = match table {
                None => None,
                Some(table) => {
                    let entry = table + index(page, 1) * 8;
                    let old = self.region.read_u64(entry)?;
                    self.region.write_u64(entry, 0)?;
                    (old & PRESENT != 0).then_some(old & ADDRESS)
                }
            };
            hidden.push((*region, leaf));
        }
        self.root = root;
        self.hidden.extend(hidden);
        self.remake_apart()
    }

    /// Puts the last-level table of a hidden region back.
    fn reveal(&mut self, region: u64) -> Result<(), KvmError> {
        if let Some(leaf) = self.hidden.remove(&region).flatten() {
            self.put_leaf(PageNumber(region * ENTRIES), leaf)?;
        }
        self.reveal_apart(region)
    }
}

/// The pages of region number `region`.
fn region_range(region: u64) -> GuestRange {
    let start = region.saturating_mul(REGION_SIZE);
    GuestRange::from_bounds(start, start.saturating_add(REGION_SIZE))
}

impl AddressSpace {
    /// Unmaps those of the regions `written` (ascending) that lie in `range`, private memory, as far as the guest can tell:
    /// they stay in the host until [`AddressSpace::finish_unmap`]. The rest is returned, to be unmapped first.
    pub fn condemn(&mut self, range: GuestRange, written: &[u64]) -> Vec<GuestRange> {
        if self.vmas.overlapping(range).any(|vma| vma.shared) {
            return vec![range];
        }
        let mut rest = Vec::new();
        let mut at = range.start();
        let wholes = written.iter().map(|region| (region, region_range(*region)));
        for (region, whole) in wholes.filter(|(_, whole)| range.encloses(*whole)) {
            self.vmas.remove(whole);
            self.condemned.insert(*region);
            rest.push(GuestRange::from_bounds(at, whole.start()));
            at = whole.end();
        }
        rest.push(GuestRange::from_bounds(at, range.end()));
        rest.retain(|part| !part.is_empty());
        rest
    }

    /// The regions in `range` that are still to be unmapped.
    pub fn condemned_in(&self, range: GuestRange) -> Vec<u64> {
        let regions = range.start() / REGION_SIZE..range.end().div_ceil(REGION_SIZE);
        match range.is_empty() || self.condemned.is_empty() {
            true => Vec::new(),
            false => self.condemned.range(regions).copied().collect(),
        }
    }

    /// Really unmaps a region that was condemned; returns its range, of which the tracker has to know.
    pub fn finish_unmap(&mut self, region: u64) -> Option<GuestRange> {
        if !self.condemned.remove(&region) {
            return None;
        }
        let range = region_range(region);
        if let Err(error) = self.clear(range) {
            log::error!("{range:?} could not be unmapped: {error}");
        }
        Some(range)
    }

    /// The first-level page table that a vCPU has to run with, while the process holds the shared-memory token or not.
    pub fn root(&self, holds_token: bool) -> u64 {
        self.table.root(holds_token)
    }

    /// One that maps nothing of the guest.
    pub fn bare_root(&self) -> u64 {
        self.table.bare_root
    }

    /// Hides regions, given by number. If that fails nothing has changed.
    pub fn hide(&mut self, vm: &Vm, regions: &[u64]) -> Result<(), KvmError> {
        self.table.hide(regions)?;
        self.recycle_tables(vm)
    }

    /// Makes retired tables free, once there are many.
    pub(super) fn recycle_tables(&mut self, vm: &Vm) -> Result<(), KvmError> {
        if self.table.retired.len() > RETIRED_LIMIT {
            vm.forget_tables()?;
            let mut retired = std::mem::take(&mut self.table.retired);
            self.table.free.append(&mut retired);
        }
        Ok(())
    }

    /// Whether any region is hidden.
    pub fn hides(&self) -> bool {
        !self.table.hidden.is_empty()
    }

    /// Whether `page` lies in a hidden region.
    pub fn is_hidden(&self, page: PageNumber) -> bool {
        self.hides() && self.table.hidden.contains_key(&(page.0 / ENTRIES))
    }

    /// The hidden regions that `range` reaches into.
    pub fn hidden_in(&self, range: GuestRange) -> Vec<u64> {
        let regions = range.start() / REGION_SIZE..range.end().div_ceil(REGION_SIZE);
        if range.is_empty() {
            return Vec::new();
        }
        self.table
            .hidden
            .range(regions)
            .map(|(region, _)| *region)
            .collect()
    }

    /// Lets the guest see a hidden region again. Whoever restores it calls this.
    pub fn reveal(&mut self, region: u64) {
        if let Err(error) = self.table.reveal(region) {
            log::error!("a hidden region cannot be shown again: {error}");
        }
    }

    /// Whether others than the guest may see memory of `region`, by a mapping that they share.
    pub fn is_shared(&self, region: u64) -> bool {
        self.vmas
            .overlapping(region_range(region))
            .any(|vma| vma.shared)
    }
}
