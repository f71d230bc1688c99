//! Requests that wait in the middle: suspended, watched, and resumed.
//!
//! A request that has to give up the run token before it has ended keeps everything that is needed to undo it.
//! The pages that it has written are guarded meanwhile: whoever touches one makes it shared
//! ([`recovery::suspended`]). Work that belongs to no client is committed instead, and so is what a thread does
//! that executes requests which others have read: it may have waited for them.

use std::collections::BTreeMap;

use guest_agentless::{GuestVa, PageNumber, sync};
use recovery::SuspendedPages;
use recovery::suspended::Merge;

use super::State;
use super::domain::{Domain, Early};
use super::effects::Undo;
use super::rerun::Committed;
use super::thread::Thread;
use super::withdraw;
use crate::memory::{Stash, runs};

/// Pages that a request may have written to be suspended as a whole: to keep two copies of more would cost too much,
/// and time besides.
const PAGES_LIMIT: usize = 4096;
const WROTE_TOO_MUCH: &str = "it had written too much to be watched when it was suspended, so that others could run: \
                              what it wrote until then stays, except for its stack";
const HAS_MAPPED: &str = "it had mapped or unmapped shared memory when it was suspended, so that others could run: what it wrote there \
                          until then stays";
/// What is below this is no address.
const LOWEST_ADDRESS: u64 = 0x1_0000;

impl Thread {
    /// The running domain waits, or has used up its time slice: others will run.
    pub fn suspend(&mut self, state: &mut State) -> Committed {
        if self.leave_shared_midway(state) == Committed::PutBack {
            return Committed::PutBack;
        }
        let committed = self.suspend_domain(state);
        self.release_left_reads(state);
        committed
    }

    fn suspend_domain(&mut self, state: &mut State) -> Committed {
        let in_request = state.domain.as_ref().is_some_and(Domain::is_request);
        if !in_request {
            return self.commit_early(state, Early::Suspended);
        }
        // Whose request it goes on with is not known.
        if self.answers_for_others {
            return self.commit(state);
        }
        // Nobody is there to run meanwhile.
        if self.process.threads().len() <= 1 {
            return Committed::Done;
        }
        self.count_written(state);
        let Some(mut domain) = state.domain.take() else {
            return Committed::Done;
        };
        let is_shared_mapping = |inverse: &Undo| match inverse {
            Undo::Unmap { range } => state.is_shared_in(*range),
            Undo::Remap { stash, .. } => stash.iter().any(Stash::is_shared),
            _ => false,
        };
        if domain.journal.inverses().iter().any(is_shared_mapping) {
            domain.cramped.get_or_insert(HAS_MAPPED);
        }
        let mut written = SuspendedPages::default();
        std::mem::swap(&mut written, &mut domain.pages);
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        let mut left = Vec::new();
        let fits = tracker.suspend(&mut memory, PAGES_LIMIT, |page, base, content| {
            left.push((page, Box::new(base.clone()), Box::new(content.clone())));
        });
        if !fits {
            domain.pages = written;
            state.domain = Some(domain);
            self.commit_written(state, WROTE_TOO_MUCH);
            let Some(cramped) = state.domain.take() else {
                return Committed::Done;
            };
            domain = cramped;
            written = std::mem::take(&mut domain.pages);
            left.clear();
        }
        state.note_heap();
        for (page, base, content) in left {
            written.leave(page, &base, &content);
        }
        let watched = runs(written.unused());
        if state.space.guard(&watched).is_err() {
            // Unwatched, so they have to be taken for used.
            watched.iter().for_each(|range| written.share(*range));
        }
        domain.pages = written;
        domain.journal.mark();
        // Others change memory from now on.
        domain.audit = None;
        self.process.stats.domains.suspended.inc();
        state.suspended.insert(self.tid(), domain);
        Committed::Done
    }

    /// The thread has the run token again: goes on with its domain, if it was suspended.
    pub fn resume(&mut self, state: &mut State) {
        let tid = self.tid();
        let Some(mut domain) = state.suspended.remove(&tid) else {
            return;
        };
        for range in runs(domain.pages.unused()) {
            state.unguard_unwatched(range);
        }
        self.take_over_changes(state, &mut domain);
        state.domain = Some(domain);
    }

    /// A domain of this thread has been committed: what it wrote in pages that suspended domains have written
    /// is told apart from what they did. Now and not when they are resumed: several domains together may write
    /// a word and put it back.
    pub fn tell_suspended(&mut self, state: &mut State) {
        if state.suspended.is_empty() {
            return;
        }
        let mut suspended = std::mem::take(&mut state.suspended);
        for domain in suspended.values_mut() {
            self.take_over_changes(state, domain);
        }
        state.suspended = suspended;
    }

    fn take_over_changes(&mut self, state: &mut State, domain: &mut Domain) {
        if domain.pages.shared().next().is_none() {
            return;
        }
        let process = std::sync::Arc::clone(&self.process);
        let shared: Vec<PageNumber> = domain.pages.shared().collect();
        self.restore_pages(state, shared.clone());
        let (_, mut memory) = state.tracking(&process, &mut self.vcpu);
        let content: BTreeMap<PageNumber, _> = shared
            .into_iter()
            .filter_map(|page| Some((page, withdraw::content(&mut memory, page)?)))
            .collect();
        let vmas = state.space.vmas();
        let is_address = |value: u64| value >= LOWEST_ADDRESS && vmas.find(value).is_some();
        let word = |address: u64| {
            let page = content.get(&GuestVa(address).page())?;
            Some(withdraw::word_of(page, address))
        };
        let (waits, wait_words) = (&domain.waits, &state.wait_words);
        domain.pages.resume(
            |page, into| match content.get(&page) {
                Some(now) => {
                    into.clone_from(now);
                    true
                }
                None => false,
            },
            |address, left, now| {
                if sync::counts_readers(&word, address, left as u32, now as u32) {
                    return Merge::Holders;
                }
                let rwlock = sync::rwlock_around(&word, address).filter(|lock| *lock != address);
                let is_known = |lock| {
                    sync::rwlock_words(lock)
                        .iter()
                        .any(|word| wait_words.contains(word))
                };
                let is_mutex = waits.has_lock(address) || sync::is_held_mutex(&word, address);
                if is_mutex || rwlock.is_some_and(is_known) {
                    Merge::Keep
                } else if rwlock.is_some() {
                    Merge::Doubt
                } else if is_address(left) || is_address(now) {
                    Merge::Entangle
                } else {
                    Merge::Add
                }
            },
        );
    }
}
