//! The client side of the fault tests: a server whose requests name the fault to commit
//! (`tests/guest/fault-server`), and what each fault must come to.

mod client;
mod expect;
mod server;

pub use client::{Client, Healthy};
pub use expect::{Expected, expected};
pub use server::Program;
