//! What the monitor opens before the guest may take the way to it away: by `chroot`, by becoming another user. Forked
//! children have the same descriptors, and programs that the guest executes get them handed on.

use std::ffi::CString;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
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

/// The directory of the file of events, where that is opened anew when it was renamed.
static EVENTS_DIRECTORY: Handle = Handle::new(|| Err(io::ErrorKind::NotFound.into()));
/// The directory for the reports of the user that the guest has become.
static REPORTS: Handle = Handle::new(|| Err(io::ErrorKind::NotFound.into()));

static ALL: [&Handle; 9] = [
    &DEVICE,
    &PROGRAM,
    &PROCFS,
    &MESSAGES,
    &EVENTS,
    &STATS,
    &COMMON,
    &EVENTS_DIRECTORY,
    &REPORTS,
];
/// Those of them that there may not be: standard error may be closed.
static OPTIONAL: [&Handle; 5] = [&MESSAGES, &EVENTS, &STATS, &EVENTS_DIRECTORY, &REPORTS];

/// The name of the file of events in its directory.
static EVENTS_NAME: OnceLock<CString> = OnceLock::new();

/// Numbers of the descriptors, as they are handed on; -1 for what could not be opened.
pub type Numbers = [RawFd; 9];

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
        let Some(old) = self.fd.get() else {
            let _ = self.fd.set(reserved_copy(file.as_raw_fd())?);
            return Ok(());
        };
        // SAFETY: takes numbers only; the old descriptor keeps its number and its owner.
        let set = unsafe { libc::dup3(file.as_raw_fd(), old.as_raw_fd(), libc::O_CLOEXEC) };
        check(i64::from(set)).map(drop)
    }

    /// A descriptor of it, if there is one.
    fn copy(&self) -> io::Result<Option<File>> {
        let fd = self.fd.get();
        fd.map(|fd| reserved_copy(fd.as_raw_fd()).map(File::from))
            .transpose()
    }
}

impl Handle {
    /// A path to it for this process, while procfs is there.
    fn path(&self) -> Option<PathBuf> {
        let fd = self.fd.get()?.as_raw_fd();
        Some(format!("/proc/thread-self/fd/{fd}").into())
    }
}

fn open_path(path: &std::ffi::CStr, flags: i32) -> io::Result<OwnedFd> {
    open_at(libc::AT_FDCWD, path, flags).and_then(reserved_fd)
}

fn open_at(directory: RawFd, path: &std::ffi::CStr, flags: i32) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated path that outlives the call; the mode is for what is created.
    let fd = unsafe { libc::openat(directory, path.as_ptr(), flags | libc::O_CLOEXEC, 0o666) };
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
    let standard = [libc::STDOUT_FILENO, libc::STDERR_FILENO];
    let _ = STREAMS.set(standard.into_iter().filter_map(identity).collect());
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

/// The file of events is `file` at `path`, here and in what the guest forks and executes.
pub fn set_events(file: &File, path: &Path) -> io::Result<()> {
    EVENTS.set(file)?;
    let above = path.parent().filter(|above| !above.as_os_str().is_empty());
    let above = CString::new(above.unwrap_or(Path::new(".")).as_os_str().as_bytes())?;
    let directory = open_path(&above, libc::O_PATH | libc::O_DIRECTORY)?;
    EVENTS_DIRECTORY.set(&File::from(directory))
}

/// The file of events has that path, which was handed on.
pub fn name_events(path: &Path) {
    let name = path
        .file_name()
        .and_then(|n| CString::new(n.as_bytes()).ok());
    if let Some(name) = name {
        let _ = EVENTS_NAME.set(name);
    }
}

/// Opens the file of events anew if it has been renamed or removed, as programs do that rotate logs.
///
/// Links are not followed: the directory may be one in which the guest can write.
pub fn reopen_events(current: &File) -> Option<File> {
    let (name, directory) = EVENTS_NAME.get().zip(EVENTS_DIRECTORY.fd.get())?;
    let metadata = current.metadata().ok().filter(|m| m.is_file())?;
    match named(directory.as_fd(), name) {
        Ok(found) if found.st_mode & libc::S_IFMT != libc::S_IFREG => return None,
        Ok(found) if (found.st_dev, found.st_ino) == (metadata.dev(), metadata.ino()) => {
            return None;
        }
        Ok(_) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(_) => return None,
    }
    let flags = libc::O_WRONLY | libc::O_APPEND | libc::O_CREAT | libc::O_NOFOLLOW;
    // Where this user may not, the old file goes on.
    let file = open_at(directory.as_raw_fd(), name, flags).and_then(reserved_fd);
    file.ok().map(File::from)
}

/// What `name` in `directory` is; of a link, the link itself.
fn named(directory: BorrowedFd<'_>, name: &std::ffi::CStr) -> io::Result<libc::stat> {
    let mut found = std::mem::MaybeUninit::<libc::stat>::uninit();
    // SAFETY: a NUL-terminated path, and room for one `struct stat`.
    let done = unsafe {
        libc::fstatat(
            directory.as_raw_fd(),
            name.as_ptr(),
            found.as_mut_ptr(),
            libc::AT_SYMLINK_NOFOLLOW,
        )
    };
    check(i64::from(done))?;
    // SAFETY: the call has succeeded, and filled it in.
    Ok(unsafe { found.assume_init() })
}

/// Reports are kept in `directory` by what the guest executes, if it cannot keep them where they belong.
pub fn set_reports(directory: &File) -> io::Result<()> {
    REPORTS.set(directory)
}

/// That directory.
pub fn reports() -> Option<PathBuf> {
    REPORTS.path()
}

/// The files that standard output and standard error were at first, by device and number.
static STREAMS: OnceLock<Vec<(u64, u64)>> = OnceLock::new();

fn identity(fd: RawFd) -> Option<(u64, u64)> {
    // SAFETY: the descriptor is only looked at, and not closed.
    let file = std::mem::ManuallyDrop::new(unsafe { File::from_raw_fd(fd) });
    let metadata = file.metadata().ok()?;
    Some((metadata.dev(), metadata.ino()))
}

/// Whether `fd` is the file that standard output or standard error was when the program began.
pub fn is_standard_stream(fd: RawFd) -> bool {
    let streams = STREAMS.get().into_iter().flatten();
    identity(fd).is_some_and(|own| streams.into_iter().any(|stream| *stream == own))
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

/// How long a line for standard error waits for a reader, in milliseconds.
const MESSAGE_PATIENCE: i32 = 200;

/// Where the monitor says what it has to say: standard error, as it was before the guest had it.
#[derive(Debug, Clone, Copy)]
pub struct Messages;

impl Write for Messages {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        super::signals::without_file_size_signal(|| match MESSAGES.fd.get() {
            Some(fd) => {
                // What nobody reads must not stop the server: the line is dropped.
                if super::wait_writable(fd.as_raw_fd(), MESSAGE_PATIENCE)? {
                    super::write_all(fd.as_raw_fd(), bytes, None)?;
                }
                Ok(bytes.len())
            }
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
