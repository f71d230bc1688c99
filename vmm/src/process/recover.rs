//! From a fault to the next request: what the ladder says, done.

use std::time::{Duration, Instant, SystemTime};

use guest_agentless::{Errno, PAGE_SIZE, Signal, Vma};
use recovery::event::Outcome;
use recovery::ladder::{FaultSite, GiveUpReason, Rung};
use recovery::report::NOT_SERVING;
use recovery::tracker::RestoredPage;
use recovery::{Journal, Origin, stats};

use super::domain::Continuation;
use super::effects::{Deferred, Undo};
use super::fault::{Course, Fault};
use super::last_chance;
use super::reporter::FaultRecord;
use super::signals::SignalInfo;
use super::strike::Target;
use super::thread::{Flow, Thread};
use super::withdraw::{self, Withdrawal};
use super::{State, Turn};
use crate::kvm::{KvmError, Registers};
use crate::memory::copy;
use crate::{host, sys};

/// Bytes of the stack kept for the report.
const STACK_KEPT: usize = 64 << 10;
/// Bytes of dropped output kept for the report.
const OUTPUT_KEPT: usize = 64 << 10;

impl Thread {
    /// The guest thread has faulted.
    pub fn fault(&mut self, turn: &mut Turn<'_>, fault: Fault) -> Result<Flow, KvmError> {
        let begun = Instant::now();
        self.end_step(turn);
        if turn.domain.is_some() && self.hand_to_handler(turn, fault) {
            return Ok(Flow::Continue);
        }
        self.clear_breakpoints();
        self.clear_strike_points(turn);
        let registers = *self.vcpu.registers();
        let fault = self.first_fault(fault);
        self.put_back_unwritten(turn, registers.rip);
        if self.continues.is_some() {
            self.ensure_domain(turn)?;
        }
        let Some(domain) = &turn.domain else {
            // Not tracked yet, or not protected: as without the monitor. Runtimes make faults, and handle them, for their
            // own purposes: there is nothing to tell of those.
            let is_handled = match fault.course {
                Course::Signal(signal) => turn.dispositions.is_handled(signal),
                Course::Kill(_) | Course::Exit(_) | Course::GoesOn => false,
            };
            if is_handled {
                self.take_course(turn, fault);
                return Ok(Flow::Continue);
            }
            self.process.stats.ladder.give_up.inc();
            self.give_up(turn, fault, &registers, NOT_SERVING.into());
            return Ok(Flow::Continue);
        };
        if self.process.options.give_up {
            self.process.stats.ladder.give_up.inc();
            self.give_up(turn, fault, &registers, "by --recover=off".into());
            return Ok(Flow::Continue);
        }
        let origin = domain.origin;
        // What was committed early goes on in its middle. If it is past its limits again, wherever it is by then, that
        // has not helped.
        let stuck = domain.committed_early.is_some() && fault.course == Course::GoesOn;
        let site = FaultSite {
            thread: self.tid(),
            rip: match stuck {
                true => domain.checkpoint.registers.rip,
                false => self.vcpu.registers().rip,
            },
            origin: origin.kind(),
        };
        // Work without a client of its own may have been handed over by one.
        let mut may_be_handed_over = matches!(
            origin,
            Origin::Internal | Origin::Timer | Origin::Handoff(_)
        );
        let delivered = domain.delivered.clone().or_else(|| self.wakeup.clone());
        let obstacle = self.restart_obstacle(turn);
        let mut suspects = Vec::new();
        let rung = loop {
            let rung = turn.ladder.next(site, begun, |rung| match rung {
                Rung::Handoff => may_be_handed_over,
                Rung::ResetDelivered => may_be_handed_over || delivered.is_some(),
                // What has only used too much is let go on rather than everybody thrown out.
                Rung::Restart => obstacle.is_none() && (fault.course != Course::GoesOn || stuck),
                _ => true,
            });
            // To find the call to skip may take more than one rerun, so it is looked for once more before
            // everybody is reset.
            if matches!(rung, Rung::Handoff | Rung::ResetDelivered)
                && std::mem::take(&mut may_be_handed_over)
                && self.find_culprit(turn)
            {
                break Rung::Handoff;
            }
            match rung {
                // Nobody was found.
                Rung::Handoff => {}
                Rung::ResetDelivered => {
                    if let Some(delivered) = &delivered {
                        suspects = turn.files.connections(delivered);
                    }
                    // Otherwise there was nobody to reset.
                    if !suspects.is_empty() {
                        break rung;
                    }
                }
                _ => break rung,
            }
        };
        self.process.stats.ladder.count(rung);
        match rung {
            Rung::GiveUp(reason) => {
                let reason =
                    match obstacle.filter(|_| !matches!(reason, GiveUpReason::Restarts { .. })) {
                        Some(obstacle) => format!("{reason}; not restarted in place: {obstacle}"),
                        None => reason.to_string(),
                    };
                let fault = self.bounded(fault);
                self.give_up(turn, fault, &registers, reason);
                return Ok(Flow::Continue);
            }
            Rung::Restart => return self.restart(turn, fault, &registers, begun),
            Rung::Rerun => {
                self.process.stats.domains.rerun.inc();
                self.watch_rerun();
            }
            Rung::Handoff | Rung::Abandon => self.process.stats.domains.abandoned.inc(),
            Rung::ResetDelivered => {
                self.process.stats.domains.abandoned.inc();
                self.suspects = suspects;
            }
        }
        let flow = self.undo_domain(turn, fault, begun, rung)?;
        Ok(flow)
    }

    /// Damage to code outlives the request that has met it: it is looked for, and mended.
    fn put_back_unwritten(&mut self, state: &mut State, rip: u64) {
        let process = &self.process;
        let Some(page_map) = &process.own_page_map else {
            return;
        };
        let damaged = state
            .space
            .put_back_unwritten(rip, &process.own_memory, page_map);
        let Some(first) = damaged.first() else {
            return;
        };
        process.stats.pages.damaged.add(damaged.len() as u64);
        let what = format!(
            "{} pages that nobody may write, {:#x} the first, differed from their files; put back",
            damaged.len(),
            first.address().0
        );
        log::warn!("{what}");
        self.fault_detail = Some(match self.fault_detail.take() {
            Some(detail) => format!("{detail}; {what}"),
            None => what,
        });
    }

    /// Undoes the running domain and completes its origin with the error that the server knows how to
    /// handle.
    fn undo_domain(
        &mut self,
        state: &mut State,
        fault: Fault,
        begun: Instant,
        rung: Rung,
    ) -> Result<Flow, KvmError> {
        let Some(mut domain) = state.domain.take() else {
            return Ok(Flow::Continue);
        };
        self.target_ended(state, std::mem::take(&mut domain.target));
        let written = (self.written + state.tracker.written_bytes()) / PAGE_SIZE;
        self.end_limits();
        let mut record = self.describe(state, fault, domain.origin);
        self.quarantine(state, &mut record, fault.info(), Some(&domain));
        record.rung = rung.name();
        let teaches = domain.whole_input().is_some();
        record.input = std::mem::take(&mut domain.input);
        record.peer = domain.origin.fd().and_then(host::peer_name);

        self.undo_failures = 0;
        self.restored_early = 0;
        // To take a suspended domain's writes out, memory is read around them.
        let may_hide = domain.pages.is_empty();
        if !may_hide {
            self.restore_all(state);
        }
        let decision = withdraw::decide(state, &domain, self.tid());
        let kept_words = withdraw::kept_words(&domain);
        let mut journal = std::mem::take(&mut domain.journal);
        let mut last = match decision.withdrawal {
            Withdrawal::Entangled => journal.split_at_mark(),
            _ => std::mem::take(&mut journal),
        };
        let (inverses, dropped) = last.abandon();
        for inverse in inverses {
            record.undone.push(inverse.describe());
            self.undo(state, &mut domain.pages, inverse);
        }
        for effect in dropped {
            self.process.stats.deferred.forgotten.inc();
            self.process
                .stats
                .held
                .bytes_dropped
                .add(effect.output().len() as u64);
            record.undone.push(effect.describe());
            let room = OUTPUT_KEPT.saturating_sub(record.dropped_output.len());
            let output = effect.output();
            record
                .dropped_output
                .extend_from_slice(&output[..output.len().min(room)]);
        }
        let (undone, waiting) = self.restore_or_hide(state, may_hide);
        // Pages of mappings that the domain has made are gone already.
        record.pages_written = written.max(state.tracker.active_count() as u64 + waiting);
        record.pages_restored = undone.restored.len() as u64;
        record.written = undone
            .restored
            .iter()
            .map(|RestoredPage { page, bytes }| (*page, *bytes))
            .collect();
        self.process.stats.pages.restored.add(record.pages_restored);
        let not_withdrawn = self.withdraw(state, &domain, &decision, &kept_words);
        self.give_token_back(state);
        record.pages_restored += domain.pages.iter().count() as u64 + waiting + self.restored_early;
        if waiting > 0 {
            let what = format!("{waiting} pages were hidden, to be restored when touched");
            record.undone.push(what);
        }
        super::cleaner::ensure(&self.process, state);
        self.keep(state, domain.origin, journal, &mut record.kept);
        state.heap_undone(&domain.pages);
        if let Some(image) = domain.audit.take() {
            self.check_audit(state, &image);
        }

        let checkpoint = domain.checkpoint;
        *self.vcpu.registers() = checkpoint.registers;
        self.vcpu.set_extended_state(&checkpoint.extended)?;
        // Always: the guest may have loaded selectors, and with them bases that nobody was told of.
        self.vcpu
            .set_segment_bases(checkpoint.bases.0, checkpoint.bases.1);
        self.set_blocked(checkpoint.blocked);
        self.alternate_stack = checkpoint.alternate_stack;
        let error = match domain.origin {
            Origin::Stream(fd) => {
                let unanswered = domain.committed_early.is_none();
                record.replied = self.end_connection(state, fd, unanswered, &record.input);
                Some(Errno::ECONNRESET)
            }
            Origin::Accept(_) => Some(Errno::ECONNABORTED),
            Origin::Datagram(_) => Some(Errno::EAGAIN),
            Origin::Handoff(_) | Origin::Internal | Origin::Timer => {
                // The same work again, with the same results delivered.
                self.next_origin = domain.origin;
                self.delivered = domain.delivered;
                None
            }
        };
        let suspects = std::mem::take(&mut self.suspects);
        record.peer = record
            .peer
            .or_else(|| suspects.first().copied().and_then(host::peer_name));
        for fd in &suspects {
            state.files.reset(*fd);
        }
        if let (Some(reason), Course::GoesOn) = (domain.committed_early, fault.course) {
            self.continues = Some(Continuation {
                origin: domain.origin,
                input: record.input.clone(),
                reason,
                answered: domain.answered_before,
                target: Target::default(),
            });
            self.begin_limits();
        }
        // What was committed early goes on where it was committed; only an origin call gets its error.
        if let (Some(error), None) = (error, domain.committed_early) {
            self.vcpu.registers().rax = guest_agentless::to_rax(Err(error));
        }

        let broken = undone.lost.len() as u32 + not_withdrawn + self.undo_failures;
        let lessened = domain
            .committed_early
            .or(domain.cramped)
            .map(str::to_owned)
            .or_else(|| decision.withdrawal.reason());
        (record.outcome, record.reason) = match (lessened, broken) {
            (None, 0) => (Outcome::Recovered, None),
            (Some(reason), 0) => (Outcome::Degraded, Some(reason)),
            (_, n) => (
                Outcome::Degraded,
                Some(format!("{n} effects could not be undone")),
            ),
        };
        if teaches {
            state.request_crashed(self.process.common, &record);
        }
        record.pause = begun.elapsed();
        self.process
            .stats
            .recovery_pause_us
            .record(stats::micros(record.pause));
        self.conclude(state, record);
        Ok(Flow::Continue)
    }

    /// What an entangled domain did before it was suspended last stays done, except for what it had to say to
    /// the client whose connection is reset.
    fn keep(
        &mut self,
        state: &mut State,
        origin: Origin,
        mut journal: Journal<Deferred, Undo>,
        kept: &mut Vec<String>,
    ) {
        let (deferred, undo) = journal.commit();
        for effect in deferred {
            if let Deferred::Send { fd, .. } = &effect
                && origin == Origin::Stream(*fd)
            {
                continue;
            }
            kept.push(effect.describe());
            self.perform(state, effect);
        }
        for inverse in undo {
            kept.push(inverse.describe());
            self.release_undo(state, inverse);
        }
    }

    /// There is nothing left to try: the fault takes its course as it would without the monitor.
    pub(super) fn give_up(
        &mut self,
        turn: &mut Turn<'_>,
        fault: Fault,
        registers: &Registers,
        reason: String,
    ) {
        let origin = turn.domain.as_ref().map_or(Origin::Internal, |d| d.origin);
        if self.process.options.protect {
            let mut record = self.describe(turn, fault, origin);
            self.quarantine(turn, &mut record, fault.info(), None);
            record.outcome = Outcome::Escalated;
            record.reason = Some(reason);
            if let Some(domain) = &turn.domain {
                record.input = domain.input.clone();
                record.peer = origin.fd().and_then(host::peer_name);
                record.kept = domain
                    .journal
                    .deferred()
                    .iter()
                    .map(|d| d.describe())
                    .collect();
            }
            self.process.reporter.fault(record);
        }
        *self.vcpu.registers() = *registers;
        self.take_course(turn, fault);
    }

    /// The fault of a process that the ladder gives up: its handlers have a bounded time, or none.
    pub(super) fn bounded(&self, mut fault: Fault) -> Fault {
        if let Course::Signal(signal) = fault.course
            && !last_chance::bound(&self.process, signal)
        {
            fault.course = Course::Kill(signal);
        }
        fault
    }

    /// What the fault leads to without the monitor.
    fn take_course(&mut self, turn: &mut Turn<'_>, fault: Fault) {
        let signal = match fault.course {
            Course::Signal(signal) => signal,
            Course::Kill(signal) => {
                let _ = self.commit(turn);
                sys::end::by_signal(self, turn, signal)
            }
            Course::Exit(status) => {
                let _ = self.commit(turn);
                sys::end::with_status(self, turn, status)
            }
            Course::GoesOn => return self.waive_limits(),
        };
        let its_own = fault.info().filter(|info| info.signal == signal);
        let info = its_own.unwrap_or_else(|| {
            SignalInfo::from_process(signal, std::process::id() as i32, host::user())
        });
        // A blocked or ignored signal that the CPU raised ends the process, as on Linux.
        let ignored = turn.dispositions.ignores(signal);
        if self.blocked.contains(signal) || ignored {
            let _ = self.commit(turn);
            sys::end::by_signal(self, turn, signal);
        }
        self.deliver(turn, info, fault.trap());
    }

    pub(super) fn describe(&mut self, state: &State, fault: Fault, origin: Origin) -> FaultRecord {
        let registers = *self.vcpu.registers();
        let mut stack = vec![0u8; STACK_KEPT];
        let kept = copy::read_up_to(registers.rsp, &mut stack);
        stack.truncate(kept);
        FaultRecord {
            time: SystemTime::now(),
            outcome: Outcome::Recovered,
            reason: None,
            signal: fault.signal.map(Signal::raw),
            kind: fault.kind,
            address: fault.address,
            detail: self.fault_detail.take(),
            thread: self.tid(),
            thread_name: host::thread_name(),
            registers: named(&registers),
            rip: registers.rip,
            rsp: registers.rsp,
            rbp: registers.rbp,
            rung: "give-up",
            origin,
            peer: None,
            input: Vec::new(),
            stack,
            mappings: state.space.vmas().iter().cloned().collect::<Vec<Vma>>(),
            quarantine: None,
            core_missing: None,
            written: Vec::new(),
            pages_written: 0,
            pages_restored: 0,
            undone: Vec::new(),
            dropped_output: Vec::new(),
            kept: Vec::new(),
            replied: false,
            pause: Duration::ZERO,
            program: self.process.program.clone(),
        }
    }
}

fn named(r: &Registers) -> Vec<(&'static str, u64)> {
    vec![
        ("rip", r.rip),
        ("rsp", r.rsp),
        ("rbp", r.rbp),
        ("rflags", r.rflags),
        ("rax", r.rax),
        ("rbx", r.rbx),
        ("rcx", r.rcx),
        ("rdx", r.rdx),
        ("rsi", r.rsi),
        ("rdi", r.rdi),
        ("r8", r.r8),
        ("r9", r.r9),
        ("r10", r.r10),
        ("r11", r.r11),
        ("r12", r.r12),
        ("r13", r.r13),
        ("r14", r.r14),
        ("r15", r.r15),
    ]
}
