//! Who has opened a control connection.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;

use crate::host;

/// Ancestors that are looked at.
const DEPTH: usize = 64;

/// Whether it is the guest: this process, or one that it has forked.
pub fn is_guest(stream: &UnixStream) -> io::Result<bool> {
    let credentials = host::socket_option(stream.as_raw_fd(), libc::SOL_SOCKET, libc::SO_PEERCRED)?;
    // `struct ucred` begins with the process.
    let pid = credentials
        .first_chunk()
        .map(|pid| i32::from_ne_bytes(*pid));
    Ok(pid.is_none_or(|pid| descends_from(pid, std::process::id() as i32, parent)))
}

/// Whether `pid` is `ancestor` or one of its descendants.
fn descends_from(mut pid: i32, ancestor: i32, parent: impl Fn(i32) -> Option<i32>) -> bool {
    for _ in 0..DEPTH {
        if pid == ancestor {
            return true;
        }
        match parent(pid) {
            Some(next) if next > 0 => pid = next,
            _ => return false,
        }
    }
    false
}

fn parent(pid: i32) -> Option<i32> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("PPid:"))?;
    line.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_descends_from_itself_and_its_ancestors() {
        let own = std::process::id() as i32;
        let above = parent(own).unwrap();
        assert!(descends_from(own, own, parent) && descends_from(own, above, parent));
        assert!(!descends_from(above, own, parent));
        // A ring, which the kernel does not make, is no reason to go on for ever.
        assert!(!descends_from(7, 9, |_| Some(7)));
    }
}
