//! A model of a guest's mappings: what `mmap`, `munmap`, `mprotect` and `brk` make of an address space.
//!
//! The model decides where new mappings go, says what a fault address belongs to, and answers for
//! `/proc/PID/maps`. It only keeps books: the mappings themselves are made by the monitor.

mod gaps;
mod map;
mod render;
#[cfg(test)]
mod tests;

use std::fmt;
use std::sync::Arc;

use crate::GuestRange;

pub use map::{Overlap, VmaMap};

/// What the guest may do with a mapping: a set of [`Protection::READ`], `WRITE` and `EXEC`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Protection(u8);

impl Protection {
    /// No access.
    pub const NONE: Protection = Protection(0);
    /// Loads.
    pub const READ: Protection = Protection(libc::PROT_READ as u8);
    /// Stores.
    pub const WRITE: Protection = Protection(libc::PROT_WRITE as u8);
    /// Instruction fetches.
    pub const EXEC: Protection = Protection(libc::PROT_EXEC as u8);

    /// The protection that `prot` of `mmap` or `mprotect` asks for; none if it has other bits than
    /// `PROT_READ`, `PROT_WRITE` and `PROT_EXEC`.
    pub const fn from_bits(prot: u64) -> Option<Protection> {
        match prot {
            0..=7 => Some(Protection(prot as u8)),
            _ => None,
        }
    }

    /// As `prot` of `mmap` and `mprotect`.
    pub const fn bits(self) -> u64 {
        self.0 as u64
    }

    /// What either allows.
    #[must_use]
    pub const fn union(self, other: Protection) -> Protection {
        Protection(self.0 | other.0)
    }

    /// Whether it allows everything that `other` allows.
    pub const fn allows(self, other: Protection) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether loads are allowed.
    pub const fn is_readable(self) -> bool {
        self.allows(Protection::READ)
    }

    /// Whether stores are allowed.
    pub const fn is_writable(self) -> bool {
        self.allows(Protection::WRITE)
    }

    /// Whether instruction fetches are allowed.
    pub const fn is_executable(self) -> bool {
        self.allows(Protection::EXEC)
    }
}

impl std::ops::BitOr for Protection {
    type Output = Protection;

    fn bitor(self, other: Protection) -> Protection {
        self.union(other)
    }
}

/// As `/proc/PID/maps` shows it: `r-x`.
impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let flag = |set, letter| if set { letter } else { "-" };
        f.write_str(flag(self.is_readable(), "r"))?;
        f.write_str(flag(self.is_writable(), "w"))?;
        f.write_str(flag(self.is_executable(), "x"))
    }
}

impl fmt::Debug for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The part of a file that a mapping shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FileBacking {
    /// Path at the time of the mapping, as `/proc/PID/maps` gives it.
    pub path: Arc<str>,
    /// Offset in the file of the mapping's first byte.
    pub offset: u64,
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
}

impl FileBacking {
    /// What stands behind `MAP_SHARED | MAP_ANONYMOUS`: Linux takes an unlinked file of a file system
    /// of its own, and shows it so.
    pub fn shared_anonymous(inode: u64) -> FileBacking {
        FileBacking {
            path: Arc::from("/dev/zero (deleted)"),
            offset: 0,
            device: (0, 1),
            inode,
        }
    }

    /// Segment `id` of System V shared memory, with this key; Linux shows its file so.
    pub fn segment(id: u64, key: u32) -> FileBacking {
        FileBacking {
            path: Arc::from(format!("/SYSV{key:08x} (deleted)")),
            offset: 0,
            device: (0, 1),
            inode: id,
        }
    }

    /// Whether it is such a segment.
    pub fn is_segment(&self) -> bool {
        self.device == (0, 1) && self.path.starts_with("/SYSV")
    }
}

/// What a mapping shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Backing {
    /// Private memory, zero at first.
    Anonymous,
    /// A file, or a copy on write of it.
    File(FileBacking),
    /// The stack of the first thread.
    Stack,
    /// What `brk` made.
    Heap,
    /// The monitor's vDSO: code.
    Vdso,
    /// The data that the vDSO reads.
    Vvar,
}

impl Backing {
    /// The backing of what begins `bytes` after a mapping with this one.
    fn advanced(&self, bytes: u64) -> Backing {
        let mut backing = self.clone();
        if let Backing::File(file) = &mut backing {
            file.offset = file.offset.wrapping_add(bytes);
        }
        backing
    }

    /// Whether a mapping with this backing `bytes` after one with `first` goes on where that one ends.
    fn continues(&self, first: &Backing, bytes: u64) -> bool {
        match (first, self) {
            (Backing::File(a), Backing::File(b)) => {
                a.offset.checked_add(bytes) == Some(b.offset)
                    && (a.device, a.inode) == (b.device, b.inode)
                    && a.path == b.path
            }
            (Backing::Vdso | Backing::Vvar, _) => false,
            (first, second) => first == second,
        }
    }
}

/// One mapping ("virtual memory area").
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vma {
    /// The addresses: whole pages, as `mmap` makes them.
    pub range: GuestRange,
    /// What the guest may do.
    pub protection: Protection,
    /// `MAP_SHARED`: writes reach the file and the other processes that map it.
    pub shared: bool,
    /// What it shows.
    pub backing: Backing,
    /// It is a private mapping of a file that is or was writable, and so may differ from the file.
    pub once_writable: bool,
    /// `MAP_NORESERVE`: it may be larger than what the host has memory for.
    pub no_reserve: bool,
}

impl Vma {
    /// Private anonymous memory.
    pub fn anonymous(range: GuestRange, protection: Protection) -> Vma {
        Vma::new(range, protection, false, Backing::Anonymous)
    }

    /// A new mapping.
    pub fn new(range: GuestRange, protection: Protection, shared: bool, backing: Backing) -> Vma {
        Vma {
            once_writable: protection.is_writable() && is_copy_of_file(shared, &backing),
            range,
            protection,
            shared,
            backing,
            no_reserve: false,
        }
    }

    /// The same mapping with another protection.
    pub fn with_protection(&self, protection: Protection) -> Vma {
        Vma {
            once_writable: self.once_writable
                || protection.is_writable() && is_copy_of_file(self.shared, &self.backing),
            protection,
            ..self.clone()
        }
    }

    /// It shows what a file has, and nobody in this process can have changed that.
    pub fn equals_file(&self) -> bool {
        is_copy_of_file(self.shared, &self.backing) && !self.once_writable
    }

    /// The part of it that lies in `range`; none if they do not meet.
    pub fn clipped(&self, range: GuestRange) -> Option<Vma> {
        let range = self.range.intersection(range)?;
        let backing = self.backing.advanced(range.start() - self.range.start());
        Some(Vma {
            range,
            backing,
            ..*self
        })
    }

    /// The same mapping from `start` on, which lies in it, at another place and of another length.
    pub fn moved(&self, start: u64, to: GuestRange) -> Vma {
        let offset = start.saturating_sub(self.range.start());
        Vma {
            range: to,
            backing: self.backing.advanced(offset),
            ..*self
        }
    }

    /// The offset in the file that `address` shows; none outside of the mapping and without a file.
    pub fn file_offset(&self, address: u64) -> Option<u64> {
        match &self.backing {
            Backing::File(file) if self.range.contains(address) => {
                file.offset.checked_add(address - self.range.start())
            }
            _ => None,
        }
    }

    /// Whether `next` begins where this one ends and differs in nothing else, so that Linux would
    /// show them as one.
    fn joins(&self, next: &Vma) -> bool {
        self.range.end() == next.range.start()
            && self.protection == next.protection
            && self.shared == next.shared
            && self.once_writable == next.once_writable
            && self.no_reserve == next.no_reserve
            && next.backing.continues(&self.backing, self.range.len())
    }
}

/// What a private mapping of a file is.
fn is_copy_of_file(shared: bool, backing: &Backing) -> bool {
    !shared && matches!(backing, Backing::File(_))
}
