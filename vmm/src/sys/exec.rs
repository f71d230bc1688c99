//! `execve`: the monitor executes itself, with the new program in place of the old.
//!
//! The process ID, the descriptors without close-on-exec, the working directory, ignored signals and the
//! signal mask survive as in any exec, because it is one. Whether the program can be run is found out before
//! there is no way back.

use std::ffi::{CString, OsString};
use std::io;
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;

use guest_agentless::{Errno, Signal};

use super::{Call, Handler, errno_of};
use crate::loader::{self, Program};
use crate::process::control::{self, HostAction};
use crate::process::domain::Early;
use crate::process::signals::Delivery;
use crate::{host, memory};

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_execve).then_some(execve as Handler)
}

/// Bytes of all arguments and the environment, as Linux limits them for an 8 MiB stack.
const STRINGS_MAX: usize = 2 << 20;

fn execve(call: &mut Call) -> Result<u64, Errno> {
    let path = PathBuf::from(OsString::from_vec(call.read_path(call.args[0])?));
    let mut room = STRINGS_MAX;
    let args = call.read_strings(call.args[1], &mut room)?;
    let environment = call.read_strings(call.args[2], &mut room)?;
    let names: Vec<OsString> = args
        .iter()
        .map(|arg| OsString::from_vec(arg.as_bytes().to_vec()))
        .collect();
    let program = Program {
        path: &path,
        args: &names,
        environment: &[],
    };
    loader::check(&program).map_err(|error| {
        log::debug!("execve: {}", crate::cli::chain(&error));
        error.errno()
    })?;

    call.commit_early(Early::External)?;
    for fd in call.state.files.waiting() {
        call.state.files.flush(fd);
    }
    call.thread.process.reporter.finish();
    call.pass_on_signal_state();
    // The next monitor makes room for itself again; what it finds is the guest's.
    let (soft, hard) = call.state.descriptor_limit;
    let _ = memory::set_descriptor_limits(soft, hard);
    let error = run_self(
        call.thread.process.options.own_arguments(&path, args),
        environment,
    );
    // Everything was checked, and the monitor's own file has gone: nobody can serve the guest any more.
    super::end::fail(&call.thread.process, &error)
}

impl Call<'_, '_> {
    /// Reads a NULL-terminated array of strings.
    fn read_strings(&mut self, address: u64, room: &mut usize) -> Result<Vec<CString>, Errno> {
        let mut strings = Vec::new();
        if address == 0 {
            return Ok(strings);
        }
        loop {
            let slot = (strings.len() as u64)
                .checked_mul(8)
                .and_then(|n| address.checked_add(n));
            let pointer = u64::from_ne_bytes(self.read(slot.ok_or(Errno::EFAULT)?)?);
            if pointer == 0 {
                return Ok(strings);
            }
            let string = self
                .read_string(pointer, *room)
                .map_err(|error| match error {
                    Errno::ENAMETOOLONG => Errno::E2BIG,
                    error => error,
                })?;
            *room = room.checked_sub(string.len() + 1 + 8).ok_or(Errno::E2BIG)?;
            strings.push(CString::new(string).map_err(|_| Errno::EINVAL)?);
        }
    }

    /// Ignored signals and the mask are the host's business during an exec.
    fn pass_on_signal_state(&self) {
        for signal in (1..=64)
            .filter_map(Signal::new)
            .filter(|s| s.is_catchable())
        {
            let is_set = self.state.dispositions.get(signal).handler as usize == libc::SIG_IGN;
            if is_set && self.state.dispositions.delivery(signal) == Delivery::Ignore {
                let _ = control::set_host_action(signal, HostAction::Ignore);
            }
        }
        host::set_signal_mask(self.thread.blocked.0);
    }
}

fn run_self(args: Vec<CString>, environment: Vec<CString>) -> io::Error {
    let pointers = |strings: &[CString]| -> Vec<*const libc::c_char> {
        strings
            .iter()
            .map(|s| s.as_ptr())
            .chain([std::ptr::null()])
            .collect()
    };
    let (argv, envp) = (pointers(&args), pointers(&environment));
    // SAFETY: NULL-terminated arrays of NUL-terminated strings that outlive the call.
    unsafe { libc::execve(c"/proc/self/exe".as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    let error = io::Error::last_os_error();
    log::error!("execve of the monitor: {}", errno_of(&error));
    error
}
