//! The requests of `ioctl` as data.
//!
//! One row per request says what the monitor needs to know about it: which descriptors answer it, what its argument is,
//! how many bytes the kernel reads and writes through it, and its effect class. A request without a row is `ENOTTY`.
//! The rows drive dispatch, the buffers that the kernel is given, trace names, and `docs/ioctls.md`.

pub mod docs;
mod table;
#[cfg(test)]
mod tests;

pub use table::{GROUPS, Group, lookup};

use crate::syscall::Effect;

/// One request.
#[derive(Debug, Clone, Copy)]
pub struct Ioctl {
    /// Its number; the kernel looks at the lower 32 bits only.
    pub request: u32,
    /// The kernel's name for it.
    pub name: &'static str,
    /// The descriptors that answer it; the others say `ENOTTY`.
    pub on: On,
    /// What its argument is.
    pub argument: Argument,
    /// What it does to the world outside guest memory.
    pub effect: Effect,
    /// How it is undone, if its class is compensated.
    pub inverse: Inverse,
    /// Whether it may wait, or stop the process: it is made without the run token.
    pub waits: bool,
    /// What is special about it, for the documentation.
    pub note: &'static str,
}

/// Descriptors that answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum On {
    /// All.
    Any,
    /// Regular files, directories, block devices.
    File,
    /// Terminals, both ends of a pseudo-terminal.
    Terminal,
    /// Sockets.
    Socket,
    /// Terminals and sockets.
    TerminalOrSocket,
}

/// The third argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Argument {
    /// Not looked at.
    Unused,
    /// A number.
    Value,
    /// A descriptor.
    Fd,
    /// The address of so many bytes that the kernel reads.
    In(u32),
    /// The address of so many bytes that the kernel writes.
    Out(u32),
    /// The address of so many bytes that the kernel reads and writes.
    InOut(u32),
    /// The address of so many bytes, read and written, that hold the length (`int`) and the address of more, which
    /// the kernel writes.
    Leading {
        /// Bytes of the structure itself.
        bytes: u32,
        /// Where in it the length is.
        len_at: u32,
        /// Where in it the address is.
        address_at: u32,
    },
}

impl Argument {
    /// Bytes that the kernel reads at the address.
    pub fn read(self) -> usize {
        match self {
            Argument::In(bytes) | Argument::InOut(bytes) | Argument::Leading { bytes, .. } => {
                bytes as usize
            }
            _ => 0,
        }
    }

    /// Bytes that the kernel writes at the address.
    pub fn written(self) -> usize {
        match self {
            Argument::Out(bytes) | Argument::InOut(bytes) | Argument::Leading { bytes, .. } => {
                bytes as usize
            }
            _ => 0,
        }
    }
}

/// How a compensated request is undone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Inverse {
    /// Not by the table: it is not compensated, or its handler knows.
    None,
    /// What the request `get` said before is set by the request `set`.
    Setting {
        /// Writes the old value.
        get: u32,
        /// Reads it.
        set: u32,
    },
    /// The descriptor that it made is closed.
    Descriptor,
}
