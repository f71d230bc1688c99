//! What healthy clients may see: an oracle that judges the recorded history of a server's keys.
//!
//! Each key is a register whose written values are unique, so that every read names the write that
//! it saw. Such a history can be judged exactly and quickly. Nothing here talks to a server.

pub mod history;
pub mod linearizable;
mod moment;
mod verdict;
mod zone;

#[cfg(test)]
mod brute;
#[cfg(test)]
mod random;

pub use history::{Action, Fate, History, Log, Operation, Recorder};
pub use linearizable::{check, check_all};
pub use verdict::Violation;
