//! What the monitor opens before the guest may take the way to it away: by `chroot`, by becoming another user. Forked
//! children have the same descriptors, and programs that the guest executes get them handed on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::sync::OnceLock;

use guest_agentless::Errno;

use super::{check, prctl};
use crate::memory::{first_reserved, reserved_copy, reserved_fd};

/// One of them. They are among the reserved descriptors.
struct Handle {
    open: fn() -> io::Result<OwnedFd>,
    fd: OnceLock<OwnedFd>,
}

/// The KVM device.
static DEVICE: Handle = Handle::new(|| open_path(c"/dev/kvm", libc::O_RDWR));
/// The monitor's own program file.
static PROGRAM: Handle = Handle::new(|| open_path(c"/proc/self/exe", libc::O_PATH));
/// The root of procfs.
static PROCFS: Handle = Handle::new(|| open_path(c"/proc", libc::O_PATH | libc::O_DIRECTORY));
/// Standard error as it was at first: the guest may make a client's connection of its own.
static MESSAGES: Handle = Handle::new(|| reserved_copy(libc::STDERR_FILENO));

/// The file of events, if there is one.
static EVENTS: Handle = Handle::new(|| Err(io::ErrorKind::NotFound.into()));

/// The file of counters, if there is one.
static STATS: Handle = Handle::new(|| Err(io::ErrorKind::NotFound.into()));
/// What all processes of the server share ([`crate::memory::common`]).
static COMMON: Handle = Handle::new(|| super::memory_file(c"common", 0).and_then(reserved_fd));

static ALL: [&Handle; 7] = [
    &DEVICE, &PROGRAM, &PROCFS, &MESSAGES, &EVENTS, &STATS, &COMMON,
];
/// Those of them that there may not be: standard error may be closed.
static OPTIONAL: [&Handle; 3] = [&MESSAGES, &EVENTS, &STATS];

/// Numbers of the descriptors, as they are handed on; -1 for what could not be opened.
pub type Numbers = [RawFd; 7];

impl Handle {
    const fn new(open: fn() -> io::Result<OwnedFd>) -> Handle {
        Handle {
            open,
            fd: OnceLock::new(),
        }
    }

    fn get(&self) -> io::Result<BorrowedFd<'_>> {
        if let Some(fd) = self.fd.get() {
            return Ok(fd.as_fd());
        }
        let fd = (self.open)()?;
        Ok(self.fd.get_or_init(|| fd).as_fd())
    }

    /// It is `file`, here and in what the guest forks and executes.
    fn set(&self, file: &File) -> io::Result<()> {
        let _ = self.fd.set(reserved_copy(file.as_raw_fd())?);
        Ok(())
    }

    /// A descriptor of it, if there is one.
    fn copy(&self) -> io::Result<Option<File>> {
        let fd = self.fd.get();
        fd.map(|fd| reserved_copy(fd.as_raw_fd()).map(File::from))
            .transpose()
    }
}

fn open_path(path: &std::ffi::CStr, flags: i32) -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, path, flags).and_then(reserved_fd)
}

fn open_at(directory: RawFd, path: &std::ffi::CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated path that outlives the call.
    let fd = unsafe { libc::openat(directory, path.as_ptr(), flags | libc::O_CLOEXEC) };
    check(i64::from(fd))?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Takes over what the monitor before this one has handed on.
pub fn adopt(numbers: Numbers) -> io::Result<()> {
    for (handle, number) in ALL.into_iter().zip(numbers) {
        if number < 0 {
            continue;
        }
        let fd = reserved_copy(number)?;
        // SAFETY: the number was handed on for this, and nobody else knows it.
        drop(unsafe { OwnedFd::from_raw_fd(number) });
        let _ = handle.fd.set(fd);
    }
    Ok(())
}

/// Opens what is not open yet. What cannot be opened is told to who needs it.
pub fn open_all() {
    for handle in ALL {
        let _ = handle.get();
    }
}

/// Keeps them open in the program that is executed next, which is told the numbers.
pub fn hand_on() -> io::Result<Numbers> {
    let mut numbers = [-1; ALL.len()];
    for (handle, number) in ALL.into_iter().zip(&mut numbers) {
        let fd = match handle.get() {
            Ok(fd) => fd.as_raw_fd(),
            Err(_) if OPTIONAL.iter().any(|other| std::ptr::eq(*other, handle)) => continue,
            Err(error) => return Err(error),
        };
        super::fcntl(fd, libc::F_SETFD, 0)?;
        *number = fd;
    }
    Ok(numbers)
}

/// In a forked child: closes everything that is the parent's monitor's but these, and `kept`.
pub fn close_others(kept: Option<RawFd>) {
    let mut kept: Vec<RawFd> = ALL
        .iter()
        .filter_map(|handle| Some(handle.fd.get()?.as_raw_fd()))
        .chain(kept)
        .collect();
    kept.sort_unstable();
    let mut from = first_reserved();
    for fd in kept {
        super::close_range(from, fd - 1);
        from = fd + 1;
    }
    super::close_range(from, i32::MAX);
}

/// The file of events is `file`, here and in what the guest forks and executes.
pub fn set_events(file: &File) -> io::Result<()> {
    EVENTS.set(file)
}

/// A descriptor of the file of events, if there is one.
pub fn events() -> io::Result<Option<File>> {
    EVENTS.copy()
}

/// The file of counters is `file`, here and in what the guest forks and executes.
pub fn set_stats(file: &File) -> io::Result<()> {
    STATS.set(file)
}

/// A descriptor of the file of counters, if there is one.
pub fn stats() -> io::Result<Option<File>> {
    STATS.copy()
}

/// A descriptor of the KVM device.
pub fn device() -> io::Result<OwnedFd> {
    reserved_copy(DEVICE.get()?.as_raw_fd())
}

/// The monitor's own program file, to be executed.
pub fn program() -> io::Result<BorrowedFd<'static>> {
    PROGRAM.get()
}

/// The file of what all processes of the server share.
pub fn common() -> io::Result<BorrowedFd<'static>> {
    COMMON.get()
}

/// Where the monitor says what it has to say: standard error, as it was before the guest had it.
#[derive(Debug, Clone, Copy)]
pub struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        super::signals::without_file_size_signal(|| match MESSAGES.fd.get() {
            Some(fd) => super::write_all(fd.as_raw_fd(), bytes, None).map(|()| bytes.len()),
            None => io::stderr().write(bytes),
        })
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Opens a file of `/proc/self`, such as `fdinfo/3`.
pub fn open_own(path: &str, flags: i32) -> io::Result<File> {
    let path = std::ffi::CString::new(format!("self/{path}"))?;
    open_at(PROCFS.get()?.as_raw_fd(), &path, flags).map(File::from)
}

/// What procfs says of descriptor `fd` (`/proc/PID/fdinfo` in proc(5)).
pub fn fdinfo(fd: RawFd) -> io::Result<String> {
    let mut text = String::new();
    open_own(&format!("fdinfo/{fd}"), libc::O_RDONLY)?.read_to_string(&mut text)?;
    Ok(text)
}

/// What procfs gives as the path of descriptor `fd`.
pub fn path_of(fd: RawFd) -> io::Result<PathBuf> {
    let path = std::ffi::CString::new(format!("self/fd/{fd}"))?;
    let mut target = vec![0u8; libc::PATH_MAX as usize];
    let procfs = PROCFS.get()?.as_raw_fd();
    // SAFETY: a NUL-terminated path, and room for as many bytes as are said.
    let len = unsafe {
        libc::readlinkat(
            procfs,
            path.as_ptr(),
            target.as_mut_ptr().cast(),
            target.len(),
        )
    };
    target.truncate(check(len as i64)? as usize);
    Ok(std::ffi::OsString::from_vec(target).into())
}

/// The process's own memory as a file, whatever the protection of its pages.
pub fn open_own_memory() -> io::Result<File> {
    open_guarded("mem", libc::O_RDWR)
}

/// What its pages are (proc(5), `/proc/PID/pagemap`).
pub fn open_own_page_map() -> io::Result<File> {
    open_guarded("pagemap", libc::O_RDONLY)
}

/// A file of `/proc/self` that not everybody may open, at a reserved number.
///
/// It belongs to root once the process has become another user (`PR_SET_DUMPABLE` in prctl(2)); so it is made its
/// own again for a moment.
fn open_guarded(path: &str, flags: i32) -> io::Result<File> {
    let open = || open_own(path, flags);
    let file = match open() {
        Err(error) if error.raw_os_error() == Some(libc::EACCES) => {
            let io_error = |error: Errno| io::Error::from_raw_os_error(error.raw());
            let before = prctl(libc::PR_GET_DUMPABLE, 0).map_err(io_error)?;
            prctl(libc::PR_SET_DUMPABLE, 1).map_err(io_error)?;
            let file = open();
            // 2 is the state of a file that may not be read; it can only be set to 0.
            prctl(libc::PR_SET_DUMPABLE, before & 1).map_err(io_error)?;
            file
        }
        other => other,
    }?;
    reserved_fd(file.into()).map(File::from)
}
