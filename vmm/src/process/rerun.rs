//! A request whose deferred write has failed is run again without deferring: nothing of it has left the
//! monitor yet, and this time the server sees the error of its own call.

use guest_agentless::Errno;

use super::State;
use super::effects::{Deferred, Undo};
use super::files::{Delivery, GivenBack};
use super::thread::Thread;
use super::withdraw::{self, Withdrawal};
use crate::host::Envelope;
use crate::kvm::KvmError;
use crate::sys;
use recovery::Origin;

/// How a commit has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Committed {
    /// The domain has ended, or there was none.
    Done,
    /// It has been put back to its checkpoint and runs again: the call that would have ended it does not
    /// take place.
    PutBack,
}

/// Bytes of input kept to be delivered again. A request with more of it does not defer its writes.
pub const REPLAY_LIMIT: usize = 16 << 20;

/// `syscall`.
const SYSCALL_LEN: u64 = 2;

impl Thread {
    /// Puts the running domain back to its checkpoint, with all that it was given to be given again, and
    /// makes it run without deferring its effects. `writes` were to be done and were not.
    pub(super) fn run_again(
        &mut self,
        state: &mut State,
        error: Errno,
        writes: Vec<Deferred>,
    ) -> Committed {
        match self.put_back(state) {
            Ok(true) => {
                log::info!(
                    "thread {}: a deferred write failed with {}, so the request runs again",
                    self.tid(),
                    error.name()
                );
                self.process.stats.domains.rerun.inc();
                Committed::PutBack
            }
            Ok(false) => {
                // Others have used what it wrote while it waited: what can be written is written.
                for write in writes {
                    self.perform(state, write);
                }
                self.commit(state)
            }
            Err(error) => sys::end::fail(&self.process, &error),
        }
    }

    fn put_back(&mut self, state: &mut State) -> Result<bool, KvmError> {
        let Some(mut domain) = state.domain.take() else {
            return Ok(false);
        };
        if !domain.pages.is_empty() {
            self.restore_all(state);
        }
        let decision = withdraw::decide(state, &domain, self.tid());
        if decision.withdrawal != Withdrawal::Whole {
            state.domain = Some(domain);
            return Ok(false);
        }
        let kept_words = withdraw::kept_words(&domain);
        let at_call = domain.is_request() && domain.committed_early.is_none();
        let replay = domain.replay.take();
        let (inverses, _) = domain.journal.abandon();
        for inverse in inverses {
            let given_again = match (&inverse, &replay) {
                (Undo::Reset { fd } | Undo::Received { fd }, Some(given)) => given.brings(*fd),
                _ => false,
            };
            if !given_again {
                self.undo(state, &mut domain.pages, inverse);
            }
        }
        self.restore_or_hide(state, false);
        self.withdraw(state, &domain, &decision, &kept_words);
        self.give_token_back(state);
        let checkpoint = domain.checkpoint;
        *self.vcpu.registers() = checkpoint.registers;
        self.vcpu.set_extended_state(&checkpoint.extended)?;
        self.vcpu
            .set_segment_bases(checkpoint.bases.0, checkpoint.bases.1);
        self.set_blocked(checkpoint.blocked);
        self.alternate_stack = checkpoint.alternate_stack;
        match (at_call, domain.committed_early) {
            (true, _) => {
                let registers = self.vcpu.registers();
                registers.rip = registers.rip.wrapping_sub(SYSCALL_LEN);
            }
            (false, Some(reason)) => {
                self.continues = Some(super::domain::Continuation {
                    origin: domain.origin,
                    input: domain.input,
                    reason,
                    answered: domain.answered_before,
                    target: domain.target,
                });
            }
            (false, None) => {
                self.next_origin = domain.origin;
                self.delivered = domain.delivered;
            }
        }
        if let (Some(fd), Some(given)) = (domain.origin.fd(), replay) {
            state.files.give_back(fd, given);
        }
        self.pass_through = Some(domain.origin);
        Ok(true)
    }
}

impl super::domain::Domain {
    /// Keeps what the domain was given, to be given again.
    pub fn keep_for_replay(&mut self, bytes: &[u8], envelope: &Envelope) {
        debug_assert!(matches!(self.origin, Origin::Stream(_)));
        let pieces = match &mut self.replay {
            Some(GivenBack::Bytes(pieces)) => pieces,
            replay => {
                *replay = Some(GivenBack::Bytes(Vec::new()));
                return self.keep_for_replay(bytes, envelope);
            }
        };
        let kept: usize = pieces.iter().map(|piece| piece.bytes.len()).sum();
        if kept > 0 && kept + bytes.len() > REPLAY_LIMIT {
            self.pass_through = true;
            return;
        }
        match pieces.last_mut() {
            Some(last) if last.envelope.control.is_empty() && envelope.control.is_empty() => {
                last.bytes.extend_from_slice(bytes);
            }
            _ => pieces.push(Delivery {
                bytes: bytes.to_vec(),
                envelope: envelope.clone(),
            }),
        }
    }
}
