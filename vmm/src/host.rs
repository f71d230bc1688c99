//! Host system calls on the monitor's own memory, as safe functions.

use std::ffi::CStr;
use std::io;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

mod file;
pub mod handles;
mod incoming;
mod message;
mod processes;
mod shown;
mod signals;
mod socket;
mod standard;
mod transfer;

pub use file::{file_time, is_plain_file, is_same_description, set_changed};
pub use incoming::{Envelope, Incoming};
pub use message::{Ancillary, RIGHTS_MAX, send_message, take_peeked};
pub use processes::{futex_wait, futex_wake, has_ended, monotonic_time};
pub use shown::show_program;
pub use signals::{
    all_signals, block_signals, die_by, kill, queue_to_own_thread, set_signal_mask, signals_of,
    with_signals_blocked,
};
pub use socket::{
    abort_connection, is_listening, is_tcp, local_name, peer_name, receive, send,
    set_socket_option, shutdown, socket_number, socket_option, unacknowledged,
};
pub use standard::close_standard_again;
pub use transfer::{
    Aligned, bytes_to_read, bytes_waiting, peek_from, read_at, read_now, size, timer_ticks,
    truncate, write_all, write_at,
};

use guest_agentless::Errno;

/// The result of a libc call that returns -1 on error.
fn check(result: i64) -> io::Result<i64> {
    match result {
        -1 => Err(io::Error::last_os_error()),
        value => Ok(value),
    }
}

/// The errno of an error of the host.
pub fn errno_of(error: &io::Error) -> Errno {
    Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))
}

/// Large blocks of the monitor's own memory are mappings of their own, so that they go back to the host when
/// they are freed. By default the allocator gives that up after the first one.
pub fn fix_mmap_threshold() {
    // SAFETY: sets a parameter of the allocator; no memory is involved.
    unsafe { libc::mallopt(libc::M_MMAP_THRESHOLD, 256 << 10) };
}

/// Gives memory that was freed back to the host. Of what was allocated piece by piece, `free` keeps all that lies below
/// something still in use.
pub fn return_free_memory() {
    // SAFETY: malloc_trim(3) touches nothing but the allocator's own free memory, and is safe on any thread.
    unsafe { libc::malloc_trim(0) };
}

/// A raw system call.
///
/// # Safety
///
/// As for the call itself: the kernel may read and write wherever the arguments point.
pub unsafe fn syscall(number: u64, args: [u64; 6]) -> Result<u64, Errno> {
    let [a, b, c, d, e, f] = args;
    // SAFETY: the caller answers for the arguments.
    let result = unsafe { libc::syscall(number as i64, a, b, c, d, e, f) };
    check(result)
        .map(|value| value as u64)
        .map_err(|e| errno_of(&e))
}

/// Whether a read would not block.
pub fn is_readable(fd: i32) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut entry, 1, 0) > 0 }
}

/// Whether a write would not block, and not fail.
pub fn is_writable(fd: i32) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut entry, 1, 0) > 0 && entry.revents == libc::POLLOUT }
}

/// Whether a connection has ended in both directions, or failed.
pub fn has_hung_up(fd: i32) -> bool {
    let mut entry = libc::pollfd {
        fd,
        events: 0,
        revents: 0,
    };
    // SAFETY: one valid entry.
    unsafe { libc::poll(&mut entry, 1, 0) > 0 }
}

/// The time of a clock; zero if there is no such clock.
pub fn clock_time(clock: i32) -> std::time::Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to fill in.
    unsafe { libc::clock_gettime(clock, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of the calling thread, the guest's code included.
pub fn thread_cpu_time() -> std::time::Duration {
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to fill in.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut time) };
    std::time::Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// CPU time of a thread of this process; none if it has ended.
pub fn cpu_time_of(tid: i32) -> Option<std::time::Duration> {
    // `MAKE_THREAD_CPUCLOCK(tid, CPUCLOCK_SCHED)` of the kernel's `posix-timers.h`.
    const THREAD_SCHED: i32 = 4 | 2;
    let mut time = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `time` is valid for the call to fill in.
    match unsafe { libc::clock_gettime((!tid << 3) | THREAD_SCHED, &mut time) } {
        0 => Some(std::time::Duration::new(
            time.tv_sec as u64,
            time.tv_nsec as u32,
        )),
        _ => None,
    }
}

/// Bytes of memory that the machine has.
pub fn physical_memory() -> Option<u64> {
    // SAFETY: sysconf has no preconditions.
    let (pages, size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    u64::try_from(pages)
        .ok()?
        .checked_mul(u64::try_from(size).ok()?)
}

/// The real user of the process.
pub fn user() -> u32 {
    // SAFETY: getuid has no preconditions.
    unsafe { libc::getuid() }
}

/// The effective user.
pub fn effective_user() -> u32 {
    // SAFETY: geteuid has no preconditions.
    unsafe { libc::geteuid() }
}

/// The real group of the process.
pub fn group() -> u32 {
    // SAFETY: getgid has no preconditions.
    unsafe { libc::getgid() }
}

/// Sets the name of the calling thread, cut to 15 bytes.
pub fn set_thread_name(name: &[u8]) {
    let mut bytes = [0u8; 16];
    let len = name.len().min(15);
    bytes[..len].copy_from_slice(&name[..len]);
    // SAFETY: a NUL-terminated string of at most 16 bytes.
    unsafe { libc::prctl(libc::PR_SET_NAME, bytes.as_ptr()) };
}

/// `prctl` with an option that takes a number or nothing.
pub fn prctl(option: i32, value: u64) -> Result<u64, Errno> {
    // SAFETY: the options that come here take numbers only.
    unsafe { syscall(libc::SYS_prctl as u64, [option as u64, value, 0, 0, 0, 0]) }
}

/// `prctl` with an option that asks for an `int`.
pub fn prctl_asked(option: i32) -> Result<i32, Errno> {
    let mut value = 0i32;
    let args = [option as u64, &raw mut value as u64, 0, 0, 0, 0];
    // SAFETY: the options that come here write an `int`.
    unsafe { syscall(libc::SYS_prctl as u64, args) }?;
    Ok(value)
}

/// The name of the calling thread.
pub fn thread_name() -> String {
    let mut name = [0u8; 16];
    // SAFETY: PR_GET_NAME writes at most 16 bytes.
    unsafe { libc::prctl(libc::PR_GET_NAME, name.as_mut_ptr()) };
    let end = name.iter().position(|b| *b == 0).unwrap_or(name.len());
    String::from_utf8_lossy(&name[..end]).into_owned()
}

/// Waits until one of the descriptors can be written, or something is wrong with it; at most `limit`.
pub fn wait_any_writable(fds: &[i32], limit: std::time::Duration) {
    let entry = |fd: &i32| libc::pollfd {
        fd: *fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    let mut entries: Vec<libc::pollfd> = fds.iter().map(entry).collect();
    let count = entries.len() as libc::nfds_t;
    // SAFETY: as many valid entries.
    unsafe { libc::poll(entries.as_mut_ptr(), count, limit.as_millis() as i32) };
}

fn wait_writable(fd: i32, timeout_ms: i32) -> io::Result<bool> {
    let mut entry = libc::pollfd {
        fd,
        events: libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: one valid entry.
    check(i64::from(unsafe { libc::poll(&mut entry, 1, timeout_ms) })).map(|n| n > 0)
}

/// `close`.
pub fn close(fd: i32) -> io::Result<()> {
    // SAFETY: the descriptor is the guest's: no owner in the monitor relies on it.
    check(i64::from(unsafe { libc::close(fd) })).map(drop)
}

/// Wakes up to `count` waiters of the futex at `word`, which lies in guest memory.
pub fn wake_futex(word: u64, count: u32) {
    for operation in [
        libc::FUTEX_WAKE,
        libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG,
    ] {
        // SAFETY: the word is not written; that nothing may be there is an error.
        unsafe { libc::syscall(libc::SYS_futex, word, operation, count, 0, 0, 0) };
    }
}

/// The process behind a pidfd.
pub fn pid_of(pidfd: i32) -> Option<i32> {
    let info = handles::fdinfo(pidfd).ok()?;
    let pid = info.lines().find_map(|line| line.strip_prefix("Pid:"))?;
    pid.trim().parse().ok().filter(|pid| *pid > 0)
}

/// A new file in memory (memfd_create(2), with its flags), close-on-exec, at the lowest free descriptor.
pub fn memory_file(name: &CStr, flags: u32) -> io::Result<OwnedFd> {
    // SAFETY: a NUL-terminated name.
    let fd = unsafe { libc::memfd_create(name.as_ptr(), libc::MFD_CLOEXEC | flags) };
    check(i64::from(fd))?;
    // SAFETY: a new descriptor that nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Whether the monitor has a capability in effect (`CAP_*`).
pub fn is_capable(capability: u32) -> bool {
    // Version 3: two halves of effective, permitted, inheritable.
    let header = [0x2008_0522u32, 0];
    let mut data = [0u32; 6];
    let (header, at) = (header.as_ptr() as u64, data.as_mut_ptr() as u64);
    // SAFETY: the kernel reads 8 bytes of the header and writes 24 of the data.
    let known = unsafe { syscall(libc::SYS_capget as u64, [header, at, 0, 0, 0, 0]) };
    known.is_ok() && data[capability as usize / 32 * 3] >> (capability % 32) & 1 != 0
}

/// Closes all descriptors from `first` to `last`.
fn close_range(first: i32, last: i32) {
    if first <= last {
        // SAFETY: takes numbers only; the caller answers for whoever still holds one of them.
        unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    }
}

/// Gives the calling thread a table of descriptors of its own, with standard error and those of `own`, and root and
/// working directories: what it opens is not in the way of the guest's numbers, what the guest closes is closed, and
/// where the guest changes its root to does not matter.
pub fn leave_guests_tables(own: Range<i32>) -> io::Result<()> {
    const CLOSE_RANGE_UNSHARE: i32 = 2;
    // SAFETY: takes numbers only, and closes what other threads still have.
    check(unsafe { libc::syscall(libc::SYS_close_range, 3, own.start - 1, CLOSE_RANGE_UNSHARE) })?;
    close_range(own.end, i32::MAX);
    for fd in [libc::STDIN_FILENO, libc::STDOUT_FILENO] {
        // SAFETY: takes numbers only; the table is this thread's own by now.
        check(i64::from(unsafe { libc::dup2(libc::STDERR_FILENO, fd) }))?;
    }
    // SAFETY: takes a number only.
    check(i64::from(unsafe { libc::unshare(libc::CLONE_FS) })).map(drop)
}

/// `fcntl` with a number as argument.
pub fn fcntl(fd: i32, command: i32, value: i32) -> io::Result<i32> {
    // SAFETY: the commands that come here take a number or nothing.
    check(i64::from(unsafe { libc::fcntl(fd, command, value) })).map(|v| v as i32)
}

/// Makes `to` a copy of `fd`.
pub fn dup_to(fd: &OwnedFd, to: i32, close_on_exec: bool) -> io::Result<()> {
    let flags = if close_on_exec { libc::O_CLOEXEC } else { 0 };
    // SAFETY: the number is the guest's: no owner in the monitor relies on it.
    check(i64::from(unsafe { libc::dup3(fd.as_raw_fd(), to, flags) })).map(drop)
}

/// Makes an open directory the working directory.
pub fn change_directory(directory: &OwnedFd) -> io::Result<()> {
    // SAFETY: takes a number only.
    check(i64::from(unsafe { libc::fchdir(directory.as_raw_fd()) })).map(drop)
}

/// `lseek` to an absolute offset.
pub fn seek(fd: i32, offset: i64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::lseek(fd, offset, libc::SEEK_SET) }).map(drop)
}

/// The current file offset, for files that have one.
pub fn offset(fd: i32) -> Option<i64> {
    // SAFETY: takes numbers only.
    check(unsafe { libc::lseek(fd, 0, libc::SEEK_CUR) }).ok()
}

/// Takes out all that can be read from a pipe, an eventfd or a socket pair without waiting.
pub fn drain(fd: i32) -> io::Result<()> {
    let mut buffer = [0u8; 4096];
    // More than a pipe or socket holds by default; whatever is left then comes in from elsewhere.
    for _ in 0..1024 {
        if !is_readable(fd) {
            return Ok(());
        }
        // SAFETY: the buffer is live and has that length.
        let read = unsafe { libc::read(fd, buffer.as_mut_ptr().cast(), buffer.len()) as i64 };
        match check(read) {
            Ok(0) => return Ok(()),
            Ok(_) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return Ok(()),
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// The setting of a timerfd; an error for other descriptors.
pub fn timer(fd: i32) -> io::Result<libc::itimerspec> {
    // SAFETY: an all-zero `itimerspec` is a valid value.
    let mut setting: libc::itimerspec = unsafe { std::mem::zeroed() };
    // SAFETY: `setting` is valid for the call to fill in.
    check(i64::from(unsafe {
        libc::timerfd_gettime(fd, &mut setting)
    }))
    .map(|_| setting)
}

/// Sets a timerfd, counting from now.
pub fn set_timer(fd: i32, setting: &libc::itimerspec) -> io::Result<()> {
    // SAFETY: `setting` is a live structure; the old setting is not asked for.
    check(i64::from(unsafe {
        libc::timerfd_settime(fd, 0, setting, std::ptr::null_mut())
    }))
    .map(drop)
}

/// How many bytes can be read without waiting.
pub fn readable_bytes(fd: i32) -> io::Result<u32> {
    let mut bytes = 0i32;
    // SAFETY: FIONREAD writes an `int`.
    check(i64::from(unsafe {
        libc::ioctl(fd, libc::FIONREAD, &mut bytes)
    }))
    .map(|_| bytes.max(0) as u32)
}

/// Bytes of memory that the machine has.
pub fn memory_size() -> u64 {
    // SAFETY: sysconf has no preconditions.
    let (pages, size) = unsafe {
        (
            libc::sysconf(libc::_SC_PHYS_PAGES),
            libc::sysconf(libc::_SC_PAGESIZE),
        )
    };
    (pages.max(0) as u64).saturating_mul(size.max(0) as u64)
}

/// The kernel is not to look at mutexes that the calling thread holds when it ends.
pub fn leave_robust_list() {
    let size = size_of::<[u64; 3]>();
    // SAFETY: no list, of the size that the kernel expects.
    unsafe { libc::syscall(libc::SYS_set_robust_list, std::ptr::null::<u8>(), size) };
}

/// File type and permissions of a descriptor (`st_mode`).
pub fn mode(fd: i32) -> io::Result<u32> {
    stat(fd).map(|stat| stat.st_mode)
}

/// Whether a descriptor is `/dev/zero`, `/dev/urandom` or the like: a read takes nothing away.
pub fn is_memory_device(fd: i32) -> bool {
    const MEMORY_MAJOR: u32 = 1;
    stat(fd).is_ok_and(|stat| libc::major(stat.st_rdev) == MEMORY_MAJOR)
}

/// Whether a descriptor is a terminal, or the other end of a pseudo-terminal; also one that was hung up.
pub fn is_terminal(fd: i32) -> bool {
    if !mode(fd).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFCHR) {
        return false;
    }
    // `struct termios` of the kernel has 36 bytes.
    let mut settings = [0u8; 64];
    let address = settings.as_mut_ptr() as u64;
    // SAFETY: the kernel writes its `struct termios`.
    let told = unsafe {
        syscall(
            libc::SYS_ioctl as u64,
            [fd as u64, libc::TCGETS, address, 0, 0, 0],
        )
    };
    matches!(told, Ok(_) | Err(Errno::EIO))
}

/// The limit on the size of files, in bytes.
pub fn file_size_limit() -> u64 {
    let mut limit = libc::rlimit {
        rlim_cur: libc::RLIM_INFINITY,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: `limit` is valid for the call to fill in.
    unsafe { libc::getrlimit(libc::RLIMIT_FSIZE, &mut limit) };
    limit.rlim_cur
}

/// Whether a descriptor is open on a file of procfs.
pub fn is_in_procfs(fd: i32) -> bool {
    // SAFETY: an all-zero `statfs` is a valid value, and is there for the call to fill in.
    unsafe {
        let mut info: libc::statfs = std::mem::zeroed();
        libc::fstatfs(fd, &mut info) == 0 && info.f_type == libc::PROC_SUPER_MAGIC
    }
}

/// Device and inode of a descriptor.
pub fn identity(fd: i32) -> io::Result<(u64, u64)> {
    let stat = stat(fd)?;
    Ok((stat.st_dev, stat.st_ino))
}

/// Bytes of a regular file; none where that is not known, as in procfs.
pub fn file_size(fd: i32) -> Option<u64> {
    let stat = stat(fd).ok()?;
    let is_regular = stat.st_mode & libc::S_IFMT == libc::S_IFREG;
    u64::try_from(stat.st_size)
        .ok()
        .filter(|size| is_regular && *size > 0)
}

fn stat(fd: i32) -> io::Result<libc::stat> {
    // SAFETY: an all-zero `stat` is a valid value.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: `stat` is valid for the call to fill in.
    check(i64::from(unsafe { libc::fstat(fd, &mut stat) }))?;
    Ok(stat)
}
