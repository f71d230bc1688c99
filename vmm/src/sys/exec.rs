//! `execve`: the monitor executes itself, with the new program in place of the old.
//!
//! The process ID, the descriptors without close-on-exec, the working directory, ignored signals and the
//! signal mask survive as in any exec, because it is one. Whether the program can be run is found out before
//! there is no way back.

use std::ffi::{CString, OsStr, OsString};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use guest_agentless::{Errno, Signal};

use super::{Call, Handler, errno_of};
use crate::host::handles;
use crate::loader::{self, Program};
use crate::process::domain::Early;
use crate::process::fault_signals;
use crate::process::host_signals::{self, HostAction};
use crate::process::inherited::Inherited;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_execve => execve,
        libc::SYS_execveat => execveat,
        _ => return None,
    })
}

/// Bytes of all arguments and the environment, as Linux limits them for an 8 MiB stack.
const STRINGS_MAX: usize = 2 << 20;

fn execve(call: &mut Call) -> Result<u64, Errno> {
    let path = call.read_path(call.args[0])?;
    let [_, argv, envp, ..] = call.args;
    execute(call, path, argv, envp)
}

fn execveat(call: &mut Call) -> Result<u64, Errno> {
    let [_, path, argv, envp, flags, _] = call.args;
    let (directory, flags) = (call.int(0), flags as i32);
    if flags & !(libc::AT_EMPTY_PATH | libc::AT_SYMLINK_NOFOLLOW) != 0 {
        return Err(Errno::EINVAL);
    }
    let name = call.read_path(path)?;
    let path = match name.first() {
        Some(b'/') => name,
        Some(_) if directory == libc::AT_FDCWD => name,
        None if flags & libc::AT_EMPTY_PATH == 0 => return Err(Errno::ENOENT),
        _ => {
            let at = handles::path_of(directory).map_err(|_| Errno::EBADF)?;
            let path = match name.is_empty() {
                true => at,
                false => at.join(OsString::from_vec(name)),
            };
            path.into_os_string().into_vec()
        }
    };
    let is_link =
        || std::fs::symlink_metadata(OsStr::from_bytes(&path)).is_ok_and(|m| m.is_symlink());
    if flags & libc::AT_SYMLINK_NOFOLLOW != 0 && is_link() {
        return Err(Errno::ELOOP);
    }
    execute(call, path, argv, envp)
}

fn execute(call: &mut Call, path: Vec<u8>, argv: u64, envp: u64) -> Result<u64, Errno> {
    let path = match super::own_files::is_executable_link(&path) {
        true => PathBuf::from(&call.thread.process.executable),
        false => PathBuf::from(OsString::from_vec(path)),
    };
    let mut room = STRINGS_MAX;
    let args = call.read_strings(argv, &mut room)?;
    let environment = call.read_strings(envp, &mut room)?;
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
    let filters = call.filters_for_exec().map_err(|e| errno_of(&e))?;
    // The next monitor makes room for itself again; what it finds is the guest's.
    let options = &call.thread.process.options;
    let inherited = Inherited {
        handles: handles::hand_on().map_err(|e| errno_of(&e))?,
        limits: call.state.own_limits,
        blocked: call.thread.blocked,
        filters: filters.as_ref().map_or(-1, |file| file.as_raw_fd()),
        is_child: options.is_child,
    };
    if let Some(debt) = call.state.debt.take() {
        debt.pay();
    }
    fault_signals::hand_on();
    let error = run_self(options.own_arguments(&inherited, &path, args), environment);
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

    /// Ignored signals are the host's business during an exec. The mask stays closed: what is pending is for the new program.
    fn pass_on_signal_state(&self) {
        for signal in (1..=64)
            .filter_map(Signal::new)
            .filter(|s| s.is_catchable())
        {
            let is_set = self.state.dispositions.get(signal).handler as usize == libc::SIG_IGN;
            if is_set {
                let _ = host_signals::set_host_action(signal, HostAction::Ignore, 0);
            }
        }
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
    let error = match handles::program() {
        Err(error) => error,
        Ok(program) => {
            let program = program.as_raw_fd();
            // SAFETY: NULL-terminated arrays of NUL-terminated strings that outlive the call.
            unsafe {
                libc::syscall(
                    libc::SYS_execveat,
                    program,
                    c"".as_ptr(),
                    argv.as_ptr(),
                    envp.as_ptr(),
                    libc::AT_EMPTY_PATH,
                )
            };
            io::Error::last_os_error()
        }
    };
    log::error!("execve of the monitor: {}", errno_of(&error));
    error
}
