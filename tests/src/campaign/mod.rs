//! Fault-injection campaigns: faults by the thousand against real servers under real load, and what came of each.
//!
//! A trial ([`plan`]) is one injection into one request. Two servers get it: one whose faults are recovered from, with
//! healthy clients that check every answer ([`generation`], [`healthy`]), and another without recovery, the control run
//! ([`twin`], [`control_runs`]).
//! What came of it is a [`trial::Trial`]; the tables and plots are made from those alone ([`report`]).

pub mod control;
pub mod control_runs;
pub mod exchange;
pub mod funnel;
pub mod generation;
pub mod healthy;
pub mod plan;
pub mod rate;
pub mod report;
pub mod run;
pub mod soak;
pub mod target;
pub mod trial;
pub mod twin;
pub mod wilson;

#[cfg(test)]
mod sample;

/// Keys that all clients read and write.
pub const SHARED_KEYS: usize = 4;
