//! Memory that the processes of a server share: a request's writes to it are undone without those of others.
//!
//! From the first fork on of a process that has such memory, or when it maps some and there are other processes, nobody
//! writes it without a claim
//! ([`recovery::claims`]): its pages are read-only in the guest's page tables until a domain writes them. The
//! first process to write a page writes as it likes until its domain ends; another one is let through for one
//! instruction at a time, and what has become of the words is noted. When a domain ends, its pages become read-only again.
//!
//! Where two have added to the same word, what the abandoned one has added is subtracted: counters are right then. If
//! another process has changed a word that it has changed in any other way, or nobody could tell what was written, then what
//! it wrote has been used, and to undo the rest of it would leave structures half changed. All of it stays. Then a forked
//! child ends as by the fault without the monitor, and its parent does what it does then; a process that nobody would start
//! again goes on, and the request is `degraded`. What processes only read of each other before a request is undone is not
//! known.
//!
//! A request that waits in the middle lets go of what it has written: others are to see it, or it would wait in vain. Who
//! has written the same page as somebody who waits may hold what that one waits for, and only the server's own code, or its
//! parent, would hand it over: that counts as used, too.
//!
//! The tracker knows nothing of these pages.

mod step;
mod undo;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;

use guest_agentless::{Backing, GuestRange, GuestVa, PAGE_SIZE, PageNumber, Vma};
use recovery::claims::{Claim, Claims, PageKey, WORD, Words};
use recovery::tracker::{Memory, PageContent};

use super::State;
use super::thread::Thread;
use super::tracked::HostMemory;
use crate::host;
use crate::memory::copy;
pub(super) use step::SharedStep;

/// Instructions of a domain that are told apart; each costs two exits.
const STEPS_MAX: u32 = 128;
/// Pages that a domain may claim, and pages kept for the next one to keep what its claims hold: each takes 4 KiB.
const OWNED_MAX: usize = 4096;
const SPARE_MAX: usize = 64;
/// How often a page is asked for that its owner is just letting go of.
const TRIES: u32 = 8;
/// Why a request is not `recovered`.
pub const USED_BY_OTHERS: &str =
    "what it wrote to shared memory was used by other processes, or may have been";
/// Likewise.
pub const GONE_ON: &str =
    "it had written memory that it shares with other processes when it was suspended";

/// What the running domain has written of shared memory.
pub struct SharedWrites {
    claims: Claims,
    /// The pages that it has claimed, and what they held.
    owned: BTreeMap<PageKey, (PageNumber, Box<PageContent>)>,
    /// Pages that it may write until it ends.
    writable: BTreeSet<PageNumber>,
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
    /// All that was done to it was to add to it.
    is_sum: bool,
}

impl SharedWrites {
    fn new(claims: Claims) -> SharedWrites {
        SharedWrites {
            claims,
            owned: BTreeMap::new(),
            writable: BTreeSet::new(),
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
        // Also of instructions that have changed nothing.
        shared.told_apart = 0;
        if shared.is_clean() {
            return;
        }
        // Before others are let in.
        for page in std::mem::take(&mut shared.writable) {
            self.space.trap(page);
        }
        for (key, (_, base)) in std::mem::take(&mut shared.owned) {
            shared.claims.release(key);
            if shared.spare.len() < SPARE_MAX {
                shared.spare.push(base);
            }
        }
        for key in shared.mixed.drain(..) {
            shared.claims.done(key, []);
        }
        shared.steps.clear();
        shared.unknown = false;
    }
}

impl Thread {
    /// The process is about to fork. From now on shared memory is claimed before it is written, if there is any.
    pub fn share_with_child(&mut self, state: &mut State) {
        let common = self.process.common;
        common.has_forked.store(true, Ordering::Release);
        // The C library maps a cache of its own shared, to read it.
        let is_shared = |vma: &Vma| vma.shared && vma.protection.is_writable();
        if state.space.vmas().iter().any(is_shared) {
            self.begin_sharing(state);
        }
    }

    /// Whether memory that is mapped shared from now on may be that of other processes, and is not claimed yet.
    pub fn may_share(&self, state: &State) -> bool {
        let has_forked = &self.process.common.has_forked;
        self.process.options.protect && state.shared.is_none() && has_forked.load(Ordering::Acquire)
    }

    /// From now on shared memory is claimed before it is written. Nothing is written that has not been committed.
    pub fn begin_sharing(&mut self, state: &mut State) {
        if !self.process.options.protect || state.shared.is_some() {
            return;
        }
        // Nobody may write it unnoticed, whether he serves requests or not.
        self.arm(state);
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.protect_all(&mut memory);
        if !self.process.serving.load(Ordering::Acquire) {
            let reason = "it shared memory with another process before it began to serve";
            state.restart.unavailable = Some(reason.into());
        }
        let table = &self.process.common.claims;
        let claims = Claims::new(table, std::process::id(), host::is_alive);
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
            shared.writable.insert(page);
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
        let has_claimed = shared.owned.contains_key(&key);
        if shared.owned.len() >= OWNED_MAX && !has_claimed {
            return Claim::Unknown;
        }
        let claim = shared.claims.claim(key, has_claimed, || {
            let into = base.insert(shared.spare.pop().unwrap_or_else(PageContent::boxed));
            memory.read(page, into)
        });
        if claim == Claim::Owned {
            if let Some(base) = base {
                shared.owned.insert(key, (page, base));
            }
            shared.writable.insert(page);
            state.space.set_writable(page, true);
        }
        claim
    }
}

/// The word at `address`; zero if it cannot be read, and then not written either.
fn read_word(address: u64) -> u64 {
    let mut bytes = [0; WORD as usize];
    let _ = copy::read(address, &mut bytes);
    u64::from_ne_bytes(bytes)
}
