//! The running domain: from the system call that delivered its work to the one that asks for more.

use std::time::Duration;

use guest_agentless::{GuestRange, SignalSet};
use kvm_bindings::kvm_xsave;
use recovery::{Journal, Origin, SuspendedPages};

use super::effects::{Deferred, Undo};
use super::files::GivenBack;
use super::rerun::Committed;
use super::strike::Target;
use super::thread::Thread;
use super::tracked::{HostMemory, TrackedMemory, mapped_parts};
use super::withdraw::Waits;
use super::{Process, State};
use crate::kvm::{KvmError, Registers, Vcpu};

/// Bytes of a request's input kept for the report.
const INPUT_KEPT: usize = 4096;

/// Where a thread goes on if its domain is abandoned.
pub struct Checkpoint {
    /// General registers; for an origin that is completed again with an error, RAX is replaced.
    pub registers: Registers,
    /// x87, SSE and AVX registers.
    pub extended: Box<kvm_xsave>,
    /// Bases of FS and GS.
    pub bases: (u64, u64),
    /// The thread's signal mask.
    pub blocked: SignalSet,
    /// The thread's alternate signal stack.
    pub alternate_stack: super::signals::AlternateStack,
}

/// What one guest thread does on behalf of one piece of work.
pub struct Domain {
    /// What it is charged to.
    pub origin: Origin,
    /// Where to go back to.
    pub checkpoint: Checkpoint,
    /// Its effects outside guest memory.
    pub journal: Journal<Deferred, Undo>,
    /// The first bytes that the client sent.
    pub input: Vec<u8>,
    /// How many bytes it sent.
    pub input_len: u64,
    /// It began with the first of them, on a connection that owed nothing.
    pub is_fresh: bool,
    /// Bytes of output held back.
    pub held_bytes: usize,
    /// How long it has slept.
    pub slept: Duration,
    /// System calls made.
    pub calls: u64,
    /// Why it was committed early, if it was: a fault cannot undo what came before.
    pub committed_early: Option<&'static str>,
    /// It had answered its client, or hung up, before it was committed early.
    pub answered_before: bool,
    /// Why what it had written until some time can no longer be undone, if so, except for its stack.
    pub cramped: Option<&'static str>,
    /// The events that it began with, if it began with some.
    pub delivered: Option<Delivered>,
    /// What it had written when it was suspended last, if it was.
    pub pages: SuspendedPages,
    /// Time slices that it has used up.
    pub slices: u32,
    /// Accesses of others that were told apart from what it wrote, while it was suspended.
    pub told_apart: u32,
    /// Its own accesses that were told apart from what suspended domains had written.
    pub steps: u32,
    /// The futexes that it has waited for.
    pub waits: Waits,
    /// What it was given, to be given again if it has to run again.
    pub replay: Option<GivenBack>,
    /// Its effects are done at once.
    pub pass_through: bool,
    /// Whether it is to be struck by an injected fault.
    pub target: Target,
    /// All writable memory at the checkpoint, when audited.
    pub audit: Option<super::audit::Image>,
}

impl Domain {
    /// Keeps the start of what the client sent.
    pub fn add_input(&mut self, bytes: &[u8]) {
        self.input_len += bytes.len() as u64;
        let room = INPUT_KEPT.saturating_sub(self.input.len());
        self.input
            .extend_from_slice(&bytes[..bytes.len().min(room)]);
    }

    /// Whether it is charged to a client.
    pub fn is_request(&self) -> bool {
        !matches!(self.origin, Origin::Internal | Origin::Timer)
    }

    /// Whether it has answered its client, or hung up.
    pub fn has_answered(&self) -> bool {
        let client = self.origin.fd();
        self.journal.deferred().iter().any(|effect| match effect {
            Deferred::Send { fd, .. } | Deferred::SendTo { fd, .. } | Deferred::Close { fd } => {
                Some(*fd) == client
            }
            _ => false,
        })
    }

    /// Whether it has output or other effects that wait for its commit.
    pub fn has_deferred(&self) -> bool {
        !self.journal.deferred().is_empty()
    }
}

/// What a wait returned: the connections that a fault before any of them is read may belong to.
#[derive(Debug, Clone)]
pub enum Delivered {
    /// By `epoll_wait`.
    Events {
        /// The epoll descriptor.
        epoll: i32,
        /// The `data` members of the events.
        data: Vec<u64>,
    },
    /// By `poll` or `select`: descriptors.
    Descriptors(Vec<i32>),
}

/// Why a domain is committed before it has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Early {
    /// The next call has effects that cannot be undone.
    External,
    /// The held output has reached its limit.
    HoldLimit,
    /// It runs again because a deferred write has failed, and defers no more.
    PassThrough,
    /// It waits, for a lock or longer than its time slice, and others must run.
    Suspended,
    /// There is no room for the shadow of a page that it writes.
    ShadowLimit,
    /// It has changed memory that other processes share, and waits, or has kept them waiting.
    SharedMemory,
}

impl Early {
    fn reason(self) -> &'static str {
        match self {
            Early::External => "a call that cannot be undone came before the fault",
            Early::HoldLimit => "its output reached the hold limit before the fault",
            Early::ShadowLimit => "its shadow pages reached their limit before the fault",
            Early::PassThrough => "its effects were not put off, because a write had failed",
            Early::SharedMemory => {
                "other processes had to see what it had written to shared memory before the fault"
            }
            Early::Suspended => "it was suspended before the fault, so that others could run",
        }
    }
}

impl State {
    /// Whether something in `range` is a shared mapping.
    pub(super) fn is_shared_in(&self, range: GuestRange) -> bool {
        let mut mappings = self.space.vmas().overlapping(range);
        mappings.any(|vma| vma.shared)
    }

    /// The tracker and the machine that it works on.
    pub(crate) fn tracking<'a>(
        &'a mut self,
        process: &'a Process,
        vcpu: &'a mut Vcpu,
    ) -> (&'a mut recovery::Tracker, TrackedMemory<'a>) {
        let memory = TrackedMemory {
            vm: &process.vm,
            vcpu,
            host: HostMemory {
                space: &mut self.space,
                own_memory: &process.own_memory,
            },
        };
        (&mut self.tracker, memory)
    }
}

impl Thread {
    /// The host is about to write `range` of guest memory on behalf of the guest.
    pub fn mark_written(&mut self, state: &mut State, range: GuestRange) {
        if !self.process.options.protect {
            return;
        }
        self.touch(state, range);
        for part in mapped_parts(&state.space, range) {
            self.host_write(state, part);
        }
    }

    /// The loader has written these ranges.
    pub fn mark_loaded(&mut self, ranges: &[GuestRange]) {
        let process = std::sync::Arc::clone(&self.process);
        let mut turn = super::Turn::take(&process, 0);
        for range in ranges {
            self.mark_written(&mut turn, *range);
        }
    }

    /// Starts tracking, at the first request; nothing if it has started already.
    pub fn arm(&mut self, state: &mut State) {
        if !self.process.options.protect || state.tracker.is_armed() {
            return;
        }
        super::watchdog::ensure(&self.process);
        let present = state.space.writable_pages();
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.arm(&mut memory, present.into_iter());
    }

    /// Begins a domain at the current registers, charged to `origin`. The previous one has ended.
    pub fn begin(&mut self, state: &mut State, origin: Origin) -> Result<(), KvmError> {
        if !state.tracker.is_armed() {
            return Ok(());
        }
        self.handling = None;
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.settle(&mut memory);
        if self.process.options.audit {
            self.restore_all(state);
        }
        let audit = self
            .process
            .options
            .audit
            .then(|| super::audit::Image::take(state));
        state.domain = Some(Domain {
            origin,
            checkpoint: Checkpoint {
                registers: *self.vcpu.registers(),
                extended: self.vcpu.extended_state()?,
                bases: (self.vcpu.fs_base(), self.vcpu.gs_base()),
                blocked: self.blocked,
                alternate_stack: self.alternate_stack,
            },
            journal: Journal::default(),
            input: Vec::new(),
            input_len: 0,
            is_fresh: false,
            held_bytes: 0,
            slept: Duration::ZERO,
            calls: 0,
            committed_early: None,
            answered_before: false,
            cramped: None,
            delivered: self.delivered.take(),
            pages: SuspendedPages::default(),
            slices: 0,
            told_apart: 0,
            steps: 0,
            waits: Waits::default(),
            replay: None,
            pass_through: self.pass_through.take_if(|of| *of == origin).is_some(),
            target: Target::default(),
            audit,
        });
        Ok(())
    }

    /// Ends the running domain well: its writes to files are done, its memory becomes the base of the next,
    /// its output is sent, its deferred actions are done.
    pub fn commit(&mut self, state: &mut State) -> Committed {
        let committed = self.commit_domain(state);
        if state.domain.is_none() {
            self.give_token_back(state);
        }
        committed
    }

    fn commit_domain(&mut self, state: &mut State) -> Committed {
        if !self.process.options.protect {
            return Committed::Done;
        }
        self.following_ended();
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        if !tracker.is_armed() {
            tracker.note_written(&mut memory);
            return Committed::Done;
        }
        self.asked_at = None;
        if let Err((error, writes)) = self.write_files(state) {
            return self.run_again(state, error, writes);
        }
        if self.continues.is_none() {
            self.end_limits();
        }
        let Some(mut domain) = state.domain.take() else {
            return Committed::Done;
        };
        self.request_succeeded(state, &domain);
        self.target_ended(state, std::mem::take(&mut domain.target));
        let stats = self.process.stats;
        let (deferred, undo) = domain.journal.commit();
        let done = self.commit_memory(state, &domain);
        let tracker = &state.tracker;
        stats.pages.dirty_harvested.add(done.harvested);
        stats.pages.compared.add(done.compared);
        stats.pages.copied.add(done.copied);
        stats.pages.reprotected.add(u64::from(done.reprotected));
        stats.shadow_bytes.raise(tracker.shadow_bytes());
        stats.image_bytes.raise(tracker.image_bytes());
        state.drop_lost_image();
        self.note_room(state, domain.cramped.is_none());
        stats.domains.committed.inc();
        self.tell_suspended(state);
        state.note_heap();
        for effect in deferred {
            self.perform(state, effect);
        }
        for inverse in undo {
            self.release_undo(state, inverse);
        }
        super::flusher::ensure(&self.process, state);
        state.ladder.progress(self.tid());
        Committed::Done
    }

    /// Commits the running domain although it goes on. What it does from here is a domain of its own that
    /// is charged to the same origin and cannot undo what came before. It begins when the thread returns
    /// to the guest.
    pub fn commit_early(&mut self, state: &mut State, why: Early) -> Committed {
        let Some(domain) = &mut state.domain else {
            return self.commit(state);
        };
        let target = std::mem::take(&mut domain.target);
        let (origin, request) = (domain.origin, domain.is_request());
        let (input, pass_through) = (domain.input.clone(), domain.pass_through);
        let answers = domain.has_answered();
        let answered = domain.answered_before || answers;
        if request {
            self.count_written(state);
        }
        let used = self.used();
        if self.commit(state) == Committed::PutBack {
            return Committed::PutBack;
        }
        if request {
            self.still_used(used);
            // Its client has taken all that it has sent.
            if answers && origin.fd().is_some_and(|fd| state.files.unsent(fd) == 0) {
                self.limits_anew();
            }
        }
        self.pass_through = pass_through.then_some(origin);
        if request {
            let counters = &self.process.stats.domains.early_committed;
            match why {
                Early::External | Early::PassThrough => counters.external.inc(),
                Early::HoldLimit => counters.held_limit.inc(),
                Early::Suspended => counters.suspended.inc(),
                Early::ShadowLimit => counters.shadow_limit.inc(),
                Early::SharedMemory => counters.shared_memory.inc(),
            }
            self.continues = Some(Continuation {
                origin,
                input,
                reason: why.reason(),
                answered,
                target,
            });
        } else {
            self.target_ended(state, target);
        }
        Committed::Done
    }

    /// Begins the domain that the thread is in when it enters the guest without one.
    pub fn ensure_domain(&mut self, state: &mut State) -> Result<(), KvmError> {
        if state.domain.is_some() || !state.tracker.is_armed() {
            return Ok(());
        }
        let origin = std::mem::replace(&mut self.next_origin, Origin::Internal);
        match self.continues.take() {
            None => self.begin(state, origin),
            Some(continuation) => {
                self.begin(state, continuation.origin)?;
                if let Some(domain) = &mut state.domain {
                    domain.input = continuation.input;
                    domain.committed_early = Some(continuation.reason);
                    domain.answered_before = continuation.answered;
                    domain.target = continuation.target;
                }
                Ok(())
            }
        }
    }
}

/// The rest of a domain that was committed early.
pub struct Continuation {
    pub origin: Origin,
    pub input: Vec<u8>,
    pub reason: &'static str,
    pub answered: bool,
    pub target: Target,
}
