//! Guest memory: windows, slots, page tables, mappings, and the one routine that copies in and out.

mod apart;
pub mod common;
pub mod copy;
mod guard;
mod hide;
mod locked;
mod monitor;
mod own_limits;
pub mod page_table;
mod reserved;
mod slots;
mod space;
pub mod token;
mod unwritten;
pub mod window;

pub use guard::{page_range, runs};
pub use locked::LockedPages;
pub use monitor::MonitorRegion;
pub use own_limits::{Limit, OwnLimits};
pub use reserved::{
    TooFewDescriptors, enough_descriptors, first_reserved, keep_descriptor_limits, kept_copy,
    own_descriptors, reserved_copy, reserved_fd,
};
pub use space::{
    AddressSpace, Attempt, PROGRAM_BASE, Resolution, STACK_TOP, Source, Stash, is_common,
    is_zero_based,
};
