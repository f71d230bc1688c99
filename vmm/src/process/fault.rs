//! What can go wrong in the guest, and what that leads to without the monitor.

use guest_agentless::Signal;
use recovery::event::{Access, FaultKind};

use super::signals::{SYS_SECCOMP, SignalInfo};
use crate::host;
use crate::kvm::Registers;
use crate::memory::{Attempt, Resolution};

// `si_code` values of `asm-generic/siginfo.h` that the libc crate leaves out.
const FPE_INTDIV: i32 = 1;
const FPE_FLTINV: i32 = 7;
const ILL_ILLOPN: i32 = 2;

/// What a fault leads to where nothing is recovered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Course {
    /// Linux sends this signal.
    Signal(Signal),
    /// Linux ends the process as by this signal, whatever it has to handle it.
    Kill(Signal),
    /// The process exits with this status.
    Exit(i32),
    /// The request goes on: it has only used more than it may.
    GoesOn,
}

/// Something that would have killed the server.
#[derive(Debug, Clone, Copy)]
pub struct Fault {
    /// What it leads to without the monitor.
    pub course: Course,
    /// The signal that it raises, if it raises one.
    pub(super) signal: Option<Signal>,
    /// What went wrong.
    pub kind: FaultKind,
    /// The faulting address, if the signal has one.
    pub address: Option<u64>,
    code: i32,
    trap: (u64, u64, u64),
    /// The system call that a filter has forbidden, and what it says of that.
    forbidden: Option<(u32, u16)>,
}

impl Fault {
    /// A page fault that stands.
    pub fn page(attempt: Attempt, address: u64, resolution: Resolution, error_code: u64) -> Fault {
        let mapped = resolution != Resolution::NotMapped;
        let access = match attempt {
            Attempt::Read => Access::Read,
            Attempt::Write if mapped => Access::WriteProtected,
            Attempt::Write => Access::Write,
            Attempt::Execute => Access::Execute,
        };
        Fault {
            course: Course::Signal(Signal::SIGSEGV),
            signal: Some(Signal::SIGSEGV),
            kind: FaultKind::from_signal(libc::SIGSEGV, Some(address), access),
            address: Some(address),
            // SEGV_MAPERR and SEGV_ACCERR.
            code: if mapped { 2 } else { 1 },
            trap: (14, error_code, address),
            forbidden: None,
        }
    }

    /// Any other CPU exception at `rip` (SDM volume 3, table 6-1; signals as Linux sends them).
    pub fn from_exception(vector: u8, error_code: u64, rip: u64) -> Fault {
        const SI_KERNEL: i32 = 0x80;
        const INVALID_OPCODE: u8 = 6;
        const GENERAL_PROTECTION: u8 = 13;
        // PVM cannot emulate `int n`, and says that there is no such instruction.
        let vector = match vector {
            INVALID_OPCODE if super::decode::is_interrupt(rip) => GENERAL_PROTECTION,
            other => other,
        };
        let (signal, code, address) = match vector {
            0 => (Signal::SIGFPE, FPE_INTDIV, Some(rip)),
            1 => (Signal::SIGTRAP, libc::TRAP_TRACE, Some(rip)),
            3 => (Signal::SIGTRAP, SI_KERNEL, None),
            6 => (Signal::SIGILL, ILL_ILLOPN, Some(rip)),
            16 | 19 => (Signal::SIGFPE, FPE_FLTINV, Some(rip)),
            11 | 12 => (Signal::SIGBUS, SI_KERNEL, None),
            17 => (Signal::SIGBUS, libc::BUS_ADRALN, None),
            _ => (Signal::SIGSEGV, SI_KERNEL, None),
        };
        let kind = match vector {
            16 | 19 => FaultKind::Fpu,
            _ => FaultKind::from_signal(signal.raw(), None, Access::Read),
        };
        Fault {
            course: Course::Signal(signal),
            signal: Some(signal),
            kind,
            address,
            code,
            trap: (u64::from(vector), error_code, 0),
            forbidden: None,
        }
    }

    /// The host could not back an access: a mapped file has become shorter.
    pub fn host(registers: &Registers) -> Fault {
        Fault::unbacked(super::decode::inaccessible_operand(registers))
    }

    /// There is no memory behind `address`.
    pub fn unbacked(address: Option<u64>) -> Fault {
        Fault {
            course: Course::Signal(Signal::SIGBUS),
            signal: Some(Signal::SIGBUS),
            kind: FaultKind::BusError,
            address,
            code: libc::BUS_ADRERR,
            trap: (14, 0, address.unwrap_or(0)),
            forbidden: None,
        }
    }

    /// The guest did something that only the CPU's privileged state explains.
    pub fn invalid() -> Fault {
        Fault::from_exception(13, 0, 0)
    }

    /// The guest sent itself a signal that ends it.
    pub fn raised(signal: Signal) -> Fault {
        let kind = match signal.raw() {
            libc::SIGABRT => FaultKind::Abort,
            _ => FaultKind::Signal,
        };
        Fault {
            course: Course::Signal(signal),
            signal: Some(signal),
            kind,
            address: None,
            code: libc::SI_TKILL,
            trap: (0, 0, 0),
            forbidden: None,
        }
    }

    /// The request waits for the end of a thread that it has cancelled: it runs the server's own crash
    /// path, and can never go on, because the cancellation waits for its commit. Such a path ends in an
    /// abort, which is the signal told.
    pub fn crash_path() -> Fault {
        Fault {
            kind: FaultKind::CrashPath,
            ..Fault::raised(Signal::SIGABRT)
        }
    }

    /// The request ends the process.
    pub fn exit(status: i32) -> Fault {
        Fault::without_signal(FaultKind::Exit, Course::Exit(status))
    }

    /// The request has used up its time.
    pub fn timeout() -> Fault {
        Fault::without_signal(FaultKind::Timeout, Course::GoesOn)
    }

    /// The request has written more memory than it may.
    pub fn memory() -> Fault {
        Fault::without_signal(FaultKind::Memory, Course::GoesOn)
    }

    /// A filter of the guest's does not let it make the system call `number`, at `address`, and has it told so (seccomp(2)).
    pub fn forbidden_call(address: u64, number: u32, error: u16) -> Fault {
        Fault {
            kind: FaultKind::ForbiddenCall,
            address: Some(address),
            code: SYS_SECCOMP,
            forbidden: Some((number, error)),
            ..Fault::raised(Signal::SIGSYS)
        }
    }

    /// A filter of the guest's ends it for a system call at `address`.
    pub fn killed(signal: Signal, address: u64) -> Fault {
        Fault {
            course: Course::Kill(signal),
            kind: FaultKind::ForbiddenCall,
            address: Some(address),
            ..Fault::raised(signal)
        }
    }

    /// What `siginfo_t` says of its signal.
    pub(super) fn info(&self) -> Option<SignalInfo> {
        let signal = self.signal?;
        if let (Some((number, error)), Some(address)) = (self.forbidden, self.address) {
            return Some(SignalInfo::of_forbidden_call(address, number, error));
        }
        Some(match self.address {
            Some(address) => SignalInfo::of_fault(signal, self.code, address),
            None => SignalInfo::from_process(signal, std::process::id() as i32, host::user())
                .with_code(self.code),
        })
    }

    /// Its signal, if it is the CPU that has raised it.
    pub(super) fn by_cpu(&self) -> Option<Signal> {
        self.signal.filter(|_| self.code > 0)
    }

    /// Trap number, error code and CR2.
    pub(super) fn trap(&self) -> (u64, u64, u64) {
        self.trap
    }

    /// What `first` has led to.
    pub(super) fn told_as(self, first: Fault) -> Fault {
        Fault {
            course: self.course,
            ..first
        }
    }

    fn without_signal(kind: FaultKind, course: Course) -> Fault {
        Fault {
            course,
            signal: None,
            kind,
            address: None,
            code: 0,
            trap: (0, 0, 0),
            forbidden: None,
        }
    }
}
