//! Fault injection, done to the guest: a chosen request is struck where it was to be (`inject/`).
//!
//! What is written to guest memory is part of the request's writes, as if it had made them: it passes the tracker, and
//! is undone with the request.

mod hit;

use std::sync::Arc;
use std::thread::Builder;

use guest_agentless::symbols::function_offset;
use guest_agentless::syscall::{self, ArgKind};
use guest_agentless::{Backing, Errno, Protection};
use recovery::event::{Event, Hex, Injected};

use super::breakpoint::{Breakpoints, Debug};
use super::fault::Fault;
use super::files::Kind;
use super::reporter::read_module;
use super::thread::Thread;
use super::{Process, State};
use crate::host;
use crate::inject::{Armed, Injector, Point, What};
use crate::memory::copy;
use crate::rng::Rng;

/// Functions through which memory is allocated.
const ALLOCATORS: [&str; 3] = ["malloc", "calloc", "realloc"];
const LOCK: &str = "pthread_mutex_lock";
/// Breakpoints for one name at most: one for each library that has it.
const PLACES_MAX: usize = 16;

/// Where the functions are that requests are struck at, while one is to be.
#[derive(Default)]
pub struct StrikePoints {
    breakpoints: Breakpoints,
    /// The thread that they are for.
    owner: i32,
}

/// Where the thread stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum At {
    /// Before a system call.
    Call,
    /// Somewhere in its code.
    Code,
}

/// What came of a strike.
pub enum Struck {
    /// Nothing is to be done otherwise.
    GoOn,
    /// The registers are others: whatever was to be done is not.
    Diverted,
    /// The system call is not made, and fails.
    Fails(Errno),
    /// The guest has faulted.
    Fault(Fault),
}

/// Which domain is looked at for injections, and what is known of it.
#[derive(Debug, Clone, Default)]
pub struct Target {
    /// Bytes of the input that have been looked at.
    known: Option<usize>,
    armed: Option<Armed>,
}

impl Thread {
    fn injector(&self) -> Option<Arc<Injector>> {
        let injector = self.process.injector.as_ref()?;
        injector.is_active().then(|| Arc::clone(injector))
    }

    /// The running domain has begun or got more input: it may be one to be struck. No code of it has run since.
    pub fn choose_target(&mut self, state: &mut State) {
        let Some(injector) = self.injector() else {
            return;
        };
        let Some(domain) = &mut state.domain else {
            return;
        };
        let target = &mut domain.target;
        let known = target.known.replace(domain.input.len());
        if target.armed.is_some() || known == target.known {
            return;
        }
        let begins = known.is_none() && domain.calls == 0;
        target.armed = injector.choose(domain.origin.kind(), &domain.input, known);
        let Some(armed) = target.armed.clone() else {
            return;
        };
        if matches!(armed.point, Point::Pages(_)) && begins {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            tracker.trap_all(&mut memory);
        }
        self.plant_points(state, &armed);
    }

    /// Watches the functions that `armed` waits for.
    fn plant_points(&mut self, state: &mut State, armed: &Armed) {
        let names: &[&str] = match (&armed.point, armed.what) {
            (Point::Symbol(name), _) => &[name],
            (_, What::Alloc) => &ALLOCATORS,
            (_, What::Hold) => &[LOCK],
            _ => return,
        };
        let places: Vec<u64> = names
            .iter()
            .flat_map(|name| state.functions(name))
            .collect();
        self.plant_at(state, &places);
    }

    fn plant_at(&mut self, state: &mut State, places: &[u64]) {
        state.strike_points.owner = self.tid();
        for place in places {
            let points = &mut state.strike_points.breakpoints;
            if !points.plant(&self.process.own_memory, *place) {
                log::debug!("no breakpoint at {place:#x}");
            }
        }
    }

    /// Takes the breakpoints away, whosever they are: they are in code that all threads share.
    pub fn clear_strike_points(&mut self, state: &mut State) {
        let points = &mut state.strike_points.breakpoints;
        if !points.is_empty() {
            points.clear(&self.process.own_memory, self.vcpu.registers());
        }
    }

    /// The thread is about to enter the guest.
    pub fn keep_to_own_strike_points(&mut self, state: &mut State) {
        if !state.strike_points.breakpoints.is_empty() && state.strike_points.owner != self.tid() {
            self.clear_strike_points(state);
        }
    }

    /// The guest has left without an exception; a breakpoint may have been met just before.
    pub fn rewind_strike_point(&mut self, state: &mut State) {
        state
            .strike_points
            .breakpoints
            .rewind(self.vcpu.registers());
    }

    /// A domain has ended.
    pub fn target_ended(&mut self, state: &mut State, target: Target) {
        if let Some(armed) = target.armed {
            self.clear_strike_points(state);
            if let Some(injector) = &self.process.injector {
                injector.missed(&armed);
            }
        }
    }

    /// The guest is about to make system call `number`.
    pub fn strike_at_call(&mut self, state: &mut State, number: u64) -> Struck {
        let Some(injector) = self.injector() else {
            return Struck::GoOn;
        };
        self.choose_target(state);
        state.strike_points.breakpoints.settled();
        // A child would get a copy of code with breakpoints.
        if is_clone(number) {
            self.clear_strike_points(state);
        }
        let Some(domain) = &state.domain else {
            return Struck::GoOn;
        };
        let (calls, client) = (domain.calls, domain.origin.fd());
        let Some(armed) = domain.target.armed.clone() else {
            return Struck::GoOn;
        };
        let of_others = client != Some(self.vcpu.registers().rdi as i32);
        let is_place = match (&armed.point, armed.what) {
            (Point::Symbol(_), _) | (_, What::Hold) => false,
            // What is damaged, or fails, at the call with which a request ends is no longer the request's.
            (_, what) if !what.is_immediate() && is_wait(number) => false,
            (_, what) if !what.is_immediate() && is_read(number) && of_others => false,
            // A server may answer several clients in the request of one of them.
            (_, What::Syscall(_)) if of_others && self.is_on_stream(state, number) => false,
            (_, What::Alloc) => is_allocation(number),
            (Point::Calls(after), _) => calls >= *after,
            (Point::Pages(pages), _) => self.written_by_target(state) >= *pages,
            (Point::Time(_), _) => true,
        };
        match is_place {
            true => self.strike(state, &injector, At::Call),
            false => Struck::GoOn,
        }
    }

    /// Whether the first argument of the call is a connection.
    fn is_on_stream(&mut self, state: &mut State, number: u64) -> bool {
        let first = syscall::lookup(number).and_then(|row| row.args.first());
        let fd = self.vcpu.registers().rdi as i32;
        first.is_some_and(|arg| matches!(arg.kind, ArgKind::Fd))
            && state.files.kind(fd) == Kind::Stream
    }

    /// The guest was interrupted, or is about to write to a page for the first time.
    pub fn strike_in_code(&mut self, state: &mut State) -> Struck {
        let Some(injector) = self.injector() else {
            return Struck::GoOn;
        };
        let written = self.written_by_target(state);
        let Some(domain) = &mut state.domain else {
            return Struck::GoOn;
        };
        if domain.target.armed.is_none() && domain.target.known.is_some() {
            let kind = domain.origin.kind();
            domain.target.armed = injector.choose_due(kind, &domain.input);
        }
        let point = domain.target.armed.as_ref().map(|armed| &armed.point);
        match point {
            Some(Point::Time(_)) => self.strike(state, &injector, At::Code),
            Some(Point::Pages(pages)) if written >= *pages => {
                self.strike(state, &injector, At::Code)
            }
            _ => Struck::GoOn,
        }
    }

    /// A debug exception: none if it is not one of these breakpoints.
    pub fn strike_at_point(&mut self, state: &mut State, vector: u8) -> Option<Struck> {
        let memory = &self.process.own_memory;
        let registers = self.vcpu.registers();
        let points = &mut state.strike_points.breakpoints;
        match points.recognise(memory, vector, registers)? {
            Debug::Passed => return Some(Struck::GoOn),
            Debug::Reached => {}
        }
        self.clear_strike_points(state);
        let (Some(injector), Some(domain)) = (self.injector(), &state.domain) else {
            return Some(Struck::GoOn);
        };
        let holds = matches!(&domain.target.armed, Some(armed) if armed.what == What::Hold);
        let registers = *self.vcpu.registers();
        // The lock is held when the function returns.
        if holds && state.functions(LOCK).contains(&registers.rip) {
            if let Some(after) = read_word(registers.rsp) {
                self.plant_at(state, &[after]);
            }
            return Some(Struck::GoOn);
        }
        Some(self.strike(state, &injector, At::Code))
    }

    /// Pages that the running domain has written, if somebody waits for their number.
    fn written_by_target(&mut self, state: &mut State) -> u64 {
        let target = state.domain.as_ref().map(|domain| &domain.target);
        let armed = target.and_then(|target| target.armed.as_ref());
        if !matches!(armed, Some(armed) if matches!(armed.point, Point::Pages(_))) {
            return 0;
        }
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.note_written(&mut memory);
        tracker.active_count() as u64
    }

    fn strike(&mut self, state: &mut State, injector: &Injector, at: At) -> Struck {
        let Some(domain) = &mut state.domain else {
            return Struck::GoOn;
        };
        let Some(armed) = domain.target.armed.take() else {
            return Struck::GoOn;
        };
        let (origin, calls) = (domain.origin, domain.calls);
        self.clear_strike_points(state);
        if !injector.strikes(&armed) {
            return Struck::GoOn;
        }
        let rip = self.vcpu.registers().rip;
        let mut rng = Rng::new(armed.seed, 1);
        let Some((detail, struck)) = self.hit(state, injector, armed.what, at, &mut rng) else {
            injector.take_back(&armed);
            return Struck::GoOn;
        };
        self.process.reporter.emit(Event::Injected(Injected {
            injection: armed.id,
            what: armed.what.to_string(),
            detail,
            thread: self.tid(),
            rip: Hex(rip),
            origin: origin.to_string(),
            peer: origin.fd().and_then(host::peer_name),
            calls,
        }));
        struck
    }
}

impl State {
    /// Where the functions with this name are, in all that is mapped when somebody first asks for it.
    fn functions(&mut self, name: &str) -> Vec<u64> {
        if let Some(known) = self.functions.get(name) {
            return known.clone();
        }
        let code = self
            .space
            .vmas()
            .iter()
            .filter(|vma| vma.protection.allows(Protection::EXEC));
        let found: Vec<u64> = code
            .filter_map(|vma| {
                let Backing::File(file) = &vma.backing else {
                    return None;
                };
                let offset = function_offset(&read_module(file).ok()?, name)?;
                let inside = offset.checked_sub(file.offset)?;
                (inside < vma.range.len()).then(|| vma.range.start() + inside)
            })
            .take(PLACES_MAX)
            .collect();
        self.functions.insert(name.to_owned(), found.clone());
        found
    }
}

fn read_word(address: u64) -> Option<u64> {
    let mut word = [0; 8];
    (copy::read_up_to(address, &mut word) == 8).then(|| u64::from_le_bytes(word))
}

fn is_allocation(number: u64) -> bool {
    matches!(
        number as i64,
        libc::SYS_brk | libc::SYS_mmap | libc::SYS_mremap
    )
}

/// Calls by which a server waits for more work.
fn is_wait(number: u64) -> bool {
    matches!(
        number as i64,
        libc::SYS_epoll_wait
            | libc::SYS_epoll_pwait
            | libc::SYS_epoll_pwait2
            | libc::SYS_poll
            | libc::SYS_ppoll
            | libc::SYS_select
            | libc::SYS_pselect6
            | libc::SYS_accept
            | libc::SYS_accept4
    )
}

/// Calls by which it takes work from a connection.
fn is_read(number: u64) -> bool {
    matches!(
        number as i64,
        libc::SYS_read | libc::SYS_readv | libc::SYS_recvfrom | libc::SYS_recvmsg
    )
}

fn is_clone(number: u64) -> bool {
    matches!(
        number as i64,
        libc::SYS_clone | libc::SYS_clone3 | libc::SYS_fork | libc::SYS_vfork | libc::SYS_execve
    )
}

/// Lets injection `id` strike when its time has come, if it waits for one.
pub fn await_time(process: &Arc<Process>, id: u64) -> std::io::Result<()> {
    let Some(injector) = &process.injector else {
        return Ok(());
    };
    let Some(time) = injector.time(id) else {
        return Ok(());
    };
    let (process, injector) = (Arc::clone(process), Arc::clone(injector));
    host::with_signals_blocked(|| {
        Builder::new()
            .name("vmsrs-inject".into())
            .stack_size(64 << 10)
            .spawn(move || {
                std::thread::sleep(time);
                injector.set_due(id);
                process.kick_holder();
            })
            .map(drop)
    })
}
