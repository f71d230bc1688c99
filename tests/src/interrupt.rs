//! SIGINT and SIGTERM end a long run in an orderly way, so that no server outlives it: servers lead process groups of
//! their own, which an interrupt at the terminal does not reach.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
};

use libc::{SIGINT, SIGTERM, c_int, c_void, siginfo_t};
use vmm_sys_util::signal::register_signal_handler;

static REQUESTED: AtomicBool = AtomicBool::new(false);

/// One of the two signals has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("interrupted")]
pub struct Interrupted;

extern "C" fn take_note(_: c_int, _: *mut siginfo_t, _: *mut c_void) {
    REQUESTED.store(true, Ordering::Relaxed);
}

/// From now on the two signals are only taken note of.
pub fn install() -> io::Result<()> {
    for signal in [SIGINT, SIGTERM] {
        register_signal_handler(signal, take_note).map_err(io::Error::from)?;
    }
    Ok(())
}

/// Whether one of them has come.
pub fn requested() -> bool {
    REQUESTED.load(Ordering::Relaxed)
}

/// An error once one of them has come: what is long goes on no further, and drops its servers.
pub fn check() -> Result<(), Interrupted> {
    match requested() {
        true => Err(Interrupted),
        false => Ok(()),
    }
}
