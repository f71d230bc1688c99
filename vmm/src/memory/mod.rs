//! Guest memory: windows, slots, page tables, mappings, and the one routine that copies in and out.

pub mod copy;
mod guard;
mod hide;
mod locked;
mod monitor;
pub mod page_table;
mod reserved;
mod space;
pub mod window;

pub use guard::{Guard, runs};
pub use locked::LockedPages;
pub use monitor::MonitorRegion;
pub use reserved::{
    first_reserved, guest_descriptor_limits, reserved_copy, reserved_fd, set_descriptor_limits,
};
pub use space::{AddressSpace, Attempt, PROGRAM_BASE, Resolution, STACK_TOP, Stash, is_zero_based};
