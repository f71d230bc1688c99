//! Faults in work that one thread has handed to another: found out whose it is, and skipped.
//!
//! Internal work that faults is run again with the calls watched that led to the fault (`Step::Watching`). If
//! it faults again, and their arguments lead to memory that one connection's requests have written, it is run
//! a third time up to the outermost call that works for that connection alone (`Step::Skipping`). What came
//! before the call commits; the call returns without having been made, the connection is reset, and the
//! thread goes on with its other work. `docs/decisions/0009` has the reasons.

use std::collections::HashMap;
use std::sync::Arc;

use guest_agentless::unwind::{self, StackFrame, UnwindInfo};
use guest_agentless::{Backing, FileBacking, GuestRange, GuestVa, Vma};
use iced_x86::{Decoder, DecoderOptions, Mnemonic};
use recovery::Origin;
use recovery::event::Outcome;
use recovery::handoff::{Batch, CallSite, Evidence, Memory, Plan, Producer, Provenance, Trace};
use recovery::tracker;

use super::breakpoint::{Breakpoints, Debug};
use super::domain::Domain;
use super::files::Files;
use super::reporter::{FaultRecord, read_module};
use super::rerun::Committed;
use super::thread::Thread;
use super::{Process, State, Turn};
use crate::kvm::{KvmError, Registers};
use crate::memory::{copy, window};

/// Calls that are watched: the outermost ones.
const SITES_MAX: usize = 16;
/// Bytes of a function up to a call that are decoded to find where the call begins.
const FUNCTION_MAX: u64 = 64 << 10;
/// Bytes of the stack that are walked.
const STACK_WALKED: usize = 64 << 10;
/// Bytes of a request's input that are kept for the report.
const INPUT_KEPT: usize = 1024;
/// Files whose unwind information is kept.
const FILES_KEPT: usize = 64;
/// Around the stack pointer, where a thread's own stack is taken to be.
const LOCAL: u64 = 1 << 20;
/// How often the same call is skipped, one time right after the other, before it is taken not to help: the
/// same client may have sent the same request several times.
const SAME_SKIPS: u32 = 8;

/// Reruns that may go another way than the one before.
const LOST_MAX: u32 = 3;

/// What the threads of a process know of hand-offs.
#[derive(Default)]
pub struct Handoffs {
    /// Who wrote what.
    pub provenance: Provenance,
    unwind_info: HashMap<(u32, u32, u64), Option<Arc<UnwindInfo>>>,
}

impl Handoffs {
    /// The process was restarted: no memory was written by anybody, but its threads are the same.
    pub fn forget(&mut self) {
        let recording = self.provenance.is_recording();
        self.provenance = Provenance::default();
        if recording {
            self.provenance.handed_off();
        }
    }

    fn unwind_info(&mut self, file: &FileBacking) -> Option<Arc<UnwindInfo>> {
        let key = (file.device.0, file.device.1, file.inode);
        if self.unwind_info.len() >= FILES_KEPT && !self.unwind_info.contains_key(&key) {
            self.unwind_info.clear();
        }
        let load = || Some(Arc::new(UnwindInfo::load(&read_module(file).ok()?)?));
        self.unwind_info.entry(key).or_insert_with(load).clone()
    }

    fn frames(&mut self, registers: &Registers, stack: &[u8], vmas: &[Vma]) -> Vec<StackFrame> {
        let from = unwind::Registers {
            rip: registers.rip,
            rsp: registers.rsp,
            rbp: registers.rbp,
        };
        unwind::frames(from, stack, vmas, &mut |file| self.unwind_info(file))
    }

    /// The call that returns to `frame`, if its code can be changed without anybody else's noticing.
    fn call_site(&mut self, frame: StackFrame, vmas: &[Vma]) -> Option<CallSite> {
        let inside = frame.address.checked_sub(1)?;
        let vma = vmas.iter().find(|vma| vma.range.contains(inside))?;
        let Backing::File(file) = &vma.backing else {
            return None;
        };
        if vma.shared || vma.protection.is_writable() || !vma.protection.is_executable() {
            return None;
        }
        let info = self.unwind_info(file)?;
        let start = info.function_start(vma, inside)?;
        // A call at the very end of a function never returns.
        if info.function_start(vma, frame.address) != Some(start) {
            return None;
        }
        let call = call_before(start, frame.address)?;
        Some(CallSite {
            call,
            after: frame.address,
            rsp: frame.rsp,
        })
    }
}

/// What to record of a domain that commits; none if it is no client's request.
fn batch_of(files: &mut Files, domain: &Domain) -> Option<Batch> {
    let fd = match domain.origin {
        Origin::Stream(fd) | Origin::Datagram(fd) => fd,
        _ => return None,
    };
    let kept = domain.input.len().min(INPUT_KEPT);
    Some(Batch {
        producer: Producer {
            origin: domain.origin,
            generation: files.generation(fd),
        },
        peer: files.peer(fd),
        input: Arc::from(&domain.input[..kept]),
    })
}

/// The call instruction that ends at `after`, in the function that begins at `start`. Instructions can be told
/// apart only from the beginning.
fn call_before(start: u64, after: u64) -> Option<u64> {
    let len = after
        .checked_sub(start)
        .filter(|len| *len <= FUNCTION_MAX)?;
    let mut code = vec![0u8; len as usize];
    copy::read(start, &mut code).ok()?;
    let decoder = Decoder::with_ip(64, &code, start, DecoderOptions::NONE);
    let last = decoder.into_iter().last()?;
    let ends = !last.is_invalid() && last.next_ip() == after && last.mnemonic() == Mnemonic::Call;
    ends.then_some(last.ip())
}

/// How far a thread has come in finding out what to skip.
#[derive(Default)]
enum Step {
    #[default]
    Idle,
    /// The domain is to be run again.
    Rerun,
    /// It runs again with the calls watched that led to the fault.
    Watching(Trace, HashMap<u64, Producer>),
    /// It runs again up to the call that is skipped.
    Skipping(Plan),
    /// Likewise, from the call on whose skipping did not help.
    Deeper(Registers, Plan),
}

/// A call that was skipped at the beginning of the running domain.
struct Skipped {
    /// The registers before the call.
    before: Registers,
    plan: Plan,
}

/// What a thread follows after a fault.
#[derive(Default)]
pub struct Following {
    step: Step,
    breakpoints: Breakpoints,
    /// The fault that is not told yet, since it is not known how it ends.
    pending: Option<FaultRecord>,
    skipped: Option<Skipped>,
    /// There was nothing to watch in the last rerun, and so there will not be in another.
    blind: bool,
    /// Reruns since the last call skipped that led nowhere.
    lost: u32,
    /// The signature of the last call skipped, and how often it was.
    repeated: (u64, u32),
}

impl Thread {
    /// A thread has made or woken another, or used what another has read: they may hand work to each other.
    pub fn note_handoff(&self, state: &mut State) {
        if self.process.threads().len() > 1 {
            state.handoffs.provenance.handed_off();
        }
    }

    /// Makes what the domain wrote the base of the next, and records whose it is if threads hand work over.
    pub fn commit_memory(&mut self, state: &mut State, domain: &Domain) -> tracker::Committed {
        let mut provenance = std::mem::take(&mut state.handoffs.provenance);
        let done = if provenance.is_recording() {
            let batch = batch_of(&mut state.files, domain);
            let number = provenance.commits(batch);
            let words = &self.process.stats.handoff.words;
            let process = Arc::clone(&self.process);
            let (tracker, mut memory) = state.tracking(&process, &mut self.vcpu);
            tracker.commit_examined(&mut memory, |page, before, after| {
                words.add(provenance.changed(number, page, before, after) as u64);
            })
        } else {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            tracker.commit(&mut memory)
        };
        state.handoffs.provenance = provenance;
        done
    }

    /// Bytes of the connection `fd` have been received into these parts.
    pub fn note_received(&self, state: &mut State, fd: i32, parts: &[GuestRange], bytes: u64) {
        state.files.set_reader(fd, self.tid());
        let producer = Producer {
            origin: Origin::Stream(fd),
            generation: state.files.generation(fd),
        };
        let mut left = bytes;
        for part in parts {
            let filled = part.len().min(left);
            left -= filled;
            if let Some(range) = GuestRange::new(GuestVa(part.start()), filled) {
                state.handoffs.provenance.received(range, producer);
            }
        }
    }

    /// The running domain commits: what was followed in it has ended.
    pub fn following_ended(&mut self) {
        self.clear_breakpoints();
        let following = &mut self.following;
        if !matches!(following.step, Step::Idle) {
            log::debug!("a rerun was not watched to its end");
        }
        following.step = Step::Idle;
        following.skipped = None;
        if let Some(record) = following.pending.take() {
            self.process.reporter.fault(record);
        }
    }

    /// The process was restarted: there is nothing left to follow. Breakpoints are in place only while their
    /// thread holds the run token, so all were taken away before memory was put back.
    pub fn forget_following(&mut self) {
        self.following_ended();
        self.following = Following::default();
    }

    /// Takes the breakpoints away, before anything else looks at a fault.
    pub fn clear_breakpoints(&mut self) {
        let breakpoints = &mut self.following.breakpoints;
        if !breakpoints.is_empty() {
            breakpoints.clear(&self.process.own_memory, self.vcpu.registers());
        }
    }

    /// The domain is going to be run again: [`Thread::conclude`] begins to watch it.
    pub fn watch_rerun(&mut self) {
        self.following.step = Step::Rerun;
    }

    /// The fault came again: finds the call to skip. True if there is one; the domain is then to be undone, and
    /// the first fault is not told, since both are told as one. Nothing is found where nothing is known of
    /// hand-offs.
    pub fn find_culprit(&mut self, state: &mut State) -> bool {
        let found = !state.handoffs.provenance.is_empty() && self.find_call(state);
        let first = self.following.pending.take();
        if let Some(record) = first.filter(|_| !found) {
            self.process.reporter.fault(record);
        }
        found
    }

    fn find_call(&mut self, state: &mut State) -> bool {
        let step = std::mem::take(&mut self.following.step);
        if let Step::Watching(trace, _) = &step {
            log::debug!("watched: {trace:x?}");
        }
        let lost = !self.following.blind && matches!(step, Step::Idle | Step::Skipping(_));
        let plan = match step {
            Step::Watching(trace, _) if self.is_in(state, &trace) => trace.choose(),
            _ => None,
        };
        let repeats = |plan: &Plan| {
            let (signature, times) = self.following.repeated;
            times >= SAME_SKIPS && plan.evidence().is_some_and(|e| e.signature == signature)
        };
        log::debug!("the call to skip: {:x?}", plan.as_ref().map(Plan::target));
        if let Some(plan) = plan.filter(|plan| !repeats(plan)) {
            self.following.step = Step::Skipping(plan);
            return true;
        }
        let deeper = |skipped: Skipped| Some((skipped.before, skipped.plan.deeper()?));
        if let Some((before, plan)) = self.following.skipped.take().and_then(deeper) {
            self.following.step = Step::Deeper(before, plan);
            return true;
        }
        // The rerun went another way, or could not be watched to its end.
        self.following.lost += u32::from(lost);
        let again = lost && self.following.lost <= LOST_MAX;
        if again {
            self.following.step = Step::Rerun;
        }
        again
    }

    /// Whether the thread has come to where it is by the calls that are watched.
    fn is_in(&mut self, state: &mut State, trace: &Trace) -> bool {
        let registers = *self.vcpu.registers();
        let vmas: Vec<Vma> = state.space.vmas().iter().cloned().collect();
        if let Some(range) = GuestRange::new(GuestVa(registers.rsp), STACK_WALKED as u64) {
            state.restore_in(&self.process, range);
        }
        let stack = read_stack(registers.rsp);
        let frames = state.handoffs.frames(&registers, &stack, &vmas);
        let is_there = |site: CallSite| {
            let is_it = |f: &StackFrame| (f.address, f.rsp) == (site.after, site.rsp);
            frames.iter().any(is_it)
        };
        trace.sites().all(is_there)
    }

    /// The domain has been undone. The fault is told now, or when it is known how the rerun ends.
    pub fn conclude(&mut self, state: &mut State, record: FaultRecord) {
        let next = match std::mem::take(&mut self.following.step) {
            Step::Rerun => {
                let trace = self.watch(state, &record);
                self.following.blind = trace.is_none();
                trace.map(|trace| Step::Watching(trace, state.files.by_event_data()))
            }
            Step::Skipping(plan) => self.plant(plan.sites()).then_some(Step::Skipping(plan)),
            Step::Deeper(before, plan) => {
                *self.vcpu.registers() = before;
                self.plant(plan.sites()).then_some(Step::Skipping(plan))
            }
            _ => None,
        };
        match next {
            Some(step) => {
                self.following.step = step;
                self.following.pending = Some(record);
                // Before anything else may happen to the thread, such as to be asked to yield.
                if let Err(error) = self.ensure_domain(state) {
                    log::error!("{error}");
                }
            }
            None => {
                self.clear_breakpoints();
                self.process.reporter.fault(record);
            }
        }
    }

    /// Watches the calls on the way to the fault. Those that were made before the domain began are not made
    /// again, and so not considered.
    fn watch(&mut self, state: &mut State, record: &FaultRecord) -> Option<Trace> {
        if state.handoffs.provenance.is_empty() {
            return None;
        }
        let fault = Registers {
            rip: record.rip,
            rsp: record.rsp,
            rbp: record.rbp,
            ..Registers::default()
        };
        let vmas = &record.mappings;
        let frames = state.handoffs.frames(&fault, &record.stack, vmas);
        let callers = frames.iter().skip(1).rev();
        let sites: Vec<CallSite> = callers
            .filter_map(|frame| state.handoffs.call_site(*frame, vmas))
            .take(SITES_MAX)
            .collect();
        if sites.is_empty() || !self.plant(sites.iter().copied()) {
            log::debug!("nothing to watch: {frames:x?}, {sites:x?}");
            return None;
        }
        Some(Trace::new(sites))
    }

    fn plant(&mut self, mut sites: impl Iterator<Item = CallSite>) -> bool {
        let breakpoints = &mut self.following.breakpoints;
        let memory = &self.process.own_memory;
        sites.all(|site| breakpoints.plant(memory, site.call))
    }

    /// The guest has left without an exception.
    pub fn rewind_breakpoint(&mut self) {
        self.following.breakpoints.rewind(self.vcpu.registers());
    }

    /// The guest has left on its own account.
    pub fn breakpoints_settled(&mut self) {
        self.following.breakpoints.settled();
    }

    /// A debug exception or breakpoint: true if it was one of the monitor's.
    pub fn debug_exception(&mut self, turn: &mut Turn<'_>, vector: u8) -> Result<bool, KvmError> {
        let process = Arc::clone(&self.process);
        let memory = &process.own_memory;
        let registers = self.vcpu.registers();
        let breakpoints = &mut self.following.breakpoints;
        match breakpoints.recognise(memory, vector, registers) {
            None => return Ok(false),
            Some(Debug::Passed) => return Ok(true),
            Some(Debug::Reached) => {}
        }
        let registers = *registers;
        let to_skip = match &mut self.following.step {
            Step::Skipping(plan) => plan.called(registers.rip, registers.rsp),
            _ => false,
        };
        if to_skip {
            self.skip(turn, registers)?;
            return Ok(true);
        }
        let mut goes_on = true;
        if let Step::Watching(trace, known) = &mut self.following.step
            && trace.watches(registers.rip, registers.rsp)
        {
            process.stats.handoff.watched.inc();
            let evidence = attribute(turn, &process, known, &registers);
            goes_on = trace.called(registers.rip, registers.rsp, evidence);
        }
        if goes_on && self.make_call(turn, registers) {
            return Ok(true);
        }
        if goes_on {
            let registers = self.vcpu.registers();
            self.following.breakpoints.pass(memory, registers);
        } else {
            self.following.step = Step::Idle;
            self.clear_breakpoints();
        }
        Ok(true)
    }

    /// Makes the call at a breakpoint in the guest's place, which is cheaper than to let it take one step. False
    /// if that cannot be done.
    fn make_call(&mut self, state: &mut State, registers: Registers) -> bool {
        let after = match &self.following.step {
            Step::Watching(trace, _) => trace.sites().find(|site| site.call == registers.rip),
            Step::Skipping(plan) => plan.sites().find(|site| site.call == registers.rip),
            _ => None,
        };
        let Some(first) = self.following.breakpoints.replaced(registers.rip) else {
            return false;
        };
        let Some(after) = after.map(|site| site.after) else {
            return false;
        };
        let len = after.saturating_sub(registers.rip).min(15) as usize;
        let mut code = [0u8; 15];
        if copy::read(registers.rip, &mut code[..len]).is_err() {
            return false;
        }
        code[0] = first;
        let read = |address| {
            let range = window::checked(address, 8)?;
            self.touch(state, range);
            let mut word = [0; 8];
            copy::read(address, &mut word).ok().map(|()| word)
        };
        let Some(target) = super::decode::call_target(&code[..len], &registers, read) else {
            return false;
        };
        let rsp = registers.rsp.wrapping_sub(8);
        let Some(range) = window::checked(rsp, 8) else {
            return false;
        };
        self.mark_written(state, range);
        if copy::write(rsp, &after.to_le_bytes()).is_err() {
            return false;
        }
        let registers = self.vcpu.registers();
        (registers.rip, registers.rsp) = (target, rsp);
        true
    }

    /// The call that the thread is about to make returns at once, and the connection that it works for is
    /// reset. What came before is done.
    fn skip(&mut self, state: &mut State, before: Registers) -> Result<(), KvmError> {
        let Step::Skipping(plan) = std::mem::take(&mut self.following.step) else {
            return Ok(());
        };
        let record = self.following.pending.take();
        let delivered = state.domain.as_ref().and_then(|d| d.delivered.clone());
        if self.commit(state) == Committed::PutBack {
            // It runs again from its beginning, and what is to be skipped is found anew.
            return Ok(());
        }

        let registers = self.vcpu.registers();
        registers.rip = plan.target().after;
        registers.rax = 0;
        self.following.lost = 0;
        self.process.stats.handoff.skipped.inc();
        if let Some(evidence) = plan.evidence() {
            self.charge(state, evidence, record);
            let repeated = &mut self.following.repeated;
            *repeated = match *repeated {
                (last, n) if last == evidence.signature => (last, n.saturating_add(1)),
                _ => (evidence.signature, 1),
            };
        }
        self.delivered = delivered;
        self.begin(state, Origin::Internal)?;
        self.following.skipped = Some(Skipped { before, plan });
        Ok(())
    }

    /// Resets the connection, if it is still the same, and tells the fault.
    fn charge(&mut self, state: &mut State, evidence: Evidence, record: Option<FaultRecord>) {
        let Producer { origin, generation } = evidence.producer;
        let (Some(fd), Some(mut record)) = (origin.fd(), record) else {
            return;
        };
        record.origin = Origin::Handoff(fd);
        let provenance = &state.handoffs.provenance;
        let latest = provenance.latest(evidence.producer);
        if let Some(batch) = latest.and_then(|number| provenance.batch(number)) {
            record.peer = batch.peer.clone();
            record.input = batch.input.to_vec();
        }
        if !evidence.named && record.outcome == Outcome::Recovered {
            record.outcome = Outcome::Degraded;
            record.reason = Some("whose task it was is known by circumstances only".into());
        }
        // A packet is dropped; nothing else of its socket is to be reset.
        if matches!(origin, Origin::Stream(_)) && state.files.generation(fd) == generation {
            state.files.reset(fd);
        }
        self.process.reporter.fault(record);
    }
}

/// Whom the call that is about to be made works for.
fn attribute(
    state: &mut State,
    process: &Process,
    known: &HashMap<u64, Producer>,
    registers: &Registers,
) -> Option<Evidence> {
    let r = registers;
    // More are rarely passed, and what is not passed leads astray.
    let arguments = [r.rdi, r.rsi, r.rdx, r.rcx];
    let provenance = std::mem::take(&mut state.handoffs.provenance);
    let evidence = provenance.attribute(
        &arguments,
        &mut Seen {
            rsp: r.rsp,
            known,
            state,
            process,
        },
    );
    state.handoffs.provenance = provenance;
    evidence
}

/// Guest memory as it is now.
struct Seen<'a> {
    rsp: u64,
    known: &'a HashMap<u64, Producer>,
    state: &'a mut State,
    process: &'a Process,
}

impl Memory for Seen<'_> {
    fn read(&mut self, address: u64, into: &mut [u8]) -> usize {
        if let Some(range) = GuestRange::new(GuestVa(address), into.len() as u64) {
            self.state.restore_in(self.process, range);
        }
        copy::read_up_to(address, into)
    }

    fn is_local(&self, address: u64) -> bool {
        address.abs_diff(self.rsp) < LOCAL
    }

    fn known_as(&self, pointer: u64) -> Option<Producer> {
        self.known.get(&pointer).copied()
    }

    fn is_open(&self, producer: Producer) -> bool {
        self.state.files.is_open(producer)
    }
}

fn read_stack(rsp: u64) -> Vec<u8> {
    let mut stack = vec![0u8; STACK_WALKED];
    let len = copy::read_up_to(rsp, &mut stack);
    stack.truncate(len);
    stack
}
