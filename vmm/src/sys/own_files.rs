//! Files under `/proc/self` that would show the monitor instead of the guest.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};

use guest_agentless::Errno;

use super::{Call, errno_of};
use crate::host;

/// The part of a path behind `/proc/self/`, `/proc/<own pid>/` or `/proc/thread-self/`.
fn own(path: &[u8]) -> Option<&[u8]> {
    let rest = path.strip_prefix(b"/proc/")?;
    let slash = rest.iter().position(|b| *b == b'/')?;
    let (process, file) = (&rest[..slash], &rest[slash + 1..]);
    let pid = std::process::id().to_string();
    let is_own = process == b"self" || process == b"thread-self" || process == pid.as_bytes();
    is_own.then_some(file)
}

/// Whether `path` is the link to the program's own file.
pub fn is_executable_link(path: &[u8]) -> bool {
    own(path) == Some(b"exe")
}

impl Call<'_, '_> {
    /// The path argument of an `open`.
    fn path_argument(&self) -> Result<Vec<u8>, Errno> {
        let at = if i64::from(self.row.number) == libc::SYS_open {
            0
        } else {
            1
        };
        self.read_path(self.args[at])
    }

    /// Opens a file that shows the guest where the host's would show the monitor; none for all others.
    pub(super) fn open_own_file(&mut self) -> Option<Result<u64, Errno>> {
        let path = match self.path_argument() {
            Ok(path) => path,
            Err(error) => return Some(Err(error)),
        };
        match own(&path)? {
            b"maps" => {
                let mut text = String::new();
                self.state.space.vmas().render_maps(&mut text);
                Some(text_file(text.as_bytes()).map_err(|e| errno_of(&e)))
            }
            // The monitor's memory, and what it has mapped.
            b"mem" | b"pagemap" | b"smaps" | b"numa_maps" | b"clear_refs" => {
                Some(Err(Errno::EACCES))
            }
            file if file.starts_with(b"map_files") => Some(Err(Errno::EACCES)),
            b"exe" => {
                let program = CString::new(self.thread.process.executable.clone());
                let Ok(program) = program else {
                    return Some(Err(Errno::ENOENT));
                };
                // SAFETY: a NUL-terminated string that outlives the call.
                let fd = unsafe { libc::open(program.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) };
                Some(match fd {
                    -1 => Err(errno_of(&io::Error::last_os_error())),
                    fd => Ok(fd as u64),
                })
            }
            _ => None,
        }
    }

    /// Whether the file that an `open` names exists.
    pub(super) fn exists(&self) -> bool {
        let at = if i64::from(self.row.number) == libc::SYS_open {
            0
        } else {
            1
        };
        let dir = if at == 0 { libc::AT_FDCWD } else { self.int(0) };
        let Ok(path) = self.path_argument() else {
            return false;
        };
        let Ok(path) = CString::new(path) else {
            return false;
        };
        // SAFETY: a NUL-terminated string that outlives the call.
        unsafe { libc::faccessat(dir, path.as_ptr(), libc::F_OK, 0) == 0 }
    }
}

/// A read-only file with `text`, at the lowest free descriptor.
fn text_file(text: &[u8]) -> io::Result<u64> {
    // SAFETY: a NUL-terminated name.
    let fd = unsafe { libc::memfd_create(c"maps".as_ptr(), libc::MFD_CLOEXEC) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a new descriptor that nobody else owns.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    host::write_all(fd.as_raw_fd(), text, Some(0))?;
    Ok(fd.into_raw_fd() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_recognised_by_any_name_of_the_process() {
        let by_pid = format!("/proc/{}/maps", std::process::id());
        assert_eq!(own(by_pid.as_bytes()), Some(&b"maps"[..]));
        assert_eq!(own(b"/proc/self/exe"), Some(&b"exe"[..]));
        assert_eq!(own(b"/proc/1/maps"), None);
        assert_eq!(own(b"/proc/self"), None);
        assert_eq!(own(b"/etc/passwd"), None);
    }
}
