//! What the end-to-end tests share: servers under the monitor, clients that check every reply
//! against a model, crash scenarios, the nested-paging lane in QEMU, and the `run-tests` command.
//!
//! A test that needs `/dev/kvm` starts with [`kvm_case`], so that a run in which none of them
//! executed cannot look green. A missing tool fails a test; no test is skipped.

pub mod audit;
pub mod campaign;
pub mod error;
pub mod event;
pub mod faults;
pub mod gdb;
pub mod guest;
pub mod heap;
pub mod interrupt;
pub mod kvm;
pub mod ladder;
pub mod lane;
pub mod load;
pub mod memcached;
pub mod monitored;
pub mod net;
pub mod oracle;
pub mod packages;
pub mod paths;
pub mod process;
pub mod redis;
pub mod run;
pub mod runner;
pub mod servers;
pub mod suites;
pub mod talk;
pub mod web;

pub use event::Event;
pub use kvm::kvm_case;
pub use monitored::{Launch, Monitored, StartError, StopError};
pub use net::free_port;
