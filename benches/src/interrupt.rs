//! SIGINT and SIGTERM end the benchmark in an orderly way, so that no server outlives it: servers
//! lead process groups of their own, which an interrupt at the terminal does not reach.

use std::sync::atomic::{AtomicBool, Ordering};

use libc::{SIGINT, SIGTERM, c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

use crate::Error;

static REQUESTED: AtomicBool = AtomicBool::new(false);

extern "C" fn take_note(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// From now on the two signals are only taken note of.
pub fn install() -> Result<(), Error> {
    for signal in [SIGINT, SIGTERM] {
        register_signal_handler(signal, take_note)
            .map_err(|e| format!("cannot handle signal {signal}: {e}"))?;
    }
    Ok(())
}

/// Whether one of them has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once one of them has come: what measures goes on no further, and drops its servers.
pub fn check() -> Result<(), Error> {
    match requested() {
        true => Err("interrupted".into()),
        false => Ok(()),
    }
}
