//! The run token: the one guest thread that may execute guest code holds it, and with it all state of the
//! process.
//!
//! It is a fair mutex around [`State`]. A thread gives it up around blocking calls. One that keeps it while
//! others wait is asked to yield after a time slice.
//!
//! Lock order: the token first, then any other lock of the monitor.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::FairMutexGuard;

use super::{Process, State};

/// How long a thread waits for the token before it asks the holder to yield.
const SLICE: Duration = Duration::from_millis(10);

/// The right to run guest code and to touch the state of the process.
pub struct Turn<'p> {
    process: &'p Process,
    tid: i32,
    /// None only inside [`Turn::released`], which borrows the turn exclusively.
    guard: Option<FairMutexGuard<'p, State>>,
}

impl<'p> Turn<'p> {
    /// Waits for the token.
    pub fn take(process: &'p Process, tid: i32) -> Turn<'p> {
        let guard = Some(wait(process));
        process.holder.store(tid, Ordering::Release);
        Turn {
            process,
            tid,
            guard,
        }
    }

    /// Runs `action`, usually a blocking call, without the token.
    pub fn released<R>(&mut self, action: impl FnOnce() -> R) -> R {
        self.process.holder.store(0, Ordering::Release);
        self.guard = None;
        let result = action();
        self.guard = Some(wait(self.process));
        self.process.holder.store(self.tid, Ordering::Release);
        result
    }
}

fn wait(process: &Process) -> FairMutexGuard<'_, State> {
    if let Some(guard) = process.state.try_lock() {
        return guard;
    }
    process.stats.run_token_waits.add(1);
    loop {
        if let Some(guard) = process.state.try_lock_for(SLICE) {
            return guard;
        }
        process.ask_holder_to_yield();
    }
}

impl Deref for Turn<'_> {
    type Target = State;

    fn deref(&self) -> &State {
        match &self.guard {
            Some(state) => state,
            None => unreachable!("the turn is borrowed while it is released"),
        }
    }
}

impl DerefMut for Turn<'_> {
    fn deref_mut(&mut self) -> &mut State {
        match &mut self.guard {
            Some(state) => state,
            None => unreachable!("the turn is borrowed while it is released"),
        }
    }
}
