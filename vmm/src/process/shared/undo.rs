//! What an abandoned domain has written of shared memory, undone: all or nothing.

use guest_agentless::PageNumber;
use recovery::claims::{Change, Claim, Claims, Noted, PageKey, WORD, WORDS, Words};
use recovery::tracker::{Memory, PageContent};

use super::{Stepped, TRIES, read_word};
use crate::host;
use crate::memory::copy;
use crate::process::State;
use crate::process::thread::Thread;
use crate::process::tracked::HostMemory;

impl Thread {
    /// The running domain is abandoned: undoes what it has written of shared memory, all or nothing. False if others have
    /// used it.
    pub(in crate::process) fn undo_shared(&mut self, state: &mut State) -> bool {
        self.end_shared_steps(state);
        let dirty = state.shared.as_mut().filter(|shared| !shared.is_clean());
        let Some(shared) = dirty else {
            return true;
        };
        let claims = shared.claims;
        let is_awaited = shared.keys().into_iter().any(|key| claims.is_awaited(key));
        let (owned, steps) = (
            std::mem::take(&mut shared.owned),
            std::mem::take(&mut shared.steps),
        );
        let mut whole = !shared.unknown && !is_awaited;
        // Those to pages that this process has not claimed later on.
        let of_others = || {
            let steps = steps.iter();
            steps.filter(|((key, _), _)| !owned.contains_key(key))
        };
        let mut memory = HostMemory {
            space: &mut state.space,
            own_memory: &self.process.own_memory,
        };
        let keys: Vec<PageKey> = owned.keys().copied().collect();
        claims.undo(&keys, |noted| {
            let mut writes = Vec::new();
            for ((key, (page, base)), noted) in owned.iter().zip(noted) {
                let stepped = |word: usize| steps.get(&(*key, word));
                let is_awaited = |word| claims.was_awaited(*key, word);
                let Some(noted) = noted else {
                    whole = false;
                    continue;
                };
                let mut now = PageContent::boxed();
                // What the domain has unmapped itself is out of reach.
                whole &= memory.read(*page, &mut now)
                    && compare(*page, base, &now, noted, stepped, is_awaited, &mut writes);
            }
            for ((key, word), step) in of_others() {
                let is_sum = step.is_sum && !claims.was_awaited(*key, *word);
                whole &= step.change == 0 || is_sum || read_word(step.address) == step.after;
            }
            for write in writes {
                // What was to be told to who waits for it may not have been.
                match whole {
                    true => whole &= write.exchange(&mut memory),
                    false => host::wake_waiting(write.address),
                }
            }
        });
        for ((key, word), step) in of_others() {
            // The last moment to see that somebody else has written it.
            match whole {
                true => whole &= undo_step(claims, *key, *word, step),
                false => host::wake_waiting(step.address),
            }
        }
        if let Some(shared) = &mut state.shared {
            shared.owned = owned;
            shared.steps = steps;
        }
        state.release_shared();
        whole
    }
}

/// A word that is to be given another value.
struct Write {
    page: PageNumber,
    address: u64,
    from: u64,
    to: u64,
}

impl Write {
    /// Whether it could be done: each word is written once, so that at no moment anybody sees one that neither was there
    /// nor should be.
    fn exchange(&self, memory: &mut HostMemory<'_>) -> bool {
        let exchange = || copy::exchange(self.address, self.from, self.to).unwrap_or(false);
        // The guest may have taken its own access away.
        let done = exchange() || memory.space.with_write_access(self.page, exchange);
        host::wake_waiting(self.address);
        done
    }
}

/// What is to be written to a page, for its words to hold what they did when it was claimed, without what the domain had
/// added in steps before that, and with what others have added since. False if others have used what the domain wrote.
fn compare<'a>(
    page: PageNumber,
    base: &PageContent,
    now: &PageContent,
    noted: &Noted<'_>,
    stepped: impl Fn(usize) -> Option<&'a Stepped>,
    is_awaited: impl Fn(usize) -> bool,
    writes: &mut Vec<Write>,
) -> bool {
    let (base, _) = base.bytes().as_chunks::<{ WORD as usize }>();
    let (now, _) = now.bytes().as_chunks::<{ WORD as usize }>();
    let mut whole = true;
    for word in 0..WORDS {
        let [now, base] = [now[word], base[word]].map(u64::from_ne_bytes);
        let (added, stepped) = (noted.added(word), stepped(word));
        let before = stepped.map_or(0, |stepped| stepped.change);
        if now == base.wrapping_add(added) && before == 0 {
            continue;
        }
        let is_sum = noted.is_sum(word) && !is_awaited(word);
        // Others may have written it between the last step and the claim.
        let is_own = stepped.is_none_or(|s| s.change == 0 || s.is_sum || s.after == base);
        whole &= !noted.is_mixed() && (added == 0 || is_sum) && is_own;
        writes.push(Write {
            page,
            address: page.address().0 + word as u64 * WORD,
            from: now,
            to: base.wrapping_add(added).wrapping_sub(before),
        });
    }
    whole
}

/// Undoes what was written of a word while others had its page, and tells those who have it now. False if that cannot be
/// done.
fn undo_step(claims: Claims, key: PageKey, word: usize, step: &Stepped) -> bool {
    if step.change == 0 {
        return true;
    }
    let mut words = Words::NONE;
    words.insert(word);
    for _ in 0..TRIES {
        let claim = claims.claim(key, false, || true);
        if claim == Claim::Others && !claims.note(key, &words) {
            continue;
        }
        let undone = undo_word(step, step.is_sum && !claims.was_awaited(key, word));
        match claim {
            Claim::Owned => claims.release(key),
            Claim::Others => {
                let change = Change {
                    word,
                    added: step.change.wrapping_neg(),
                    is_sum: step.is_sum,
                };
                claims.done(key, undone.then_some(change));
            }
            Claim::Unknown | Claim::Failed => {}
        }
        return undone;
    }
    false
}

fn undo_word(step: &Stepped, is_sum: bool) -> bool {
    for _ in 0..TRIES {
        let now = read_word(step.address);
        if now != step.after && !is_sum {
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
