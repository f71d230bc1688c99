//! Gives back what a domain has taken away: bytes of a pipe, expirations of a timer.

use std::io::{self, Read};
use std::os::fd::AsRawFd;

use crate::host::{self, handles};

use super::{HostCall, host_call};

/// More than any pipe holds.
const PIPE_MOST: usize = 64 << 20;

/// Makes the next read of a timerfd return `count` expirations, and those that have come since.
pub fn expirations(fd: i32, count: u64) -> io::Result<()> {
    let mut since = [0u8; 8];
    let since = match host::read_now(fd, &mut since) {
        Ok(8) => u64::from_ne_bytes(since),
        _ => 0,
    };
    let ticks = count.saturating_add(since);
    let call = HostCall::with(
        libc::SYS_ioctl,
        [fd as u64, host_call::SET_TICKS, 0, 0, 0, 0],
        ticks.to_ne_bytes().to_vec(),
    );
    super::made(call)
}

/// Puts bytes that were read from a pipe back before what has come since. The readiness of the pipe follows,
/// for whoever waits for it.
pub fn bytes(fd: i32, bytes: &[u8]) -> io::Result<()> {
    let path = format!("fd/{fd}");
    // The end to write to, of a pipe that may have no writer left. First the reader, so that neither blocks.
    let mut reader = handles::open_own(&path, libc::O_RDONLY | libc::O_NONBLOCK)?;
    let writer = handles::open_own(&path, libc::O_WRONLY | libc::O_NONBLOCK)?;
    let mut all = bytes.to_vec();
    let mut part = [0u8; 4096];
    while all.len() < PIPE_MOST {
        match reader.read(&mut part) {
            Ok(0) | Err(_) => break,
            Ok(n) => all.extend_from_slice(&part[..n]),
        }
    }
    host::write_all(writer.as_raw_fd(), &all, None)
}

/// Removes a watch, and the event that says so if nothing else waits to be read.
pub fn watch(fd: i32, watch: i32) -> io::Result<()> {
    let alone = host::bytes_to_read(fd) == 0;
    super::made(HostCall::numbers(
        libc::SYS_inotify_rm_watch,
        [fd as u64, watch as u64, 0, 0, 0, 0],
    ))?;
    if alone {
        let mut event = [0u8; 4096];
        let _ = host::read_now(fd, &mut event);
    }
    Ok(())
}
