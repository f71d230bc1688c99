//! The cleaner: restores what abandoned requests have left, bit by bit.
//!
//! The thread exists only while there is something to do. It takes the run token when that is free and never
//! asks for it, and gives it back after a bounded piece of work: nobody waits for it longer than that.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use super::{Process, State};
use crate::host;

/// How long it waits for the token at a time.
const PATIENCE: Duration = Duration::from_millis(100);
/// After how long it lets go of the token. One region more may come on top.
const SLICE: Duration = Duration::from_micros(300);
/// How long it rests between two pieces of work.
const REST: Duration = Duration::from_millis(1);

/// Makes sure that what waits is done, if anything waits.
pub fn ensure(process: &Arc<Process>, state: &State) {
    if state.tracker.next_waiting().is_none() || process.cleaning.swap(true, Ordering::AcqRel) {
        return;
    }
    let for_thread = Arc::clone(process);
    let started = host::with_signals_blocked(|| {
        std::thread::Builder::new()
            .name("vmsrs-cleaner".into())
            .spawn(move || run(&for_thread))
    });
    if let Err(error) = started {
        // Whatever is touched is restored nevertheless.
        log::error!("cannot start a thread: {error}");
        process.cleaning.store(false, Ordering::Release);
    }
}

fn run(process: &Process) {
    loop {
        let Some(mut state) = process.state.try_lock_for(PATIENCE) else {
            continue;
        };
        let begun = Instant::now();
        while begun.elapsed() < SLICE {
            let Some(region) = state.tracker.next_waiting() else {
                process.cleaning.store(false, Ordering::Release);
                return;
            };
            let done = state.restore(process, region);
            process.stats.restoration.by_cleaner.add(done);
        }
        drop(state);
        std::thread::sleep(REST);
    }
}
