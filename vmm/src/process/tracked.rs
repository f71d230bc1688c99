//! Guest memory as the tracker sees it.

use std::fs::File;
use std::os::unix::fs::FileExt;

use guest_agentless::{Backing, GuestRange, PageNumber};
use recovery::tracker::{Machine, Memory, PageContent};

use crate::kvm::{Vcpu, Vm};
use crate::memory::{AddressSpace, copy, is_zero_based};

/// Guest memory, from whoever holds the run token.
pub struct HostMemory<'a> {
    pub space: &'a mut AddressSpace,
    pub own_memory: &'a File,
}

impl Memory for HostMemory<'_> {
    fn read(&mut self, page: PageNumber, into: &mut PageContent) -> bool {
        let address = page.address().0;
        // A page that the guest has made inaccessible to itself is still part of its state.
        copy::read(address, into.bytes_mut()).is_ok()
            || self
                .own_memory
                .read_exact_at(into.bytes_mut(), address)
                .is_ok()
    }

    fn write(&mut self, page: PageNumber, from: &PageContent) -> bool {
        let address = page.address().0;
        copy::write(address, from.bytes()).is_ok()
            || self.own_memory.write_all_at(from.bytes(), address).is_ok()
            // Not even the kernel writes to a shared mapping without write access.
            || self.space.with_write_access(page, || copy::write(address, from.bytes()).is_ok())
    }

    fn give_back(&mut self, range: GuestRange) -> bool {
        // What is still to be unmapped has no mapping in the model any more.
        let private = self.space.vmas().overlapping(range).all(is_zero_based);
        private && self.space.discard(range).is_ok()
    }
}

/// The machine, from the thread that holds the run token: only its vCPU can have unreported writes.
pub struct TrackedMemory<'a> {
    pub vm: &'a Vm,
    pub vcpu: &'a mut Vcpu,
    pub host: HostMemory<'a>,
}

impl Memory for TrackedMemory<'_> {
    fn read(&mut self, page: PageNumber, into: &mut PageContent) -> bool {
        self.host.read(page, into)
    }

    fn write(&mut self, page: PageNumber, from: &PageContent) -> bool {
        self.host.write(page, from)
    }

    fn give_back(&mut self, range: GuestRange) -> bool {
        self.host.give_back(range)
    }
}

impl Machine for TrackedMemory<'_> {
    fn set_writable(&mut self, page: PageNumber, writable: bool) {
        self.host.space.set_writable(page, writable);
    }

    fn is_zero_based(&self, page: PageNumber) -> bool {
        self.host.space.is_zero_based(page)
    }

    fn is_shared(&self, page: PageNumber) -> bool {
        let vma = self.host.space.vmas().find(page.address().0);
        vma.is_some_and(|vma| vma.shared)
    }

    fn harvest(&mut self, written: &mut Vec<PageNumber>) {
        self.vm.harvest(self.vcpu, |page| {
            // Whatever KVM reports outside of the guest's mappings is not the guest's to get back.
            written.push(page);
        });
    }

    fn reprotect(&mut self) {
        if let Err(error) = self.vm.reset_dirty_rings() {
            log::error!("{error}");
        }
    }
}

/// The pages of `range` that are mapped, for the tracker: a system call's buffer may reach beyond.
pub fn mapped_parts(space: &AddressSpace, range: GuestRange) -> Vec<GuestRange> {
    space
        .vmas()
        .overlapping(range)
        // The clock page changes by itself, and nothing that the guest asks for is written to it.
        .filter(|vma| vma.backing != Backing::Vvar)
        .filter_map(|vma| vma.range.intersection(range))
        .collect()
}
