//! Files under `/proc/self` that would show the monitor instead of the guest.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, IntoRawFd};
use std::os::unix::ffi::OsStringExt;
use std::sync::OnceLock;

use guest_agentless::Errno;

use super::{BOUNCE, Call, errno_of};
use crate::host;
use crate::memory::first_reserved;

/// The part of a canonical path behind `/proc/<own pid>/`, or behind the thread's directory in it.
fn own(path: &[u8]) -> Option<&[u8]> {
    let prefix = format!("/proc/{}/", std::process::id());
    let rest = path.strip_prefix(prefix.as_bytes())?;
    match rest.strip_prefix(b"task/") {
        None => Some(rest),
        Some(thread) => {
            let slash = thread.iter().position(|b| *b == b'/')?;
            Some(&thread[slash + 1..])
        }
    }
}

/// Whether a canonical path in procfs leads to the memory of a process.
fn names_memory(path: &[u8]) -> bool {
    path.ends_with(b"/mem") || path.windows(11).any(|part| part == b"/map_files/")
}

/// Whether a canonical path in procfs belongs to another monitor: of the parent, or of a child.
fn of_monitor(path: &[u8]) -> bool {
    let mut parts = path.split(|b| *b == b'/').skip(2);
    let Some(pid) = parts.next().and_then(|pid| std::str::from_utf8(pid).ok()) else {
        return false;
    };
    // A process that cannot be looked at is none of ours.
    monitor_identity().is_some() && file_identity(&format!("/proc/{pid}/exe")) == monitor_identity()
}

/// Whether `path` names the program's own file, in the two forms that are in use.
pub fn is_executable_link(path: &[u8]) -> bool {
    path == b"/proc/self/exe" || own(path) == Some(b"exe")
}

/// The canonical path of an open descriptor if it is in procfs.
fn in_procfs(fd: i32) -> Option<Vec<u8>> {
    if !host::is_in_procfs(fd) {
        return None;
    }
    let link = host::handles::path_of(fd).ok()?;
    Some(link.into_os_string().into_vec())
}

impl Call<'_, '_> {
    /// The path argument of an `open`.
    fn path_argument(&mut self) -> Result<Vec<u8>, Errno> {
        let at = if i64::from(self.row.number) == libc::SYS_open {
            0
        } else {
            1
        };
        self.read_path(self.args[at])
    }

    /// Looks at what an `open` has opened, by whatever path: what would show the monitor instead of the
    /// guest is replaced or refused.
    pub(super) fn checked_opening(&mut self, opened: Result<u64, Errno>) -> Result<u64, Errno> {
        let fd = opened? as i32;
        let replacement = match in_procfs(fd) {
            Some(path) => match own(&path) {
                Some(b"maps") => {
                    let mut text = String::new();
                    self.state.space.vmas().render_maps(&mut text);
                    Some(text_file(text.as_bytes()).map_err(|e| errno_of(&e)))
                }
                Some(b"smaps") => {
                    let shown = read_whole(fd).and_then(|host| {
                        let mut text = String::new();
                        self.state.space.vmas().render_smaps(&host, &mut text);
                        text_file(text.as_bytes())
                    });
                    Some(shown.map_err(|e| errno_of(&e)))
                }
                Some(b"auxv") => {
                    let words = self.thread.process.auxv.iter().flat_map(|e| [e.0, e.1]);
                    let bytes: Vec<u8> = words.flat_map(u64::to_ne_bytes).collect();
                    Some(text_file(&bytes).map_err(|e| errno_of(&e)))
                }
                // The monitor's memory, and what it has mapped.
                Some(
                    b"mem" | b"pagemap" | b"smaps_rollup" | b"numa_maps" | b"clear_refs"
                    | b"syscall" | b"stack",
                ) => Some(Err(Errno::EACCES)),
                Some(file) if file.starts_with(b"map_files") => Some(Err(Errno::EACCES)),
                None if names_memory(&path) && of_monitor(&path) => Some(Err(Errno::EACCES)),
                _ => None,
            },
            None if is_monitor(fd) && self.path_argument()?.ends_with(b"exe") => {
                Some(open_readable(&self.thread.process.executable).map_err(|e| errno_of(&e)))
            }
            None => None,
        };
        match replacement {
            None => Ok(fd as u64),
            Some(replacement) => {
                let _ = host::close(fd);
                replacement
            }
        }
    }

    /// `getdents64`, without the monitor's descriptors in the guest's own list of descriptors.
    pub(super) fn list_directory(&mut self) -> Result<u64, Errno> {
        let fd = self.int(0);
        let own_list =
            in_procfs(fd).is_some_and(|path| matches!(own(&path), Some(b"fd" | b"fdinfo")));
        if !own_list {
            return self.pass();
        }
        let mut entries = vec![0u8; (self.args[2] as u32 as usize).min(BOUNCE)];
        loop {
            let args = [
                fd as u64,
                entries.as_mut_ptr() as u64,
                entries.len() as u64,
                0,
                0,
                0,
            ];
            // SAFETY: the buffer is the monitor's and has that length.
            let n = unsafe { host::syscall(libc::SYS_getdents64 as u64, args) }? as usize;
            let kept = without_reserved(&entries[..n]);
            if n == 0 || !kept.is_empty() {
                self.write(self.args[1], &kept)?;
                return Ok(kept.len() as u64);
            }
        }
    }

    /// Whether the file that an `open` names exists.
    pub(super) fn exists(&mut self) -> bool {
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

/// The entries (`struct linux_dirent64`) whose names are not numbers of the monitor's descriptors.
fn without_reserved(mut entries: &[u8]) -> Vec<u8> {
    const NAME: usize = 19;
    let mut kept = Vec::with_capacity(entries.len());
    while entries.len() > NAME {
        let len = usize::from(u16::from_ne_bytes([entries[16], entries[17]]));
        if len <= NAME || len > entries.len() {
            break;
        }
        let (entry, rest) = entries.split_at(len);
        let name = entry[NAME..].split(|b| *b == 0).next().unwrap_or_default();
        let number = std::str::from_utf8(name)
            .ok()
            .and_then(|name| name.parse::<i32>().ok());
        if number.is_none_or(|number| number < first_reserved()) {
            kept.extend_from_slice(entry);
        }
        entries = rest;
    }
    kept
}

/// Whether `fd` is the monitor's own program file.
fn is_monitor(fd: i32) -> bool {
    monitor_identity().is_some() && host::identity(fd).ok() == monitor_identity()
}

/// Device and inode of the monitor's own program file.
fn monitor_identity() -> Option<(u64, u64)> {
    static MONITOR: OnceLock<Option<(u64, u64)>> = OnceLock::new();
    *MONITOR.get_or_init(|| file_identity("/proc/self/exe"))
}

fn file_identity(path: &str) -> Option<(u64, u64)> {
    use std::os::unix::fs::MetadataExt;
    let metadata = std::fs::metadata(path).ok()?;
    Some((metadata.dev(), metadata.ino()))
}

fn open_readable(path: &str) -> io::Result<u64> {
    let path = CString::new(path)?;
    // SAFETY: a NUL-terminated string that outlives the call.
    match unsafe { libc::open(path.as_ptr(), libc::O_RDONLY | libc::O_CLOEXEC) } {
        -1 => Err(io::Error::last_os_error()),
        fd => Ok(fd as u64),
    }
}

/// The text of a file in procfs.
fn read_whole(fd: i32) -> io::Result<String> {
    let mut text = Vec::new();
    let mut piece = vec![0u8; BOUNCE];
    loop {
        match host::read_at(fd, &mut piece, text.len() as u64)? {
            0 => return Ok(String::from_utf8_lossy(&text).into_owned()),
            n => text.extend_from_slice(&piece[..n]),
        }
    }
}

/// A file with `text`, at the lowest free descriptor.
fn text_file(text: &[u8]) -> io::Result<u64> {
    let fd = host::memory_file(c"maps", 0)?;
    host::write_all(fd.as_raw_fd(), text, Some(0))?;
    Ok(fd.into_raw_fd() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_files_are_recognised_in_canonical_paths() {
        let path = |file: &str| format!("/proc/{}/{file}", std::process::id()).into_bytes();
        assert_eq!(own(&path("maps")), Some(&b"maps"[..]));
        assert_eq!(own(&path("task/17/mem")), Some(&b"mem"[..]));
        assert_eq!(own(&path("task/17")), None);
        assert_eq!(own(b"/proc/1/maps"), None);
        assert!(names_memory(b"/proc/1/mem") && names_memory(b"/proc/1/task/7/mem"));
        assert!(!names_memory(b"/proc/1/maps"));
        assert!(of_monitor(&path("mem")) && !of_monitor(b"/proc/1234567890/mem"));
        assert_eq!(own(b"/etc/passwd"), None);
    }

    #[test]
    fn the_monitors_descriptors_are_left_out_of_a_listing() {
        let entry = |name: &str| {
            let len = (19 + name.len() + 1).next_multiple_of(8);
            let mut bytes = vec![0u8; len];
            bytes[16..18].copy_from_slice(&(len as u16).to_ne_bytes());
            bytes[19..19 + name.len()].copy_from_slice(name.as_bytes());
            bytes
        };
        let reserved = first_reserved().to_string();
        let all = [entry("."), entry("3"), entry(&reserved), entry("4")].concat();
        assert_eq!(
            without_reserved(&all),
            [entry("."), entry("3"), entry("4")].concat()
        );
        assert_eq!(without_reserved(&all[..10]), [] as [u8; 0]);
        let mut torn = entry("3");
        torn[16] = 3;
        assert_eq!(without_reserved(&torn), [] as [u8; 0]);
    }
}
