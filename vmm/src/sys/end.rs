//! The end of the process.

use std::error::Error;
use std::io::Write;

use guest_agentless::{Errno, Signal};
use recovery::event::{Event, signal_name};

use super::Call;
use crate::host::{self, handles::Messages};
use crate::process::domain::Domain;
use crate::process::fault::Fault;
use crate::process::thread::Thread;
use crate::process::{Process, Turn};

/// Exit status when the monitor itself has failed.
pub const MONITOR_FAILED: i32 = 125;

/// `exit_group`.
///
/// In a client's request it is a fault: one client ends the server of all. A process that has never accepted
/// a connection serves nobody else, like a client or a server of `inetd`. And one that was asked to end may do so
/// whenever it sees fit, such as when it has answered its last client; so may a forked child that has answered the one
/// it works for.
pub fn exit_group(call: &mut Call) -> Result<u64, Errno> {
    let status = call.int(0) & 0xff;
    let options = &call.thread.process.options;
    // A worker may be asked to by its parent, which nobody but it and the worker know of.
    let answered = |domain: &Domain| domain.answered_before || domain.has_answered();
    let has_answered = call.state.domain.as_ref().is_some_and(answered);
    let allowed = options.limits.allow_exit || options.is_child && has_answered;
    if call.in_request() && !call.is_ending() && !allowed {
        return call.fault(Fault::exit(status));
    }
    call.commit()?;
    with_status(call.thread, call.state, status)
}

impl Call<'_, '_> {
    /// Whether the process serves nobody any more: it was asked to end, or accepts no connections.
    pub(super) fn is_ending(&self) -> bool {
        self.state.is_stopping || !self.state.files.serves()
    }
}

/// The process exits.
pub fn with_status(thread: &Thread, turn: &mut Turn<'_>, status: i32) -> ! {
    flush_output(turn);
    thread.give_token_back(turn);
    if let Some(debt) = turn.debt.take() {
        debt.pay();
    }
    finish(&thread.process, Some(status), None)
}

/// A signal ends the process.
pub fn by_signal(thread: &Thread, turn: &mut Turn<'_>, signal: Signal) -> ! {
    flush_output(turn);
    thread.give_token_back(turn);
    if let Some(debt) = turn.debt.take() {
        debt.pay();
    }
    finish(&thread.process, None, Some(signal))
}

/// `signal` ends the process, which was given up and whose handlers have had their time. No guest thread does it.
pub fn after_handlers(process: &Process, signal: Signal) -> ! {
    finish(process, None, Some(signal))
}

/// The monitor cannot go on.
pub fn fail(process: &Process, error: &dyn Error) -> ! {
    let _ = writeln!(Messages, "vmsrs: {}", crate::cli::chain(error));
    process.reporter.finish();
    // SAFETY: ends the process without running destructors under threads that still use what they destroy.
    unsafe { libc::_exit(MONITOR_FAILED) }
}

/// Gives peers that are slow to read what was promised to them a last chance.
fn flush_output(turn: &mut Turn<'_>) {
    for fd in turn.files.waiting() {
        turn.files.flush(fd);
    }
    turn.files.finish_endings();
}

fn finish(process: &Process, status: Option<i32>, signal: Option<Signal>) -> ! {
    if !process.begin_ending() {
        // Another thread is ending the process already.
        loop {
            std::thread::park();
        }
    }
    let name = signal.map(|signal| signal_name(signal.raw()));
    if !process.options.is_child {
        process.reporter.emit(Event::Exited {
            status,
            signal: name,
        });
    }
    process.reporter.finish();
    process.write_stats();
    if let Some(socket) = &process.options.control {
        // A socket that nobody listens on any more is taken over by the next one all the same.
        let _ = std::fs::remove_file(socket);
    }
    if let Some(signal) = signal.filter(|_| process.options.is_child) {
        host::die_by(signal.raw());
    }
    let code = match signal {
        Some(signal) => 128 + signal.raw(),
        None => status.unwrap_or(0),
    };
    // SAFETY: as above.
    unsafe { libc::_exit(code) }
}
