//! Memory that the processes of a server share: a request's writes to it are undone without those of others.
//!
//! From the first fork on of a process that has such memory, nobody writes it without a claim
//! ([`recovery::claims`]): its pages are read-only in the guest's page tables until a domain writes them. The
//! first process to write a page writes as it likes until its domain ends; another one is let through for one
//! instruction at a time, and what has become of the words is noted. When a domain ends, its pages become read-only again.
//!
//! Where two have written the same word, what the abandoned one has added is subtracted, as for a suspended request
//! (`process/suspend.rs`): counters are right then. A word that looks like an address, or that somebody has waited for, stays
//! as it is, and the request is `degraded`: others have used what it wrote. So is one that wrote what nobody could tell
//! apart. What processes only read of each other before a request is undone is not known.
//!
//! A request that waits in the middle lets go of what it has written: others are to see it, or it would wait in vain. If
//! one crashes that has written the same page as somebody who waits, it may have held what that one waits for. It does not
//! any more, but only the server's own code would tell the other one, as whoever takes and releases it next does: so that
//! is `degraded` too.
//!
//! The tracker knows nothing of these pages.

use std::collections::{BTreeMap, BTreeSet};

use guest_agentless::{Backing, GuestRange, GuestVa, PAGE_SIZE, PageNumber};
use recovery::claims::{Claim, Claims, Noted, PageKey, WORD, WORDS, Words};
use recovery::tracker::{Memory, PageContent};

use super::State;
use super::decode;
use super::step::TRAP_FLAG;
use super::thread::Thread;
use super::tracked::HostMemory;
use crate::host;
use crate::kvm::Registers;
use crate::memory::{claim_table, copy, page_range};

/// Instructions of a domain that are told apart; each costs two exits.
const STEPS_MAX: u32 = 128;
/// Bytes that an instruction may write to be told apart: what repeats stops after each of them.
const WRITE_MAX: u64 = 64;
/// How often a page is asked for that its owner is just letting go of.
const TRIES: u32 = 8;
/// Why a request is `degraded`.
const AWAITED: &str = "another process waits that has written the same shared memory";
/// Likewise.
const USED_BY_OTHERS: &str =
    "it wrote memory that other processes have written as well, and that could not be told apart";
/// Likewise.
pub const GONE_ON: &str =
    "it had written memory that it shares with other processes when it was suspended";

/// What the running domain has written of shared memory.
pub struct SharedWrites {
    claims: Claims,
    /// The pages that it has claimed, and what they held.
    owned: BTreeMap<PageKey, (PageNumber, Box<PageContent>)>,
    /// Pages that it may write until it ends.
    writable: Vec<PageNumber>,
    /// Pages that others have claimed, and that it writes as it likes all the same.
    mixed: Vec<PageKey>,
    /// Words that it has written in pages that others have claimed.
    steps: BTreeMap<(PageKey, usize), Stepped>,
    told_apart: u32,
    /// It has written what nobody keeps account of.
    unknown: bool,
    /// The pages that it had written when it began to wait.
    awaiting: Vec<PageKey>,
    spare: Vec<Box<PageContent>>,
}

/// A word that was written while another process had its page.
struct Stepped {
    address: u64,
    /// What was added to it in all, modulo 2^64.
    change: u64,
    /// What it held after the last write.
    after: u64,
}

/// A page that may be written by the next instruction, and no other.
pub(super) struct SharedStep {
    page: PageNumber,
    key: PageKey,
    /// The instruction.
    registers: Registers,
    /// The words that it may write, and what they hold.
    words: Vec<(u64, u64)>,
}

impl SharedWrites {
    fn new(claims: Claims) -> SharedWrites {
        SharedWrites {
            claims,
            owned: BTreeMap::new(),
            writable: Vec::new(),
            mixed: Vec::new(),
            steps: BTreeMap::new(),
            told_apart: 0,
            unknown: false,
            awaiting: Vec::new(),
            spare: Vec::new(),
        }
    }

    /// The same for a forked child, which has written nothing yet.
    pub fn for_child(&self) -> SharedWrites {
        SharedWrites::new(self.claims.for_child(std::process::id()))
    }

    /// The pages that the running domain has written.
    fn keys(&self) -> Vec<PageKey> {
        let stepped = self.steps.keys().map(|(key, _)| *key);
        let keys = self.owned.keys().copied().chain(self.mixed.iter().copied());
        let keys: BTreeSet<PageKey> = keys.chain(stepped).collect();
        keys.into_iter().collect()
    }

    /// Whether the running domain has written anything.
    fn is_clean(&self) -> bool {
        self.writable.is_empty() && self.steps.is_empty()
    }
}

impl State {
    /// Which page of memory that other processes share `page` is, if it is one.
    fn shared_key(&self, page: PageNumber) -> Option<PageKey> {
        self.shared.as_ref()?;
        let address = page.address().0;
        let vma = self.space.vmas().find(address).filter(|vma| vma.shared)?;
        let Backing::File(file) = &vma.backing else {
            return None;
        };
        let offset = file.offset.checked_add(address - vma.range.start())?;
        // Their numbers are no inodes.
        const SEGMENTS: (u32, u32) = (u32::MAX, 0);
        Some(PageKey {
            device: match file.is_segment() {
                true => SEGMENTS,
                false => file.device,
            },
            inode: file.inode,
            page: offset / PAGE_SIZE,
        })
    }

    /// The guest waits for the word at `address` to change.
    pub fn note_futex(&self, address: u64) {
        let page = GuestVa(address).page();
        if let (Some(shared), Some(key)) = (&self.shared, self.shared_key(page)) {
            let word = (address % PAGE_SIZE / WORD) as usize;
            shared.claims.note_awaited(key, word);
        }
    }

    /// The running domain waits in its middle: others may use what it has written. Returns whether it had written any
    /// memory that other processes share.
    pub(super) fn begin_shared_wait(&mut self) -> bool {
        let dirty = self.shared.as_mut().filter(|shared| !shared.is_clean());
        let Some(shared) = dirty else {
            return false;
        };
        let mut keys = shared.keys();
        keys.retain(|key| shared.claims.begin_wait(*key));
        shared.awaiting.extend(keys);
        self.release_shared();
        true
    }

    /// It waits no longer.
    pub(super) fn end_shared_wait(&mut self) {
        if let Some(shared) = &mut self.shared {
            for key in shared.awaiting.drain(..) {
                shared.claims.end_wait(key);
            }
        }
    }

    /// The running domain has ended: the next one claims anew what it writes.
    pub fn release_shared(&mut self) {
        let Some(shared) = &mut self.shared else {
            return;
        };
        if shared.is_clean() {
            return;
        }
        // Before others are let in.
        for page in shared.writable.drain(..) {
            self.space.trap(page);
        }
        for (key, (_, base)) in std::mem::take(&mut shared.owned) {
            shared.claims.release(key);
            shared.spare.push(base);
        }
        for key in shared.mixed.drain(..) {
            shared.claims.done(key, []);
        }
        shared.steps.clear();
        shared.told_apart = 0;
        shared.unknown = false;
    }
}

impl Thread {
    /// The process is about to fork. From now on shared memory is claimed before it is written, if there is any.
    pub fn begin_sharing(&mut self, state: &mut State) {
        let shares = |state: &State| state.space.vmas().iter().any(|vma| vma.shared);
        if !self.process.options.protect || state.shared.is_some() || !shares(state) {
            return;
        }
        let groups = match claim_table::create() {
            Ok(groups) => groups,
            Err(error) => {
                log::error!("writes to shared memory are not told apart: {error}");
                return;
            }
        };
        // Nobody may write it unnoticed, whether he serves requests or not.
        self.arm(state);
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.protect_all(&mut memory);
        let claims = Claims::new(groups, std::process::id(), host::is_alive);
        state.shared = Some(SharedWrites::new(claims));
    }

    /// The guest is about to write `page` of shared memory, which is read-only in its page tables. None if it is not
    /// such a page, or else whether it may.
    pub(super) fn write_shared(&mut self, state: &mut State, page: PageNumber) -> Option<bool> {
        let key = state.shared_key(page)?;
        let words = |thread: &mut Thread, state: &State| {
            let told_apart = state.shared.as_ref().map_or(0, |shared| shared.told_apart);
            (told_apart < STEPS_MAX).then(|| thread.words_written(page))?
        };
        Some(self.enter_shared(state, page, key, words))
    }

    /// The host is about to write `range` on behalf of the guest: what of it is shared memory is claimed. Returns the
    /// rest, which is the tracker's.
    pub(super) fn host_write_shared(
        &mut self,
        state: &mut State,
        range: GuestRange,
    ) -> Option<GuestRange> {
        let pages = range.to_pages()?;
        if state.shared.is_none() || state.shared_key(pages.pages().next()?).is_none() {
            return Some(range);
        }
        // The range lies in one mapping.
        for page in pages.pages() {
            if let Some(key) = state.shared_key(page) {
                self.enter_shared(state, page, key, |_, _| None);
            }
        }
        None
    }

    /// Claims the page, or lets the guest write `words` of it if others have it, or all of it if they are not known. False
    /// if the page cannot be read.
    fn enter_shared(
        &mut self,
        state: &mut State,
        page: PageNumber,
        key: PageKey,
        words: impl Fn(&mut Thread, &State) -> Option<Words>,
    ) -> bool {
        for _ in 0..TRIES {
            match self.claim(state, page, key) {
                Claim::Owned => return true,
                Claim::Failed => return false,
                Claim::Unknown => break,
                Claim::Others => {}
            }
            let words = words(self, state);
            let Some(shared) = &mut state.shared else {
                return false;
            };
            // What cannot be noted can be claimed now.
            match words {
                Some(words) if shared.claims.note(key, &words) => {
                    self.step_shared(state, page, key, &words);
                    return true;
                }
                None if shared.mixed.contains(&key) => break,
                None if shared.claims.note_all(key) => {
                    shared.mixed.push(key);
                    break;
                }
                _ => {}
            }
        }
        if let Some(shared) = &mut state.shared {
            shared.unknown = true;
            shared.writable.push(page);
        }
        state.space.set_writable(page, true);
        true
    }

    fn claim(&mut self, state: &mut State, page: PageNumber, key: PageKey) -> Claim {
        let Some(shared) = &mut state.shared else {
            return Claim::Unknown;
        };
        let mut memory = HostMemory {
            space: &mut state.space,
            own_memory: &self.process.own_memory,
        };
        let mut base = None;
        let claim = shared.claims.claim(key, || {
            let into = base.insert(shared.spare.pop().unwrap_or_else(PageContent::boxed));
            memory.read(page, into)
        });
        if claim == Claim::Owned {
            if let Some(base) = base {
                shared.owned.insert(key, (page, base));
            }
            shared.writable.push(page);
            state.space.set_writable(page, true);
        }
        claim
    }

    /// The words of `page` that the instruction writes which the guest stands at, if they are known.
    fn words_written(&mut self, page: PageNumber) -> Option<Words> {
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        let written = decode::writes(self.vcpu.registers(), bases)?;
        let mut words = Words::NONE;
        let start = page.address().0;
        for part in written {
            if part.len() > WRITE_MAX {
                return None;
            }
            let Some(part) = part.intersection(page_range(page)) else {
                continue;
            };
            let first = (part.start() - start) / WORD;
            let last = (part.end() - start).div_ceil(WORD);
            (first..last).for_each(|word| words.insert(word as usize));
        }
        (words != Words::NONE).then_some(words)
    }

    /// Lets the guest write `words` of the page with its next instruction.
    fn step_shared(&mut self, state: &mut State, page: PageNumber, key: PageKey, words: &Words) {
        let address = |word: usize| page.address().0 + word as u64 * WORD;
        let words = words.iter().map(address);
        let registers = *self.vcpu.registers();
        self.shared_steps.push(SharedStep {
            page,
            key,
            registers,
            words: words.map(|word| (word, read_word(word))).collect(),
        });
        if let Some(shared) = &mut state.shared {
            shared.told_apart += 1;
        }
        state.space.set_writable(page, true);
        self.vcpu.registers().rflags |= TRAP_FLAG;
    }

    /// The instruction has been executed, or will not be.
    pub(super) fn end_shared_steps(&mut self, state: &mut State) {
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        let now = *self.vcpu.registers();
        for step in std::mem::take(&mut self.shared_steps) {
            state.space.trap(step.page);
            let Some(shared) = &mut state.shared else {
                continue;
            };
            // What it has exchanged is known exactly, whatever others have written at the same moment.
            let exchanged = decode::exchanged(&step.registers, bases, &now);
            let exchanged =
                exchanged.filter(|(range, ..)| range.start() % WORD + range.len() <= WORD);
            let mut changes = Vec::new();
            for (address, before) in step.words {
                let after = read_word(address);
                let change = match &exchanged {
                    Some((range, found, written)) => {
                        let shift = 8 * (range.start() % WORD);
                        written.wrapping_sub(*found) << shift
                    }
                    None => after.wrapping_sub(before),
                };
                if change == 0 {
                    continue;
                }
                let word = (address % PAGE_SIZE / WORD) as usize;
                let stepped = shared.steps.entry((step.key, word)).or_insert(Stepped {
                    address,
                    change: 0,
                    after,
                });
                stepped.change = stepped.change.wrapping_add(change);
                stepped.after = after;
                changes.push((word, change));
            }
            shared.claims.done(step.key, changes);
        }
    }

    /// The running domain is abandoned: undoes what it has written of shared memory. Returns why that is not as if it had
    /// never been, if so.
    pub(super) fn undo_shared(&mut self, state: &mut State) -> Option<&'static str> {
        self.end_shared_steps(state);
        let dirty = state.shared.as_mut().filter(|shared| !shared.is_clean());
        let shared = dirty?;
        let mut keys = shared.keys().into_iter();
        let is_awaited = keys.any(|key| shared.claims.is_awaited(key));
        let mut whole = !shared.unknown;
        let (owned, steps) = (
            std::mem::take(&mut shared.owned),
            std::mem::take(&mut shared.steps),
        );
        let claims = shared.claims;
        let mut now = PageContent::boxed();
        let mut memory = HostMemory {
            space: &mut state.space,
            own_memory: &self.process.own_memory,
        };
        for (key, (page, base)) in &owned {
            let before = |word: usize| {
                let stepped = steps.get(&(*key, word));
                stepped.map_or(0, |stepped| stepped.change)
            };
            let is_claimed = claims.undo(*key, |noted| {
                // A mapping that the domain has made is gone.
                if memory.read(*page, &mut now) {
                    let is_awaited = |word| claims.was_awaited(*key, word);
                    whole &= put_back(&mut memory, *page, base, &now, &noted, before, is_awaited);
                }
            });
            whole &= is_claimed;
        }
        for ((key, word), step) in &steps {
            if !owned.contains_key(key) {
                whole &= state.undo_step(claims, *key, *word, step);
            }
        }
        if let Some(shared) = &mut state.shared {
            shared.owned = owned;
            shared.steps = steps;
        }
        state.release_shared();
        match (whole, is_awaited) {
            (false, _) => Some(USED_BY_OTHERS),
            (true, true) => Some(AWAITED),
            (true, false) => None,
        }
    }
}

/// Gives the words of a page what they held when it was claimed, without what the domain had added `before` that, and with
/// what others have added since. False if that cannot be done for all.
///
/// Each word is written once: at no moment does anybody see one that neither was there nor should be.
fn put_back(
    memory: &mut HostMemory<'_>,
    page: PageNumber,
    base: &PageContent,
    now: &PageContent,
    noted: &Noted<'_>,
    before: impl Fn(usize) -> u64,
    is_awaited: impl Fn(usize) -> bool,
) -> bool {
    let (base, _) = base.bytes().as_chunks::<{ WORD as usize }>();
    let (now, _) = now.bytes().as_chunks::<{ WORD as usize }>();
    let mut whole = true;
    for word in 0..WORDS {
        let [now, base] = [now[word], base[word]].map(u64::from_ne_bytes);
        let added = noted.added(word);
        if now == base.wrapping_add(added) && before(word) == 0 {
            continue;
        }
        let is_address = |value| memory.space.vmas().find(value).is_some();
        let is_used = added != 0 && (is_awaited(word) || is_address(base) || is_address(now));
        if noted.is_mixed() || is_used {
            whole = false;
            continue;
        }
        let without = base.wrapping_add(added).wrapping_sub(before(word));
        let address = page.address().0 + word as u64 * WORD;
        let exchange = || copy::exchange(address, now, without).unwrap_or(false);
        // The guest may have taken its own access away.
        whole &= exchange() || memory.space.with_write_access(page, exchange);
        host::wake_waiting(address);
    }
    whole
}

impl State {
    /// Undoes what was written of a word while others had its page, and tells those who have it now. False if that cannot
    /// be done.
    fn undo_step(&self, claims: Claims, key: PageKey, word: usize, step: &Stepped) -> bool {
        if step.change == 0 {
            return true;
        }
        let mut words = Words::NONE;
        words.insert(word);
        for _ in 0..TRIES {
            let claim = claims.claim(key, || true);
            if claim == Claim::Others && !claims.note(key, &words) {
                continue;
            }
            let undone = self.undo_word(step, claims.was_awaited(key, word));
            match claim {
                Claim::Owned => claims.release(key),
                Claim::Others => {
                    let added = if undone {
                        step.change.wrapping_neg()
                    } else {
                        0
                    };
                    claims.done(key, [(word, added)]);
                }
                Claim::Unknown | Claim::Failed => {}
            }
            return undone;
        }
        false
    }

    fn undo_word(&self, step: &Stepped, is_awaited: bool) -> bool {
        let is_address = |value| self.space.vmas().find(value).is_some();
        for _ in 0..TRIES {
            let now = read_word(step.address);
            if now != step.after && (is_awaited || is_address(now) || is_address(step.after)) {
                return false;
            }
            let without = now.wrapping_sub(step.change);
            if copy::exchange(step.address, now, without) == Ok(true) {
                host::wake_waiting(step.address);
                return true;
            }
        }
        false
    }
}

/// The word at `address`; zero if it cannot be read, and then not written either.
fn read_word(address: u64) -> u64 {
    let mut bytes = [0; WORD as usize];
    let _ = copy::read(address, &mut bytes);
    u64::from_ne_bytes(bytes)
}
