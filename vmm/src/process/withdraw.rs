//! Undoing a request that was suspended: what it has written is taken out of memory that others have used since.
//!
//! Pages that nobody else touched go back to what they were at the checkpoint. In shared pages only the
//! domain's own words do, and the locks that it holds are released. Where others have built on what it wrote
//! nothing can be taken out: then its writes up to the last suspension stay, as if it had ended there, and only
//! its own stack goes back. All but the first is `degraded` (`docs/decisions/0015`).

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use guest_agentless::sync::{self, CondWait, HeldLock, Words};
use guest_agentless::{GuestRange, GuestVa, PAGE_SIZE, PageNumber};
use recovery::SuspendedPages;
use recovery::tracker::{Memory, PageContent};

use super::State;
use super::domain::{Checkpoint, Domain};
use super::effects::Undo;
use super::thread::Thread;
use crate::host;
use crate::memory::{copy, page_range};

/// Bytes above the thread pointer that belong to the thread: glibc's `struct pthread`.
const THREAD_AREA: u64 = 0x900;
/// Below the stack pointer, and in use (System V ABI, x86-64).
const RED_ZONE: u64 = 128;
/// Read locks that vanished domains may have left, at most.
const LEFT_READS_LIMIT: usize = 256;
/// Waits of one domain that are remembered.
const WAITS_LIMIT: usize = 64;

/// The futexes that a domain has waited for.
#[derive(Debug, Default)]
pub struct Waits {
    /// Locks, as far as the operation tells: a futex without a bit set.
    locks: Vec<u64>,
    words: Vec<u64>,
    conditions: Vec<CondWait>,
    /// Whether it waits for the last of the conditions now.
    in_condition: bool,
    /// The lock that it waits for now.
    now: Option<u64>,
}

impl Waits {
    /// The domain is about to wait for the futex at `word`; `plain` is the operation that locks use.
    pub fn begin(&mut self, word: u64, plain: bool) {
        let condition = if plain {
            None
        } else {
            CondWait::at(&memory(), word)
        };
        self.in_condition = condition.is_some();
        self.now = plain.then_some(word);
        if let Some(condition) = condition {
            if !self.conditions.contains(&condition) && self.conditions.len() < WAITS_LIMIT {
                self.conditions.push(condition);
            }
        } else {
            let words = if plain {
                &mut self.locks
            } else {
                &mut self.words
            };
            if !words.contains(&word) && words.len() < WAITS_LIMIT {
                words.push(word);
            }
        }
    }

    /// Whether the domain has waited for the lock whose word is at `address`.
    pub fn has_lock(&self, address: u64) -> bool {
        self.locks.contains(&address)
    }

    fn wakes(&self) -> impl Iterator<Item = (u64, u32)> + '_ {
        self.locks.iter().chain(&self.words).map(|word| (*word, 1))
    }

    /// The lock that the domain waits for, or is about to.
    pub fn now(&self) -> Option<u64> {
        self.now
    }

    /// The wait is over.
    pub fn end(&mut self) {
        self.in_condition = false;
        self.now = None;
    }
}

/// What is to become of a suspended domain that has faulted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Withdrawal {
    /// Nobody has touched what it wrote, or it was not suspended.
    Whole,
    /// Others have touched pages of it, and have used what it wrote in so many.
    Shared(usize),
    /// Others have built on what it wrote.
    Entangled,
}

impl Withdrawal {
    /// Why the outcome is not `recovered`, if so.
    pub fn reason(self) -> Option<String> {
        match self {
            Withdrawal::Whole | Withdrawal::Shared(0) => None,
            Withdrawal::Shared(pages) => Some(format!(
                "while the request waited others used {pages} pages that it had written"
            )),
            Withdrawal::Entangled => Some(
                "while the request waited others built on what it had written, which stays".into(),
            ),
        }
    }
}

/// Guest memory as it is.
fn memory() -> impl Words {
    |address: u64| {
        let mut bytes = [0; 4];
        copy::read(address, &mut bytes).ok()?;
        Some(u32::from_ne_bytes(bytes))
    }
}

/// Values of words as they were when the domain faulted.
pub type KeptWords = Vec<(u64, u32)>;

/// New contents of pages.
#[derive(Default)]
struct Edits(BTreeMap<PageNumber, Box<PageContent>>);

impl Edits {
    fn page(&mut self, page: PageNumber) -> Option<&mut PageContent> {
        match self.0.entry(page) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => {
                let mut content = PageContent::boxed();
                copy::read(page.address().0, content.bytes_mut()).ok()?;
                Some(entry.insert(content))
            }
        }
    }

    fn set(&mut self, address: u64, value: u32) {
        let at = (address % PAGE_SIZE) as usize & !3;
        if let Some(page) = self.page(GuestVa(address).page()) {
            page.bytes_mut()[at..at + 4].copy_from_slice(&value.to_ne_bytes());
        }
    }

    /// As memory will be.
    fn words(&self) -> impl Words + '_ {
        |address: u64| match self.0.get(&GuestVa(address).page()) {
            Some(page) => Some(word_of(page, address)),
            None => memory().word(address),
        }
    }

    fn apply(&mut self, release: &sync::Release, wakes: &mut Vec<(u64, u32)>) {
        for (address, value) in &release.writes {
            self.set(*address, *value);
        }
        wakes.extend(&release.wakes);
    }
}

/// The word at `address`, which lies in `page`.
pub fn word_of(page: &PageContent, address: u64) -> u32 {
    let at = (address % PAGE_SIZE) as usize & !3;
    let mut bytes = [0; 4];
    bytes.copy_from_slice(&page.bytes()[at..at + 4]);
    u32::from_ne_bytes(bytes)
}

/// How a domain is undone.
pub struct Decision {
    /// See [`Withdrawal`].
    pub withdrawal: Withdrawal,
    /// Locks that it has taken, and holds.
    held: Vec<HeldLock>,
}

/// Decides how `domain` is to be undone, now that it has faulted.
pub fn decide(state: &State, domain: &Domain, tid: i32) -> Decision {
    let shared = domain.pages.shared().count();
    if domain.cramped.is_some() {
        return Decision {
            withdrawal: Withdrawal::Entangled,
            held: held_locks(state, &domain.pages, tid),
        };
    }
    if shared == 0 {
        return Decision {
            withdrawal: Withdrawal::Whole,
            held: Vec::new(),
        };
    }
    let held = held_locks(state, &domain.pages, tid);
    let inverses = domain.journal.inverses();
    let others_use = |inverse: &Undo| match inverse {
        // Others use memory of a mapping that would go.
        Undo::Unmap { range } => domain
            .pages
            .shared()
            .any(|page| range.contains(page.address().0)),
        _ => false,
    };
    // The heap has grown for others since: it cannot shrink below them.
    let heap = inverses.iter().rev().find_map(|inverse| match inverse {
        Undo::Heap { end, .. } => Some(*end),
        _ => None,
    });
    let heap_moved = heap.is_some_and(|end| end != state.space.heap().1);
    // Numbers that both have written are counters if the domain is inside a critical section; outside of one
    // they may as well be what others made of its completed work.
    let built_on = domain.pages.is_merged() && !held.iter().any(|lock| lock.is_exclusive());
    let entangled =
        domain.pages.is_entangled() || built_on || heap_moved || inverses.iter().any(others_use);
    Decision {
        withdrawal: match entangled {
            true => Withdrawal::Entangled,
            false => Withdrawal::Shared(domain.pages.used().count()),
        },
        held,
    }
}

/// Guest memory as it would be without the domain, and as the domain left it.
fn views(pages: &SuspendedPages) -> (impl Words + '_, impl Words + '_) {
    let or_as_it_is = |page: Option<&PageContent>, address| match page {
        Some(page) => Some(word_of(page, address)),
        None => memory().word(address),
    };
    let before = move |address: u64| or_as_it_is(pages.without(GuestVa(address).page()), address);
    let now = move |address: u64| or_as_it_is(pages.left(GuestVa(address).page()), address);
    (before, now)
}

/// The locks that the domain has taken, and held when it was suspended last.
fn held_locks(state: &State, pages: &SuspendedPages, tid: i32) -> Vec<HeldLock> {
    let (before, now) = views(pages);
    let is_futex = |address: u64| state.wait_words.contains(&address);
    let mut held = Vec::new();
    for (page, without) in pages.iter() {
        let Some(left) = pages.left(page) else {
            continue;
        };
        let start = page.address().0;
        for address in (start..start + PAGE_SIZE).step_by(4) {
            if word_of(left, address) != word_of(without, address) {
                held.extend(sync::held_at(&before, &now, &is_futex, address, tid as u32));
            }
        }
    }
    held
}

/// The read locks that the domain may hold besides those known as `held`, as far as their shape tells. Only what
/// somebody waits for is known to be one, so they are remembered until then.
fn left_reads(pages: &SuspendedPages, held: &[HeldLock], left_reads: &mut Vec<(u64, u32)>) {
    let (before, now) = views(pages);
    for page in pages.shared() {
        let start = page.address().0;
        for address in (start..start + PAGE_SIZE).step_by(8) {
            if left_reads.len() < LEFT_READS_LIMIT
                && held.iter().all(|lock| lock.address() != address)
                && let Some(times) = sync::left_reads(&before, &now, address)
            {
                left_reads.push((address, times));
            }
        }
    }
}

/// The condition variables that the domain has waited for: they go on from where they are now, since its
/// waits are complete.
pub fn kept_words(domain: &Domain) -> KeptWords {
    let words = domain
        .waits
        .conditions
        .iter()
        .flat_map(|condition| condition.words());
    words
        .filter_map(|address| Some((address, memory().word(address)?)))
        .collect()
}

impl Thread {
    /// Takes what `domain` wrote before it was suspended last out of memory; what it wrote after that has been
    /// undone. Returns how many pages could not be written.
    pub fn withdraw(
        &mut self,
        state: &mut State,
        domain: &Domain,
        decision: &Decision,
        kept: &KeptWords,
    ) -> u32 {
        let Decision { withdrawal, held } = decision;
        let pages = &domain.pages;
        let mut edits = Edits::default();
        let guarded_by_lock = |page: PageNumber| {
            held.iter()
                .any(|lock| lock.is_exclusive() && GuestVa(lock.address()).page() == page)
        };
        for (page, without) in pages.iter() {
            // What lies next to a lock that the domain holds is of the critical section that it is in.
            if *withdrawal != Withdrawal::Entangled || guarded_by_lock(page) {
                edits.0.insert(page, Box::new(without.clone()));
            }
        }
        if *withdrawal == Withdrawal::Entangled {
            restore_own(state, pages, &domain.checkpoint, &mut edits);
            left_reads(pages, held, &mut state.left_reads);
        }
        let mut wakes = Vec::new();
        if *withdrawal != Withdrawal::Whole {
            leave_locks(state, domain, decision, kept, &mut edits, &mut wakes);
        }
        // A wake-up that the domain has got may have been meant for whoever waits next to it.
        wakes.extend(domain.waits.wakes());
        self.put(state, edits, wakes)
    }

    /// Releases the read locks that vanished domains have left, of which it is known now that they are locks,
    /// because somebody has waited for them. No domain is running.
    pub fn release_left_reads(&mut self, state: &mut State) {
        if state.left_reads.is_empty() || state.domain.is_some() {
            return;
        }
        let waits = &state.wait_words;
        let is_known = |lock: &(u64, u32)| {
            let words = sync::rwlock_words(lock.0);
            words.iter().any(|word| waits.contains(word))
        };
        let (known, left) = state.left_reads.iter().copied().partition(is_known);
        state.left_reads = left;
        let known: Vec<(u64, u32)> = known;
        let (mut edits, mut wakes) = (Edits::default(), Vec::new());
        for (lock, times) in known {
            let shape = sync::rwlock_around(&edits.words(), lock);
            if shape == Some(lock) {
                let release = sync::release(&edits.words(), HeldLock::Read(lock, times));
                edits.apply(&release.unwrap_or_default(), &mut wakes);
            }
        }
        self.put(state, edits, wakes);
    }

    /// Makes `edits` the content of their pages, now and for the next domain, and wakes waiters. Returns how many
    /// pages could not be written.
    fn put(&mut self, state: &mut State, edits: Edits, wakes: Vec<(u64, u32)>) -> u32 {
        let mut lost = 0;
        for (page, content) in edits.0 {
            let whole = page_range(page);
            self.reveal(state, whole);
            // Nothing but words of the domain that is withdrawn, and of locks, is changed.
            for other in state.suspended.values_mut() {
                other.pages.touch(whole);
            }
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            if !tracker.rebase(&mut memory, page, &content) {
                lost += 1;
            }
        }
        for (word, count) in wakes {
            host::wake_futex(word, count);
        }
        lost
    }
}

/// Synchronisation objects in shared pages: locks that the domain holds are released, what it has waited for
/// goes on without it.
fn leave_locks(
    state: &State,
    domain: &Domain,
    decision: &Decision,
    kept: &KeptWords,
    edits: &mut Edits,
    wakes: &mut Vec<(u64, u32)>,
) {
    let pages = &domain.pages;
    let entangled = decision.withdrawal == Withdrawal::Entangled;
    let in_shared = |address: u64| pages.is_shared(GuestVa(address).page());
    // What the domain has handed over to others cannot be taken back.
    let known = state
        .wait_words
        .iter()
        .copied()
        .filter(|word| in_shared(*word));
    for word in known.chain(pages.contended()) {
        let lock = sync::rwlock_around(&memory(), word);
        for word in lock.map_or([0; 5], sync::rwlock_words) {
            if let Some(value) = memory().word(word) {
                edits.set(word, value);
            }
        }
    }
    // Others may wait for the same lock: its word has to go on saying so.
    for word in domain.waits.locks.iter().filter(|word| in_shared(**word)) {
        if let Some(is) = memory().word(*word) {
            edits.set(*word, is);
        }
    }
    for lock in &decision.held {
        if entangled || in_shared(lock.address()) {
            let release = sync::release(&memory(), *lock);
            edits.apply(&release.unwrap_or_default(), wakes);
        }
    }
    for (address, value) in kept.iter().filter(|(address, _)| in_shared(*address)) {
        edits.set(*address, *value);
    }
    let waiting = domain
        .waits
        .conditions
        .last()
        .filter(|_| domain.waits.in_condition);
    let waiting = waiting.filter(|condition| in_shared(condition.address));
    let cancelled = waiting.and_then(|condition| condition.cancel(&edits.words()));
    edits.apply(&cancelled.unwrap_or_default(), wakes);
}

/// The thread's own stack and control block go back to the checkpoint, from which it goes on.
fn restore_own(state: &State, pages: &SuspendedPages, checkpoint: &Checkpoint, edits: &mut Edits) {
    let stack_pointer = checkpoint.registers.rsp;
    let area_end = checkpoint.bases.0.saturating_add(THREAD_AREA);
    let Some(vma) = state.space.vmas().find(stack_pointer) else {
        return;
    };
    // The stack of a thread that glibc has made ends with its control block.
    let end = match vma.range.contains(checkpoint.bases.0) && checkpoint.bases.0 > stack_pointer {
        true => area_end.min(vma.range.end()),
        false => vma.range.end(),
    };
    let stack = GuestRange::from_bounds(stack_pointer.saturating_sub(RED_ZONE), end);
    let area = GuestRange::from_bounds(checkpoint.bases.0, area_end);
    for range in [stack, area] {
        for (page, without) in pages.iter() {
            let Some(part) = page_range(page).intersection(range) else {
                continue;
            };
            let first = part.start() & !3;
            for address in (first..part.end()).step_by(4) {
                edits.set(address, word_of(without, address));
            }
        }
    }
}

/// The content of `page` as it is.
pub fn content(machine: &mut impl Memory, page: PageNumber) -> Option<Box<PageContent>> {
    let mut content = PageContent::boxed();
    machine.read(page, &mut content).then_some(content)
}
