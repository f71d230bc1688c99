//! Moves bytes between the monitor and descriptors of the guest.

use std::io;

use super::{check, wait_writable};

/// `write` or `pwrite` until all of `bytes` is written. What a non-blocking pipe has no room for is dropped
/// after a short wait: its reader has enough to wake up for.
pub fn write_all(fd: i32, mut bytes: &[u8], mut offset: Option<u64>) -> io::Result<()> {
    while !bytes.is_empty() {
        // SAFETY: `bytes` is a live slice.
        let written = check(match offset {
            // SAFETY: as above.
            Some(at) => unsafe {
                libc::pwrite(fd, bytes.as_ptr().cast(), bytes.len(), at as i64) as i64
            },
            // SAFETY: as above.
            None => unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) as i64 },
        });
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => {
                bytes = &bytes[n as usize..];
                offset = offset.map(|at| at + n as u64);
            }
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if !wait_writable(fd, 100)? {
                    return Err(e);
                }
            }
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// `pwrite` of all of `bytes`.
pub fn write_at(fd: i32, bytes: &[u8], at: u64) -> io::Result<()> {
    write_all(fd, bytes, Some(at))
}

/// `pread`: the number of bytes.
pub fn read_at(fd: i32, into: &mut [u8], at: u64) -> io::Result<usize> {
    // SAFETY: `into` is a live exclusive slice.
    check(unsafe { libc::pread(fd, into.as_mut_ptr().cast(), into.len(), at as i64) as i64 })
        .map(|n| n as usize)
}

/// Reads what is there; nothing if that would block.
pub fn read_now(fd: i32, into: &mut [u8]) -> io::Result<usize> {
    if !super::is_readable(fd) {
        return Ok(0);
    }
    // SAFETY: `into` is a live exclusive slice.
    check(unsafe { libc::read(fd, into.as_mut_ptr().cast(), into.len()) as i64 })
        .map(|n| n as usize)
}

/// How many bytes wait to be read (`FIONREAD`); none where that cannot be asked.
pub fn bytes_to_read(fd: i32) -> usize {
    let mut waiting = 0i32;
    // SAFETY: the request writes an `int`.
    match unsafe { libc::ioctl(fd, libc::FIONREAD, &mut waiting) } {
        0 => usize::try_from(waiting).unwrap_or(0),
        _ => 0,
    }
}

/// Expirations of a timerfd that were not read yet.
pub fn timer_ticks(fd: i32) -> u64 {
    let info = std::fs::read_to_string(format!("/proc/self/fdinfo/{fd}")).unwrap_or_default();
    let ticks = info.lines().find_map(|line| line.strip_prefix("ticks:"));
    ticks
        .and_then(|ticks| ticks.trim().parse().ok())
        .unwrap_or(0)
}

/// Size of a file.
pub fn size(fd: i32) -> io::Result<u64> {
    super::stat(fd).map(|stat| stat.st_size as u64)
}

/// `ftruncate`.
pub fn truncate(fd: i32, size: u64) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(i64::from(unsafe { libc::ftruncate(fd, size as i64) })).map(drop)
}

/// Where the next `MSG_PEEK` of a socket begins (`SO_PEEK_OFF`); -1 is the start, always.
pub fn peek_from(fd: i32, offset: i32) -> io::Result<()> {
    let value = offset.to_ne_bytes();
    super::set_socket_option(fd, libc::SOL_SOCKET, libc::SO_PEEK_OFF, &value)
}
