//! Hand-offs: whose bytes led to what another thread executes.
//!
//! Where one thread reads requests and another executes them, a fault happens in work that belongs to no
//! client by itself. [`Provenance`] remembers where the bytes of each connection were received and which words of
//! memory its requests have changed; the arguments of a call lead there, and so to the connection. [`Trace`]
//! finds the call to be skipped: the outermost one that belongs to that connection alone.

mod attribution;
mod provenance;
mod trace;

pub use attribution::{Evidence, Memory};
pub use provenance::{Batch, Producer, Provenance};
pub use trace::{CallSite, Plan, Trace};
