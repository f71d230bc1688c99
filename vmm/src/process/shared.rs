//! Memory that the processes of a server share: one process at a time may touch it.
//!
//! From the first fork of a process that has such memory, or when it maps some and there are other processes, the guest
//! runs with page tables that lack it ([`crate::memory::token`]). When the running domain first touches it, the process takes
//! the shared-memory token, and changes to the page tables that have it. It keeps the token until the domain has ended: its
//! writes to files are done and its signals are sent before any other process sees what it wrote to shared memory, and if it
//! is abandoned no other process has seen anything. While a process holds the token, shared memory is tracked and undone like
//! all other memory.
//!
//! A domain that waits in the middle gives the token back, since others may be what it waits for. If it has changed shared
//! memory, other than the word of the lock that it waits for, it commits first. So does one that computes for longer than [`HOLD_MOST`] while another process waits.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::thread::Builder;
use std::time::{Duration, Instant};

use guest_agentless::{GuestRange, Vma};

use super::domain::Early;
use super::rerun::Committed;
use super::thread::Thread;
use super::{Process, State};
use crate::host;
use crate::memory::is_common;
use crate::memory::token::{HOLD_MOST, Taken};

/// How long the thread that kicks the holder sleeps while nobody waits for long.
const SLEEP_MOST: Duration = Duration::from_secs(60);

/// What a process keeps of the memory that it shares with others.
#[derive(Debug, Default)]
pub struct SharedMemory {
    /// When it took the token, while it holds it.
    held_since: Option<Instant>,
}

impl SharedMemory {
    /// Whether the process holds the token.
    pub fn is_held(&self) -> bool {
        self.held_since.is_some()
    }
}

/// How the thread that looks at the time reaches the holder of the token.
#[derive(Debug, Default)]
pub struct HoldWatch {
    /// The thread ID of the holder in this process, or 0. A futex.
    holder: AtomicU32,
    started: AtomicBool,
}

impl State {
    /// Whether the guest may touch memory that other processes share.
    pub fn holds_token(&self) -> bool {
        self.shared.as_ref().is_none_or(SharedMemory::is_held)
    }

    /// Whether touching `range` needs the token, which the process does not hold.
    fn needs_token(&self, range: GuestRange) -> bool {
        !self.holds_token() && self.space.vmas().overlapping(range).any(is_common)
    }
}

impl Thread {
    /// The process is about to fork. From now on it takes the token to touch shared memory, if it has any.
    pub fn share_with_child(&mut self, state: &mut State) {
        let common = self.process.common;
        common.has_forked.store(true, Ordering::Release);
        // The C library maps a cache of its own shared, to read it.
        let is_shared = |vma: &Vma| vma.shared && vma.protection.is_writable();
        if state.space.vmas().iter().any(is_shared) {
            self.begin_sharing(state);
        }
        // The child does not have what its parent holds.
        self.give_token_back(state);
    }

    /// Whether memory that is mapped shared from now on may be that of other processes, and is not known to be shared yet.
    pub fn may_share(&self, state: &State) -> bool {
        let has_forked = &self.process.common.has_forked;
        self.process.options.protect && state.shared.is_none() && has_forked.load(Ordering::Acquire)
    }

    /// From now on shared memory is touched with the token only. Nothing is written that has not been committed.
    pub fn begin_sharing(&mut self, state: &mut State) {
        if !self.process.options.protect || state.shared.is_some() {
            return;
        }
        // All its writes are tracked, whether it serves requests or not.
        self.arm(state);
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.protect_all(&mut memory);
        if let Err(error) = state.space.set_apart(&self.process.vm) {
            log::error!("memory that is shared with other processes is not protected: {error}");
            return;
        }
        state.tracker.leave_shared();
        if !self.process.serving.load(Ordering::Acquire) {
            let reason = "it shared memory with another process before it began to serve";
            state.restart.unavailable = Some(reason.into());
        }
        state.shared = Some(SharedMemory::default());
    }

    /// In a forked child whose parent shares memory: all its writes are tracked from the start.
    pub fn inherit_sharing(&mut self, state: &mut State) {
        if state.shared.is_some() {
            self.arm(state);
            state.tracker.leave_shared();
        }
    }

    /// `range` is about to be touched by the guest, or for it: takes the token if that is shared memory.
    pub(super) fn enter_shared(&mut self, state: &mut State, range: GuestRange) {
        if !state.needs_token(range) {
            return;
        }
        self.take_token(state);
    }

    /// Takes the token, if there are other processes and this one does not hold it.
    pub fn take_token(&mut self, state: &mut State) {
        if state.holds_token() {
            return;
        }
        ensure_watch(&self.process);
        let process = Arc::clone(&self.process);
        let taken = process
            .common
            .shared_memory
            .take(std::process::id(), host::has_ended);
        let stats = &process.stats.shared_memory;
        stats.taken.inc();
        if taken == Taken::Waited {
            stats.waited.inc();
        }
        if let Some(shared) = &mut state.shared {
            shared.held_since = Some(Instant::now());
        }
        process
            .hold_watch
            .holder
            .store(self.tid() as u32, Ordering::Release);
        let (tracker, mut memory) = state.tracking(&process, &mut self.vcpu);
        tracker.enter_shared(&mut memory);
    }

    /// The running domain has ended, or has changed no shared memory: others may touch it.
    pub fn give_token_back(&self, state: &mut State) {
        let Some(shared) = &mut state.shared else {
            return;
        };
        if shared.held_since.take().is_some() {
            state.tracker.leave_shared();
            self.process.hold_watch.holder.store(0, Ordering::Release);
            self.process
                .common
                .shared_memory
                .give_back(std::process::id());
        }
    }

    /// The running domain is about to wait in its middle, or has kept others waiting for too long. What it has changed of
    /// shared memory is committed, and all effects before that.
    pub fn leave_shared_midway(&mut self, state: &mut State) -> Committed {
        if state.shared.is_none() || !state.holds_token() {
            return Committed::Done;
        }
        // That it waits for a lock has to be seen by the holder, and is all that anybody sees of it.
        let lock = state.domain.as_ref().and_then(|domain| domain.waits.now());
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        if tracker.has_changed_shared(&mut memory, lock.map(|word| word & !7)) {
            self.process.stats.shared_memory.cut.inc();
            return self.commit_early(state, Early::SharedMemory);
        }
        self.give_token_back(state);
        Committed::Done
    }

    /// Commits what the running domain has changed of shared memory if another process has waited for it for long. It goes on
    /// where its registers say.
    pub(super) fn share_fairly(&mut self, state: &mut State) {
        let since = state.shared.as_ref().and_then(|shared| shared.held_since);
        if since.is_some_and(|since| since.elapsed() >= HOLD_MOST)
            && self.process.common.shared_memory.is_wanted()
        {
            let _ = self.leave_shared_midway(state);
        }
    }
}

/// Starts the thread that kicks who holds the token for too long, if it does not run yet.
fn ensure_watch(process: &Arc<Process>) {
    if process.hold_watch.started.swap(true, Ordering::AcqRel) {
        return;
    }
    let watched = Arc::clone(process);
    let started = host::with_signals_blocked(|| {
        Builder::new()
            .name("vmsrs-token".into())
            .stack_size(64 << 10)
            .spawn(move || watch(&watched))
    });
    if let Err(error) = started {
        log::error!("a process may keep shared memory for long, for want of a thread: {error}");
    }
}

/// Kicks the holder of the token in this process while another process wants it.
fn watch(process: &Process) {
    let token = &process.common.shared_memory;
    loop {
        token.await_pressure(SLEEP_MOST);
        let holder = process.hold_watch.holder.load(Ordering::Acquire);
        if holder != 0
            && token.is_wanted()
            && let Some(control) = process.threads().get(&(holder as i32))
        {
            control.kick();
        }
    }
}
