//! Sockets.

use std::io;

use super::check;

/// Sends what the socket takes at once; the number of bytes.
pub fn send(fd: i32, bytes: &[u8]) -> io::Result<usize> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    // SAFETY: `bytes` is a live slice.
    check(unsafe { libc::send(fd, bytes.as_ptr().cast(), bytes.len(), flags) as i64 })
        .map(|n| n as usize)
}

/// Receives what has arrived, without waiting; the number of bytes, 0 at the end of the stream. With `peek` it
/// stays where it is.
pub fn receive(fd: i32, into: &mut [u8], peek: bool) -> io::Result<usize> {
    let flags = libc::MSG_DONTWAIT | if peek { libc::MSG_PEEK } else { 0 };
    // SAFETY: `into` is a live exclusive slice.
    check(unsafe { libc::recv(fd, into.as_mut_ptr().cast(), into.len(), flags) as i64 })
        .map(|n| n as usize)
}

/// Bytes of a TCP connection that the peer has not acknowledged yet, the end of the stream counted as one.
pub fn unacknowledged(fd: i32) -> io::Result<usize> {
    let mut bytes = 0i32;
    // SAFETY: the request (SIOCOUTQ) writes an int.
    check(i64::from(unsafe {
        libc::ioctl(fd, libc::TIOCOUTQ, &raw mut bytes)
    }))?;
    Ok(usize::try_from(bytes).unwrap_or(0))
}

/// `shutdown`.
pub fn shutdown(fd: i32, how: i32) -> io::Result<()> {
    // SAFETY: takes numbers only.
    check(i64::from(unsafe { libc::shutdown(fd, how) })).map(drop)
}

/// `getsockopt`: the value of an option of at most 256 bytes.
pub fn socket_option(fd: i32, level: i32, name: i32) -> io::Result<Vec<u8>> {
    let mut value = vec![0u8; 256];
    let mut len = value.len() as u32;
    // SAFETY: the buffer has `len` bytes.
    check(i64::from(unsafe {
        libc::getsockopt(fd, level, name, value.as_mut_ptr().cast(), &mut len)
    }))?;
    value.truncate(len as usize);
    Ok(value)
}

/// Whether a socket accepts connections.
pub fn is_listening(fd: i32) -> bool {
    socket_number(fd, libc::SO_ACCEPTCONN).is_ok_and(|value| value != 0)
}

/// An integer socket option.
pub fn socket_number(fd: i32, name: i32) -> io::Result<i32> {
    let value = socket_option(fd, libc::SOL_SOCKET, name)?;
    let bytes = value.first_chunk().ok_or(io::ErrorKind::InvalidData)?;
    Ok(i32::from_ne_bytes(*bytes))
}

/// Whether it is a TCP socket.
pub fn is_tcp(fd: i32) -> bool {
    socket_number(fd, libc::SO_PROTOCOL).is_ok_and(|protocol| protocol == libc::IPPROTO_TCP)
}

/// `setsockopt`.
pub fn set_socket_option(fd: i32, level: i32, name: i32, value: &[u8]) -> io::Result<()> {
    // SAFETY: `value` is a live slice of that length.
    check(i64::from(unsafe {
        libc::setsockopt(fd, level, name, value.as_ptr().cast(), value.len() as u32)
    }))
    .map(drop)
}

/// Aborts a connection: the peer gets a reset, reads fail, the descriptor stays open.
pub fn abort_connection(fd: i32) -> io::Result<()> {
    let unspecified = libc::sockaddr {
        sa_family: libc::AF_UNSPEC as u16,
        sa_data: [0; 14],
    };
    // SAFETY: a valid address of that length. On TCP, connecting to AF_UNSPEC disconnects with a reset
    // (tcp_disconnect).
    check(i64::from(unsafe {
        libc::connect(fd, &unspecified, size_of_val(&unspecified) as u32)
    }))
    .map(drop)
}

type NameCall = unsafe extern "C" fn(i32, *mut libc::sockaddr, *mut libc::socklen_t) -> i32;

/// The peer's address of a socket, in the form used in events.
pub fn peer_name(fd: i32) -> Option<String> {
    socket_name(fd, libc::getpeername)
}

/// The own address of a socket.
pub fn local_name(fd: i32) -> Option<String> {
    socket_name(fd, libc::getsockname)
}

fn socket_name(fd: i32, call: NameCall) -> Option<String> {
    let mut address = [0u8; 128];
    let mut len = address.len() as u32;
    // SAFETY: the buffer has `len` bytes.
    check(i64::from(unsafe {
        call(fd, address.as_mut_ptr().cast(), &mut len)
    }))
    .ok()?;
    format_address(&address[..(len as usize).min(address.len())])
}

/// A `sockaddr` as text: `127.0.0.1:80`, `[::1]:80`, a path, or `unix`.
fn format_address(address: &[u8]) -> Option<String> {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddrV4, SocketAddrV6};
    let family = i32::from(u16::from_ne_bytes(*address.first_chunk()?));
    let port = || Some(u16::from_be_bytes(*address.get(2..)?.first_chunk()?));
    match family {
        libc::AF_INET => {
            let ip = Ipv4Addr::from(*address.get(4..)?.first_chunk::<4>()?);
            Some(SocketAddrV4::new(ip, port()?).to_string())
        }
        libc::AF_INET6 => {
            let ip = Ipv6Addr::from(*address.get(8..)?.first_chunk::<16>()?);
            Some(SocketAddrV6::new(ip, port()?, 0, 0).to_string())
        }
        libc::AF_UNIX => {
            let path = address.get(2..)?;
            let path = match path.first() {
                None | Some(0) if path.len() < 2 => return Some("unix".into()),
                Some(0) => format!("@{}", String::from_utf8_lossy(&path[1..])),
                _ => String::from_utf8_lossy(path.split(|b| *b == 0).next()?).into_owned(),
            };
            Some(path)
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_shown_as_people_write_them() {
        let mut v4 = vec![0u8; 16];
        v4[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        v4[2..8].copy_from_slice(&[0x1f, 0x90, 127, 0, 0, 1]);
        assert_eq!(format_address(&v4).as_deref(), Some("127.0.0.1:8080"));
        let mut unix = (libc::AF_UNIX as u16).to_ne_bytes().to_vec();
        assert_eq!(format_address(&unix).as_deref(), Some("unix"));
        unix.extend_from_slice(b"/run/x.sock\0");
        assert_eq!(format_address(&unix).as_deref(), Some("/run/x.sock"));
        assert_eq!(format_address(&[]), None);
        assert_eq!(format_address(&v4[..5]), None);
    }
}
