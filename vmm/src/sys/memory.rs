//! Mappings. What a domain unmaps or replaces is moved aside until it commits, so that an abandon can put it
//! back, contents and all.

use std::os::fd::BorrowedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use guest_agentless::vma::FileBacking;
use guest_agentless::{
    Backing, Errno, GuestRange, GuestVa, PAGE_SIZE, PageNumber, Protection, Vma,
};
use recovery::SuspendedPages;
use recovery::tracker::{Memory, PageContent};

use super::{Call, Handler, errno_of};
use crate::host;
use crate::memory::{self, Source, is_zero_based, runs, window};
use crate::process::State;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, Undo};
use crate::process::thread::Thread;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_mmap => mmap,
        libc::SYS_munmap => munmap,
        libc::SYS_mprotect => mprotect,
        libc::SYS_mremap => mremap,
        libc::SYS_madvise => madvise,
        libc::SYS_brk => brk,
        libc::SYS_mincore => mincore,
        libc::SYS_mlock | libc::SYS_mlock2 | libc::SYS_munlock => lock_pages,
        _ => return None,
    })
}

/// Bytes that a request may discard by zeroing them at once; more commits it early.
const DISCARD_LIMIT: u64 = 8 << 20;

fn page_range(address: u64, len: u64) -> Result<GuestRange, Errno> {
    if !address.is_multiple_of(PAGE_SIZE) || len == 0 {
        return Err(Errno::EINVAL);
    }
    let len = len
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(Errno::ENOMEM)?;
    window::checked(address, len).ok_or(Errno::ENOMEM)
}

impl Call<'_, '_> {
    /// Makes `range` free. In a domain, what was there is kept to be put back.
    pub(super) fn make_free(&mut self, range: GuestRange) -> Result<(), Errno> {
        self.thread.touch(self.state, range);
        if self.state.space.vmas().overlapping(range).next().is_none() {
            return Ok(());
        }
        self.unlock_pages(range);
        if self.has_sync_of(range) {
            // It cannot be done any more when the mapping is gone.
            self.commit_early(Early::External)?;
        }
        if self.in_domain() {
            // While the mapping is there: what its pages were before their first write depends on it.
            let (tracker, mut memory) = self
                .state
                .tracking(&self.thread.process, &mut self.thread.vcpu);
            let saved = tracker.save(&mut memory, range);
            if let Ok(stash) = self.state.space.stash(range) {
                let domain = self.state.domain.as_mut();
                let suspended = domain.map_or(SuspendedPages::default(), |d| d.pages.take(range));
                self.compensate(Undo::Remap {
                    stash,
                    pages: vec![saved],
                    suspended,
                });
                return Ok(());
            }
            let (tracker, mut memory) = self
                .state
                .tracking(&self.thread.process, &mut self.thread.vcpu);
            tracker.put_back(&mut memory, saved);
            // What the host cannot move (it is in several pieces there) cannot be undone.
            self.commit_early(Early::External)?;
        }
        self.forget(range);
        self.state.space.unmap(range)
    }

    fn forget(&mut self, range: GuestRange) {
        if self.protected() {
            let (tracker, mut memory) = self
                .state
                .tracking(&self.thread.process, &mut self.thread.vcpu);
            tracker.forget(&mut memory, range);
        }
    }

    /// The guest is about to have memory that other processes of the server may have, too.
    pub(super) fn share_with_others(&mut self) -> Result<(), Errno> {
        if self.thread.may_share(self.state) {
            self.commit_early(Early::External)?;
            self.thread.begin_sharing(self.state);
        }
        Ok(())
    }

    /// Maps `vma` into a free range.
    pub(super) fn map_new(
        &mut self,
        vma: Vma,
        source: Source<'_>,
        extra: i32,
    ) -> Result<(), Errno> {
        let range = vma.range;
        if !self.state.space.has_room(&vma, &self.state.own_limits) {
            return Err(Errno::ENOMEM);
        }
        self.thread.touch(self.state, range);
        self.forget(range);
        self.state.space.map(vma, source, extra)?;
        self.compensate(Undo::Unmap { range });
        Ok(())
    }
}

/// A number for shared memory that has no name, other than that of any other such memory, in whatever process.
fn new_inode() -> u64 {
    static LAST: AtomicU32 = AtomicU32::new(0);
    let number = LAST.fetch_add(1, Ordering::Relaxed);
    u64::from(std::process::id()) << 32 | u64::from(number)
}

fn mmap(call: &mut Call) -> Result<u64, Errno> {
    let [address, len, protection, flags, fd, offset] = call.args;
    let flags = flags as i32;
    let protection = Protection::from_bits(protection).ok_or(Errno::EINVAL)?;
    let shared = match flags & libc::MAP_TYPE {
        libc::MAP_PRIVATE => false,
        libc::MAP_SHARED | libc::MAP_SHARED_VALIDATE => true,
        _ => return Err(Errno::EINVAL),
    };
    if flags & libc::MAP_HUGETLB != 0 {
        // As where none are reserved: pages are tracked one by one.
        return Err(Errno::ENOMEM);
    }
    let fixed = flags & (libc::MAP_FIXED | libc::MAP_FIXED_NOREPLACE) != 0;
    let range = if fixed {
        page_range(address, len)?
    } else {
        if len == 0 {
            return Err(Errno::EINVAL);
        }
        let low = flags & libc::MAP_32BIT != 0;
        call.state
            .space
            .find_free(address, len, low)
            .ok_or(Errno::ENOMEM)?
    };
    if flags & libc::MAP_FIXED_NOREPLACE != 0
        && call.state.space.vmas().overlapping(range).next().is_some()
    {
        return Err(Errno::EEXIST);
    }
    let anonymous = flags & libc::MAP_ANONYMOUS != 0;
    let backing = match anonymous {
        true if shared => Backing::File(FileBacking::shared_anonymous(new_inode())),
        true => Backing::Anonymous,
        false => {
            if !offset.is_multiple_of(PAGE_SIZE) {
                return Err(Errno::EINVAL);
            }
            call.check_descriptor(fd as i32)?;
            // A mapping shows what has been written.
            call.settle_writes(fd as i32)?;
            Backing::File(file_backing(fd as i32, offset)?)
        }
    };
    if shared && !anonymous && protection.is_writable() {
        call.share_with_others()?;
    }
    if fixed {
        call.make_free(range)?;
    }
    let source = match anonymous {
        true => Source::Zeros,
        // SAFETY: only borrowed for the duration of the mapping; a descriptor that is not open is EBADF there.
        false => Source::File(unsafe { BorrowedFd::borrow_raw(fd as i32) }, offset),
    };
    let mut extra = flags & (libc::MAP_POPULATE | libc::MAP_STACK);
    if call.in_request() {
        // Pages that nobody writes are not counted, and a request's memory is limited.
        extra &= !libc::MAP_POPULATE;
    }
    let vma = Vma {
        no_reserve: flags & libc::MAP_NORESERVE != 0,
        ..Vma::new(range, protection, shared, backing)
    };
    call.map_new(vma, source, extra)?;
    Ok(range.start())
}

fn file_backing(fd: i32, offset: u64) -> Result<FileBacking, Errno> {
    let (device, inode) = host::identity(fd).map_err(|e| errno_of(&e))?;
    let path = host::handles::path_of(fd)
        .map(|path| path.to_string_lossy().into_owned())
        .unwrap_or_default();
    let device = (libc::major(device), libc::minor(device));
    Ok(FileBacking {
        path: Arc::from(path),
        offset,
        device,
        inode,
    })
}

fn munmap(call: &mut Call) -> Result<u64, Errno> {
    let range = page_range(call.args[0], call.args[1]).map_err(|_| Errno::EINVAL)?;
    call.make_free(range)?;
    Ok(0)
}

fn mprotect(call: &mut Call) -> Result<u64, Errno> {
    let [address, len, bits, ..] = call.args;
    if len == 0 {
        return Ok(0);
    }
    let range = page_range(address, len)?;
    let protection = Protection::from_bits(bits).ok_or(Errno::EINVAL)?;
    call.thread.touch(call.state, range);
    let has_shared = |call: &Call| {
        let mut mappings = call.state.space.vmas().overlapping(range);
        mappings.any(|vma| vma.shared)
    };
    if protection.is_writable() && has_shared(call) {
        call.share_with_others()?;
    }
    let old = call.state.space.protect(range, protection)?;
    call.compensate(Undo::Protect { old });
    Ok(0)
}

/// Which pages are in memory, a piece of the range at a time. What is hidden or moved aside counts as the host has it.
fn mincore(call: &mut Call) -> Result<u64, Errno> {
    /// Pages of a piece.
    const PIECE: u64 = 4096;
    let [address, len, vector, ..] = call.args;
    if !address.is_multiple_of(PAGE_SIZE) {
        return Err(Errno::EINVAL);
    }
    super::buffer::user_range(address, len).map_err(|_| Errno::ENOMEM)?;
    let pages = len.div_ceil(PAGE_SIZE);
    super::buffer::user_range(vector, pages)?;
    if pages == 0 {
        return Ok(0);
    }
    let range = page_range(address, len)?;
    if !call.state.space.vmas().is_covered(range) {
        return Err(Errno::ENOMEM);
    }
    let mut residency = [0u8; PIECE as usize];
    for first in (0..pages).step_by(PIECE as usize) {
        let count = PIECE.min(pages - first);
        let args = [
            address + first * PAGE_SIZE,
            count * PAGE_SIZE,
            residency.as_mut_ptr() as u64,
            0,
            0,
            0,
        ];
        // SAFETY: the range lies in a guest window, of which the kernel reads nothing; it writes a byte for each page.
        unsafe { host::syscall(libc::SYS_mincore as u64, args) }?;
        call.write(vector + first, &residency[..count as usize])?;
    }
    Ok(0)
}

fn lock_pages(call: &mut Call) -> Result<u64, Errno> {
    let [address, len, ..] = call.args;
    let start = address & !(PAGE_SIZE - 1);
    let len = len.checked_add(address - start).ok_or(Errno::ENOMEM)?;
    if len == 0 {
        return Ok(0);
    }
    let range = page_range(start, len)?;
    call.thread.touch(call.state, range);
    let before = call.state.locked.within(range);
    let result = call.pass();
    // A call that fails in the middle has done the first part.
    match i64::from(call.row.number) {
        libc::SYS_munlock => call.state.locked.remove(range),
        _ => call.state.locked.insert(range),
    }
    call.compensate(Undo::Locked { range, before });
    result
}

impl Call<'_, '_> {
    /// Whether an `msync` of part of `range` waits for the commit.
    fn has_sync_of(&self, range: GuestRange) -> bool {
        let overlaps = |effect: &Deferred| match effect {
            Deferred::Sync(call) if call.number() == libc::SYS_msync => {
                let [start, len, ..] = call.args();
                start < range.end() && range.start() < start.saturating_add(len)
            }
            _ => false,
        };
        let mut domains = self.state.domain.iter();
        domains.any(|domain| domain.journal.deferred().iter().any(overlaps))
    }

    /// What is unmapped is not locked any more, until it is put back.
    fn unlock_pages(&mut self, range: GuestRange) {
        let before = self.state.locked.within(range);
        if !before.is_empty() {
            self.state.locked.remove(range);
            self.compensate(Undo::Locked { range, before });
        }
    }
}

fn brk(call: &mut Call) -> Result<u64, Errno> {
    let (start, end) = call.state.space.heap();
    let wanted = call.args[0];
    if wanted < start || wanted > window::HIGH.1 {
        return Ok(end);
    }
    let (old_top, new_top) = (page_up(end), page_up(wanted));
    if new_top > old_top {
        let range = GuestRange::from_bounds(old_top, new_top);
        let free =
            window::contains(range) && call.state.space.vmas().overlapping(range).next().is_none();
        let protection = Protection::READ.union(Protection::WRITE);
        let vma = Vma::new(range, protection, false, Backing::Heap);
        if !free || call.map_new(vma, Source::Zeros, 0).is_err() {
            return Ok(end);
        }
    } else if new_top < old_top {
        call.make_free(GuestRange::from_bounds(new_top, old_top))?;
    }
    call.compensate(Undo::Heap {
        heap: (start, end),
        end: wanted,
    });
    call.state.space.set_heap((start, wanted));
    Ok(wanted)
}

fn page_up(address: u64) -> u64 {
    address.saturating_add(PAGE_SIZE - 1) & !(PAGE_SIZE - 1)
}

/// Moving is a new mapping and a copy, so that it can be undone like any other writes.
fn mremap(call: &mut Call) -> Result<u64, Errno> {
    let [address, old_len, new_len, flags, new_address, _] = call.args;
    let flags = flags as i32;
    if flags & !(libc::MREMAP_MAYMOVE | libc::MREMAP_FIXED) != 0 || old_len == 0 {
        return Err(Errno::EINVAL);
    }
    let old = page_range(address, old_len)?;
    let vma = call
        .state
        .space
        .vmas()
        .find(address)
        .cloned()
        .ok_or(Errno::EFAULT)?;
    if !vma.range.encloses(old) {
        return Err(Errno::EFAULT);
    }
    let new_len = new_len
        .checked_next_multiple_of(PAGE_SIZE)
        .ok_or(Errno::ENOMEM)?;
    if new_len == 0 {
        return Err(Errno::EINVAL);
    }
    let fixed = flags & libc::MREMAP_FIXED != 0;
    if !fixed && new_len <= old.len() {
        let tail = GuestRange::from_bounds(old.start() + new_len, old.end());
        if !tail.is_empty() {
            call.make_free(tail)?;
        }
        return Ok(address);
    }
    if !vma.shared && !matches!(vma.backing, Backing::Anonymous | Backing::Heap) {
        // The copy would not be the same mapping.
        return Err(Errno::ENOMEM);
    }
    let fits = |grown: &GuestRange| {
        let mut taken = call.state.space.vmas().overlapping(*grown);
        !vma.shared && !fixed && window::contains(*grown) && taken.next().is_none()
    };
    let grown = GuestRange::new(GuestVa(old.end()), new_len.saturating_sub(old.len()));
    if let Some(range) = grown.filter(fits) {
        call.map_new(Vma { range, ..vma }, Source::Zeros, 0)?;
        return Ok(address);
    }
    if flags & libc::MREMAP_MAYMOVE == 0 {
        return Err(Errno::ENOMEM);
    }
    let target = match fixed {
        true => page_range(new_address, new_len)?,
        false => call
            .state
            .space
            .find_free(0, new_len, false)
            .ok_or(Errno::ENOMEM)?,
    };
    if target.intersection(old).is_some() {
        return Err(Errno::EINVAL);
    }
    if fixed {
        call.make_free(target)?;
    }
    if vma.shared {
        if call.has_file_writes() {
            // What is mapped besides has to show them.
            call.commit_early(Early::External)?;
        }
        call.map_new(vma.moved(old.start(), target), Source::Same(old.start()), 0)?;
    } else {
        let moved = Vma {
            range: target,
            ..vma
        };
        call.map_new(moved, Source::Zeros, 0)?;
        match call.protected() {
            true => call.copy_pages(old, target)?,
            false => call.state.space.move_content(old, target)?,
        }
    }
    call.make_free(old)?;
    Ok(target.start())
}

impl Call<'_, '_> {
    /// Copies as much of `from`, private memory, as `to` has room for, whatever the guest itself may do with it. Pages of
    /// zeros are left untouched.
    fn copy_pages(&mut self, from: GuestRange, to: GuestRange) -> Result<(), Errno> {
        self.thread.touch(self.state, from);
        let mut content = PageContent::boxed();
        let end = from.start() + from.len().min(to.len());
        for source in self.written_pages(GuestRange::from_bounds(from.start(), end)) {
            let (_, mut memory) = self
                .state
                .tracking(&self.thread.process, &mut self.thread.vcpu);
            if !memory.read(source, &mut content) {
                return Err(Errno::EFAULT);
            }
            if content.bytes() != PageContent::zero().bytes() {
                let target = source.address().0 - from.start() + to.start();
                self.fill(GuestVa(target).page(), &content)?;
            }
        }
        Ok(())
    }

    /// The pages of `range` that may have been written since they were mapped. All others are as their file has them, or
    /// zero: of terabytes that are only reserved there are none.
    fn written_pages(&mut self, range: GuestRange) -> Vec<PageNumber> {
        let (tracker, mut memory) = self
            .state
            .tracking(&self.thread.process, &mut self.thread.vcpu);
        tracker.note_written(&mut memory);
        tracker.written_since_mapped(range).collect()
    }

    /// Gives a page another content, whatever the guest itself may do with it.
    fn fill(&mut self, page: PageNumber, content: &PageContent) -> Result<(), Errno> {
        self.thread
            .mark_written(self.state, memory::page_range(page));
        let (_, mut memory) = self
            .state
            .tracking(&self.thread.process, &mut self.thread.vcpu);
        match memory.write(page, content) {
            true => Ok(()),
            false => Err(Errno::EFAULT),
        }
    }
}

impl Call<'_, '_> {
    /// Fills a page with zeros, whatever the guest itself may do with it.
    fn zero(&mut self, page: PageNumber) -> Result<(), Errno> {
        let mut content = PageContent::boxed();
        let (_, mut memory) = self
            .state
            .tracking(&self.thread.process, &mut self.thread.vcpu);
        if !memory.read(page, &mut content) {
            return Err(Errno::EFAULT);
        }
        if content.bytes() == PageContent::zero().bytes() {
            return Ok(());
        }
        self.fill(page, PageContent::zero())
    }
}

fn madvise(call: &mut Call) -> Result<u64, Errno> {
    let [address, len, advice, ..] = call.args;
    if len == 0 {
        return Ok(0);
    }
    let range = page_range(address, len)?;
    match advice as i32 {
        libc::MADV_NORMAL
        | libc::MADV_RANDOM
        | libc::MADV_SEQUENTIAL
        | libc::MADV_WILLNEED
        | libc::MADV_HUGEPAGE
        | libc::MADV_NOHUGEPAGE
        | libc::MADV_DONTDUMP
        | libc::MADV_DODUMP
        | libc::MADV_COLD => Ok(0),
        libc::MADV_DONTNEED => discard(call, range),
        libc::MADV_FREE => {
            let vmas = call.state.space.vmas();
            if !vmas.overlapping(range).all(is_zero_based) {
                return Err(Errno::EINVAL);
            }
            discard(call, range)
        }
        _ => Err(Errno::EINVAL),
    }
}

fn discard(call: &mut Call, range: GuestRange) -> Result<u64, Errno> {
    call.thread.touch(call.state, range);
    if !call.state.space.vmas().is_covered(range) {
        return Err(Errno::ENOMEM);
    }
    let zero_based = call
        .state
        .space
        .vmas()
        .overlapping(range)
        .all(is_zero_based);
    let written = call.written_pages(range);
    if call.in_domain() && zero_based && written.len() as u64 <= DISCARD_LIMIT / PAGE_SIZE {
        for page in written {
            call.zero(page)?;
        }
        call.defer(Deferred::Discard { range });
        return Ok(0);
    }
    call.commit_early(Early::External)?;
    for part in runs(written.into_iter()) {
        call.thread.mark_written(call.state, part);
    }
    call.state.space.discard(range)?;
    Ok(0)
}

impl Thread {
    /// Gives the memory of discarded pages back to the host, of those that are still zero.
    pub fn discard_if_zero(&mut self, state: &mut State, range: GuestRange) {
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.note_written(&mut memory);
        let mut content = PageContent::boxed();
        let mut zeros = Vec::new();
        let mut at = range.start();
        for page in tracker.written_since_mapped(range) {
            let is_zero =
                memory.read(page, &mut content) && content.bytes() == PageContent::zero().bytes();
            if !is_zero {
                zeros.push(GuestRange::from_bounds(at, page.address().0));
                at = page.address().0 + PAGE_SIZE;
            }
        }
        zeros.push(GuestRange::from_bounds(at, range.end()));
        for part in zeros {
            let vmas = state.space.vmas().overlapping(part);
            let parts: Vec<GuestRange> = vmas
                .filter(|vma| is_zero_based(vma))
                .filter_map(|vma| vma.range.intersection(part))
                .collect();
            for part in parts {
                if state.space.discard(part).is_ok() {
                    let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                    tracker.forget_content(&mut memory, part);
                }
            }
        }
    }
}
