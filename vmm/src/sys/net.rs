//! Sockets.

use guest_agentless::{Errno, GuestRange};
use recovery::Origin;
use recovery::event::Event;

use super::buffer::message_buffer;
use super::wait::For;
use super::{Call, Handler, errno_of};
use crate::host::{self, Ancillary};
use crate::memory::{first_reserved, kept_copy};
use crate::process::domain::Early;
use crate::process::effects::{Deferred, Undo};
use crate::process::files::{GivenBack, Kind};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_socket => super::file::handler(libc::SYS_dup)?,
        libc::SYS_socketpair => socketpair,
        libc::SYS_accept | libc::SYS_accept4 => accept,
        libc::SYS_listen => listen,
        libc::SYS_bind => bind,
        libc::SYS_sendto => sendto,
        libc::SYS_sendmsg => sendmsg,
        libc::SYS_sendmmsg => sendmmsg,
        libc::SYS_shutdown => shutdown,
        libc::SYS_setsockopt => setsockopt,
        libc::SYS_getsockopt => getsockopt,
        _ => return None,
    })
}

/// Bytes of the largest `sockaddr`.
const ADDRESS_MAX: usize = 128;
/// Bytes of ancillary data that are looked at.
const CONTROL_MOST: u64 = 4096;
/// Bytes of records that are held for one socket: it is sure to have room for them.
const RECORDS_HELD: usize = 16 << 10;

/// A message on its way out.
pub struct Datagram {
    bytes: Vec<u8>,
    flags: i32,
    address: Vec<u8>,
    ancillary: Ancillary,
    /// The kernel may refuse what goes with it: the sender has to be told.
    may_be_refused: bool,
}

impl Datagram {
    /// Bytes for the connected peer.
    pub fn plain(bytes: Vec<u8>) -> Datagram {
        Datagram {
            bytes,
            flags: 0,
            address: Vec::new(),
            ancillary: Ancillary::default(),
            may_be_refused: false,
        }
    }
}

fn socketpair(call: &mut Call) -> Result<u64, Errno> {
    call.pass()?;
    call.made_pair(call.args[3])
}

fn listen(call: &mut Call) -> Result<u64, Errno> {
    call.commit_early(Early::External)?;
    let result = call.pass()?;
    let fd = call.int(0);
    call.state.files.forget(fd);
    if let Some(address) = host::local_name(fd) {
        call.thread.process.stats.listening();
        call.thread
            .process
            .reporter
            .emit(Event::Listening { address });
    }
    Ok(result)
}

/// No socket is ever unbound.
fn bind(call: &mut Call) -> Result<u64, Errno> {
    call.commit_early(Early::External)?;
    call.pass()
}

fn accept(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let (address, address_len) = (call.args[1], call.args[2]);
    let flags = match i64::from(call.row.number) {
        libc::SYS_accept4 => call.args[3],
        _ => 0,
    };
    call.commit()?;
    if call.state.files.kind(fd) == Kind::Listening {
        call.thread.begin_serving(call.state);
        if call.is_outdated() {
            return Err(Errno::EINTR);
        }
    }
    let mut peer = [0u8; ADDRESS_MAX];
    let mut peer_len = ADDRESS_MAX as u32;
    let args = [
        fd as u64,
        peer.as_mut_ptr() as u64,
        &raw mut peer_len as u64,
        flags,
        0,
        0,
    ];
    let number = libc::SYS_accept4;
    let accepted = if let Some(GivenBack::Connection { fd, peer: address }) =
        call.state.files.take_given_back(fd)
    {
        let len = address.len().min(ADDRESS_MAX);
        peer[..len].copy_from_slice(&address[..len]);
        peer_len = len as u32;
        Ok(fd as u64)
    } else if call.is_nonblocking(fd)? || host::is_readable(fd) {
        // SAFETY: address and length are in the monitor and fit together.
        unsafe { host::syscall(number as u64, args) }
    } else {
        // SAFETY: as above.
        unsafe { call.block(number, args, For::Work) }
    };
    let connection = accepted? as i32;
    call.begin(Origin::Accept(fd))?;
    call.state.files.forget(connection);
    call.state.files.set_serves();
    if connection as u64 >= call.state.own_limits.descriptors.0 {
        call.state.files.close(connection);
        return Err(Errno::EMFILE);
    }
    call.state.files.accepted(connection);
    let peer = peer[..(peer_len as usize).min(ADDRESS_MAX)].to_vec();
    if let Some(domain) = &mut call.state.domain {
        domain.replay = Some(GivenBack::Connection {
            fd: connection,
            peer: peer.clone(),
        });
    }
    call.compensate(Undo::Reset { fd: connection });
    call.write_address(address, address_len, &peer)?;
    Ok(connection as u64)
}

impl Call<'_, '_> {
    /// Writes a socket address and its length as the kernel does: cut to the room there is, with the full
    /// length.
    pub(super) fn write_address(
        &mut self,
        address: u64,
        len_address: u64,
        value: &[u8],
    ) -> Result<(), Errno> {
        if address == 0 || len_address == 0 {
            return Ok(());
        }
        let room = u32::from_ne_bytes(self.read(len_address)?) as usize;
        self.write(address, &value[..value.len().min(room)])?;
        self.write(len_address, &(value.len() as u32).to_ne_bytes())
    }

    /// Sends a datagram or record: when the domain commits.
    pub(super) fn send_datagram(&mut self, fd: i32, datagram: Datagram) -> Result<u64, Errno> {
        let len = datagram.bytes.len();
        if self.would_exceed_limit(len) {
            self.commit_early(Early::HoldLimit)?;
        }
        if self.in_pass_through() {
            self.commit_early(Early::PassThrough)?;
        }
        let Datagram {
            bytes,
            flags,
            address,
            ancillary,
            ..
        } = datagram;
        let Some(domain) = &mut self.state.domain else {
            return host::send_message(fd, &bytes, flags, &address, &ancillary)
                .map(|n| n as u64)
                .map_err(|e| errno_of(&e));
        };
        domain.held_bytes += len;
        domain.journal.defer(Deferred::SendTo {
            fd,
            bytes,
            // The receiver's thread must not wait at the commit.
            flags: flags | libc::MSG_DONTWAIT,
            address,
            ancillary,
        });
        Ok(len as u64)
    }

    fn send(&mut self, fd: i32, datagram: Datagram) -> Result<u64, Errno> {
        const HOLDABLE: i32 = libc::MSG_NOSIGNAL
            | libc::MSG_DONTWAIT
            | libc::MSG_MORE
            | libc::MSG_EOR
            | libc::MSG_ZEROCOPY;
        let flags = datagram.flags;
        if flags & !HOLDABLE != 0 || datagram.may_be_refused {
            // Urgent data and the like keep their meaning, in order, but are sent at once.
            self.commit_early(Early::External)?;
            return self.send_at_once(fd, &datagram);
        }
        let datagram = Datagram {
            flags: flags & !libc::MSG_ZEROCOPY,
            ..datagram
        };
        let wait = flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        match self.state.files.kind(fd) {
            Kind::Closed => Err(Errno::EBADF),
            Kind::File | Kind::Anonymous => Err(Errno::ENOTSOCK),
            _ if self.is_shut(fd) => Err(Errno::EPIPE),
            Kind::Stream if self.state.files.keeps_records(fd) => self.send_record(fd, datagram),
            Kind::Stream if datagram.ancillary.is_empty() => {
                self.send_stream(fd, datagram.bytes, wait)
            }
            Kind::Listening => {
                // Not connected, which the kernel says best.
                self.commit_early(Early::External)?;
                self.send_at_once(fd, &datagram)
            }
            Kind::Datagram => self.send_datagram(fd, datagram),
            Kind::Stream | Kind::Pipe => self.send_record(fd, datagram),
        }
    }

    /// To a peer that is to find messages as they were sent, or descriptors with them. What it has no room
    /// for now is not held.
    fn send_record(&mut self, fd: i32, datagram: Datagram) -> Result<u64, Errno> {
        if self.state.files.is_poisoned(fd) {
            return Err(Errno::ECONNRESET);
        }
        let waiting = self.pending_bytes(fd) + datagram.bytes.len();
        if waiting > RECORDS_HELD || !host::is_writable(fd) {
            self.commit_early(Early::External)?;
            return self.send_at_once(fd, &datagram);
        }
        self.send_datagram(fd, datagram)
    }

    /// Sends with the kernel's own result; the domain has been committed.
    pub(super) fn send_at_once(&mut self, fd: i32, datagram: &Datagram) -> Result<u64, Errno> {
        self.state.files.note_sent(fd);
        let wait = datagram.flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        let mut sent = 0;
        let mut limit = None;
        loop {
            let nothing = Ancillary::default();
            let ancillary = if sent == 0 {
                &datagram.ancillary
            } else {
                &nothing
            };
            let now = host::send_message(
                fd,
                &datagram.bytes[sent..],
                datagram.flags | libc::MSG_DONTWAIT,
                &datagram.address,
                ancillary,
            );
            let result = match now.map_err(|e| errno_of(&e)) {
                Err(Errno::EAGAIN) if wait => {
                    let until = *limit.get_or_insert_with(|| super::io::send_limit(fd));
                    match self.await_writable(fd, until) {
                        Ok(()) => continue,
                        Err(error) => Err(error),
                    }
                }
                // A stream takes the rest later, for which the guest waits, too.
                Ok(n) if wait && sent + n < datagram.bytes.len() => {
                    sent += n;
                    continue;
                }
                other => other.map(|n| n as u64),
            };
            return self.with_part_done(sent as u64, result);
        }
    }
}

/// The fields of a `struct msghdr`.
pub(super) struct Header {
    pub(super) name: u64,
    pub(super) name_len: u32,
    pub(super) vector: u64,
    pub(super) count: u64,
    pub(super) control: u64,
    pub(super) control_len: u64,
}

pub(super) const NAME_LEN: u64 = 8;
pub(super) const CONTROL_LEN: u64 = 40;
pub(super) const FLAGS: u64 = 48;

/// `struct mmsghdr`: a header, and the number of bytes.
pub(super) const MESSAGE: u64 = 64;
pub(super) const MESSAGE_LEN: u64 = 56;
/// Messages in one call, at most, as in Linux.
pub(super) const MESSAGES_MOST: u64 = 1024;

pub(super) fn header(call: &mut Call, message: u64) -> Result<Header, Errno> {
    let bytes: [u8; 56] = call.read(message)?;
    let word = |i: usize| u64::from_ne_bytes(bytes[i..i + 8].try_into().unwrap_or([0; 8]));
    Ok(Header {
        name: word(0),
        name_len: word(8) as u32,
        vector: word(16),
        count: word(24),
        control: word(32),
        control_len: word(40),
    })
}

impl Call<'_, '_> {
    /// Sends the `struct msghdr` at `message`.
    pub(super) fn send_message(&mut self, fd: i32, message: u64, flags: i32) -> Result<u64, Errno> {
        let header = header(self, message)?;
        let (ancillary, may_be_refused) = self.ancillary(&header)?;
        let parts = self.vector(header.vector, header.count)?;
        let address = match header.name {
            0 => Vec::new(),
            at => self.read_vec(at, (header.name_len as usize).min(ADDRESS_MAX))?,
        };
        let datagram = Datagram {
            flags,
            address,
            ancillary,
            may_be_refused,
            ..Datagram::plain(Vec::new())
        };
        self.send_parts(fd, &parts, datagram)
    }

    /// Sends the bytes of `parts` with everything else that is in `datagram`.
    fn send_parts(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        datagram: Datagram,
    ) -> Result<u64, Errno> {
        if self.state.files.keeps_records(fd) || !datagram.ancillary.is_empty() {
            let bytes = self.gather(parts, 0)?;
            return self.send(fd, Datagram { bytes, ..datagram });
        }
        self.in_pieces(parts, |call, bytes, _| {
            let piece = Datagram {
                flags: datagram.flags,
                address: datagram.address.clone(),
                ..Datagram::plain(bytes)
            };
            call.send(fd, piece)
        })
    }

    /// What a message carries besides its bytes, and whether the kernel may refuse it. Descriptors are copies: the guest may
    /// close its own before the commit.
    fn ancillary(&mut self, header: &Header) -> Result<(Ancillary, bool), Errno> {
        if header.control == 0 || header.control_len == 0 {
            return Ok((Ancillary::default(), false));
        }
        if header.control_len > CONTROL_MOST {
            return Err(Errno::ENOBUFS);
        }
        let control = self.read_vec(header.control, header.control_len as usize)?;
        let found = Elements::of(&control)?;
        let mut rights = Vec::with_capacity(found.numbers.len());
        for number in found.numbers {
            let own = number >= first_reserved() || self.state.files.is_closing(number);
            if own || number < 0 {
                return Err(Errno::EBADF);
            }
            rights.push(kept_copy(number).map_err(|e| errno_of(&e))?);
        }
        let elements = found.others;
        Ok((Ancillary { rights, elements }, found.may_be_refused))
    }
}

/// The elements of a buffer of ancillary data.
#[derive(Debug, Default, PartialEq, Eq)]
struct Elements {
    /// The descriptors to be passed.
    numbers: Vec<i32>,
    /// What goes to the kernel as it is. Credentials are left out: they are what the kernel says anyway.
    others: Vec<u8>,
    /// Among the others is one that the kernel may refuse.
    may_be_refused: bool,
}

impl Elements {
    fn of(mut control: &[u8]) -> Result<Elements, Errno> {
        /// Remote direct memory access: elements with addresses in them.
        const SOL_RDS: i32 = 276;
        const HEADER: usize = 16;
        let mut found = Elements::default();
        while control.len() >= HEADER {
            let word =
                |i: usize| i32::from_ne_bytes(control[i..i + 4].try_into().unwrap_or([0; 4]));
            let len = u64::from_ne_bytes(control[..8].try_into().unwrap_or([0; 8])) as usize;
            if len < HEADER || len > control.len() {
                return Err(Errno::EINVAL);
            }
            let data = &control[HEADER..len];
            match (word(8), word(12)) {
                (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                    let fds = data.chunks_exact(4);
                    let number = |fd: &[u8]| i32::from_ne_bytes(fd.try_into().unwrap_or([0xff; 4]));
                    found.numbers.extend(fds.map(number));
                }
                (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {}
                (SOL_RDS, _) => return Err(Errno::EOPNOTSUPP),
                kind => {
                    found.may_be_refused |= !is_plain(kind, data);
                    found.others.extend_from_slice(&control[..len]);
                    let padded = found.others.len().next_multiple_of(8);
                    found.others.resize(padded, 0);
                }
            }
            control = &control[len.next_multiple_of(8).min(control.len())..];
        }
        if found.numbers.len() > host::RIGHTS_MAX {
            return Err(Errno::EINVAL);
        }
        Ok(found)
    }
}

/// Whether a datagram with such an element may be held, as the kernel takes it on every UDP socket: what DNS and QUIC servers
/// send with each answer.
fn is_plain(kind: (i32, i32), data: &[u8]) -> bool {
    match kind {
        (libc::IPPROTO_IP, libc::IP_PKTINFO) => data.len() == 12,
        (libc::IPPROTO_IPV6, libc::IPV6_PKTINFO) => data.len() == 20,
        (libc::IPPROTO_IP, libc::IP_TOS) | (libc::IPPROTO_IPV6, libc::IPV6_TCLASS) => {
            matches!(data, [_, 0, 0, 0])
        }
        _ => false,
    }
}

fn sendto(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let range = message_buffer(call.args[1], call.args[2])?;
    let address = match call.args[4] {
        0 => Vec::new(),
        at => call.read_vec(
            at,
            call.row.count(5, &call.args).min(ADDRESS_MAX as u64) as usize,
        )?,
    };
    let datagram = Datagram {
        flags: call.int(3),
        address,
        ..Datagram::plain(Vec::new())
    };
    call.send_parts(call.int(0), &[range], datagram)
}

fn sendmsg(call: &mut Call) -> Result<u64, Errno> {
    call.send_message(call.int(0), call.args[1], call.int(2))
}

fn sendmmsg(call: &mut Call) -> Result<u64, Errno> {
    let (fd, first, flags) = (call.int(0), call.args[1], call.int(3));
    let count = call.row.count(2, &call.args).min(MESSAGES_MOST);
    for i in 0..count {
        let message = first.checked_add(i * MESSAGE).ok_or(Errno::EFAULT)?;
        let sent = call
            .send_message(fd, message, flags)
            .and_then(|n| call.write(message + MESSAGE_LEN, &(n as u32).to_ne_bytes()));
        match sent {
            Ok(()) => {}
            // The call does not take place.
            Err(error) if i == 0 || call.done.is_some() => return Err(error),
            Err(_) => return Ok(i),
        }
    }
    Ok(count)
}

fn shutdown(call: &mut Call) -> Result<u64, Errno> {
    let (fd, how) = (call.int(0), call.int(1));
    if !(libc::SHUT_RD..=libc::SHUT_RDWR).contains(&how) {
        return Err(Errno::EINVAL);
    }
    match call.state.files.kind(fd) {
        Kind::Closed => return Err(Errno::EBADF),
        Kind::File | Kind::Anonymous => return Err(Errno::ENOTSOCK),
        Kind::Stream | Kind::Pipe if call.in_domain() && host::peer_name(fd).is_some() => {}
        // What the kernel says of a socket that is not connected cannot be foretold.
        _ => {
            call.commit_early(Early::External)?;
            return call.pass();
        }
    }
    call.defer(Deferred::Shutdown { fd, how });
    Ok(0)
}

/// `TCP_ZEROCOPY_RECEIVE` of `linux/tcp.h`, which the libc crate leaves out: its value holds addresses at
/// which the kernel writes.
const TCP_ZEROCOPY_RECEIVE: i32 = 35;

fn getsockopt(call: &mut Call) -> Result<u64, Errno> {
    if (call.int(1), call.int(2)) == (libc::IPPROTO_TCP, TCP_ZEROCOPY_RECEIVE) {
        return Err(Errno::ENOPROTOOPT);
    }
    call.pass()
}

/// Of `asm-generic/socket.h`, which the libc crate leaves out.
const SO_ATTACH_REUSEPORT_CBPF: i32 = 51;
const SO_ATTACH_REUSEPORT_EBPF: i32 = 52;
/// Instructions of a filter at most (`BPF_MAXINSNS`), and bytes of each (`struct sock_filter`).
const FILTER_MOST: u16 = 4096;
const INSTRUCTION: usize = 8;

/// The value holds a pointer (`struct sock_fprog`): the kernel gets a copy of the program. There is no way to ask for the
/// filter that was attached before, so that it cannot be put back.
fn attach_filter(call: &mut Call) -> Result<u64, Errno> {
    if call.args[4] as u32 != 16 {
        return Err(Errno::EINVAL);
    }
    let program: [u8; 16] = call.read(call.args[3])?;
    let count = u16::from_ne_bytes([program[0], program[1]]);
    let address = u64::from_ne_bytes(program[8..].try_into().unwrap_or([0; 8]));
    if count == 0 || count > FILTER_MOST || address == 0 {
        return Err(Errno::EINVAL);
    }
    let instructions = call.read_vec(address, usize::from(count) * INSTRUCTION)?;
    call.commit_early(Early::External)?;
    let mut copy = program;
    copy[8..].copy_from_slice(&(instructions.as_ptr() as u64).to_ne_bytes());
    host::set_socket_option(call.int(0), call.int(1), call.int(2), &copy)
        .map(|()| 0)
        .map_err(|e| errno_of(&e))
}

fn setsockopt(call: &mut Call) -> Result<u64, Errno> {
    let (fd, level, name) = (call.int(0), call.int(1), call.int(2));
    match (level, name) {
        (libc::SOL_SOCKET, libc::SO_ATTACH_FILTER | SO_ATTACH_REUSEPORT_CBPF) => {
            return attach_filter(call);
        }
        // A program in the kernel, which the guest has no way to load.
        (libc::SOL_SOCKET, libc::SO_ATTACH_BPF | SO_ATTACH_REUSEPORT_EBPF) => {
            return Err(Errno::EINVAL);
        }
        _ => {}
    }
    let old = host::socket_option(fd, level, name);
    if old.is_err() {
        call.commit_early(Early::External)?;
    }
    let result = call.pass()?;
    if let Ok(mut value) = old {
        // The kernel reports twice what was asked for.
        let doubled =
            level == libc::SOL_SOCKET && matches!(name, libc::SO_SNDBUF | libc::SO_RCVBUF);
        if let Some(number) = value.first_chunk::<4>().filter(|_| doubled) {
            value = (i32::from_ne_bytes(*number) / 2).to_ne_bytes().to_vec();
        }
        call.compensate(Undo::SocketOption {
            fd,
            level,
            name,
            value,
        });
    }
    Ok(result)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn element(level: i32, kind: i32, data: &[u8]) -> Vec<u8> {
        let mut bytes = (16 + data.len() as u64).to_ne_bytes().to_vec();
        bytes.extend(level.to_ne_bytes());
        bytes.extend(kind.to_ne_bytes());
        bytes.extend(data);
        bytes.resize(bytes.len().next_multiple_of(8), 0);
        bytes
    }

    #[test]
    fn elements_are_told_apart() {
        let rights = element(libc::SOL_SOCKET, libc::SCM_RIGHTS, &[7, 0, 0, 0]);
        let known = element(libc::IPPROTO_IP, libc::IP_PKTINFO, &[1; 12]);
        let control = [rights, known.clone()].concat();
        let found = Elements::of(&control).unwrap();
        assert_eq!((found.numbers, found.others), (vec![7], known.clone()));
        assert!(!found.may_be_refused);
        let other = element(libc::IPPROTO_IP, libc::IP_TTL, &[9, 0, 0, 0]);
        let found = Elements::of(&[known, other].concat()).unwrap();
        assert!(found.may_be_refused && found.numbers.is_empty());
    }

    #[test]
    fn damaged_elements_are_refused() {
        let addresses = element(276, 1, &[0; 8]);
        assert_eq!(Elements::of(&addresses), Err(Errno::EOPNOTSUPP));
        let mut long = element(libc::IPPROTO_IP, libc::IP_TOS, &[0; 4]);
        long[0] = 200;
        assert_eq!(Elements::of(&long), Err(Errno::EINVAL));
        long[..8].fill(0xff);
        assert_eq!(Elements::of(&long), Err(Errno::EINVAL));
        assert_eq!(Elements::of(&[0; 15]), Ok(Elements::default()));
    }
}
