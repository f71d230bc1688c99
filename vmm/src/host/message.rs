//! Messages on sockets.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use super::check;

/// Descriptors that one message carries at most, as in Linux (`SCM_MAX_FD`).
pub const RIGHTS_MAX: usize = 253;

/// What goes with the bytes of a message on its way out.
#[derive(Debug, Default)]
pub struct Ancillary {
    /// Descriptors for the receiver.
    pub rights: Vec<OwnedFd>,
    /// Other elements (`struct cmsghdr` and data), one after the other as the kernel wants them. None holds a pointer.
    pub elements: Vec<u8>,
}

impl Ancillary {
    /// Whether there is nothing.
    pub fn is_empty(&self) -> bool {
        self.rights.is_empty() && self.elements.is_empty()
    }

    /// All of it, aligned as the kernel wants it.
    fn control(&self) -> Vec<u64> {
        let numbers: Vec<i32> = self
            .rights
            .iter()
            .take(RIGHTS_MAX)
            .map(AsRawFd::as_raw_fd)
            .collect();
        let rights = match numbers.is_empty() {
            true => Vec::new(),
            false => control_of(&numbers),
        };
        let words = self.elements.chunks(8).map(|chunk| {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            u64::from_ne_bytes(word)
        });
        rights.into_iter().chain(words).collect()
    }
}

/// Sends a datagram or record to `address`, a `sockaddr`, or to the connected peer if that is empty, with what goes
/// with it.
pub fn send_message(
    fd: i32,
    bytes: &[u8],
    flags: i32,
    address: &[u8],
    ancillary: &Ancillary,
) -> io::Result<usize> {
    let mut part = libc::iovec {
        iov_base: bytes.as_ptr().cast_mut().cast(),
        iov_len: bytes.len(),
    };
    let control = ancillary.control();
    // SAFETY: an all-zero `msghdr` is a valid value.
    let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
    message.msg_iov = &mut part;
    message.msg_iovlen = 1;
    if !address.is_empty() {
        message.msg_name = address.as_ptr().cast_mut().cast();
        message.msg_namelen = address.len() as u32;
    }
    if !control.is_empty() {
        message.msg_control = control.as_ptr().cast_mut().cast();
        message.msg_controllen = control.len() * size_of::<u64>();
    }
    // SAFETY: everything that the message points to is a live slice, which the kernel only reads.
    check(unsafe { libc::sendmsg(fd, &message, flags | libc::MSG_NOSIGNAL) as i64 })
        .map(|n| n as usize)
}

/// One `SCM_RIGHTS` element (`struct cmsghdr`), aligned as the kernel wants it.
fn control_of(numbers: &[i32]) -> Vec<u64> {
    let len = 16 + 4 * numbers.len() as u64;
    let kind = libc::SOL_SOCKET as u64 | (libc::SCM_RIGHTS as u64) << 32;
    let pairs = numbers.chunks(2).map(|pair| {
        let word = |i: usize| pair.get(i).map_or(0, |n| u64::from(*n as u32));
        word(0) | word(1) << 32
    });
    [len, kind].into_iter().chain(pairs).collect()
}

/// Takes `len` bytes, which have been looked at, from a stream socket.
pub fn take_peeked(fd: i32, mut len: usize) {
    let mut sink = [0u8; 4096];
    while len > 0 {
        let part = len.min(sink.len());
        let flags = libc::MSG_DONTWAIT;
        // SAFETY: the buffer has at least `part` bytes.
        let n = unsafe { libc::recv(fd, sink.as_mut_ptr().cast(), part, flags) };
        match usize::try_from(n) {
            Ok(n) if n > 0 => len = len.saturating_sub(n),
            _ => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::unix::net::{UnixDatagram, UnixStream};

    #[test]
    fn bytes_that_were_looked_at_are_taken() {
        let (mut a, mut b) = UnixStream::pair().unwrap();
        a.write_all(b"abcdef").unwrap();
        take_peeked(b.as_raw_fd(), 4);
        let mut rest = [0u8; 2];
        b.read_exact(&mut rest).unwrap();
        assert_eq!(&rest, b"ef");
    }

    #[test]
    fn descriptors_are_carried() {
        let (a, b) = UnixDatagram::pair().unwrap();
        let (one, mut other) = UnixStream::pair().unwrap();
        assert_eq!(
            send_message(
                a.as_raw_fd(),
                b"x",
                0,
                &[],
                &Ancillary {
                    rights: vec![one.into()],
                    elements: Vec::new()
                }
            )
            .unwrap(),
            1
        );
        let mut bytes = [0u8; 8];
        assert_eq!(b.recv(&mut bytes).unwrap(), 1);
        // Received without room for descriptors: the kernel has closed the one that was passed.
        assert_eq!(other.read(&mut bytes).unwrap(), 0);
        assert_eq!(control_of(&[5])[..2], [20, 1 | 1 << 32]);
    }
}
