//! Moves bytes between the monitor and descriptors of the guest.

use std::io;

use super::{check, wait_writable};

/// Bytes at an address that direct I/O (`O_DIRECT` in open(2)) accepts.
pub struct Aligned {
    blocks: Vec<Block>,
    len: usize,
}

const BLOCK: usize = 4096;

#[derive(Clone, Copy)]
#[repr(C, align(4096))]
struct Block([u8; BLOCK]);

impl Aligned {
    /// A copy of `bytes`.
    pub fn copy(bytes: &[u8]) -> Aligned {
        let mut copy = Aligned::room(bytes.len());
        copy.bytes().copy_from_slice(bytes);
        copy
    }

    /// `len` zeros.
    fn room(len: usize) -> Aligned {
        Aligned {
            blocks: vec![Block([0; BLOCK]); len.div_ceil(BLOCK)],
            len,
        }
    }

    /// The bytes.
    pub fn bytes(&mut self) -> &mut [u8] {
        // SAFETY: the blocks lie one behind the other, consist of bytes, and are `len` bytes at least.
        unsafe { std::slice::from_raw_parts_mut(self.blocks.as_mut_ptr().cast(), self.len) }
    }
}

/// Whether a transfer may have failed because its memory is the monitor's, and so is not aligned like the guest's.
fn needs_alignment(fd: i32, error: &io::Error, address: *const u8) -> bool {
    error.raw_os_error() == Some(libc::EINVAL)
        && !address.addr().is_multiple_of(BLOCK)
        && super::fcntl(fd, libc::F_GETFL, 0).is_ok_and(|flags| flags & libc::O_DIRECT != 0)
}

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
            Err(e) if needs_alignment(fd, &e, bytes.as_ptr()) => {
                return write_all(fd, Aligned::copy(bytes).bytes(), offset);
            }
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
    let read =
        check(unsafe { libc::pread(fd, into.as_mut_ptr().cast(), into.len(), at as i64) as i64 });
    match read {
        Err(error) if needs_alignment(fd, &error, into.as_ptr()) => {
            let mut room = Aligned::room(into.len().next_multiple_of(BLOCK));
            let n = read_at(fd, room.bytes(), at)?.min(into.len());
            into[..n].copy_from_slice(&room.bytes()[..n]);
            Ok(n)
        }
        read => read.map(|n| n as usize),
    }
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
    bytes_waiting(fd).unwrap_or(0)
}

/// Likewise; none if nobody can tell.
pub fn bytes_waiting(fd: i32) -> Option<usize> {
    let mut waiting = 0i32;
    // SAFETY: the request writes an `int`.
    match unsafe { libc::ioctl(fd, libc::FIONREAD, &mut waiting) } {
        0 => usize::try_from(waiting).ok(),
        _ => None,
    }
}

/// Expirations of a timerfd that were not read yet.
pub fn timer_ticks(fd: i32) -> u64 {
    let info = super::handles::fdinfo(fd).unwrap_or_default();
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
