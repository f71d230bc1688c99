//! The rows of the table for x86-64, one file per area, and the look-up by number.
//!
//! What each row says was taken from the manual pages and the kernel's own definitions. A pointer that
//! the kernel writes through and a row does not show as written is silent corruption after an abandon:
//! when in doubt a row says that more is written, never less.

mod event;
mod file;
mod memory;
mod network;
mod path;
mod process;
mod signal;
mod system;
#[cfg(test)]
mod tests;
mod time;

use super::Syscall;

/// Rows that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Area {
    /// What they are about.
    pub title: &'static str,
    /// The rows, in the order of the documentation.
    pub rows: &'static [Syscall],
}

/// All areas: the whole table.
pub static AREAS: &[Area] = &[
    Area {
        title: "Descriptors and data",
        rows: file::ROWS,
    },
    Area {
        title: "Paths and metadata",
        rows: path::ROWS,
    },
    Area {
        title: "Network",
        rows: network::ROWS,
    },
    Area {
        title: "Waiting and events",
        rows: event::ROWS,
    },
    Area {
        title: "Memory",
        rows: memory::ROWS,
    },
    Area {
        title: "Processes and threads",
        rows: process::ROWS,
    },
    Area {
        title: "Signals",
        rows: signal::ROWS,
    },
    Area {
        title: "Time",
        rows: time::ROWS,
    },
    Area {
        title: "System",
        rows: system::ROWS,
    },
];

/// Above the highest number in the table.
const NUMBERS: usize = 512;

static BY_NUMBER: [Option<&'static Syscall>; NUMBERS] = by_number();

const fn by_number() -> [Option<&'static Syscall>; NUMBERS] {
    let mut table = [None; NUMBERS];
    let mut area = 0;
    while area < AREAS.len() {
        let rows = AREAS[area].rows;
        let mut row = 0;
        while row < rows.len() {
            table[rows[row].number as usize] = Some(&rows[row]);
            row += 1;
        }
        area += 1;
    }
    table
}

/// The row for the system call with this number; none if the monitor does not know it (`ENOSYS`).
pub fn lookup(number: u64) -> Option<&'static Syscall> {
    *BY_NUMBER.get(usize::try_from(number).ok()?)?
}

/// Writes rows as `SYS_name(argument: kind, ...) effect support "note";`, so that the number comes from
/// libc and cannot differ from the name. In a kind, `Len` is [`Size::Arg`](super::Size::Arg).
macro_rules! rows {
    ($($call:ident($($arg:ident: $kind:expr),*) $effect:ident $support:ident $note:literal;)*) => {
        #[allow(unused_imports, reason = "not every area needs every kind")]
        use crate::syscall::{
            Arg, ArgKind::*, Effect, Size::{Arg as Len, Elements, Fixed, Pointee}, Support, Syscall,
        };

        /// The rows of this area.
        pub(super) static ROWS: &[Syscall] = &[$(Syscall {
            number: libc::$call as u32,
            name: stringify!($call).split_at("SYS_".len()).1,
            args: &[$(Arg { name: stringify!($arg), kind: $kind }),*],
            effect: Effect::$effect,
            support: Support::$support,
            note: $note,
        }),*];
    };
}
use rows;
