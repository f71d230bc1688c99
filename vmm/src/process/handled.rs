//! Faults that the program handles itself: runtimes make an exception of them, map a page, or leave a loop.
//!
//! The handler runs as part of the work that has faulted. Where it ends the process, waits, or does in a request what
//! cannot be undone, it was a crash after all, and that is told as the first fault. A handler that is set to run once
//! (`SA_RESETHAND`) is to report a crash and to die, and does not run at all. One that only returns, to the same fault, has
//! handled nothing.

use guest_agentless::Signal;
use recovery::event::FaultKind;

use super::Turn;
use super::fault::Fault;
use super::signals::Delivery;
use super::thread::Thread;
use crate::kvm::Registers;

/// Stack that a handler uses at most.
const STACK_MAX: u64 = 1 << 20;

/// How often a handler may return to what has faulted, only for it to fault again: another thread may have to mend it.
const FUTILE_LIMIT: u32 = 100;

/// Returns of handlers that have led to the same fault.
#[derive(Default)]
pub struct Futile {
    /// What the last one has returned to, until the next fault.
    returned_to: Option<Registers>,
    times: u32,
}

impl Futile {
    /// There is a fault: whether it has come too often.
    fn is_past(&mut self, registers: &Registers) -> bool {
        // Flags may tell that it is the second time.
        let without_flags = |registers: Registers| Registers {
            rflags: 0,
            ..registers
        };
        let last = self.returned_to.take().map(without_flags);
        self.times = match last == Some(without_flags(*registers)) {
            true => self.times + 1,
            false => 0,
        };
        self.times >= FUTILE_LIMIT
    }
}

/// A handler that is at work, or has returned in the running domain.
pub struct Handling {
    fault: Fault,
    signal: Signal,
    /// Where the fault was.
    registers: Registers,
    /// The stack pointer when the handler will have returned.
    frame: u64,
    has_returned: bool,
    /// And not to where the fault was, whose cause it has mended then.
    went_elsewhere: bool,
}

impl Thread {
    /// Lets the guest's own handler have the fault, if it has one that may go on.
    pub(super) fn hand_to_handler(&mut self, turn: &mut Turn<'_>, fault: Fault) -> bool {
        let (Some(signal), Some(info)) = (fault.by_cpu(), fault.info()) else {
            return false;
        };
        let Delivery::Handle(action) = turn.dispositions.delivery(signal) else {
            return false;
        };
        if action.is_one_shot() || self.blocked.contains(signal) || self.is_in_handler() {
            return false;
        }
        let registers = *self.vcpu.registers();
        if self.futile.is_past(&registers) {
            return false;
        }
        let entered = self.enter_handler(turn, info, action, fault.trap());
        if entered {
            self.handling = Some(Handling {
                fault,
                signal,
                registers,
                frame: self.vcpu.registers().rsp.wrapping_add(8),
                has_returned: false,
                went_elsewhere: false,
            });
        }
        entered
    }

    /// Whether the handler of a fault is at work. One that lets the signal come again has done what it could; it may
    /// be left by a jump.
    pub fn is_in_handler(&mut self) -> bool {
        let rsp = self.vcpu.registers().rsp;
        self.handling.as_ref().is_some_and(|handling| {
            !handling.has_returned
                && self.blocked.contains(handling.signal)
                && handling.frame.wrapping_sub(rsp) < STACK_MAX
        })
    }

    /// A handler has returned with the stack pointer at `frame`.
    pub(super) fn handler_returned(&mut self, frame: u64) {
        let mut returns = self.handling.iter_mut().filter(|h| h.frame == frame);
        if let Some(handling) = returns.next() {
            let registers = *self.vcpu.registers();
            handling.has_returned = true;
            handling.went_elsewhere = registers.rip != handling.registers.rip;
            self.futile.returned_to = Some(registers);
        }
    }

    /// Whether the running domain has faulted, and goes on elsewhere behind the handler.
    pub fn has_left_fault(&self) -> bool {
        self.handling.as_ref().is_some_and(|h| h.went_elsewhere)
    }

    /// What to tell of `fault`: what its handler was called for, if it comes of that. The registers are then those of the
    /// first fault.
    pub(super) fn first_fault(&mut self, fault: Fault) -> Fault {
        let comes_of_it = self.is_in_handler() || fault.kind == FaultKind::CrashPath;
        match self.handling.take() {
            Some(first) if comes_of_it => {
                *self.vcpu.registers() = first.registers;
                fault.told_as(first.fault)
            }
            _ => fault,
        }
    }
}
