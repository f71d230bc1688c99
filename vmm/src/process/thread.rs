//! A guest thread: a host thread with a vCPU, in a loop of running the guest and serving what it left for.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_agentless::{Errno, GuestVa, PageNumber, Signal, SignalSet};
use recovery::Origin;
use recovery::event::FaultKind;

use super::control::ThreadControl;
use super::domain::{Continuation, Domain, Early};
use super::fault::Fault;
use super::fault_signals;
use super::handled::{Futile, Handling};
use super::handoff::Following;
use super::host_signals;
use super::overflow::is_stack_overflow;
use super::signals::{self, Action, AlternateStack, Delivery, Interrupted, SignalInfo};
use super::strike::Struck;
use super::{Process, State, Turn};
use crate::kvm::{Exit, KvmError, Vcpu};
use crate::memory::{Attempt, Resolution, page_range};
use crate::{host, sys};

/// Exits for which a client's time slice has to be enough: few requests make as many.
const SLICE_EXITS: u32 = 500;
/// What others wait for one request at most.
const LONGEST_SLICE: Duration = Duration::from_secs(2);
/// Slices after which what it has to say to others is said.
const SILENT_SLICES: u32 = 4;
/// Likewise for everything else, before it gives way. CPU time and not wall time, so that a thread is not
/// stopped in the middle of a critical section only because the machine is busy.
const SLICE: Duration = Duration::from_millis(5);
/// The vector of debug exceptions.
const DEBUG: u8 = 1;
/// How many faults on the same address without progress make the monitor stop believing in them.
const SAME_FAULT_LIMIT: u32 = 64;

/// The time slice of requests on a machine where an exit costs `exit_cost`. What is suspended and crashes may be
/// `degraded`, so that a slow machine must not make that of a request which is short elsewhere. A request whose CPU
/// time is limited to `cpu` anyway is not suspended before, if others can wait for as long.
pub fn request_slice(exit_cost: Duration, cpu: Option<Duration>) -> Duration {
    let slice = exit_cost
        .saturating_mul(SLICE_EXITS)
        .clamp(Duration::from_millis(50), LONGEST_SLICE);
    match cpu {
        Some(cpu) if cpu <= LONGEST_SLICE / 2 => slice.max(cpu * 2),
        _ => slice,
    }
}

/// Whether a thread goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// Back to the guest.
    Continue,
    /// This thread has ended.
    ThreadEnded,
}

/// A guest thread, owned by its host thread.
pub struct Thread {
    /// The process that it belongs to.
    pub process: Arc<Process>,
    /// The vCPU.
    pub vcpu: Vcpu,
    /// What others may touch.
    pub control: &'static ThreadControl,
    /// Blocked signals.
    pub blocked: SignalSet,
    /// The mask to go back to after the next handler (`sigsuspend`, `ppoll`).
    pub mask_after_handler: Option<SignalSet>,
    /// `sigaltstack`.
    pub alternate_stack: AlternateStack,
    /// The origin of the next domain that begins without a client.
    pub next_origin: Origin,
    /// The events that the next domain begins with.
    pub delivered: Option<super::domain::Delivered>,
    /// The events of the last wake-up that have not been read yet.
    pub wakeup: Option<super::domain::Delivered>,
    /// The rest of a domain that was committed early.
    pub continues: Option<Continuation>,
    /// Likewise, until the handler that has interrupted it returns.
    pub interrupted: Option<Continuation>,
    /// Connections that the fault being recovered from may belong to.
    pub suspects: Vec<i32>,
    /// What more is known of the fault being recovered from.
    pub fault_detail: Option<String>,
    /// The handler of a fault that is at work.
    pub(super) handling: Option<Handling>,
    /// Handlers that have returned in vain.
    pub(super) futile: Futile,
    /// Pages that got their contents back in the current abandon because mappings of them were about to go.
    pub(super) restored_early: u64,
    /// Inverses that could not be done in the current abandon.
    pub undo_failures: u32,
    /// Bytes on the way between host and guest.
    pub bounce: Vec<u8>,
    /// The call that a handler interrupted may be restarted (`SA_RESTART`).
    pub restart: Option<u64>,
    /// CPU time of the thread when it was first asked to yield in this domain.
    pub asked_at: Option<Duration>,
    /// What is followed after a fault in work that was handed over.
    pub following: Following,
    /// The thread has used up a time slice, and made no system call since.
    sliced: bool,
    /// The thread has answered a request that another thread has read.
    pub answers_for_others: bool,
    /// The next domain of this origin does not put off its effects.
    pub pass_through: Option<Origin>,
    /// Signals wait for the end of the request.
    pub(super) signals_postponed: bool,
    /// The running request may write as much as it wants: nothing can be done about it.
    pub memory_waived: bool,
    /// Bytes that the running request had written when it was suspended or committed early.
    pub written: u64,
    pub(super) last_fault: (u64, u32),
    /// Pages that the next instruction may touch, and no other: see [`super::step`].
    pub(super) stepping: Vec<PageNumber>,
    /// Which life of the process the thread is in (see [`super::restart`]).
    pub epoch: u64,
}

impl Thread {
    /// A thread that continues at the registers of `vcpu`.
    pub fn new(process: Arc<Process>, mut vcpu: Vcpu, blocked: SignalSet) -> Thread {
        let control = ThreadControl::leak(vcpu.kicker());
        Thread {
            process,
            vcpu,
            control,
            blocked,
            mask_after_handler: None,
            alternate_stack: AlternateStack::default(),
            next_origin: Origin::Internal,
            delivered: None,
            wakeup: None,
            continues: None,
            interrupted: None,
            suspects: Vec::new(),
            fault_detail: None,
            handling: None,
            futile: Futile::default(),
            restored_early: 0,
            undo_failures: 0,
            bounce: vec![0; sys::BOUNCE],
            restart: None,
            asked_at: None,
            following: Following::default(),
            sliced: false,
            answers_for_others: false,
            pass_through: None,
            signals_postponed: false,
            memory_waived: false,
            written: 0,
            last_fault: (0, 0),
            stepping: Vec::new(),
            epoch: 0,
        }
    }

    /// The thread's ID.
    pub fn tid(&self) -> i32 {
        self.control.tid.load(Ordering::Relaxed)
    }

    /// The thread has been woken by these events.
    pub fn woken_by(&mut self, delivered: super::domain::Delivered) {
        self.wakeup = Some(delivered.clone());
        self.delivered = Some(delivered);
    }

    /// Runs the guest thread on the calling host thread until it ends. `started` is called once its ID is
    /// known.
    pub fn run(mut self, started: impl FnOnce(i32)) {
        self.control.adopt();
        if !fault_signals::pending().is_empty() {
            // It came before there was anybody to be kicked.
            self.control.request_attention();
        }
        let tid = self.tid();
        self.process.threads().insert(tid, self.control);
        self.park(false);
        started(tid);
        let process = Arc::clone(&self.process);
        let mut turn = Turn::take(&process, tid);
        loop {
            match self.step(&mut turn) {
                Ok(Flow::Continue) => {}
                Ok(Flow::ThreadEnded) => break,
                Err(error) => sys::end::fail(&self.process, &error),
            }
        }
        process.threads().remove(&tid);
        host_signals::pass_on();
        self.control.leave();
        turn.ladder.thread_ended(tid);
        turn.filters.remove(&tid);
        drop(turn);
        process.give_vcpu(self.vcpu);
    }

    /// One entry into the guest and what it left for.
    fn step(&mut self, turn: &mut Turn<'_>) -> Result<Flow, KvmError> {
        if self.control.take_attention() {
            self.attend(turn);
            if let Some(fault) = self.past_limit(turn, false) {
                return self.fault(turn, fault);
            }
        }
        if self.is_outdated(turn) {
            return self.rejoin(turn);
        }
        if self.signals_postponed && turn.domain.is_none() {
            self.deliver_signals(turn);
        }
        self.ensure_domain(turn)?;
        self.keep_to_own_strike_points(turn);
        self.vcpu.set_root(turn.space.root(turn.holds_token()));
        self.vcpu.set_signal_mask(self.mask_in_guest().0)?;
        let mut exit = self.vcpu.run()?;
        if exit == Exit::Interrupted && self.is_behind_breakpoint() {
            let pending = self.vcpu.deliver_breakpoint(turn.space.bare_root())?;
            exit = pending.unwrap_or(exit);
        }
        if matches!(exit, Exit::Interrupted | Exit::RingFull) {
            self.rewind_breakpoint();
            self.rewind_strike_point(turn);
        }
        if matches!(exit, Exit::Syscall) {
            self.breakpoints_settled();
        }
        let stats = &self.process.stats;
        match exit {
            Exit::Syscall => {
                stats.exits.syscall.inc();
                self.last_fault = (0, 0);
                self.sliced = false;
                self.end_step(turn);
                sys::serve(self, turn)
            }
            Exit::Exception {
                vector: 14,
                error_code,
                address,
            } => {
                stats.exits.page_fault.inc();
                self.page_fault(turn, error_code, address)
            }
            Exit::Exception {
                vector, error_code, ..
            } => {
                stats.exits.other_exception.inc();
                if vector == DEBUG && self.has_stepped(turn) {
                    return Ok(Flow::Continue);
                }
                if matches!(vector, 1 | 3) {
                    if let Some(struck) = self.strike_at_point(turn, vector) {
                        return self.go_on_struck(turn, struck);
                    }
                    if self.debug_exception(turn, vector)? {
                        self.breakpoints_settled();
                        return Ok(Flow::Continue);
                    }
                }
                let rip = self.vcpu.registers().rip;
                self.fault(turn, Fault::from_exception(vector, error_code, rip))
            }
            Exit::Interrupted => {
                stats.exits.kick.inc();
                // It may have been a signal, which is still pending.
                self.control.request_attention();
                let struck = self.strike_in_code(turn);
                self.go_on_struck(turn, struck)
            }
            Exit::RingFull => {
                stats.exits.dirty_ring_full.inc();
                let (tracker, mut memory) = turn.tracking(&self.process, &mut self.vcpu);
                tracker.make_room(&mut memory);
                match self.past_limit(turn, false) {
                    Some(fault) => self.fault(turn, fault),
                    None => Ok(Flow::Continue),
                }
            }
            Exit::HostFault => {
                stats.exits.other.inc();
                let registers = *self.vcpu.registers();
                self.fault(turn, Fault::host(&registers))
            }
            Exit::Invalid(what) => {
                stats.exits.other.inc();
                log::debug!("thread {}: {what}", self.tid());
                self.fault(turn, Fault::invalid())
            }
        }
    }

    /// Whether the thread may just have executed an `int3` (`cc`, or `cd 03`).
    fn is_behind_breakpoint(&mut self) -> bool {
        let mut before = [0; 2];
        let start = self.vcpu.registers().rip.wrapping_sub(2);
        let memory = &self.process.own_memory;
        memory.read_exact_at(&mut before, start).is_ok() && matches!(before, [_, 0xcc] | [0xcd, 3])
    }

    fn page_fault(
        &mut self,
        turn: &mut Turn<'_>,
        error_code: u64,
        address: u64,
    ) -> Result<Flow, KvmError> {
        let attempt = Attempt::from_error_code(error_code);
        let state: &mut State = turn;
        self.enter_shared(state, page_range(GuestVa(address).page()));
        let resolution = state
            .space
            .resolve(&self.process.vm, &state.tracker, address, attempt)?;
        let resolved = match resolution {
            Resolution::Mapped => true,
            Resolution::Trapped => {
                self.process.stats.pages.tracked.inc();
                if !self.first_write(state, GuestVa(address).page()) {
                    // There is nothing behind it.
                    let registers = *self.vcpu.registers();
                    return self.fault(turn, Fault::host(&registers));
                }
                true
            }
            Resolution::Guarded => {
                self.touch_guarded(state, address, attempt);
                true
            }
            Resolution::NoRoom => {
                log::debug!("no room for more memory of the guest, at {address:#x}");
                return self.fault(turn, Fault::unbacked(Some(address)));
            }
            Resolution::NotMapped | Resolution::Forbidden => false,
        };
        if !resolved {
            let mut fault = Fault::page(attempt, address, resolution, error_code);
            if is_stack_overflow(turn, self.vcpu.registers(), address) {
                fault.kind = FaultKind::StackOverflow;
            }
            return self.fault(turn, fault);
        }
        if let Some(fault) = self.past_limit(turn, true) {
            return self.fault(turn, fault);
        }
        // The tables allow the access now. If the CPU still refuses it, again and again, it never will.
        self.last_fault = match self.last_fault {
            (last, n) if last == address => (address, n + 1),
            _ => (address, 0),
        };
        if self.last_fault.1 > SAME_FAULT_LIMIT {
            return self.fault(
                turn,
                Fault::page(attempt, address, Resolution::Forbidden, error_code),
            );
        }
        let struck = self.strike_in_code(turn);
        self.go_on_struck(turn, struck)
    }

    /// Goes on after an injection in the middle of the guest's code.
    fn go_on_struck(&mut self, turn: &mut Turn<'_>, struck: Struck) -> Result<Flow, KvmError> {
        match struck {
            Struck::Fault(fault) => self.fault(turn, fault),
            // Where there is no call to fail, none is.
            Struck::GoOn | Struck::Diverted | Struck::Fails(_) => Ok(Flow::Continue),
        }
    }

    /// Does what a kick was for: yields, delivers signals.
    fn attend(&mut self, turn: &mut Turn<'_>) {
        self.vcpu.clear_kick();
        // Nobody else may run before the instruction is done.
        if self.is_stepping(turn) {
            self.control.request_attention();
            return;
        }
        if self.control.yield_requested.swap(false, Ordering::AcqRel) {
            self.give_way(turn);
        }
        self.share_fairly(turn);
        if !self.is_outdated(turn) {
            self.deliver_signals(turn);
        }
    }

    fn give_way(&mut self, turn: &mut Turn<'_>) {
        let now = host::thread_cpu_time();
        let used = now.saturating_sub(*self.asked_at.get_or_insert(now));
        // Where threads hand work over, internal work is a client's too, unless it only spins.
        let in_request = turn.domain.as_ref().is_some_and(Domain::is_request)
            || turn.handoffs.provenance.is_recording() && !self.sliced;
        let slice = match in_request {
            true => self.process.options.request_slice,
            false => SLICE,
        };
        if used < slice {
            return;
        }
        self.asked_at = None;
        // Put back or not, it goes on where its registers say. What it has to say to others is not kept back for
        // ever: it may be looking for its next task.
        let says_something = |domain: &mut Domain| {
            domain.slices += 1;
            domain.slices >= SILENT_SLICES && domain.has_deferred()
        };
        let _ = match turn.domain.as_mut().is_some_and(says_something) {
            true if !self.answers_for_others => self.commit_early(turn, Early::Suspended),
            _ => self.suspend(turn),
        };
        self.sliced = true;
        self.park(false);
        turn.released(|| ());
        self.resume(turn);
    }

    /// Whether there is a signal to be delivered to this thread now, before a blocking call is entered or restarted.
    /// It is kept for this thread.
    pub fn has_deliverable(&self, state: &State) -> bool {
        let open = SignalSet::ALL.difference(self.blocked);
        let sent = self.control.pending_set().intersection(open);
        sent.iter()
            .any(|signal| !state.dispositions.ignores(signal))
            || host_signals::keep_next(open, &state.dispositions)
    }

    fn take_signal(&mut self) -> Option<SignalInfo> {
        let open = SignalSet::ALL.difference(self.blocked);
        self.control
            .take_pending(open)
            .or_else(|| host_signals::take(open))
    }

    /// Delivers the signals that wait for this thread, unless it is in the middle of a client's request.
    pub fn deliver_signals(&mut self, turn: &mut Turn<'_>) {
        let in_request = turn.domain.as_ref().is_some_and(Domain::is_request);
        self.signals_postponed = in_request;
        if in_request {
            return;
        }
        while let Some(info) = self.take_signal() {
            self.deliver(turn, info, (0, 0, 0));
        }
        self.restart = None;
        if let Some(mask) = self.mask_after_handler.take() {
            self.set_blocked(mask);
        }
    }

    /// The host's mask while the thread is in the guest.
    fn mask_in_guest(&self) -> SignalSet {
        match self.signals_postponed || self.has_steps() {
            true => host_signals::closed_mask(self.blocked),
            false => host_signals::open_mask(self.blocked),
        }
    }

    /// Delivers one signal: the handler's frame, or the end of the process.
    pub fn deliver(&mut self, turn: &mut Turn<'_>, info: SignalInfo, trap: (u64, u64, u64)) {
        let action = match turn.dispositions.delivery(info.signal) {
            Delivery::Ignore => return,
            Delivery::End => {
                let _ = self.commit(turn);
                sys::end::by_signal(self, turn, info.signal)
            }
            Delivery::Stop => {
                // SAFETY: raises a signal whose host disposition is the default: all threads stop.
                unsafe { libc::kill(libc::getpid(), libc::SIGSTOP) };
                return;
            }
            Delivery::Handle(action) => action,
        };
        turn.is_stopping |= info.signal.asks_to_end();
        // A domain that is put back meets the handler at its checkpoint.
        let _ = self.commit(turn);
        // The handler is not the client's: what it does (it may well exit) is not charged to the request
        // that it has interrupted, nor to a timer that has run out at the same time.
        self.next_origin = Origin::Internal;
        self.interrupted = self.continues.take().or(self.interrupted.take());
        self.run_handler(turn, info, action, trap);
    }

    /// Sets the registers to the handler `action` for the signal, on a frame of its own.
    pub fn run_handler(
        &mut self,
        turn: &mut Turn<'_>,
        info: SignalInfo,
        action: Action,
        trap: (u64, u64, u64),
    ) {
        if !self.enter_handler(turn, info, action, trap) {
            // As on Linux, the process dies of it.
            sys::end::by_signal(self, turn, Signal::SIGSEGV);
        }
    }

    /// As [`Thread::run_handler`]; false if there is no room for the frame.
    pub(super) fn enter_handler(
        &mut self,
        turn: &mut Turn<'_>,
        info: SignalInfo,
        action: Action,
        trap: (u64, u64, u64),
    ) -> bool {
        turn.dispositions.delivered(info.signal);
        let restarts = action.flags & libc::SA_RESTART as u64 != 0;
        if let Some(number) = self.restart.take().filter(|_| restarts) {
            let registers = self.vcpu.registers();
            registers.rip = registers.rip.wrapping_sub(2);
            registers.rax = number;
        }
        let registers = *self.vcpu.registers();
        let frame = self.vcpu.extended_state().ok().and_then(|extended| {
            let state = Interrupted {
                registers: &registers,
                extended: &extended,
                blocked: self.mask_after_handler.take().unwrap_or(self.blocked),
                alternate_stack: self.alternate_stack,
                trap,
            };
            signals::build_frame(info, action, &state)
        });
        let written = frame.and_then(|frame| {
            self.mark_written(turn, frame.range);
            crate::memory::copy::write(frame.range.start(), &frame.bytes).ok()?;
            Some(frame)
        });
        let Some(frame) = written else {
            return false;
        };
        *self.vcpu.registers() = frame.registers;
        let mut blocked = self.blocked.union(action.mask);
        if action.flags & libc::SA_NODEFER as u64 == 0 {
            blocked.insert(info.signal);
        }
        self.set_blocked(blocked);
        true
    }

    /// `rt_sigreturn`.
    pub fn return_from_handler(&mut self, state: &mut State) -> Result<(), Errno> {
        let registers = *self.vcpu.registers();
        // The frame is smaller than a page: what lies above the stack pointer is read.
        self.touch_string(state, registers.rsp);
        let restored = signals::read_frame(registers.rsp, &registers).ok_or(Errno::EFAULT)?;
        if let Some(extended) = &restored.extended {
            self.vcpu
                .set_extended_state(extended)
                .map_err(|_| Errno::EFAULT)?;
        }
        *self.vcpu.registers() = restored.registers;
        self.handler_returned(registers.rsp);
        self.set_blocked(restored.blocked);
        self.alternate_stack = restored.alternate_stack;
        Ok(())
    }

    /// Sets the signal mask; signals that are no longer blocked are delivered before the guest goes on.
    pub fn set_blocked(&mut self, mut blocked: SignalSet) {
        blocked.remove(Signal::SIGKILL);
        blocked.remove(Signal::SIGSTOP);
        let before = std::mem::replace(&mut self.blocked, blocked);
        let opened = before.difference(blocked);
        let sent = self.control.pending_set().union(fault_signals::pending());
        if !sent.intersection(opened).is_empty() {
            self.control.request_attention();
        }
        host_signals::put_back(blocked);
        if host_signals::closed_mask(before) != host_signals::closed_mask(blocked) {
            host_signals::close(blocked);
        }
    }
}
