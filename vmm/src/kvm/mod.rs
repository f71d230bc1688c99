//! The one door to KVM: every KVM ioctl of the monitor is in this module and its children.

mod dirty_ring;
pub mod layout;
mod probe;
mod vcpu;

use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd, RawFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use guest_agentless::{PAGE_SIZE, PageNumber};
use kvm_bindings::{
    CpuId, KVM_CAP_DIRTY_LOG_RING, KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_SYNC_REGS,
    KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES, kvm_enable_cap, kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, Kvm, VmFd};
use thiserror::Error;

pub use probe::{Probe, probe};
pub use vcpu::{EntryPath, Exit, Kicker, Registers, Vcpu};

use crate::host::handles;
use crate::memory::{MonitorRegion, reserved_fd};

/// Entries of a vCPU's dirty ring. A full ring makes the vCPU exit, so this bounds what one exit harvests.
const RING_ENTRIES: u32 = 4096;

/// A slot that exists only for a moment (see [`Vm::forget_tables`]).
const SPARE_SLOT: u32 = 32_000;

/// Why KVM cannot be used as the monitor needs it.
#[derive(Debug, Error)]
pub enum KvmError {
    /// The device cannot be opened.
    #[error("cannot open /dev/kvm; `vmsrs check` says what to do")]
    Open(#[source] io::Error),
    /// A capability that the monitor cannot do without is missing.
    #[error("this KVM has no {0}; `vmsrs check` lists what is missing")]
    Missing(&'static str),
    /// An ioctl failed.
    #[error("{0} failed")]
    Ioctl(&'static str, #[source] io::Error),
    /// The start-up probe met something that no known KVM does.
    #[error("this KVM does not behave as the monitor needs: {0}")]
    Probe(String),
    /// The monitor's own guest memory cannot be set up.
    #[error("cannot set up the monitor's memory in the guest: {0}")]
    Memory(String),
    /// The monitor's room for page tables is used up.
    #[error("the guest's page tables are full")]
    TablesFull,
    /// There are more guest threads than vCPUs.
    #[error("more than {} guest threads", layout::MAX_VCPUS)]
    TooManyVcpus,
}

pub(crate) fn ioctl_error(name: &'static str) -> impl Fn(vmm_sys_util::errno::Error) -> KvmError {
    move |e| KvmError::Ioctl(name, io::Error::from_raw_os_error(e.errno()))
}

/// A virtual machine: the memory slots and vCPUs of one guest process.
pub struct Vm {
    fd: VmFd,
    cpuid: CpuId,
    monitor: Arc<MonitorRegion>,
    tracking: bool,
    /// First host address of each slot, by slot number.
    slots: RwLock<Vec<Option<u64>>>,
    next_vcpu: AtomicU32,
    /// Entries of dirty rings that were harvested and not reset yet.
    harvested: AtomicU64,
}

impl Vm {
    /// Creates a machine; with `tracking`, slots may report the pages that the guest writes.
    pub fn create(tracking: bool) -> Result<Vm, KvmError> {
        Self::create_around(Arc::new(MonitorRegion::create()?), tracking)
    }

    /// Creates a machine for a forked child, which has a copy of its parent's `monitor` region.
    pub fn create_for_child(monitor: Arc<MonitorRegion>, tracking: bool) -> Result<Vm, KvmError> {
        Self::create_around(monitor, tracking)
    }

    fn create_around(monitor: Arc<MonitorRegion>, tracking: bool) -> Result<Vm, KvmError> {
        let device = handles::device().map_err(KvmError::Open)?;
        // SAFETY: the descriptor is one of the KVM device, and its ownership moves into the `Kvm`.
        let kvm = unsafe { Kvm::from_raw_fd(device.into_raw_fd()) };
        for (cap, name) in [
            (Cap::SyncRegs, "KVM_CAP_SYNC_REGS"),
            (Cap::ImmediateExit, "KVM_CAP_IMMEDIATE_EXIT"),
            (Cap::UserMemory, "KVM_CAP_USER_MEMORY"),
        ] {
            if !kvm.check_extension(cap) {
                return Err(KvmError::Missing(name));
            }
        }
        if kvm.check_extension_raw(u64::from(KVM_CAP_SYNC_REGS)) & 1 == 0 {
            return Err(KvmError::Missing("KVM_SYNC_X86_REGS"));
        }
        let cpuid = kvm
            .get_supported_cpuid(KVM_MAX_CPUID_ENTRIES)
            .map_err(ioctl_error("KVM_GET_SUPPORTED_CPUID"))?;
        let fd = kvm.create_vm().map_err(ioctl_error("KVM_CREATE_VM"))?;
        // SAFETY: `fd` is a valid machine descriptor; the duplicate is owned by the new `OwnedFd`.
        let high = unsafe { dup_reserved(fd.as_raw_fd()) }
            .map_err(|e| KvmError::Ioctl("KVM_CREATE_VM", e))?;
        // SAFETY: the descriptor refers to a machine of this device, and its ownership moves.
        let fd = unsafe { kvm.create_vmfd_from_rawfd(high.into_raw_fd()) }
            .map_err(ioctl_error("KVM_CREATE_VM"))?;
        let mut vm = Vm {
            fd,
            cpuid,
            monitor,
            tracking: false,
            slots: RwLock::new(Vec::new()),
            next_vcpu: AtomicU32::new(0),
            harvested: AtomicU64::new(0),
        };
        if tracking {
            vm.enable_dirty_ring(&kvm)?;
        }
        let (host, size) = vm.monitor.host_range();
        // SAFETY: the machine keeps the region alive for as long as it lives itself.
        unsafe { vm.add_slot(layout::MONITOR_BASE, host, size, false)? };
        Ok(vm)
    }

    fn enable_dirty_ring(&mut self, kvm: &Kvm) -> Result<(), KvmError> {
        let bytes = RING_ENTRIES as usize * size_of::<kvm_bindings::kvm_dirty_gfn>();
        for cap in [KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_CAP_DIRTY_LOG_RING] {
            if kvm.check_extension_raw(u64::from(cap)) as usize >= bytes {
                let mut request = kvm_enable_cap {
                    cap,
                    ..Default::default()
                };
                request.args[0] = bytes as u64;
                self.fd
                    .enable_cap(&request)
                    .map_err(ioctl_error("KVM_ENABLE_CAP(KVM_CAP_DIRTY_LOG_RING)"))?;
                self.tracking = true;
                return Ok(());
            }
        }
        Err(KvmError::Missing("KVM_CAP_DIRTY_LOG_RING"))
    }

    /// Backs the guest-physical range of `size` bytes at `guest` with host memory at `host`; `tracked`
    /// says whether writes to it are reported in the dirty rings.
    ///
    /// # Safety
    ///
    /// `host..host + size` must stay reserved for the guest for as long as the machine lives: the guest
    /// reads and writes whatever is mapped there.
    pub unsafe fn add_slot(
        &self,
        guest: u64,
        host: u64,
        size: u64,
        tracked: bool,
    ) -> Result<(), KvmError> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let number = slots.iter().position(Option::is_none);
        let number = number.unwrap_or(slots.len());
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags: if tracked && self.tracking {
                KVM_MEM_LOG_DIRTY_PAGES
            } else {
                0
            },
            guest_phys_addr: guest,
            memory_size: size,
            userspace_addr: host,
        };
        // SAFETY: the caller keeps the host range for the guest.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION"))?;
        match slots.get_mut(number) {
            Some(slot) => *slot = Some(host),
            None => slots.push(Some(host)),
        }
        Ok(())
    }

    /// Removes the slot with the host memory at `host`. What KVM has not reported yet of writes to it is lost.
    pub fn remove_slot(&self, host: u64) -> Result<(), KvmError> {
        let mut slots = self.slots.write().unwrap_or_else(PoisonError::into_inner);
        let Some(number) = slots.iter().position(|slot| *slot == Some(host)) else {
            return Ok(());
        };
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            ..Default::default()
        };
        // SAFETY: nothing becomes accessible by it.
        unsafe { self.fd.set_user_memory_region(region) }
            .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION"))?;
        slots[number] = None;
        Ok(())
    }

    /// Makes KVM drop everything that it has derived from the guest's page tables, so that tables which are
    /// not in use may be used anew. Every page that is touched afterwards faults once more.
    pub fn forget_tables(&self) -> Result<(), KvmError> {
        // To remove any slot does that on x86 (`kvm_arch_flush_shadow_memslot`); the number is one that
        // no slot of the guest reaches.
        let region = |memory_size| kvm_userspace_memory_region {
            slot: SPARE_SLOT,
            flags: 0,
            guest_phys_addr: layout::SPARE_PAGE,
            memory_size,
            userspace_addr: self.monitor.host_range().0,
        };
        for size in [4096, 0] {
            // SAFETY: the page is the monitor's stub page, which lives as long as the machine; no page
            // table maps the slot.
            unsafe { self.fd.set_user_memory_region(region(size)) }
                .map_err(ioctl_error("KVM_SET_USER_MEMORY_REGION"))?;
        }
        Ok(())
    }

    /// Creates the next vCPU.
    pub fn create_vcpu(&self) -> Result<Vcpu, KvmError> {
        let index = u64::from(self.next_vcpu.fetch_add(1, Ordering::Relaxed));
        if index >= layout::MAX_VCPUS {
            return Err(KvmError::TooManyVcpus);
        }
        let low = self
            .fd
            .create_vcpu(index)
            .map_err(ioctl_error("KVM_CREATE_VCPU"))?;
        // SAFETY: `low` is a valid vCPU descriptor; the duplicate is owned by the new `OwnedFd`.
        let high = unsafe { dup_reserved(low.as_raw_fd()) }
            .map_err(|e| KvmError::Ioctl("KVM_CREATE_VCPU", e))?;
        drop(low);
        // SAFETY: the descriptor refers to a vCPU of this machine, and its ownership moves.
        let fd = unsafe { self.fd.create_vcpu_from_rawfd(high.into_raw_fd()) }
            .map_err(ioctl_error("KVM_CREATE_VCPU"))?;
        let ring = match self.tracking {
            true => Some(
                dirty_ring::DirtyRing::map(fd.as_raw_fd(), RING_ENTRIES)
                    .map_err(|e| KvmError::Ioctl("mmap of the dirty ring", e))?,
            ),
            false => None,
        };
        self.monitor.prepare_vcpu(index)?;
        Vcpu::new(fd, index, ring, Arc::clone(&self.monitor), &self.cpuid)
    }

    /// The monitor's own part of guest-physical memory.
    pub fn monitor(&self) -> &Arc<MonitorRegion> {
        &self.monitor
    }

    /// Takes what KVM has reported as written through `vcpu` since the last call. Guest-virtual addresses are the
    /// host's.
    pub fn harvest(&self, vcpu: &mut Vcpu, mut each: impl FnMut(PageNumber)) {
        let slots = self.slots.read().unwrap_or_else(PoisonError::into_inner);
        let mut count = 0;
        vcpu.harvest(|dirty| {
            count += 1;
            // The upper half of the slot field is the address space, of which there is one.
            if let Some(Some(base)) = slots.get((dirty.slot & 0xffff) as usize) {
                each(PageNumber(base / PAGE_SIZE + dirty.offset));
            }
        });
        self.harvested.fetch_add(count, Ordering::Relaxed);
    }

    /// Write-protects every page that was harvested from a dirty ring since the last call, so that the
    /// next write to it is reported again.
    pub fn reset_dirty_rings(&self) -> Result<(), KvmError> {
        // A page that is left writable would be written unnoticed, so this ends only when all are reset.
        while self.harvested.load(Ordering::Relaxed) > 0 {
            match dirty_ring::reset(self.fd.as_raw_fd()) {
                Ok(n) => {
                    let left = self.harvested.load(Ordering::Relaxed).saturating_sub(n);
                    self.harvested.store(left, Ordering::Relaxed);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(KvmError::Ioctl("KVM_RESET_DIRTY_RINGS", error)),
            }
        }
        Ok(())
    }
}

/// A duplicate of `fd` among the reserved descriptors.
///
/// # Safety
///
/// `fd` must be open.
unsafe fn dup_reserved(fd: RawFd) -> io::Result<OwnedFd> {
    // SAFETY: the caller says that `fd` is open; it is only borrowed for the duplication.
    let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
    reserved_fd(borrowed.try_clone_to_owned()?)
}
