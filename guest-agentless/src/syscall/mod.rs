//! The Linux system-call table as data.
//!
//! One row per call says what the monitor needs to know about it. The same rows drive dispatch, the
//! check of pointer arguments, write-set marking, trace names, and `docs/syscalls.md`.

pub mod docs;
mod span;
pub mod table;
mod trace;

pub use span::{Access, Span};
pub use table::lookup;
pub use trace::fmt_call;

use crate::Errno;

/// One system call of the x86-64 ABI.
#[derive(Debug, Clone, Copy)]
pub struct Syscall {
    /// The number in RAX.
    pub number: u32,
    /// The kernel's name for it.
    pub name: &'static str,
    /// Its arguments, in register order (RDI, RSI, RDX, R10, R8, R9).
    pub args: &'static [Arg],
    /// What it does to the world outside the thread's registers.
    pub effect: Effect,
    /// How well the monitor carries it.
    pub support: Support,
    /// For people: what is special about it. For a refused call it begins with the error's symbol.
    pub note: &'static str,
}

impl Syscall {
    /// The error that a refused call answers with; none if the call is carried.
    pub fn refusal(&self) -> Option<Errno> {
        let symbol = self.note.split([':', ',']).next()?;
        match self.support {
            Support::Refused => Some(Errno::from_name(symbol).unwrap_or(Errno::ENOSYS)),
            Support::Full | Support::Partial => None,
        }
    }
}

/// One argument.
#[derive(Debug, Clone, Copy)]
pub struct Arg {
    /// The name the manual page gives it.
    pub name: &'static str,
    /// What it is.
    pub kind: ArgKind,
}

/// What an argument is, and so what the kernel does with the memory it points to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ArgKind {
    /// A number: flags, size, offset, signal, identifier.
    Value,
    /// A descriptor; one that the guest may not use is EBADF.
    Fd,
    /// A directory descriptor or `AT_FDCWD`.
    DirFd,
    /// An address that is not read or written through as data (`mmap`, `munmap`, `mprotect`, `brk`).
    Address,
    /// A NUL-terminated string that the kernel reads.
    Path,
    /// Memory that the kernel reads.
    In(Size),
    /// Memory that the kernel writes.
    Out(Size),
    /// Memory that the kernel reads and writes.
    InOut(Size),
    /// An array of `struct iovec`, whose count is argument `count`; the kernel reads what it describes.
    IovecIn {
        /// Index of the argument that holds the number of elements.
        count: u8,
    },
    /// Likewise; the kernel writes what it describes.
    IovecOut {
        /// Index of the argument that holds the number of elements.
        count: u8,
    },
    /// A `struct msghdr` whose buffers the kernel reads.
    MsgIn,
    /// A `struct msghdr` whose buffers and header fields the kernel writes.
    MsgOut,
    /// A NULL-terminated array of strings (`argv`, `envp`).
    Strings,
    /// A structure with pointers of its own that only the call's own handler understands.
    Custom,
}

/// How many bytes a pointer argument stands for. A null pointer always stands for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Size {
    /// So many bytes.
    Fixed(u32),
    /// As many bytes as the argument with this index says.
    Arg(u8),
    /// As many elements as the argument with this index says, each of so many bytes.
    Elements {
        /// Index of the argument that holds the number of elements.
        count: u8,
        /// Bytes per element.
        each: u32,
    },
    /// As many bytes as the 32-bit integer says to which the argument with this index points (`socklen_t *`).
    Pointee(u8),
}

/// The effect class: what is done at commit and at abandon (`docs/architecture.md`, "Effects").
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing outlives the call but what it writes to guest memory.
    Pure,
    /// Output to a peer: sent at commit, dropped at abandon.
    Held,
    /// Done at commit, forgotten at abandon.
    Deferred,
    /// Done at once, undone at abandon.
    Compensated,
    /// Output to a regular file: done at commit before held output is released, forgotten at abandon.
    DeferredWrite,
    /// Takes something away (bytes from a pipe, an offset): given back at abandon.
    Consuming,
    /// Delivers a client's bytes, connection or datagram: the origin of a request domain.
    Origin,
    /// Waits for work: ends the domain.
    Boundary,
    /// Cannot be undone: the domain commits before the call.
    External,
    /// Concerns the thread or process itself and is carried by the monitor (clone, exit, signals).
    Process,
}

/// How well the monitor carries a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Support {
    /// Carried as on Linux.
    Full,
    /// Carried with the limits that the note states.
    Partial,
    /// Refused with an error that the note states.
    Refused,
}
