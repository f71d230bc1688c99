//! Sends committed output that a peer had no room for when its request committed.
//!
//! The thread exists only while such output waits. It takes the run token when that is free and never asks
//! for it: a slow reader must not cost anybody a time slice.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::{Process, State};
use crate::host;

/// How long it waits for the token, and for sockets to take more.
const PERIOD: Duration = Duration::from_millis(100);

/// Makes sure that waiting output is sent, if there is any.
pub fn ensure(process: &Arc<Process>, state: &State) {
    if !state.files.has_waiting() || process.flushing.swap(true, Ordering::AcqRel) {
        return;
    }
    let for_thread = Arc::clone(process);
    let started = host::with_signals_blocked(|| {
        std::thread::Builder::new()
            .name("vmsrs-flusher".into())
            .spawn(move || run(&for_thread))
    });
    if let Err(error) = started {
        // The guest's next write to the socket sends it.
        log::error!("cannot start a thread: {error}");
        process.flushing.store(false, Ordering::Release);
    }
}

fn run(process: &Process) {
    loop {
        let Some(mut state) = process.state.try_lock_for(PERIOD) else {
            continue;
        };
        let waiting = state.files.waiting();
        let full: Vec<i32> = waiting
            .into_iter()
            .filter(|fd| !state.files.flush(*fd))
            .collect();
        if full.is_empty() {
            process.flushing.store(false, Ordering::Release);
            return;
        }
        drop(state);
        host::wait_any_writable(&full, PERIOD);
    }
}
