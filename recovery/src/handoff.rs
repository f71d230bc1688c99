//! Hand-offs: whose bytes led to what another thread executes.
//!
//! Where one thread reads requests and another executes them, a fault happens in work that belongs to no
//! client by itself. [`Provenance`] remembers which words of memory the requests of each connection have
//! written; the arguments of a call lead to such words, and so to the connection. [`Trace`] finds the call to
//! be skipped: the outermost one that belongs to that connection alone.

mod attribution;
mod provenance;
mod trace;

pub use attribution::Evidence;
pub use provenance::{Batch, Producer, Provenance};
pub use trace::{CallSite, Plan, Trace};
