//! The client side of the audit test: a guest that does random things to itself on request, and what
//! its clients know of it.
//!
//! The guest, `tests/guest/random-server`, executes operations drawn from a seed: plain writes, system
//! calls that make the kernel write its memory, changes of mappings, descriptors and signals. A request
//! ends with a reply or with a crash. The monitor's `--audit` compares all writable memory with a copy
//! from the checkpoint after every abandon; what the kernel knows of the process, the guest tells
//! itself ([`Client::state`]).

mod client;
mod model;

pub use client::{Client, Ending, Healthy, Run, difference};
pub use model::Model;

/// Classes of operations, as in `guest.h`.
pub mod sets {
    /// Plain writes, malloc, stack.
    pub const MEMORY: u32 = 1;
    /// System calls that make the kernel write memory.
    pub const READ: u32 = 2;
    /// `mmap` and its kin.
    pub const MAPPING: u32 = 4;
    /// `open`, `dup`, `epoll_ctl`, `eventfd` and the like.
    pub const DESCRIPTOR: u32 = 8;
    /// Dispositions, masks and stacks of signals.
    pub const SIGNAL: u32 = 16;
    /// Signals that the server sends to itself.
    pub const RAISE: u32 = 32;
    /// Asks for work, and changes nothing: ends the domain.
    pub const BOUNDARY: u32 = 64;
    /// Cannot be undone: commits the domain early.
    pub const EXTERNAL: u32 = 128;
    /// One page of memory, or one interest list, by two names.
    pub const ALIAS: u32 = 256;

    /// Everything that an abandon undoes as a whole.
    pub const UNDONE: u32 = MEMORY | READ | MAPPING | DESCRIPTOR | SIGNAL | RAISE;
    /// Everything that a request may do which does not crash.
    pub const ALL: u32 = UNDONE | BOUNDARY | EXTERNAL;
}

/// Ways for the guest to crash, as in `crash.c`.
pub const CRASHES: [&str; 10] = [
    "null",
    "abort",
    "divide",
    "invalid",
    "stack",
    "data",
    "nowhere",
    "noncanonical",
    "free",
    "readonly",
];
