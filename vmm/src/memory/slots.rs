//! Memory slots: where the guest's memory is in guest-physical memory.
//!
//! In the low and the high window a guest-virtual address is its own guest-physical one. The far window is larger
//! than what CPUs have physical addresses for, so each slot of it is given some when it is first touched, and keeps
//! them until they are needed elsewhere and the page tables do not name them any more.

use std::collections::HashMap;

use guest_agentless::{GuestRange, PageNumber};

use super::window;
use crate::kvm::{KvmError, Vm};

/// Bytes per memory slot.
const SLOT_SIZE: u64 = 64 << 20;
/// The guest-physical addresses for the far window: what is left below 2^39 above the monitor's own.
const POOL: (u64, u64) = (0x61_0000_0000, 0x80_0000_0000);
/// Slots that are taken back at once: KVM forgets all its translations for each.
const BATCH: usize = 64;

/// The slots of a machine.
#[derive(Debug, Default)]
pub struct Slots {
    /// First guest-physical by first guest-virtual address.
    placed: HashMap<u64, u64>,
    /// How much of the pool has been given away.
    taken: u64,
    /// What has been taken back of that.
    free: Vec<u64>,
}

/// A part of the guest's memory that is in one piece in guest-physical memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Slot {
    range: GuestRange,
    physical: u64,
}

impl Slot {
    /// The guest-physical address of `page`, which lies in it.
    pub fn physical(self, page: PageNumber) -> u64 {
        self.physical + (page.address().0 - self.range.start())
    }
}

/// The slot around `address`, at `physical`. The low window does not start at a multiple of the slot size.
fn slot(address: u64, physical: u64) -> Option<Slot> {
    let start = start(address);
    let whole = GuestRange::from_bounds(start, start.saturating_add(SLOT_SIZE));
    let mut windows = window::WINDOWS.into_iter();
    let range =
        windows.find_map(|(start, end)| whole.intersection(GuestRange::from_bounds(start, end)))?;
    Some(Slot {
        range,
        physical: physical + (range.start() - start),
    })
}

fn start(address: u64) -> u64 {
    address & !(SLOT_SIZE - 1)
}

fn is_far(start: u64) -> bool {
    start >= window::FAR.0
}

impl Slots {
    /// The slot that `address` lies in, which is made if there is none. None if no physical addresses are left.
    /// `is_used` says whether the page tables have pages of a range.
    pub fn ensure(
        &mut self,
        vm: &Vm,
        address: u64,
        is_used: impl Fn(GuestRange) -> bool,
    ) -> Result<Option<Slot>, KvmError> {
        if let Some(slot) = self.find(address) {
            return Ok(Some(slot));
        }
        let mut slot = self.place(address);
        if slot.is_none() {
            for unused in self.unused(is_used) {
                vm.remove_slot(unused.range.start())?;
                self.take_back(unused);
            }
            slot = self.place(address);
        }
        if let Some(slot) = slot {
            add(vm, slot)?;
        }
        Ok(slot)
    }

    /// The slot that `address` lies in, if there is one.
    pub fn find(&self, address: u64) -> Option<Slot> {
        let physical = self.placed.get(&start(address))?;
        slot(address, *physical)
    }

    /// The same slots in another machine.
    pub fn take_over(&mut self, vm: &Vm) -> Result<Slots, KvmError> {
        let slots = std::mem::take(self);
        for (start, physical) in &slots.placed {
            if let Some(slot) = slot(*start, *physical) {
                add(vm, slot)?;
            }
        }
        Ok(slots)
    }

    /// Decides where a new slot for `address` is.
    fn place(&mut self, address: u64) -> Option<Slot> {
        let start = start(address);
        let physical = match is_far(start) {
            true => self.take_physical()?,
            false => start,
        };
        self.placed.insert(start, physical);
        slot(address, physical)
    }

    fn take_physical(&mut self) -> Option<u64> {
        if let Some(physical) = self.free.pop() {
            return Some(physical);
        }
        let physical = POOL.0 + self.taken;
        if physical + SLOT_SIZE > POOL.1 {
            return None;
        }
        self.taken += SLOT_SIZE;
        Some(physical)
    }

    /// Slots of the far window that may be taken back.
    fn unused(&self, is_used: impl Fn(GuestRange) -> bool) -> Vec<Slot> {
        let far = self.placed.iter().filter(|(start, _)| is_far(**start));
        far.filter_map(|(start, physical)| slot(*start, *physical))
            .filter(|slot| !is_used(slot.range))
            .take(BATCH)
            .collect()
    }

    fn take_back(&mut self, slot: Slot) {
        self.placed.remove(&slot.range.start());
        self.free.push(slot.physical);
    }
}

fn add(vm: &Vm, slot: Slot) -> Result<(), KvmError> {
    let Slot { range, physical } = slot;
    // SAFETY: guest windows stay reserved for the guest for as long as the monitor runs.
    unsafe { vm.add_slot(physical, range.start(), range.len(), true) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kvm::layout;

    fn physical(slots: &mut Slots, address: u64) -> Option<u64> {
        let slot = slots.find(address).or_else(|| slots.place(address))?;
        Some(slot.physical(PageNumber(address / 4096)))
    }

    #[test]
    fn near_addresses_are_their_own_and_far_ones_are_packed() {
        let mut slots = Slots::default();
        let low = window::LOW.0;
        let high = window::HIGH.0 + 5 * SLOT_SIZE + 0x3000;
        for address in [low, low + SLOT_SIZE, high, window::HIGH.1 - 4096] {
            assert_eq!(physical(&mut slots, address), Some(address));
        }
        assert_eq!(slot(low, 0).unwrap().range.start(), low);
        let far = window::FAR.1 - SLOT_SIZE;
        assert_eq!(physical(&mut slots, far + 0x7000), Some(POOL.0 + 0x7000));
        let other = window::FAR.0 + (8 << 40);
        assert_eq!(physical(&mut slots, other), Some(POOL.0 + SLOT_SIZE));
        assert_eq!(physical(&mut slots, far), Some(POOL.0), "it stays there");
    }

    #[test]
    fn the_pool_has_an_end_and_nothing_else_is_in_it() {
        let monitor = layout::MONITOR_BASE..layout::SPARE_PAGE + 4096;
        let outside = |address: u64| {
            !monitor.contains(&address)
                && !(window::HIGH.0..window::HIGH.1).contains(&address)
                && !(window::LOW.0..window::LOW.1).contains(&address)
        };
        let mut slots = Slots::default();
        for i in 0..(POOL.1 - POOL.0) / SLOT_SIZE {
            let address = window::FAR.0 + i * 3 * SLOT_SIZE;
            let physical = physical(&mut slots, address).unwrap();
            assert!(outside(physical) && outside(physical + SLOT_SIZE - 1));
            assert!(physical + SLOT_SIZE <= 1 << 39);
        }
        assert_eq!(physical(&mut slots, window::FAR.1 - SLOT_SIZE), None);
        assert_eq!(physical(&mut slots, window::FAR.0), Some(POOL.0));
        assert!(physical(&mut slots, window::HIGH.0).is_some());

        let used = window::FAR.0 + 6 * SLOT_SIZE;
        let before = slots.find(used);
        let unused = slots.unused(|range| range.start() >= used);
        assert_eq!(unused.len(), 2);
        for slot in &unused {
            slots.take_back(*slot);
        }
        assert_eq!(slots.find(window::FAR.0), None);
        let far = |i: u64| window::FAR.1 - i * SLOT_SIZE;
        let again: Vec<u64> = (1..4).map_while(|i| physical(&mut slots, far(i))).collect();
        assert!(again.len() == 2 && again.contains(&POOL.0));
        assert_eq!(slots.find(used), before);
    }
}
