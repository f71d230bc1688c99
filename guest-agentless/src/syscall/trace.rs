//! System calls as text, for traces and reports.

use std::fmt::Write;

use super::{ArgKind, Syscall};

/// Numbers from here on are more likely addresses, flags or hashes than counts, and are shown in
/// hexadecimal.
const HEXADECIMAL_FROM: u64 = 1 << 20;

/// The call with its arguments, as in `read(fd=7, buf=0x7f1200001000, count=16384)`. It shows the
/// registers only: it reads no guest memory.
pub fn fmt_call(call: &Syscall, args: [u64; 6]) -> String {
    let mut out = String::with_capacity(96);
    out.push_str(call.name);
    out.push('(');
    for (index, (arg, value)) in call.args.iter().zip(args).enumerate() {
        let separator = if index == 0 { "" } else { ", " };
        // Writing to a String cannot fail.
        let _ = write!(out, "{separator}{}=", arg.name);
        let _ = match arg.kind {
            ArgKind::DirFd if value as i32 == libc::AT_FDCWD => write!(out, "AT_FDCWD"),
            ArgKind::Fd | ArgKind::DirFd => write!(out, "{}", value as i32),
            ArgKind::Value => fmt_number(&mut out, value),
            _ if value == 0 => write!(out, "NULL"),
            _ => write!(out, "{value:#x}"),
        };
    }
    out.push(')');
    out
}

fn fmt_number(out: &mut String, value: u64) -> std::fmt::Result {
    // A negative int or long, such as a time-out of -1 or a process group.
    match (value as i64, value as u32 as i32) {
        (signed @ -4096..=-1, _) => write!(out, "{signed}"),
        (_, signed @ -4096..=-1) if value <= u64::from(u32::MAX) => write!(out, "{signed}"),
        (_, _) if value < HEXADECIMAL_FROM => write!(out, "{value}"),
        (_, _) => write!(out, "{value:#x}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscall::lookup;

    fn fmt(number: i64, args: &[u64]) -> String {
        let mut all = [0xdead; 6];
        all[..args.len()].copy_from_slice(args);
        fmt_call(lookup(number as u64).unwrap(), all)
    }

    #[test]
    fn arguments_are_shown_by_kind() {
        assert_eq!(
            fmt(libc::SYS_read, &[7, 0x7f12_0000_1000, 16384]),
            "read(fd=7, buf=0x7f1200001000, count=16384)"
        );
        assert_eq!(
            fmt(
                libc::SYS_openat,
                &[u64::from(libc::AT_FDCWD as u32), 0x1000, 0, 0o644]
            ),
            "openat(dirfd=AT_FDCWD, pathname=0x1000, flags=0, mode=420)"
        );
        assert_eq!(
            fmt(libc::SYS_epoll_wait, &[5, 0, 10, u64::from(u32::MAX)]),
            "epoll_wait(epfd=5, events=NULL, maxevents=10, timeout=-1)"
        );
        assert_eq!(
            fmt(libc::SYS_socket, &[1, 2, u64::MAX]),
            "socket(domain=1, type=2, protocol=-1)"
        );
        assert_eq!(fmt(libc::SYS_getpid, &[]), "getpid()");
    }
}
