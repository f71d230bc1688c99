//! Messages on their way in.

/// Bytes of the largest `sockaddr`.
const ADDRESS_MAX: usize = 128;
/// Bytes of ancillary data that one message brings at most: more than 253 descriptors and all that options
/// can ask for.
const CONTROL_MOST: usize = 16 << 10;

/// What comes with the bytes of a message.
#[derive(Debug, Clone, Default)]
pub struct Envelope {
    /// Room for ancillary data; none if nothing but the bytes is asked for.
    pub room: Option<usize>,
    /// The sender's address.
    pub name: Vec<u8>,
    /// Ancillary data as the kernel has laid it out.
    pub control: Vec<u8>,
    /// `MSG_*`.
    pub flags: i32,
    /// Length of the message, of which there may have been room for a part only.
    pub full: u64,
}

impl Envelope {
    /// Nothing but the bytes.
    pub fn none() -> Envelope {
        Envelope::default()
    }

    /// With the sender's address and `room` bytes of ancillary data.
    pub fn with_room(room: usize) -> Envelope {
        Envelope {
            room: Some(room.min(CONTROL_MOST)),
            ..Envelope::default()
        }
    }

    /// What the call returns when `n` bytes were delivered.
    pub fn told(&self, n: u64, flags: i32) -> u64 {
        match flags & libc::MSG_TRUNC {
            0 => n,
            _ => n.max(self.full),
        }
    }

    /// The descriptors in it, which the kernel has made: where they are, and their numbers.
    pub fn descriptors(&self) -> Vec<(usize, i32)> {
        let mut found = Vec::new();
        for (at, len, kind) in self.elements() {
            // Credentials are numbers of another kind.
            if !matches!(
                kind,
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) | (libc::SOL_SOCKET, SCM_PIDFD)
            ) {
                continue;
            }
            let numbers = self.control[at + HEADER..at + len].chunks_exact(4);
            let places = (at + HEADER..).step_by(4);
            found.extend(places.zip(numbers.map(int)));
        }
        found
    }

    /// Closes the descriptors in it, and forgets all of it.
    pub fn drop_descriptors(&mut self) {
        for (_, fd) in self.descriptors() {
            let _ = super::close(fd);
        }
        self.control.clear();
    }

    /// Drops the descriptor at `at`, and all that comes behind it, as the kernel does with what finds no room.
    pub fn cut_at(&mut self, at: usize) {
        let element = self
            .elements()
            .find(|(start, len, _)| (*start..start + len).contains(&at));
        if let Some((start, _, _)) = element {
            let keeps_some = at > start + HEADER;
            self.control.truncate(if keeps_some { at } else { start });
            if keeps_some {
                let len = (at - start) as u64;
                self.control[start..start + 8].copy_from_slice(&len.to_ne_bytes());
            }
        }
        self.flags |= libc::MSG_CTRUNC;
    }

    /// Start, length and kind of each element (`struct cmsghdr`).
    fn elements(&self) -> impl Iterator<Item = (usize, usize, (i32, i32))> {
        let mut at = 0;
        std::iter::from_fn(move || {
            let header = self.control.get(at..at + HEADER)?;
            let len = u64::from_ne_bytes(header[..8].try_into().ok()?) as usize;
            let len = len.min(self.control.len() - at);
            if len < HEADER {
                return None;
            }
            let kind = (int(&header[8..]), int(&header[12..]));
            let start = at;
            at += len.next_multiple_of(8);
            Some((start, len, kind))
        })
    }
}

fn int(bytes: &[u8]) -> i32 {
    bytes
        .first_chunk()
        .map_or(-1, |word| i32::from_ne_bytes(*word))
}

/// Bytes of a `struct cmsghdr`.
const HEADER: usize = 16;
/// Of `linux/socket.h`, which the libc crate leaves out.
const SCM_PIDFD: i32 = 4;

/// A receiving call: everything that it points to.
pub struct Incoming<'b> {
    into: &'b mut [u8],
    part: libc::iovec,
    name: [u8; ADDRESS_MAX],
    /// Room for ancillary data, if more than the bytes is asked for.
    room: Option<usize>,
    control: Vec<u64>,
    header: libc::msghdr,
}

impl<'b> Incoming<'b> {
    /// For bytes to `into` and what `envelope` has room for.
    pub fn new(into: &'b mut [u8], envelope: &Envelope) -> Incoming<'b> {
        Incoming {
            part: libc::iovec {
                iov_base: into.as_mut_ptr().cast(),
                iov_len: into.len(),
            },
            into,
            name: [0; ADDRESS_MAX],
            room: envelope.room,
            control: vec![0; envelope.room.unwrap_or(0).div_ceil(8)],
            // SAFETY: an all-zero `msghdr` is a valid value.
            header: unsafe { std::mem::zeroed() },
        }
    }

    /// The number and the arguments of the call. They are valid as long as `self` is not moved; the kernel
    /// writes to nothing but what `self` holds.
    pub fn call(&mut self, fd: i32, flags: i32) -> (i64, [u64; 6]) {
        let Some(room) = self.room else {
            let (at, len) = (self.into.as_mut_ptr() as u64, self.into.len() as u64);
            return (libc::SYS_recvfrom, [fd as u64, at, len, flags as u64, 0, 0]);
        };
        self.header.msg_iov = &raw mut self.part;
        self.header.msg_iovlen = 1;
        self.header.msg_name = self.name.as_mut_ptr().cast();
        self.header.msg_namelen = ADDRESS_MAX as u32;
        self.header.msg_control = match room {
            0 => std::ptr::null_mut(),
            _ => self.control.as_mut_ptr().cast(),
        };
        self.header.msg_controllen = room;
        let header = &raw mut self.header as u64;
        (
            libc::SYS_recvmsg,
            [fd as u64, header, flags as u64, 0, 0, 0],
        )
    }

    /// Fills the envelope with what the call has brought.
    pub fn fill(&self, envelope: &mut Envelope) {
        let Some(room) = self.room else { return };
        let len = (self.header.msg_namelen as usize).min(ADDRESS_MAX);
        envelope.name = self.name[..len].to_vec();
        envelope.flags = self.header.msg_flags;
        let bytes = self.control.iter().flat_map(|word| word.to_ne_bytes());
        envelope.control = bytes.take(self.header.msg_controllen.min(room)).collect();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host;
    use std::os::fd::{AsRawFd, OwnedFd};
    use std::os::unix::net::UnixDatagram;

    fn received(count: usize, room: usize) -> (Envelope, usize) {
        let (a, b) = UnixDatagram::pair().unwrap();
        let copies: Vec<OwnedFd> = (0..count).map(|_| a.try_clone().unwrap().into()).collect();
        let ancillary = host::Ancillary {
            rights: copies,
            ..host::Ancillary::default()
        };
        host::send_message(a.as_raw_fd(), b"hello", 0, &[], &ancillary).unwrap();
        let mut envelope = Envelope::with_room(room);
        let mut into = [0u8; 8];
        let mut incoming = Incoming::new(&mut into, &envelope);
        let (number, args) = incoming.call(b.as_raw_fd(), 0);
        // SAFETY: the call has been made up by `incoming`, which is still there.
        let n = unsafe { host::syscall(number as u64, args) }.unwrap();
        incoming.fill(&mut envelope);
        assert_eq!(&into[..n as usize], b"hello");
        let open = envelope.descriptors().len();
        for (_, fd) in envelope.descriptors() {
            host::close(fd).unwrap();
        }
        (envelope, open)
    }

    #[test]
    fn descriptors_are_found_and_cut() {
        let (mut envelope, open) = received(3, 100);
        assert_eq!((open, envelope.flags), (3, 0));
        let second = envelope.descriptors()[1].0;
        envelope.cut_at(second);
        assert_eq!(envelope.descriptors().len(), 1);
        assert_eq!(
            (envelope.control.len(), envelope.flags),
            (20, libc::MSG_CTRUNC)
        );
        let first = envelope.descriptors()[0].0;
        envelope.cut_at(first);
        assert!(envelope.control.is_empty());
    }

    #[test]
    fn what_finds_no_room_is_told() {
        let (envelope, open) = received(3, 24);
        assert_eq!(
            (open, envelope.flags & libc::MSG_CTRUNC),
            (2, libc::MSG_CTRUNC)
        );
        let (envelope, open) = received(1, 0);
        assert_eq!((open, envelope.flags), (0, libc::MSG_CTRUNC));
    }

    #[test]
    fn damaged_data_is_no_trouble() {
        let mut envelope = Envelope::with_room(64);
        envelope.control = vec![0xff; 20];
        assert_eq!(envelope.descriptors().len(), 0);
        envelope.control = vec![0; 64];
        assert_eq!(envelope.descriptors().len(), 0);
        envelope.cut_at(30);
    }
}
