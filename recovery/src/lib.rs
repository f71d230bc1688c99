//! Self-recovery as state machines: request domains, write sets and shadow pages, the journal of effects,
//! the ladder, and what is told about all that. No KVM and no guest: the machine is behind traits, so that
//! everything here is tested alone.
#![forbid(unsafe_code)]

pub mod broadcast;
pub mod event;
pub mod handoff;
pub mod journal;
pub mod ladder;
pub mod learn;
pub mod origin;
pub mod repeat;
pub mod report;
pub mod stats;
pub mod suspended;
pub mod tracker;

pub use journal::Journal;
pub use origin::{Origin, OriginKind};
pub use suspended::SuspendedPages;
pub use tracker::Tracker;
