//! `--verify-heap`: what a request has written to the heap is checked before it is committed
//! (`docs/decisions/0013`).

use std::collections::BTreeMap;
use std::time::Instant;

use guest_agentless::heap::{self, Corruption, Heaps, Memory, NotFound, Overlay};
use guest_agentless::{Backing, GuestRange, PageNumber, Signal};
use recovery::event::{Event, FaultKind};
use recovery::{SuspendedPages, stats};

use super::State;
use super::fault::Fault;
use super::thread::Thread;
use crate::memory::copy;

/// How often the allocator is looked for, at requests that are further and further apart.
const SEARCHES: u32 = 10;
/// Parts of the heap that may turn out, in one check, to have been corrupt before.
const LEFT_OUT_MAX: usize = 8;

/// The heaps of the guest, as far as they are known.
#[derive(Default)]
pub struct HeapWatch {
    heaps: Option<Heaps>,
    /// Checks that were asked for while the allocator was not found.
    requests: u32,
    searches: u32,
    /// What the domain has written until now is checked: it has not run since.
    is_checked: bool,
}

/// Guest memory as it is.
pub struct Guest;

impl Memory for Guest {
    fn read(&self, address: u64, into: &mut [u8]) -> bool {
        copy::read(address, into).is_ok()
    }
}

impl HeapWatch {
    /// The guest runs again.
    pub fn guest_runs(&mut self) {
        self.is_checked = false;
    }

    /// The heaps, if the guest's allocator is known by now.
    fn heaps(&mut self, thread: &Thread, state: &State) -> Option<&mut Heaps> {
        if self.heaps.is_none() && self.searches < SEARCHES {
            self.requests += 1;
            if self.requests.is_power_of_two() {
                self.searches += 1;
                self.search(thread, state);
            }
        }
        self.heaps.as_mut()
    }

    fn search(&mut self, thread: &Thread, state: &State) {
        let reason = match state.main_arena() {
            Ok(main) => {
                self.heaps = Some(Heaps::new(main));
                None
            }
            Err(reason) => Some(reason.to_string()),
        };
        // Once, and again if it is found later.
        if let (Some(reason), 1) = (&reason, self.searches) {
            log::warn!("the heap is not verified: {reason}");
        }
        if reason.is_none() || self.searches == 1 {
            let active = reason.is_none();
            let event = Event::HeapVerification { active, reason };
            thread.process.reporter.emit(event);
        }
    }
}

impl Thread {
    /// Checks what the running request has done to the heap; it stands before a system call that ends it.
    pub fn verify_heap(&mut self, state: &mut State) -> Option<Fault> {
        let mut watch = state.heap.take()?;
        // The heap is read as it lies in memory.
        self.restore_all(state);
        state.tracker.list_changes();
        let begun = Instant::now();
        let corruption = watch
            .heaps(self, state)
            .and_then(|heaps| self.check_heaps(state, heaps));
        watch.is_checked = corruption.is_none() && watch.heaps.is_some();
        state.heap = Some(watch);
        let counters = &self.process.stats.verify_heap;
        counters.time_us.add(stats::micros(begun.elapsed()));
        let corruption = corruption?;
        counters.corruptions.inc();
        self.fault_detail = Some(corruption.to_string());
        let mut fault = Fault::raised(Signal::SIGABRT);
        fault.kind = FaultKind::HeapCorruption;
        fault.address = Some(corruption.chunk);
        Some(fault)
    }

    fn check_heaps(&mut self, state: &mut State, heaps: &mut Heaps) -> Option<Corruption> {
        let fs_base = self.vcpu.fs_base();
        let (start, end) = state.space.heap();
        heaps.refresh(&Guest, GuestRange::from_bounds(start, end));
        let mut changed = self.changed_pages(state, heaps);
        changed.extend(suspended_pages(state, heaps));
        let process = std::sync::Arc::clone(&self.process);
        let counters = &process.stats.verify_heap;
        counters.checks.inc();
        counters.pages.add(changed.len() as u64);
        for _ in 0..LEFT_OUT_MAX {
            let mut corruption = match heaps.check(&Guest, fs_base, changed.iter().copied()) {
                Ok(checked) => {
                    counters.chunks.add(checked.chunks);
                    counters.locked.add(checked.locked);
                    return None;
                }
                Err(corruption) => corruption,
            };
            let committed = self.committed_memory(state);
            if !heaps.was_corrupt(&committed, &corruption, fs_base) {
                corruption.explain(&Guest, &committed);
                return Some(corruption);
            }
            if has_suspended(state) {
                // One that is suspended may have done it, and its own check is still to come.
                heaps.unchecked(changed);
                return None;
            }
            // Nobody knows who did it. To blame whoever comes now would be wrong.
            counters.inherited.inc();
            log::warn!(
                "not verified any more, because it was so before this request: {corruption}"
            );
            heaps.leave_out(&corruption);
        }
        None
    }

    /// The heap's pages that the running domain has changed.
    fn changed_pages(&mut self, state: &mut State, heaps: &Heaps) -> Vec<PageNumber> {
        let mut changed = Vec::new();
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        let of_interest = |page| heaps.contains(page);
        let harvested = tracker.changed(&mut memory, of_interest, |page, _| changed.push(page));
        self.process.stats.pages.dirty_harvested.add(harvested);
        changed
    }

    /// Memory as it would be without the running domain.
    fn committed_memory(&mut self, state: &mut State) -> Overlay<'static, Guest> {
        let mut pages = BTreeMap::new();
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.changed(
            &mut memory,
            |_| true,
            |page, base| {
                pages.insert(page.0, Box::new(*base.bytes()));
            },
        );
        if let Some(domain) = &state.domain {
            let before = domain.pages.iter();
            pages.extend(before.map(|(page, without)| (page.0, Box::new(*without.bytes()))));
        }
        Overlay {
            memory: &Guest,
            pages,
        }
    }
}

/// What the running domain had written to the heap when it was suspended.
fn suspended_pages(state: &State, heaps: &Heaps) -> Vec<PageNumber> {
    let domain = state.domain.iter();
    let pages = domain.flat_map(|domain| domain.pages.iter().map(|(page, _)| page));
    pages.filter(|page| heaps.contains(*page)).collect()
}

/// Whether there are, or were in the running one, writes of others between the writes of one domain.
fn has_suspended(state: &State) -> bool {
    let running = state.domain.as_ref();
    !state.suspended.is_empty() || running.is_some_and(|domain| !domain.pages.is_empty())
}

impl State {
    /// The main arena of the guest's glibc.
    ///
    /// # Errors
    ///
    /// If the guest allocates with something else.
    pub fn main_arena(&self) -> Result<u64, NotFound> {
        let data = self.space.vmas().iter().filter(|vma| {
            vma.protection.is_writable() && !vma.shared && matches!(vma.backing, Backing::File(_))
        });
        heap::find(&Guest, data.map(|vma| vma.range))
    }

    /// The running domain has been committed or suspended, checked or not.
    pub fn note_heap(&mut self) {
        let heaps = self
            .heap
            .as_mut()
            .map(|watch| (watch.is_checked, &mut watch.heaps));
        let Some((is_checked, Some(heaps))) = heaps else {
            return;
        };
        if is_checked {
            heaps.committed();
        } else {
            let changed = self.tracker.last_changes().iter().copied();
            let pages: Vec<_> = changed.filter(|page| heaps.contains(*page)).collect();
            heaps.unchecked(pages);
        }
    }

    /// A domain is undone; before, it had been suspended with these pages.
    pub fn heap_undone(&mut self, pages: &SuspendedPages) {
        let Some(heaps) = self.heap.as_mut().and_then(|watch| watch.heaps.as_mut()) else {
            return;
        };
        heaps.abandoned();
        if !pages.is_empty() {
            let pages = pages.iter().map(|(page, _)| page);
            let pages: Vec<_> = pages.filter(|page| heaps.contains(*page)).collect();
            heaps.unchecked(pages);
        }
    }
}
