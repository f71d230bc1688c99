//! What the monitor knows about a guest from outside it, without an agent: the Linux ABI as data, ELF
//! files, mappings, symbols. Nothing in this crate runs a guest, touches guest memory or calls the host
//! kernel: it turns bytes and numbers into facts.
#![forbid(unsafe_code)]

pub mod address;
pub mod coredump;
pub mod elf;
pub mod errno;
pub mod heap;
pub mod ioctl;
pub mod link_map;
pub mod script;
pub mod seccomp;
pub mod signal;
pub mod symbols;
pub mod sync;
pub mod syscall;
pub mod unwind;
pub mod vma;

pub use address::{GuestRange, GuestVa, PAGE_SIZE, PageNumber};
pub use elf::{Elf, ElfError};
pub use errno::{Errno, to_rax};
pub use signal::{DefaultAction, Signal, SignalSet};
pub use symbols::SymbolTable;
pub use vma::{Backing, FileBacking, Overlap, Protection, Vma, VmaMap};
