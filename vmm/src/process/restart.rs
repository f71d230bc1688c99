//! Restart in place: the process goes back to the state of its image (see [`super::image`]).
//!
//! The thread that faulted does it, and holds the run token throughout, so no other thread can be in the guest.
//! The others are kicked out of their host calls first: from then on each of them waits for the token, and when
//! it gets it finds that it is in another *epoch* than the process. It then lets go of whatever it was doing and
//! goes on where the image has it ([`Thread::rejoin`]), or ends if the image does not know it.
//!
//! Listening sockets are not touched: connections that wait in their queues, or come in meanwhile, are accepted
//! by the restarted server. Files keep what was written to them.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use guest_agentless::{GuestRange, Signal, Vma};
use recovery::Origin;
use recovery::event::{Event, Hex, Outcome, rfc3339, signal_name};
use recovery::stats;
use recovery::tracker::{ImageRestored, SavedPages};

use super::domain::Domain;
use super::effects::Undo;
use super::fault::{Course, Fault};
use super::image::{RestartMode, is_of_shared_file};
use super::thread::{Flow, Thread};
use super::{State, Turn};
use crate::kvm::{KvmError, Registers};
use crate::memory::window;
use crate::{host, sys};

/// How long the other threads may take to leave their host calls.
const STOP_TIME: Duration = Duration::from_secs(2);
/// How often they are looked at meanwhile, and how often they are kicked again.
const STOP_POLL: Duration = Duration::from_micros(50);
const KICKS: u32 = 100;

impl Thread {
    /// Why the process cannot be restarted now; none if it can.
    pub(super) fn restart_obstacle(&self, state: &State) -> Option<String> {
        let mode = self.process.options.restart;
        if mode == RestartMode::Off {
            return Some("--restart=off".into());
        }
        if let Some(lost) = state.lost_image() {
            return Some(lost);
        }
        let restart = &state.restart;
        let Some(image) = &restart.image else {
            let reason = restart.unavailable.as_deref();
            return Some(reason.unwrap_or("it had not begun to serve").into());
        };
        if let Some(tid) = image.ended_thread(&self.process.threads()) {
            return Some(format!("thread {tid} has ended since it began to serve"));
        }
        let writes_files = |vma: &Vma| is_of_shared_file(vma) && vma.protection.is_writable();
        if mode == RestartMode::On
            && (restart.files_changed
                || state.space.vmas().iter().any(writes_files)
                || image.vmas.iter().any(writes_files))
        {
            return Some(
                "it has written files or made processes since it began to serve, which its memory of then \
                 would contradict (--restart=always)"
                    .into(),
            );
        }
        None
    }

    /// Whether the process was restarted since this thread last looked.
    pub fn is_outdated(&self, state: &State) -> bool {
        self.epoch != state.restart.epoch
    }

    /// Restarts the process in place because of `fault`. The ladder has found that it can be.
    pub(super) fn restart(
        &mut self,
        turn: &mut Turn<'_>,
        fault: Fault,
        registers: &Registers,
        begun: Instant,
    ) -> Result<Flow, KvmError> {
        if !self.stop_others() {
            let reason = "not restarted in place: a thread is in a system call that does not end";
            let fault = self.bounded(fault);
            self.give_up(turn, fault, registers, reason.into());
            return Ok(Flow::Continue);
        }
        let origin = turn.domain.as_ref().map_or(Origin::Internal, |d| d.origin);
        let mut record = self.describe(turn, fault, origin);
        self.quarantine(turn, &mut record, fault.info(), None);
        record.rung = "restart";
        record.outcome = Outcome::Escalated;
        record.peer = origin.fd().and_then(host::peer_name);
        for connection in self.others().iter().filter_map(|c| c.take_accepted()) {
            let _ = host::abort_connection(connection);
            let _ = host::close(connection);
        }
        self.restore_all(turn);
        // What suspended requests have written is watched no longer.
        for window in window::windows() {
            self.touch(turn, window);
        }
        let (tracker, mut memory) = turn.tracking(&self.process, &mut self.vcpu);
        let lost = tracker.abandon(&mut memory, |_, _| {}).lost.len() as u64;
        record.pages_written = tracker.active_pages().count() as u64;
        if let Some(domain) = &mut turn.domain {
            record.input = std::mem::take(&mut domain.input);
            let dropped = domain.journal.deferred().iter();
            record.undone = dropped.map(|effect| effect.describe()).collect();
        }
        let suspended = std::mem::take(&mut turn.suspended);
        turn.left_reads.clear();
        let running = turn.domain.take();
        for domain in running.into_iter().chain(suspended.into_values()) {
            self.forget_domain(turn, domain);
        }

        let threads_ended = self.threads_to_end(turn);
        let (files, pages) = match self.restore(turn) {
            Ok(done) if done.1.lost + lost == 0 => done,
            Ok(done) => self.fail(
                turn,
                record,
                fault,
                &format!("{} pages", done.1.lost + lost),
            ),
            Err(what) => self.fail(turn, record, fault, &what),
        };
        self.give_token_back(turn);
        turn.restart.epoch += 1;
        let flow = self.rejoin(turn)?;

        record.pages_restored = pages.pages;
        record.pause = begun.elapsed();
        let reason = format!("nothing lesser helps with the fault at {:#x}", record.rip);
        record.reason = Some(format!("the process was restarted in place: {reason}"));
        let stats = &self.process.stats;
        stats.restart_pause_us.record(stats::micros(record.pause));
        stats.pages.restored.add(pages.pages);
        let event = Event::Restarted {
            reason,
            signal: record.signal.map(signal_name),
            kind: record.kind,
            thread: record.thread,
            rip: Hex(record.rip),
            origin: origin.to_string(),
            lost_since: turn
                .restart
                .image
                .as_ref()
                .map_or_else(String::new, |i| rfc3339(i.taken)),
            pause_us: stats::micros(record.pause),
            pages_restored: pages.pages,
            connections_reset: files.connections,
            descriptors_closed: files.closed,
            threads_ended,
        };
        self.process.reporter.fault(record);
        self.process.reporter.emit(event);
        Ok(flow)
    }

    /// A domain ends without a trace: what the image does not hold of what it has done is undone.
    fn forget_domain(&mut self, state: &mut State, mut domain: Domain) {
        let (inverses, _) = domain.journal.abandon();
        for inverse in inverses {
            match inverse {
                Undo::SocketOption { .. }
                | Undo::Prctl { .. }
                | Undo::Directory { .. }
                | Undo::IntervalTimer { .. }
                | Undo::Locked { .. }
                | Undo::Call { .. }
                | Undo::Unread { .. }
                | Undo::PeekOffset { .. } => {
                    self.undo(state, &mut domain.pages, inverse);
                }
                Undo::Remap { .. } => self.release_undo(state, inverse),
                _ => {}
            }
        }
    }

    /// The process is neither what it was nor what its image says: it ends.
    fn fail(
        &mut self,
        turn: &mut Turn<'_>,
        mut record: super::reporter::FaultRecord,
        fault: Fault,
        what: &str,
    ) -> ! {
        record.rung = "give-up";
        record.reason = Some(format!(
            "the restart in place failed: {what} could not be put back"
        ));
        self.process.reporter.fault(record);
        match fault.course {
            Course::Exit(status) => sys::end::with_status(self, turn, status),
            Course::Signal(signal) | Course::Kill(signal) => {
                sys::end::by_signal(self, turn, signal)
            }
            Course::GoesOn => sys::end::by_signal(self, turn, Signal::SIGABRT),
        }
    }

    /// Gets the other threads out of their host calls. They cannot do anything without the run token, which
    /// this thread holds.
    fn stop_others(&self) -> bool {
        let others = self.others();
        let deadline = Instant::now() + STOP_TIME;
        for round in 0.. {
            let mut busy = false;
            for control in &others {
                // All at first: one that is just about to enter its call must not do so.
                if round == 0 || (control.is_in_host() && round % KICKS == 0) {
                    control.kick();
                }
                busy |= control.is_in_host();
            }
            if !busy {
                return true;
            }
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(STOP_POLL);
        }
        false
    }

    fn threads_to_end(&self, state: &State) -> u64 {
        let Some(image) = &state.restart.image else {
            return 0;
        };
        let threads = self.process.threads();
        let ending = threads.values().filter(|c| image.thread(c).is_none());
        ending.count() as u64
    }

    /// Gives the process back its descriptors, its memory, and what else the image holds.
    fn restore(
        &mut self,
        state: &mut State,
    ) -> Result<(super::files::FilesRestored, ImageRestored), String> {
        let files = state.files.restore_image(state.restart.files_changed);
        if let Some(failure) = files.failures.first() {
            return Err(failure.clone());
        }
        let pages = self.restore_memory(state)?;
        if let Some(image) = &state.restart.image {
            state.is_stopping = false;
            state.dispositions.clone_from(&image.dispositions);
            state.own_limits = image.own_limits;
            state.handoffs.forget();
            for signal in (1..=64).filter_map(Signal::new) {
                super::host_signals::mirror(signal, &state.dispositions);
            }
        }
        Ok((files, pages))
    }

    fn restore_memory(&mut self, state: &mut State) -> Result<ImageRestored, String> {
        let Some(mut image) = state.restart.image.take() else {
            return Err("its image".into());
        };
        let ranges = image.ranges();
        let mapped = state.tracker.image_mapped().to_vec();
        let outcome = self.unmap_outside(state, &mapped).and_then(|()| {
            for (stash, pages) in image.aside.drain(..) {
                let parts: Vec<GuestRange> = pages.iter().map(SavedPages::range).collect();
                state.space.unstash_parts(stash, &parts);
                let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                for saved in pages {
                    tracker.put_back(&mut memory, saved);
                }
            }
            restore_protections(state, &image.vmas)
        });
        state.space.set_heap(image.heap);
        state.restart.image = Some(image);
        outcome?;
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        Ok(tracker.restore_image(&mut memory, ranges))
    }

    /// Unmaps all that does not lie in `ranges` (ascending).
    fn unmap_outside(&mut self, state: &mut State, ranges: &[GuestRange]) -> Result<(), String> {
        let current: Vec<GuestRange> = state.space.vmas().iter().map(|vma| vma.range).collect();
        for range in current.iter().flat_map(|range| outside(*range, ranges)) {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            tracker.forget(&mut memory, range);
            let unmapped = state.space.unmap(range);
            unmapped.map_err(|e| format!("the mapping {range:?} ({})", e.name()))?;
        }
        Ok(())
    }

    /// The process was restarted: the thread goes on where the image has it, or ends.
    pub fn rejoin(&mut self, state: &State) -> Result<Flow, KvmError> {
        self.epoch = state.restart.epoch;
        self.forget_following();
        self.stepping.clear();
        self.mask_after_handler = None;
        self.next_origin = Origin::Internal;
        self.delivered = None;
        self.wakeup = None;
        self.continues = None;
        self.interrupted = None;
        self.suspects.clear();
        self.restart = None;
        self.asked_at = None;
        self.signals_postponed = false;
        self.last_fault = (0, 0);
        self.control
            .pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clear();
        let parked = state
            .restart
            .image
            .as_ref()
            .and_then(|image| image.thread(self.control));
        let Some(parked) = parked else {
            // Where its list of mutexes was there is something else now.
            host::leave_robust_list();
            return Ok(Flow::ThreadEnded);
        };
        *self.vcpu.registers() = parked.registers;
        self.vcpu.set_extended_state(&parked.extended)?;
        self.vcpu.set_segment_bases(parked.bases.0, parked.bases.1);
        self.set_blocked(parked.blocked);
        self.alternate_stack = parked.alternate_stack;
        self.control
            .clear_tid
            .store(parked.clear_tid, Ordering::Relaxed);
        host::set_thread_name(&parked.name);
        // Signals of the process that came in meanwhile.
        self.control.request_attention();
        Ok(Flow::Continue)
    }
}

/// All mappings of the image are there; those that may be used in another way now get their protection back.
fn restore_protections(state: &mut State, vmas: &[Vma]) -> Result<(), String> {
    let mut changed = Vec::new();
    for vma in vmas {
        if !state.space.vmas().is_covered(vma.range) {
            return Err(format!("the mapping {:?}", vma.range));
        }
        let current = state.space.vmas().overlapping(vma.range);
        let other = current.filter(|piece| piece.protection != vma.protection);
        changed.extend(other.filter_map(|piece| vma.clipped(piece.range)));
    }
    state.space.restore_protection(changed);
    Ok(())
}

/// The parts of `range` that lie in none of `ranges` (ascending).
fn outside(range: GuestRange, ranges: &[GuestRange]) -> Vec<GuestRange> {
    let mut parts = Vec::new();
    let mut at = range.start();
    let first = ranges.partition_point(|other| other.end() <= range.start());
    for other in &ranges[first..] {
        if other.start() >= range.end() {
            break;
        }
        if other.start() > at {
            parts.push(GuestRange::from_bounds(at, other.start()));
        }
        at = at.max(other.end());
    }
    if at < range.end() {
        parts.push(GuestRange::from_bounds(at, range.end()));
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_lies_outside_is_what_is_left() {
        let range = |from: u64, to: u64| GuestRange::from_bounds(from * 4096, to * 4096);
        let known = [range(2, 4), range(4, 5), range(8, 10)];
        assert_eq!(
            outside(range(0, 12), &known),
            [range(0, 2), range(5, 8), range(10, 12)]
        );
        assert_eq!(outside(range(2, 5), &known), []);
        assert_eq!(outside(range(3, 9), &known), [range(5, 8)]);
        assert_eq!(outside(range(20, 21), &known), [range(20, 21)]);
        assert_eq!(outside(range(1, 2), &[]), [range(1, 2)]);
    }
}
