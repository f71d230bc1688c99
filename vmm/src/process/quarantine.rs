//! The quarantine: registers and memory at a fault, taken before anything is undone, for the core of its report.
//!
//! Everybody waits meanwhile, so memory is taken up to a limit, and what a debugger needs most comes first: the
//! stack, the list of libraries, the other threads' stacks, what pointers on the stack point to, the program's
//! variables; then the rest of what the request has written. What does not change, or does not matter as much
//! (variables of libraries), is left to the reporter, which reads it when everybody goes on.

use std::collections::HashSet;
use std::os::unix::fs::FileExt;

use guest_agentless::coredump::{ProcessState, ThreadState};
use guest_agentless::{Backing, GuestRange, PAGE_SIZE, PageNumber, Protection, Vma, link_map};

use recovery::Tracker;
use recovery::tracker::PageContent;

use super::State;
use super::domain::Domain;
use super::reporter::{FaultRecord, Room};
use super::signals::SignalInfo;
use super::thread::Thread;
use crate::host;
use crate::kvm::Registers;
use crate::memory::{AddressSpace, copy, window};

/// Pages that are often taken.
const TAKEN_OFTEN: usize = 512;
/// Bytes below the stack pointer that belong to the function (System V ABI, 3.2.2).
const RED_ZONE: u64 = 128;
/// Bytes of the stack of the thread that faulted, and of each other one.
const STACK: u64 = 64 << 10;
const OTHER_STACK: u64 = 16 << 10;
/// Bytes of thread-local variables below the thread pointer, and of what the C library keeps above.
const THREAD_LOCAL: u64 = 1 << 10;
const THREAD_BLOCK: u64 = 3 << 10;
/// Bytes at most of a mapping in which the loader keeps its list, for all of it to be taken: it has its table of
/// thread-local storage there too.
const LOADER_MEMORY: u64 = 128 << 10;
/// Other threads that are told.
const THREADS_LIMIT: usize = 256;
/// Bytes of the stack that are looked through for pointers, and bytes that are taken at each.
const SCANNED: usize = 4 << 10;
const POINTEE: u64 = 1 << 10;
/// Pages of modules that are told as changed at most.
const CHANGED_LIMIT: usize = 1 << 14;

/// What is kept of a fault for its core.
#[derive(Debug, Clone, Default)]
pub struct Quarantine {
    /// The process.
    pub process: ProcessState,
    /// Its threads, first the one that faulted.
    pub threads: Vec<ThreadState>,
    /// The signal of the fault, and its `siginfo_t`.
    pub signal: Option<(i32, [u8; 128])>,
    /// The pages that were taken.
    pub pages: Vec<PageNumber>,
    /// Their contents, and then room that is not used.
    pub contents: Vec<PageContent>,
    /// Mappings of files, and what belongs to them: apart from `changed`, they are as the files have them.
    pub modules: Vec<GuestRange>,
    /// Pages of `modules` that the guest may have changed, taken or not.
    pub changed: Vec<PageNumber>,
    /// Pages of the write set that were taken, and those for which there was no room.
    pub written: u64,
    /// See there.
    pub left_out: u64,
}

impl Quarantine {
    /// Bytes that it takes, about.
    pub fn size(&self) -> usize {
        size_of::<Quarantine>()
            + self.contents.capacity() * PAGE_SIZE as usize
            + size_of_val(&*self.pages)
            + size_of_val(&*self.changed)
            + size_of_val(&*self.modules)
            + size_of_val(&*self.threads)
    }
}

/// Takes pages up to a limit.
struct Collector<'a> {
    space: &'a AddressSpace,
    own_memory: &'a std::fs::File,
    taken: HashSet<PageNumber>,
    pages: Vec<PageNumber>,
    contents: Vec<PageContent>,
    limit: usize,
}

impl Collector<'_> {
    /// Takes `page` while there are fewer than `limit`; false if it is not among the taken afterwards.
    fn take(&mut self, page: PageNumber, limit: usize) -> bool {
        if self.taken.contains(&page) {
            return true;
        }
        // What is hidden is what an earlier request has left.
        if self.pages.len() >= limit || self.space.is_hidden(page) {
            return false;
        }
        let address = page.address().0;
        if self.contents.len() == self.pages.len() {
            self.contents.push(PageContent::zero().clone());
        }
        let Some(content) = self.contents.get_mut(self.pages.len()) else {
            return false;
        };
        let into = content.bytes_mut();
        let done = copy::read(address, into).is_ok()
            || self.own_memory.read_exact_at(into, address).is_ok();
        if done {
            self.pages.push(page);
            self.taken.insert(page);
        }
        done
    }

    /// Takes what is mapped in the pages of `range`, and `which` says is wanted.
    fn take_mapped(&mut self, range: GuestRange, limit: usize, which: impl Fn(&Vma) -> bool) {
        let Some(range) = range.to_pages() else {
            return;
        };
        let space = self.space;
        for vma in space.vmas().overlapping(range).filter(|vma| which(vma)) {
            if let Some(part) = vma.range.intersection(range) {
                for page in part.pages() {
                    self.take(page, limit);
                }
            }
        }
    }

    fn share(&self, part: usize) -> usize {
        self.limit.min(self.pages.len() + self.limit / part)
    }
}

impl Thread {
    /// Leaves word of the registers, for as long as the thread does not hold the run token.
    pub(super) fn show_registers(&mut self) {
        if self.process.options.core_limit > 0 {
            self.control.show(self.thread_state());
        }
    }

    fn thread_state(&mut self) -> ThreadState {
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        ThreadState {
            tid: self.tid(),
            registers: user_registers(self.vcpu.registers(), bases),
            vector: None,
        }
    }

    /// Takes what the core of the fault in `record` will hold. `domain` is the running one, if the state does
    /// not have it any more.
    pub(super) fn quarantine(
        &mut self,
        state: &mut State,
        record: &mut FaultRecord,
        info: Option<SignalInfo>,
        domain: Option<&Domain>,
    ) {
        let core_limit = self.process.options.core_limit;
        if core_limit == 0 {
            return;
        }
        // What gives the server up, or restarts it, is always worth a core.
        let site = domain.map(|_| (record.rip, record.rsp));
        let contents = match self.process.reporter.room_for_memory(site) {
            Room::Given(contents) => contents,
            Room::Refused(reason) => {
                record.core_missing = Some(reason.into());
                return;
            }
        };
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.note_written(&mut memory);

        let mut thread = self.thread_state();
        thread.vector = self.vcpu.extended_state().ok().map(|state| {
            let mut vector = Box::new([0; 512]);
            for (to, from) in vector.chunks_exact_mut(4).zip(state.region) {
                to.copy_from_slice(&from.to_le_bytes());
            }
            vector
        });
        let mut threads = vec![thread];
        let others = self.others();
        threads.extend(others.iter().take(THREADS_LIMIT).filter_map(|o| o.shown()));

        let state = &*state;
        let mut collector = Collector {
            space: &state.space,
            own_memory: &self.process.own_memory,
            taken: HashSet::with_capacity(TAKEN_OFTEN),
            pages: Vec::new(),
            contents,
            limit: core_limit / PAGE_SIZE as usize,
        };
        let auxv = &self.process.auxv;
        collect_stacks(&mut collector, &threads, auxv);
        collect_pointees(&mut collector, &threads[0], &record.stack);
        let (modules, changed) = collect_modules(&mut collector, state, auxv);
        let domain = domain.or(state.domain.as_ref());
        let (written, left_out) = collect_written(&mut collector, &state.tracker, domain);
        record.quarantine = Some(Box::new(Quarantine {
            process: ProcessState {
                pid: std::process::id() as i32,
                user: (host::user(), host::group()),
                program: self.process.executable.clone(),
                auxv: auxv.clone(),
            },
            threads,
            signal: info.map(|info| (info.signal.raw(), info.to_bytes())),
            pages: collector.pages,
            contents: collector.contents,
            modules,
            changed,
            written,
            left_out,
        }));
    }
}

/// The stacks, and the loader's list of libraries.
fn collect_stacks(collector: &mut Collector<'_>, threads: &[ThreadState], auxv: &[(u64, u64)]) {
    let is_memory = |vma: &Vma| vma.protection != Protection::NONE;
    let stack = |thread: &ThreadState, len: u64| {
        let from = thread.registers.rsp.saturating_sub(RED_ZONE);
        GuestRange::from_bounds(from, from.saturating_add(len))
    };
    let limit = collector.share(2);
    if let Some(first) = threads.first() {
        collector.take_mapped(stack(first, STACK), limit, is_memory);
    }
    let headers = (entry(auxv, libc::AT_PHDR), entry(auxv, libc::AT_PHNUM));
    let limit = collector.share(4);
    for range in link_map::memory(headers, &mut |at, into| copy::read(at, into).is_ok()) {
        let of_loader = |vma: &&Vma| is_data(vma) && vma.range.len() <= LOADER_MEMORY;
        let mapping = collector.space.vmas().find(range.start());
        let range = mapping.filter(of_loader).map_or(range, |vma| vma.range);
        collector.take_mapped(range, limit, is_memory);
    }
    let limit = collector.share(4);
    for (i, thread) in threads.iter().enumerate() {
        if i > 0 {
            collector.take_mapped(stack(thread, OTHER_STACK), limit, is_memory);
        }
        // What the C library knows of it; the second word is the table of its thread-local storage.
        let block = thread.registers.fs_base;
        let mut table = [0; 8];
        let from = block.saturating_sub(THREAD_LOCAL);
        let around = GuestRange::from_bounds(from, block.saturating_add(THREAD_BLOCK));
        collector.take_mapped(around, limit, is_memory);
        if copy::read(block.saturating_add(8), &mut table).is_ok() {
            let table = u64::from_le_bytes(table);
            let range = GuestRange::from_bounds(table, table.saturating_add(POINTEE));
            collector.take_mapped(range, limit, is_memory);
        }
    }
}

/// An entry of the auxiliary vector; 0 if it has none of the kind.
fn entry(auxv: &[(u64, u64)], kind: u64) -> u64 {
    let found = auxv.iter().find(|entry| entry.0 == kind);
    found.map_or(0, |entry| entry.1)
}

/// What the registers and the innermost part of the stack point to.
fn collect_pointees(collector: &mut Collector<'_>, thread: &ThreadState, stack: &[u8]) {
    let r = &thread.registers;
    let registers = [
        r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12, r.r13,
        r.r14, r.r15, r.fs_base,
    ];
    let (words, _) = stack[..stack.len().min(SCANNED)].as_chunks::<8>();
    let words = words.iter().map(|word| u64::from_le_bytes(*word));
    let limit = collector.share(8);
    let mut seen = HashSet::with_capacity(TAKEN_OFTEN);
    for pointer in registers.into_iter().chain(words) {
        let Some(range) = window::checked(pointer, POINTEE) else {
            continue;
        };
        if seen.insert(pointer / POINTEE) && collector.pages.len() < limit {
            collector.take_mapped(range, limit, is_data);
        }
    }
}

/// Memory without a file, which can be read without waiting for anything.
fn is_data(vma: &Vma) -> bool {
    let anonymous = matches!(
        vma.backing,
        Backing::Anonymous | Backing::Heap | Backing::Stack
    );
    anonymous && vma.protection.is_writable()
}

/// The variables of the program. Returns where it and its libraries are mapped, and which pages of them the guest
/// may have changed.
fn collect_modules(
    collector: &mut Collector<'_>,
    state: &State,
    auxv: &[(u64, u64)],
) -> (Vec<GuestRange>, Vec<PageNumber>) {
    let limit = collector.share(4);
    let (mut modules, mut changed) = (Vec::new(), Vec::new());
    let file_of = |vma: &Vma| match &vma.backing {
        Backing::File(file) => Some((file.device, file.inode)),
        _ => None,
    };
    let headers = state.space.vmas().find(entry(auxv, libc::AT_PHDR));
    let program = headers.and_then(file_of);
    let (mut data_ends, mut is_program) = (0, false);
    for vma in state.space.vmas().iter() {
        let is_file = matches!(vma.backing, Backing::File(_)) && !vma.shared;
        // The part of a program's data that no file has.
        let is_zeros = vma.backing == Backing::Anonymous && vma.range.start() == data_ends;
        if !is_file && !is_zeros {
            continue;
        }
        let writable = vma.protection.is_writable();
        if is_file {
            is_program = file_of(vma) == program;
        }
        if is_file && writable {
            data_ends = vma.range.end();
        }
        let room = CHANGED_LIMIT - changed.len();
        let before = changed.len();
        changed.extend(state.tracker.written_since_mapped(vma.range).take(room + 1));
        if changed.len() > CHANGED_LIMIT {
            changed.truncate(before);
            continue;
        }
        modules.push(vma.range);
        if writable && is_program {
            for page in &changed[before..] {
                collector.take(*page, limit);
            }
        }
    }
    (modules, changed)
}

/// The write set. Returns how many of its pages are taken, and how many are not.
fn collect_written(
    collector: &mut Collector<'_>,
    tracker: &Tracker,
    domain: Option<&Domain>,
) -> (u64, u64) {
    let limit = collector.limit;
    let before = |page: &PageNumber| domain.is_some_and(|domain| domain.pages.contains(*page));
    let suspended = domain.into_iter().flat_map(|domain| domain.pages.iter());
    let suspended = suspended.map(|(page, _)| page);
    let others: Vec<PageNumber> = suspended
        .filter(|page| !tracker.is_in_write_set(*page))
        .collect();
    let total = (tracker.active_count() + others.len()) as u64;
    // Newest first: what was written last is nearest to the fault.
    for page in tracker.active_pages().rev().chain(others) {
        // There may be a million.
        if collector.pages.len() >= limit {
            break;
        }
        collector.take(page, limit);
    }
    let pages = collector.pages.iter();
    let taken = pages.filter(|page| tracker.is_in_write_set(**page) || before(page));
    let taken = (taken.count() as u64).min(total);
    (taken, total - taken)
}

/// As `ptrace` and cores have them.
fn user_registers(r: &Registers, (fs_base, gs_base): (u64, u64)) -> libc::user_regs_struct {
    libc::user_regs_struct {
        r15: r.r15,
        r14: r.r14,
        r13: r.r13,
        r12: r.r12,
        rbp: r.rbp,
        rbx: r.rbx,
        r11: r.r11,
        r10: r.r10,
        r9: r.r9,
        r8: r.r8,
        rax: r.rax,
        rcx: r.rcx,
        rdx: r.rdx,
        rsi: r.rsi,
        rdi: r.rdi,
        // In no system call.
        orig_rax: u64::MAX,
        rip: r.rip,
        // Linux' selectors of user code and data, whatever the monitor's are.
        cs: 0x33,
        eflags: r.rflags,
        rsp: r.rsp,
        ss: 0x2b,
        fs_base,
        gs_base,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}
