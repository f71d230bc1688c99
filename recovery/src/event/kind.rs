//! What went wrong, in names that stay the same in events, reports and statistics.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Addresses below this are taken for a null pointer plus the offset of a member. It is the usual
/// `vm.mmap_min_addr`, so nothing of an ordinary program is mapped there.
const NULL_LIMIT: u64 = 0x1_0000;

/// Defines [`FaultKind`] and its names together, so that they cannot drift apart.
macro_rules! fault_kinds {
    ($($(#[$doc:meta])+ $variant:ident = $name:literal,)+) => {
        /// The kind of a fault.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
        pub enum FaultKind {
            $($(#[$doc])+ #[serde(rename = $name)] $variant,)+
        }

        impl FaultKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            /// The stable name, such as `null-write`.
            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $name),+ }
            }
        }
    };
}

fault_kinds! {
    /// Read through a null pointer, or a member of one.
    NullRead = "null-read",
    /// Write through a null pointer, or a member of one.
    NullWrite = "null-write",
    /// Read of an address where nothing readable is mapped.
    InvalidRead = "invalid-read",
    /// Write to an address where nothing is mapped.
    InvalidWrite = "invalid-write",
    /// Write to a read-only mapping.
    WriteProtected = "write-protected",
    /// Jump to an address that holds no executable code.
    Execute = "execute",
    /// Access past the end of a mapped file, or misaligned.
    BusError = "bus-error",
    /// Integer division by zero, or its overflow.
    DivideError = "divide-error",
    /// An instruction that the processor does not know.
    IllegalInstruction = "illegal-instruction",
    /// A non-canonical address or a privileged instruction.
    GeneralProtection = "general-protection",
    /// The program raised SIGABRT: failed assertion, heap check, stack protector.
    Abort = "abort",
    /// The request left the heap inconsistent, which was noticed before it was committed (`--verify-heap`).
    HeapCorruption = "heap-corruption",
    /// A breakpoint or debug trap.
    Trap = "trap",
    /// An unmasked floating-point exception.
    Fpu = "fpu",
    /// The request began to tear down its own process: it cancels threads and waits for them.
    CrashPath = "crash-path",
    /// The request called `exit`.
    Exit = "exit",
    /// The stack is used up: the guard below it, or beyond, was hit.
    StackOverflow = "stack-overflow",
    /// The request took longer, or used more CPU time, than it may.
    Timeout = "timeout",
    /// The request wrote more memory than it may.
    Memory = "memory",
    /// A system call that a filter of the program's forbids.
    ForbiddenCall = "forbidden-call",
    /// Any other fatal signal that the guest sent itself.
    Signal = "signal",
}

impl fmt::Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

/// What a faulting access wanted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To read.
    Read,
    /// To write where nothing is mapped.
    Write,
    /// To write where something is mapped that must not be written.
    WriteProtected,
    /// To fetch an instruction.
    Execute,
}

impl FaultKind {
    /// The kind of a fault that raises `signal`, with the address and manner of the access if it was one.
    ///
    /// A SIGSEGV without an address is a general protection fault: the processor reports none for it.
    /// SIGFPE is taken for the integer kind; the caller that saw a floating-point vector says [`Self::Fpu`].
    pub fn from_signal(signal: i32, address: Option<u64>, access: Access) -> Self {
        match (signal, address) {
            (SIGSEGV, None) => Self::GeneralProtection,
            (SIGSEGV, Some(address)) => match (access, address < NULL_LIMIT) {
                (Access::Execute, _) => Self::Execute,
                (Access::Read, true) => Self::NullRead,
                (Access::Read, false) => Self::InvalidRead,
                (Access::Write | Access::WriteProtected, true) => Self::NullWrite,
                (Access::Write, false) => Self::InvalidWrite,
                (Access::WriteProtected, false) => Self::WriteProtected,
            },
            (SIGBUS, _) => Self::BusError,
            (SIGFPE, _) => Self::DivideError,
            (SIGILL, _) => Self::IllegalInstruction,
            (SIGTRAP, _) => Self::Trap,
            (SIGABRT, _) => Self::Abort,
            _ => Self::Signal,
        }
    }
}

const SIGILL: i32 = 4;
const SIGTRAP: i32 = 5;
const SIGABRT: i32 = 6;
const SIGBUS: i32 = 7;
const SIGFPE: i32 = 8;
const SIGSEGV: i32 = 11;

/// The names of signals 1 to 31 on x86-64.
const NAMES: [&str; 31] = [
    "SIGHUP",
    "SIGINT",
    "SIGQUIT",
    "SIGILL",
    "SIGTRAP",
    "SIGABRT",
    "SIGBUS",
    "SIGFPE",
    "SIGKILL",
    "SIGUSR1",
    "SIGSEGV",
    "SIGUSR2",
    "SIGPIPE",
    "SIGALRM",
    "SIGTERM",
    "SIGSTKFLT",
    "SIGCHLD",
    "SIGCONT",
    "SIGSTOP",
    "SIGTSTP",
    "SIGTTIN",
    "SIGTTOU",
    "SIGURG",
    "SIGXCPU",
    "SIGXFSZ",
    "SIGVTALRM",
    "SIGPROF",
    "SIGWINCH",
    "SIGIO",
    "SIGPWR",
    "SIGSYS",
];

/// The name of a signal: `SIGSEGV`, or `SIG40` for one without a name.
pub fn signal_name(signal: i32) -> String {
    usize::try_from(signal)
        .ok()
        .and_then(|n| n.checked_sub(1))
        .and_then(|n| NAMES.get(n))
        .map_or_else(|| format!("SIG{signal}"), |name| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_faults_by_access_and_address() {
        let kind = |address, access| FaultKind::from_signal(SIGSEGV, Some(address), access);
        assert_eq!(kind(0, Access::Read), FaultKind::NullRead);
        assert_eq!(kind(0xfff8, Access::Write), FaultKind::NullWrite);
        assert_eq!(kind(NULL_LIMIT, Access::Read), FaultKind::InvalidRead);
        assert_eq!(kind(0xdead_0000, Access::Write), FaultKind::InvalidWrite);
        assert_eq!(
            kind(0xdead_0000, Access::WriteProtected),
            FaultKind::WriteProtected
        );
        assert_eq!(kind(0, Access::Execute), FaultKind::Execute);
    }

    #[test]
    fn other_signals() {
        let kind = |signal| FaultKind::from_signal(signal, None, Access::Read);
        assert_eq!(kind(SIGSEGV), FaultKind::GeneralProtection);
        assert_eq!(kind(SIGBUS), FaultKind::BusError);
        assert_eq!(kind(SIGFPE), FaultKind::DivideError);
        assert_eq!(kind(SIGILL), FaultKind::IllegalInstruction);
        assert_eq!(kind(SIGTRAP), FaultKind::Trap);
        assert_eq!(kind(SIGABRT), FaultKind::Abort);
        assert_eq!(kind(31), FaultKind::Signal);
    }

    #[test]
    fn names_round_trip_and_are_unique() {
        for (i, kind) in FaultKind::ALL.iter().enumerate() {
            let json = serde_json::to_value(kind).unwrap();
            assert_eq!(json, kind.as_str());
            assert_eq!(serde_json::from_value::<FaultKind>(json).unwrap(), *kind);
            assert!(
                FaultKind::ALL[..i]
                    .iter()
                    .all(|other| other.as_str() != kind.as_str())
            );
        }
    }

    #[test]
    fn signal_names() {
        assert_eq!(signal_name(SIGILL), "SIGILL");
        assert_eq!(signal_name(SIGTRAP), "SIGTRAP");
        assert_eq!(signal_name(SIGABRT), "SIGABRT");
        assert_eq!(signal_name(SIGBUS), "SIGBUS");
        assert_eq!(signal_name(SIGFPE), "SIGFPE");
        assert_eq!(signal_name(SIGSEGV), "SIGSEGV");
        assert_eq!(signal_name(15), "SIGTERM");
        assert_eq!(signal_name(31), "SIGSYS");
        assert_eq!(signal_name(40), "SIG40");
        assert_eq!(signal_name(0), "SIG0");
        assert_eq!(signal_name(-1), "SIG-1");
    }
}
