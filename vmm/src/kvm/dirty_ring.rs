//! The dirty ring of one vCPU (Linux `Documentation/virt/kvm/api.rst`, section 8.29).
//!
//! KVM appends a page when the guest writes to it for the first time since the page was last
//! write-protected. Harvesting reads the entries without a system call; [`reset`] write-protects the
//! harvested pages of all rings again.

use std::io;
use std::os::fd::RawFd;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU32, Ordering};

use kvm_bindings::{KVM_DIRTY_LOG_PAGE_OFFSET, KVMIO, kvm_dirty_gfn};
use vmm_sys_util::ioctl_io_nr;

ioctl_io_nr!(KVM_RESET_DIRTY_RINGS, KVMIO, 0xc7);

/// `KVM_DIRTY_GFN_F_DIRTY`: KVM has filled the entry in (`linux/kvm.h`; a macro that bindgen drops).
const ENTRY_DIRTY: u32 = 1 << 0;
/// `KVM_DIRTY_GFN_F_RESET`: user space has harvested the entry.
const ENTRY_HARVESTED: u32 = 1 << 1;

/// Where one dirty page lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirtyPage {
    /// The memory slot.
    pub slot: u32,
    /// Index of the page in the slot.
    pub offset: u64,
}

/// A mapped dirty ring.
pub struct DirtyRing {
    entries: NonNull<kvm_dirty_gfn>,
    len: u32,
    next: u32,
}

// SAFETY: the mapping belongs to this value alone and is reached through `&mut self`.
unsafe impl Send for DirtyRing {}

impl DirtyRing {
    /// Maps the ring of the vCPU behind `vcpu`, which has `len` entries (a power of two).
    pub fn map(vcpu: RawFd, len: u32) -> io::Result<DirtyRing> {
        let bytes = len as usize * size_of::<kvm_dirty_gfn>();
        // SAFETY: a new shared mapping at an address of the kernel's choice.
        let address = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                bytes,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu,
                i64::from(KVM_DIRTY_LOG_PAGE_OFFSET) * 4096,
            )
        };
        if address == libc::MAP_FAILED {
            return Err(io::Error::last_os_error());
        }
        let entries =
            NonNull::new(address.cast()).ok_or_else(|| io::Error::other("mmap gave null"))?;
        Ok(DirtyRing {
            entries,
            len,
            next: 0,
        })
    }

    /// Takes the entries that KVM has added since the last call, and marks them as harvested.
    pub fn harvest(&mut self, mut each: impl FnMut(DirtyPage)) {
        // At most one lap: KVM cannot add more before a reset.
        for _ in 0..self.len {
            // SAFETY: `next & (len - 1)` is inside the mapping of `len` entries.
            let entry = unsafe {
                self.entries
                    .as_ptr()
                    .add((self.next & (self.len - 1)) as usize)
            };
            // SAFETY: `flags` is an aligned 32-bit field of a mapped entry; the kernel changes it with
            // release order, and no other reference to it exists.
            let flags = unsafe { AtomicU32::from_ptr(&raw mut (*entry).flags) };
            if flags.load(Ordering::Acquire) & ENTRY_DIRTY == 0 {
                return;
            }
            // SAFETY: the acquire load above makes the entry's other fields visible; KVM does not touch
            // them until the entry has been reset.
            let page = unsafe {
                DirtyPage {
                    slot: (*entry).slot,
                    offset: (*entry).offset,
                }
            };
            flags.store(ENTRY_HARVESTED, Ordering::Release);
            self.next = self.next.wrapping_add(1);
            each(page);
        }
    }
}

impl Drop for DirtyRing {
    fn drop(&mut self) {
        // SAFETY: unmaps exactly what `map` mapped; nothing refers to it any more.
        unsafe {
            libc::munmap(
                self.entries.as_ptr().cast(),
                self.len as usize * size_of::<kvm_dirty_gfn>(),
            );
        }
    }
}

/// `KVM_RESET_DIRTY_RINGS` on the machine behind `vm`: the number of entries that were reset.
///
/// No signal may be pending meanwhile. Since Linux 6.16 one ends the reset in the middle, without an error,
/// and the pages that the kernel had gathered at that point (up to 64) stay writable although their entries
/// are gone: no later reset protects them, and writes to them are never reported again.
pub fn reset(vm: RawFd) -> io::Result<u64> {
    // SAFETY: an all-zero set is valid for the calls to fill in. The ioctl takes no argument and changes
    // only KVM's own state; the thread gets back the mask that it had.
    unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut old: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&mut all);
        libc::pthread_sigmask(libc::SIG_SETMASK, &all, &mut old);
        let result = match libc::ioctl(vm, KVM_RESET_DIRTY_RINGS()) {
            n if n < 0 => Err(io::Error::last_os_error()),
            n => Ok(n as u64),
        };
        libc::pthread_sigmask(libc::SIG_SETMASK, &old, std::ptr::null_mut());
        result
    }
}
