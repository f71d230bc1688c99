//! What is wrong with a heap, in words for the report.

use std::fmt;

use super::Memory;

/// What kind of thing is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Damage {
    /// The size field of a chunk.
    Size,
    /// The size before a chunk whose predecessor is free.
    PreviousSize,
    /// The links of a free chunk to its neighbours in a bin.
    Links,
    /// The size of the top chunk.
    Top,
    /// The head of a bin.
    Bin,
    /// A fastbin.
    Fastbin,
    /// The thread's cache of free chunks.
    Tcache,
    /// A chunk is free twice.
    Twice,
}

/// An inconsistency that glibc's malloc does not make.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Corruption {
    /// What is wrong.
    pub damage: Damage,
    /// The chunk, or the list's head.
    pub chunk: u64,
    /// The arena.
    pub arena: u64,
    /// Where the wrong word lies.
    pub field: u64,
    /// What it holds.
    pub found: u64,
    /// What it would have to hold, where only one value is right.
    pub expected: Option<u64>,
    /// What it held when the last request ended, where that is known.
    pub committed: Option<u64>,
    /// The chunk whose size led here, if one did.
    pub(super) via: Option<u64>,
}

impl Corruption {
    /// Looks up what the request has overwritten. Where the word at fault is as it was, the size that led
    /// there is to blame.
    pub fn explain(&mut self, memory: &impl Memory, committed: &impl Memory) {
        self.committed = committed.word(self.field).filter(|was| *was != self.found);
        if self.committed.is_some() {
            return;
        }
        let to_blame = match self.damage {
            Damage::Size => self.via,
            // The flag that says so lies in the chunk's own size.
            Damage::PreviousSize => Some(self.chunk),
            _ => None,
        };
        let Some(field) = to_blame.and_then(|chunk| chunk.checked_add(8)) else {
            return;
        };
        let (Some(now), Some(was)) = (memory.word(field), committed.word(field)) else {
            return;
        };
        if now != was {
            *self = Corruption {
                damage: Damage::Size,
                chunk: field - 8,
                field,
                found: now,
                expected: None,
                committed: Some(was),
                ..*self
            };
        }
    }
}

impl fmt::Display for Corruption {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (chunk, found) = (self.chunk, self.found);
        match self.damage {
            Damage::Size => write!(
                f,
                "the size field of the heap chunk at {chunk:#x} is {found:#x}"
            ),
            Damage::PreviousSize => {
                write!(
                    f,
                    "the heap chunk at {chunk:#x} says that the one before it is free and has size {found:#x}"
                )
            }
            Damage::Links => {
                write!(
                    f,
                    "a link of the free heap chunk at {chunk:#x} is broken: {found:#x}"
                )
            }
            Damage::Top => write!(
                f,
                "the size field of the top chunk at {chunk:#x} is {found:#x}"
            ),
            Damage::Bin => write!(f, "the bin at {chunk:#x} is broken: it links to {found:#x}"),
            Damage::Fastbin => write!(f, "the fastbin entry at {chunk:#x} is broken: {found:#x}"),
            Damage::Tcache => write!(
                f,
                "the thread cache entry at {chunk:#x} is broken: {found:#x}"
            ),
            Damage::Twice => write!(f, "the heap chunk at {chunk:#x} is free twice"),
        }?;
        if let Some(expected) = self.expected {
            write!(f, ", expected {expected:#x}")?;
        }
        if let Some(was) = self.committed {
            write!(
                f,
                "; before the request the word at {:#x} was {was:#x}",
                self.field
            )?;
        }
        Ok(())
    }
}
