//! The end of a process that was given up.
//!
//! Its own handlers run, as they would without the monitor, and may write a crash log. But they may also hang: the
//! handler of Redis cancels and joins threads, which may wait for what the fault has left locked. So their time is
//! bounded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_agentless::Signal;

use super::Process;
use crate::{host, sys};

/// How long the handlers may take. The report and the events must be written within two seconds as well.
const HANDLERS: Duration = Duration::from_secs(1);

/// Makes sure that `signal` ends the process soon, whatever its handlers do. False if no thread could be started for
/// that.
pub fn bound(process: &Arc<Process>, signal: Signal) -> bool {
    if process.given_up.swap(true, Ordering::AcqRel) {
        return true;
    }
    let ending = Arc::clone(process);
    let started = host::with_signals_blocked(|| {
        std::thread::Builder::new()
            .name("vmsrs-end".into())
            .stack_size(256 << 10)
            .spawn(move || {
                std::thread::sleep(HANDLERS);
                log::warn!(
                    "given up, and its handlers did not end it within {HANDLERS:?}: it is ended"
                );
                sys::end::after_handlers(&ending, signal)
            })
    });
    started
        .inspect_err(|error| log::error!("cannot start a thread: {error}"))
        .is_ok()
}
