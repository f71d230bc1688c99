//! The address space of the guest process: its mappings in the host, in the model ([`VmaMap`]) and in the
//! guest's page tables, kept in step.
//!
//! Host protections mirror the guest's (without execute, which only the guest needs), so that host system
//! calls on guest memory fail where the guest's own accesses would. Page-table entries are filled in when
//! the guest first touches a region of 2 MiB, and memory slots when it first touches one of 64 MiB.
//!
//! Everything here is mechanism. What it means for the running domain (that it has to be undone) is decided
//! in `sys::memory`.

use std::collections::BTreeSet;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use guest_agentless::{
    Backing, Errno, GuestRange, GuestVa, PAGE_SIZE, PageNumber, Protection, Vma, VmaMap,
};
use recovery::Tracker;

use super::guard::Guards;
use super::own_limits::{Limit, OwnLimits, UNLIMITED};
use super::page_table::{Access, PageTable};
use super::slots::{Slot, Slots};
use super::unwritten::Looked;
use super::window;
use crate::kvm::{KvmError, Vm};
use crate::sys::errno_of;

/// Bytes per last-level page table: how much one fault fills in.
const LEAF_SIZE: u64 = 2 << 20;
/// Top of the first thread's stack.
pub const STACK_TOP: u64 = window::HIGH.1 - 0x1_0000;
/// Where `MAP_32BIT` places mappings, as on Linux.
const LOW_AREA: (u64, u64) = (0x4000_0000, window::LOW.1);
/// Where the search for free addresses starts, downwards.
const MMAP_TOP: u64 = window::HIGH.1 - (1 << 30);
/// Where position-independent programs are loaded.
pub const PROGRAM_BASE: u64 = window::HIGH.0 + 0x5555_5000;

/// What the guest tried to do with a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// Load.
    Read,
    /// Store.
    Write,
    /// Fetch an instruction.
    Execute,
}

impl Attempt {
    /// From the error code of a page fault (SDM volume 3, 4.7).
    pub fn from_error_code(code: u64) -> Attempt {
        match code {
            c if c & 0x10 != 0 => Attempt::Execute,
            c if c & 0x2 != 0 => Attempt::Write,
            _ => Attempt::Read,
        }
    }

    fn needs(self) -> Protection {
        match self {
            Attempt::Read => Protection::READ,
            Attempt::Write => Protection::WRITE,
            Attempt::Execute => Protection::EXEC,
        }
    }
}

/// What came of a page fault.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resolution {
    /// The page is there now; the guest goes on.
    Mapped,
    /// The page is writable but trapped: the tracker takes its shadow first.
    Trapped,
    /// The page is guarded: it has to be decided what becomes of it first.
    Guarded,
    /// Nothing is mapped there (`SEGV_MAPERR`).
    NotMapped,
    /// The mapping forbids it (`SEGV_ACCERR`).
    Forbidden,
    /// More is in use, or more scattered, than the guest can have physical addresses or page tables for.
    NoRoom,
}

/// Where a new mapping has its contents from.
#[derive(Debug, Clone, Copy)]
pub enum Source<'a> {
    /// Nowhere: they are zeros.
    Zeros,
    /// A file, from this offset on.
    File(BorrowedFd<'a>, u64),
    /// A segment of System V shared memory with this identifier.
    Segment(i32),
    /// They are those of a shared mapping that is at this address, too.
    Same(u64),
}

/// A mapping that was moved out of the guest's reach, contents and all, to be put back or dropped.
pub struct Stash {
    vma: Vma,
    host: u64,
}

impl Stash {
    /// Whether it is a shared mapping.
    pub fn is_shared(&self) -> bool {
        self.vma.shared
    }
}

/// The address space.
pub struct AddressSpace {
    pub(super) vmas: VmaMap,
    pub(super) table: PageTable,
    pub(super) guards: Guards,
    /// Regions that the guest has no mapping in but that are not unmapped yet (see `hide`).
    pub(super) condemned: BTreeSet<u64>,
    pub(super) slots: Slots,
    pub(super) looked: Looked,
    /// First address and current end of the heap.
    heap: (u64, u64),
}

impl AddressSpace {
    /// An empty address space in the reserved windows.
    pub fn new(vm: &Vm) -> Result<AddressSpace, KvmError> {
        Ok(AddressSpace {
            vmas: VmaMap::new(),
            table: PageTable::new(vm.monitor().clone())?,
            guards: Guards::default(),
            condemned: BTreeSet::new(),
            slots: Slots::default(),
            looked: Looked::default(),
            heap: (0, 0),
        })
    }

    /// The same address space in the machine of a forked child, whose memory is a copy of the parent's.
    pub fn take_over(&mut self, vm: &Vm) -> Result<AddressSpace, KvmError> {
        Ok(AddressSpace {
            vmas: std::mem::take(&mut self.vmas),
            table: self.table.take_over(vm.monitor().clone()),
            guards: Guards::default(),
            condemned: BTreeSet::new(),
            slots: self.slots.take_over(vm)?,
            looked: Looked::default(),
            heap: self.heap,
        })
    }

    /// The mappings.
    pub fn vmas(&self) -> &VmaMap {
        &self.vmas
    }

    /// First address and current end of the heap.
    pub fn heap(&self) -> (u64, u64) {
        self.heap
    }

    /// Sets first address and current end of the heap.
    pub fn set_heap(&mut self, heap: (u64, u64)) {
        self.heap = heap;
    }

    /// A free range of `len` bytes: at `hint` if that is possible, else high up, or far if there is no room; in the first
    /// 2 GiB if it has to be `low` (`MAP_32BIT`).
    pub fn find_free(&self, hint: u64, len: u64, low: bool) -> Option<GuestRange> {
        let len = len.checked_next_multiple_of(PAGE_SIZE)?;
        let hint = hint & !(PAGE_SIZE - 1);
        let is_free = |range: &GuestRange| self.vmas.overlapping(*range).next().is_none();
        let fits = |range: &GuestRange| !low || range.end() <= LOW_AREA.1;
        let wanted = window::checked(hint, len).filter(fits);
        if let Some(wanted) = wanted.filter(is_free) {
            return Some(wanted);
        }
        let gap_in = |area| self.vmas.find_gap(area, len, PAGE_SIZE, true);
        let start = match low {
            true => gap_in(GuestRange::from_bounds(LOW_AREA.0, LOW_AREA.1)),
            false => gap_in(GuestRange::from_bounds(window::HIGH.0, MMAP_TOP))
                .or_else(|| gap_in(window::far()?)),
        };
        GuestRange::new(GuestVa(start?), len)
    }

    /// Whether the limits of the process allow `vma` in addition to all mappings.
    pub fn has_room(&self, vma: &Vma, limits: &OwnLimits) -> bool {
        let is_data = |vma: &Vma| !vma.shared && vma.protection.allows(Protection::WRITE);
        let fits = |limit: Limit, counts: &dyn Fn(&Vma) -> bool| {
            let used = || -> u64 {
                let counted = self.vmas.iter().filter(|vma| counts(vma));
                counted.map(|vma| vma.range.len()).sum()
            };
            limit.0 == UNLIMITED
                || !counts(vma)
                || used().saturating_add(vma.range.len()) <= limit.0
        };
        fits(limits.address_space, &|_| true) && fits(limits.data, &is_data)
    }

    /// Maps `vma`, whose range must be free, with what `source` has. The flags `extra` (such as `MAP_POPULATE`) are for the
    /// host's mmap.
    pub fn map(&mut self, vma: Vma, source: Source<'_>, extra: i32) -> Result<(), Errno> {
        if !window::contains(vma.range) || vma.range.is_empty() {
            return Err(Errno::ENOMEM);
        }
        if self.vmas.overlapping(vma.range).next().is_some() {
            return Err(Errno::EEXIST);
        }
        let address = match source {
            Source::Segment(id) => {
                let read_only = match vma.protection.allows(Protection::WRITE) {
                    true => 0,
                    false => libc::SHM_RDONLY,
                };
                // SAFETY: the range lies in a guest window, where the monitor keeps nothing of its own, and the
                // segment is as long as the range.
                unsafe {
                    let start = vma.range.start() as *const libc::c_void;
                    libc::shmat(id, start, libc::SHM_REMAP | read_only)
                }
            }
            Source::Same(of) => {
                let to = vma.range.start() as *mut libc::c_void;
                let (len, flags) = (vma.range.len(), libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED);
                // SAFETY: as above. Of length zero, the mapping at `of` stays where it is, and a shared one is
                // mapped once more (mremap(2)).
                unsafe { libc::mremap(of as *mut libc::c_void, 0, len as usize, flags, to) }
            }
            Source::Zeros => host_mmap(&vma, libc::MAP_ANONYMOUS | extra, -1, 0),
            Source::File(fd, offset) => host_mmap(&vma, extra, fd.as_raw_fd(), offset as i64),
        };
        if address == libc::MAP_FAILED {
            let error = errno_of(&io::Error::last_os_error());
            // A failed MAP_FIXED may already have removed the reservation.
            let _ = window::release(vma.range);
            return Err(error);
        }
        let (range, shared) = (vma.range, is_common(&vma));
        self.vmas.insert(vma).map_err(|_| Errno::EEXIST)?;
        match shared {
            true => self.split_shared(range).map_err(|_| Errno::ENOMEM),
            false => Ok(()),
        }
    }

    /// Unmaps whatever is mapped in `range`.
    pub fn unmap(&mut self, range: GuestRange) -> Result<(), Errno> {
        let pieces = self.vmas.remove(range);
        for piece in pieces {
            self.clear(piece.range)?;
        }
        Ok(())
    }

    /// Changes the protection of `range`; returns the mappings as they were.
    pub fn protect(
        &mut self,
        range: GuestRange,
        protection: Protection,
    ) -> Result<Vec<Vma>, Errno> {
        let old = self.vmas.protect(range, protection)?;
        self.table.unmap(range).map_err(|_| Errno::ENOMEM)?;
        // Execution is not mirrored in the host, so taking it away there flushes nothing by itself.
        let loses_execute =
            !protection.is_executable() && old.iter().any(|piece| piece.protection.is_executable());
        let flushed = match loses_execute {
            true => host_protect(range, Protection::NONE),
            false => Ok(()),
        };
        if let Err(error) = flushed.and_then(|()| host_protect(range, protection)) {
            self.restore_protection(old);
            return Err(error);
        }
        Ok(old)
    }

    /// Undoes [`AddressSpace::protect`].
    pub fn restore_protection(&mut self, old: Vec<Vma>) {
        for piece in &old {
            if self.table.unmap(piece.range).is_err()
                || host_protect(piece.range, piece.protection).is_err()
            {
                log::error!("the protection of {:?} could not be restored", piece.range);
            }
        }
        self.vmas.restore(old);
    }

    /// Moves the content of `from`, a part of one mapping, to `to`, as much as there is room for. What is mapped at `from`
    /// has to be unmapped next.
    pub fn move_content(&mut self, from: GuestRange, to: GuestRange) -> Result<(), Errno> {
        let len = from.len().min(to.len());
        let to = GuestRange::new(GuestVa(to.start()), len).ok_or(Errno::ENOMEM)?;
        move_mapping(from.start(), len, Some(to)).map(drop)
    }

    /// Moves what is mapped in `range` out of the guest's reach; the range is free afterwards. If a part
    /// cannot be moved nothing has changed.
    pub fn stash(&mut self, range: GuestRange) -> Result<Vec<Stash>, Errno> {
        let pieces: Vec<Vma> = self
            .vmas
            .overlapping(range)
            .filter_map(|vma| vma.clipped(range))
            .collect();
        let mut stashed = Vec::with_capacity(pieces.len());
        for vma in pieces {
            match move_mapping(vma.range.start(), vma.range.len(), None) {
                Ok(host) => {
                    self.vmas.remove(vma.range);
                    self.clear(vma.range)?;
                    stashed.push(Stash { vma, host });
                }
                Err(error) => {
                    self.unstash(stashed);
                    return Err(error);
                }
            }
        }
        Ok(stashed)
    }

    /// Puts stashed mappings back where they were, in place of what is there now.
    pub fn unstash(&mut self, stashed: Vec<Stash>) {
        for Stash { vma, host } in stashed {
            let range = vma.range;
            if self.unmap(range).is_err() || move_mapping(host, range.len(), Some(range)).is_err() {
                log::error!("the mapping {range:?} could not be put back");
            }
            if is_common(&vma) && self.split_shared(range).is_err() {
                log::error!("the page tables are full");
            }
            self.vmas.restore([vma]);
        }
    }

    /// Puts the `parts` (ascending) of stashed mappings back where they were, and drops the rest.
    pub fn unstash_parts(&mut self, stashed: Vec<Stash>, parts: &[GuestRange]) {
        for Stash { vma, host } in stashed {
            let start = vma.range.start();
            let piece = |from: u64, to: u64| {
                let vma = vma.clipped(GuestRange::from_bounds(from, to))?;
                let host = host + (vma.range.start() - start);
                (!vma.range.is_empty()).then_some(Stash { vma, host })
            };
            let mut at = start;
            let wanted = parts.iter().filter_map(|part| part.intersection(vma.range));
            for part in wanted.filter(|part| !part.is_empty()) {
                Self::drop_stash(piece(at, part.start()).into_iter().collect());
                self.unstash(piece(part.start(), part.end()).into_iter().collect());
                at = part.end();
            }
            Self::drop_stash(piece(at, vma.range.end()).into_iter().collect());
        }
    }

    /// Drops stashed mappings for good.
    pub fn drop_stash(stashed: Vec<Stash>) {
        for Stash { vma, host } in stashed {
            // SAFETY: `host` is a mapping of that length that only the stash knew of.
            unsafe { libc::munmap(host as *mut libc::c_void, vma.range.len() as usize) };
        }
    }

    /// Makes a page that the guest touched present, as far as its mapping and the tracker allow.
    pub fn resolve(
        &mut self,
        vm: &Vm,
        tracker: &Tracker,
        address: u64,
        attempt: Attempt,
    ) -> Result<Resolution, KvmError> {
        let Some(vma) = self.vmas.find(address) else {
            return Ok(Resolution::NotMapped);
        };
        if !implied(vma.protection).allows(attempt.needs()) {
            return Ok(Resolution::Forbidden);
        }
        let page = GuestVa(address).page();
        if self.guards.contains(page) || self.is_hidden(page) {
            return Ok(Resolution::Guarded);
        }
        let zero_based = is_zero_based(vma);
        if attempt == Attempt::Write
            && self.table.access(page).is_some()
            && !tracker.is_writable(page, zero_based)
        {
            return Ok(Resolution::Trapped);
        }
        let leaf = address & !(LEAF_SIZE - 1);
        let Some(part) = vma.range.intersection(GuestRange::from_bounds(
            leaf,
            leaf.saturating_add(LEAF_SIZE),
        )) else {
            return Ok(Resolution::NotMapped);
        };
        let (protection, shared) = (vma.protection, is_common(vma));
        let is_used = |range| self.table.has_pages(range);
        let Some(slot) = self.slots.ensure(vm, address, is_used)? else {
            return Ok(Resolution::NoRoom);
        };
        let guarded = self.guards.overlapping(part).next().is_some();
        for page in part.pages() {
            if guarded && self.guards.contains(page) {
                continue;
            }
            let write = protection.is_writable() && tracker.is_writable(page, zero_based);
            match self.map_page(slot, page, protection, write, shared) {
                Err(KvmError::TablesFull) => return Ok(Resolution::NoRoom),
                outcome => outcome?,
            }
        }
        Ok(
            match attempt == Attempt::Write && !tracker.is_writable(page, zero_based) {
                true => Resolution::Trapped,
                false => Resolution::Mapped,
            },
        )
    }

    /// Makes `page`, which is in `slot`, present with what `protection` allows, writing only if `write` says so.
    pub(super) fn map_page(
        &mut self,
        slot: Slot,
        page: PageNumber,
        protection: Protection,
        write: bool,
        is_shared: bool,
    ) -> Result<(), KvmError> {
        let access = Access {
            write,
            execute: protection.is_executable(),
        };
        if self.table.access(page) != Some(access) {
            self.table
                .map(page, slot.physical(page), access, is_shared)?;
        }
        Ok(())
    }

    /// Whether `page` is private memory that was zero before its first write.
    pub fn is_zero_based(&self, page: PageNumber) -> bool {
        self.vmas.find(page.address().0).is_some_and(is_zero_based)
    }

    /// Lets the guest write `page`, as far as its mapping allows, or makes it read-only in the page
    /// tables.
    pub fn set_writable(&mut self, page: PageNumber, writable: bool) {
        let allowed = self
            .vmas
            .find(page.address().0)
            .is_some_and(|vma| vma.protection.is_writable());
        if self.table.set_writable(page, writable && allowed).is_err() {
            log::error!("the page tables are not accessible");
        }
    }

    /// Runs `action` while the host may write `page`, whatever the guest's protection of it is.
    pub fn with_write_access(&mut self, page: PageNumber, action: impl FnOnce() -> bool) -> bool {
        let Some(vma) = self.vmas.find(page.address().0) else {
            return false;
        };
        let one = GuestRange::from_bounds(page.address().0, page.address().0 + PAGE_SIZE);
        host_protect(one, Protection::WRITE).is_ok()
            && action()
            && host_protect(one, vma.protection).is_ok()
    }

    /// The pages that the guest can write without an exit now.
    pub fn writable_pages(&self) -> Vec<PageNumber> {
        let writable = self.vmas.iter().filter(|vma| vma.protection.is_writable());
        let mut pages = Vec::new();
        for vma in writable {
            self.table.writable_pages(vma.range, &mut pages);
        }
        pages
    }

    /// Gives the memory of `range` back to the host. Private memory without a file is zero afterwards.
    pub fn discard(&mut self, range: GuestRange) -> Result<(), Errno> {
        debug_assert!(window::contains(range));
        // SAFETY: the range lies in a guest window; its pages are the guest's to lose.
        let result = unsafe {
            libc::madvise(
                range.start() as *mut libc::c_void,
                range.len() as usize,
                libc::MADV_DONTNEED,
            )
        };
        match result {
            0 => Ok(()),
            _ => Err(errno_of(&io::Error::last_os_error())),
        }
    }

    pub(super) fn clear(&mut self, range: GuestRange) -> Result<(), Errno> {
        self.table.unmap(range).map_err(|_| Errno::ENOMEM)?;
        window::release(range).map_err(|e| errno_of(&e))
    }
}

/// What x86 page tables grant with it: every page that can be written or executed can be read.
fn implied(protection: Protection) -> Protection {
    match protection {
        Protection::NONE => Protection::NONE,
        p => p.union(Protection::READ),
    }
}

/// Whether the pages of a mapping are private and were zero before their first write.
pub fn is_zero_based(vma: &Vma) -> bool {
    !vma.shared
        && matches!(
            vma.backing,
            Backing::Anonymous | Backing::Heap | Backing::Stack
        )
}

/// Whether other processes may have the memory of a mapping. The clock page is the monitor's, and read-only.
pub fn is_common(vma: &Vma) -> bool {
    vma.shared && vma.backing != Backing::Vvar
}

fn host_protection(protection: Protection) -> i32 {
    match implied(protection) {
        p if p.is_writable() => libc::PROT_READ | libc::PROT_WRITE,
        p if p.is_readable() => libc::PROT_READ,
        _ => libc::PROT_NONE,
    }
}

/// Maps `vma`, which lies in a guest window, on the host. What was there is gone.
fn host_mmap(vma: &Vma, flags: i32, fd: i32, offset: i64) -> *mut libc::c_void {
    let sharing = match vma.shared {
        true => libc::MAP_SHARED,
        false => libc::MAP_PRIVATE,
    };
    let reserving = match vma.no_reserve {
        true => libc::MAP_NORESERVE,
        false => 0,
    };
    debug_assert!(window::contains(vma.range));
    // SAFETY: the range lies in a guest window, where the monitor keeps nothing of its own.
    unsafe {
        libc::mmap(
            vma.range.start() as *mut libc::c_void,
            vma.range.len() as usize,
            host_protection(vma.protection),
            libc::MAP_FIXED | sharing | reserving | flags,
            fd,
            offset,
        )
    }
}

pub(super) fn host_protect(range: GuestRange, protection: Protection) -> Result<(), Errno> {
    debug_assert!(window::contains(range));
    let address = range.start() as *mut libc::c_void;
    // SAFETY: the range lies in a guest window, where the monitor keeps nothing of its own.
    match unsafe { libc::mprotect(address, range.len() as usize, host_protection(protection)) } {
        0 => Ok(()),
        _ => Err(errno_of(&io::Error::last_os_error())),
    }
}

/// Moves a host mapping to `target` in a guest window, or to an address outside of them that the host
/// chooses. What was mapped at the old place is unmapped there.
fn move_mapping(from: u64, len: u64, target: Option<GuestRange>) -> Result<u64, Errno> {
    let (flags, to) = match target {
        Some(range) => (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, range.start()),
        None => {
            // The host never moves a mapping of unchanged size by itself, so a place is found first.
            // SAFETY: a new mapping at an address of the host's choice.
            let place = unsafe {
                libc::mmap(
                    std::ptr::null_mut(),
                    len as usize,
                    libc::PROT_NONE,
                    libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                    -1,
                    0,
                )
            };
            if place == libc::MAP_FAILED {
                return Err(Errno::ENOMEM);
            }
            (libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED, place as u64)
        }
    };
    // SAFETY: the source is a mapping of the guest or of the stash, of which no Rust object knows; the
    // target is a free part of a guest window or the mapping made above.
    let moved = unsafe {
        libc::mremap(
            from as *mut libc::c_void,
            len as usize,
            len as usize,
            flags,
            to as *mut libc::c_void,
        )
    };
    if moved == libc::MAP_FAILED {
        let error = errno_of(&io::Error::last_os_error());
        if target.is_none() {
            // SAFETY: the place made above, which nothing was moved to.
            unsafe { libc::munmap(to as *mut libc::c_void, len as usize) };
        }
        return Err(error);
    }
    Ok(moved as u64)
}
