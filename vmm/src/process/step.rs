//! Accesses to pages that a suspended request has written, told apart word by word.
//!
//! A page that nobody may touch unnoticed holds more than what the request has written. Whoever touches something else
//! in it is let through for one instruction; only who touches a word that the request has changed uses what it wrote.
//! The word of a lock that the request holds may be looked at, and what counts the readers of one: they say what they
//! have to.

use guest_agentless::{GuestRange, GuestVa, PageNumber, sync};

use recovery::tracker::PageContent;

use super::State;
use super::decode;
use super::domain::Domain;
use super::thread::Thread;
use super::withdraw::word_of;
use crate::memory::{Attempt, page_range};

/// The trap flag in RFLAGS: an exception after one instruction.
pub(super) const TRAP_FLAG: u64 = 1 << 8;
/// Accesses that are told apart while one request is suspended. Each costs two exits.
const TOLD_APART_MAX: u32 = 4096;
/// Accesses of one domain that are told apart, so that it does not use up its own time slice by that.
const STEPS_MAX: u32 = 128;

impl State {
    /// Somebody is about to touch `range`: takes note of it for the suspended domains that have written there.
    pub(super) fn note_access(&mut self, range: GuestRange) {
        for (tid, domain) in &mut self.suspended {
            for page in range.pages() {
                let Some(part) = page_range(page).intersection(range) else {
                    continue;
                };
                match used_word(domain, part) {
                    None => domain.pages.touch(part),
                    Some(word) => {
                        log::debug!("what thread {tid} wrote at {word:#x} is used by others");
                        domain.pages.share(part);
                    }
                }
            }
        }
    }

    /// Somebody touches `range`, nobody knows what in it.
    fn note_use(&mut self, range: GuestRange) {
        for domain in self.suspended.values_mut() {
            domain.pages.share(range);
        }
    }

    /// Whether a suspended domain has written `page`, and others have used nothing of that.
    fn is_watched(&self, page: PageNumber) -> bool {
        let mut domains = self.suspended.values();
        domains.any(|domain| domain.pages.is_unused(page))
    }

    /// Lets the pages of `range` be used again that need not be guarded any more.
    pub(super) fn unguard_unwatched(&mut self, range: GuestRange) {
        let parts: Vec<GuestRange> = self.space.guards().overlapping(range).collect();
        for page in parts.iter().flat_map(|part| part.pages()) {
            if !self.is_watched(page) {
                self.space.unguard(&self.tracker, page_range(page));
            }
        }
    }

    /// Whether one more access to `page` may be told apart.
    fn may_step(&mut self, page: PageNumber) -> bool {
        let Some(running) = &mut self.domain else {
            return false;
        };
        running.steps += 1;
        let mut may = running.steps <= STEPS_MAX;
        for owner in self.suspended.values_mut() {
            if owner.pages.is_unused(page) {
                owner.told_apart += 1;
                may &= owner.told_apart <= TOLD_APART_MAX;
            }
        }
        may
    }
}

/// A word in `range` that the suspended `domain` has changed, and whose value others would rely on.
fn used_word(domain: &Domain, range: GuestRange) -> Option<u64> {
    let pages = &domain.pages;
    let word = |page: Option<&PageContent>, address| Some(word_of(page?, address));
    let left = |address: u64| word(pages.left(GuestVa(address).page()), address);
    let without = |address: u64| word(pages.without(GuestVa(address).page()), address);
    let is_lock = |address: u64| {
        let counts = |(before, after)| sync::counts_readers(&left, address, before, after);
        sync::is_held_mutex(&left, address)
            || without(address).zip(left(address)).is_some_and(counts)
    };
    pages.changed(range).find(|address| !is_lock(*address))
}

impl Thread {
    /// The guest is about to touch a guarded page at `address`.
    pub(super) fn touch_guarded(&mut self, state: &mut State, address: u64, attempt: Attempt) {
        let page = GuestVa(address).page();
        let whole = page_range(page);
        self.reveal(state, whole);
        match self.accesses_to(state, page, attempt) {
            Some(parts) => parts.iter().for_each(|part| state.note_access(*part)),
            None => state.note_use(whole),
        }
        if !state.space.guards().contains(page) {
            return;
        }
        let is_watched = state.is_watched(page);
        state.space.unguard(&state.tracker, whole);
        if is_watched {
            // For this instruction only.
            self.stepping.push(page);
            self.vcpu.registers().rflags |= TRAP_FLAG;
        }
    }

    /// What the instruction that the guest stands at touches in `page`, if that is to be told apart.
    fn accesses_to(
        &mut self,
        state: &mut State,
        page: PageNumber,
        attempt: Attempt,
    ) -> Option<Vec<GuestRange>> {
        if attempt == Attempt::Execute || !state.may_step(page) {
            return None;
        }
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        let accesses = decode::accesses(self.vcpu.registers(), bases)?;
        let parts = accesses.iter();
        let parts: Vec<_> = parts
            .filter_map(|part| part.intersection(page_range(page)))
            .collect();
        (!parts.is_empty()).then_some(parts)
    }

    /// Whether the guest is at such an instruction. One that has got rid of the flag will not be stopped after it.
    pub(super) fn is_stepping(&mut self, state: &mut State) -> bool {
        if self.vcpu.registers().rflags & TRAP_FLAG == 0 {
            self.end_step(state);
        }
        self.has_steps()
    }

    /// Whether something is let through for one instruction.
    pub(super) fn has_steps(&self) -> bool {
        !self.stepping.is_empty()
    }

    /// A debug exception: whether it ends such an instruction.
    pub(super) fn has_stepped(&mut self, state: &mut State) -> bool {
        let steps = self.has_steps();
        if steps {
            // The access was made, however often the next one faults at the same place.
            self.last_fault = (0, 0);
        }
        self.end_step(state);
        steps
    }

    /// The pages are guarded again, unless they need not be any more.
    pub(super) fn end_step(&mut self, state: &mut State) {
        if !self.has_steps() {
            return;
        }
        self.vcpu.registers().rflags &= !TRAP_FLAG;
        for page in std::mem::take(&mut self.stepping) {
            let whole = page_range(page);
            if state.is_watched(page) && state.space.guard(&[whole]).is_err() {
                state.note_use(whole);
            }
        }
    }
}
