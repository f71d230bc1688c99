//! Sockets.

use std::os::fd::OwnedFd;

use guest_agentless::{Errno, GuestRange};
use recovery::Origin;
use recovery::event::Event;

use super::buffer::message_buffer;
use super::wait::For;
use super::{Call, Handler, errno_of};
use crate::host;
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
    rights: Vec<OwnedFd>,
}

impl Datagram {
    /// Bytes for the connected peer.
    pub fn plain(bytes: Vec<u8>) -> Datagram {
        Datagram {
            bytes,
            flags: 0,
            address: Vec::new(),
            rights: Vec::new(),
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
            rights,
        } = datagram;
        let Some(domain) = &mut self.state.domain else {
            return host::send_message(fd, &bytes, flags, &address, &rights)
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
            rights,
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
        if flags & !HOLDABLE != 0 {
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
            Kind::Stream if datagram.rights.is_empty() => {
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
            let rights = if sent == 0 { &datagram.rights[..] } else { &[] };
            let now = host::send_message(
                fd,
                &datagram.bytes[sent..],
                datagram.flags | libc::MSG_DONTWAIT,
                &datagram.address,
                rights,
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
        let rights = self.rights(&header)?;
        let parts = self.vector(header.vector, header.count)?;
        let address = match header.name {
            0 => Vec::new(),
            at => self.read_vec(at, (header.name_len as usize).min(ADDRESS_MAX))?,
        };
        let datagram = Datagram {
            flags,
            address,
            rights,
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
        if self.state.files.keeps_records(fd) || !datagram.rights.is_empty() {
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

    /// The descriptors that a message carries, as copies: the guest may close its own before the commit.
    fn rights(&mut self, header: &Header) -> Result<Vec<OwnedFd>, Errno> {
        if header.control == 0 || header.control_len == 0 {
            return Ok(Vec::new());
        }
        if header.control_len > CONTROL_MOST {
            return Err(Errno::ENOBUFS);
        }
        let control = self.read_vec(header.control, header.control_len as usize)?;
        let numbers = passed_descriptors(&control)?;
        let mut copies = Vec::with_capacity(numbers.len());
        for number in numbers {
            let own = number >= first_reserved() || self.state.files.is_closing(number);
            if own || number < 0 {
                return Err(Errno::EBADF);
            }
            copies.push(kept_copy(number).map_err(|e| errno_of(&e))?);
        }
        Ok(copies)
    }
}

/// The descriptors in a buffer of ancillary data. Credentials may be stated, as they are what the kernel
/// says anyway; nothing else is carried.
fn passed_descriptors(mut control: &[u8]) -> Result<Vec<i32>, Errno> {
    const HEADER: usize = 16;
    let mut numbers = Vec::new();
    while control.len() >= HEADER {
        let word = |i: usize| i32::from_ne_bytes(control[i..i + 4].try_into().unwrap_or([0; 4]));
        let len = u64::from_ne_bytes(control[..8].try_into().unwrap_or([0; 8])) as usize;
        if len < HEADER || len > control.len() {
            return Err(Errno::EINVAL);
        }
        match (word(8), word(12)) {
            (libc::SOL_SOCKET, libc::SCM_RIGHTS) => {
                let fds = control[HEADER..len].chunks_exact(4);
                numbers
                    .extend(fds.map(|fd| i32::from_ne_bytes(fd.try_into().unwrap_or([0xff; 4]))));
            }
            (libc::SOL_SOCKET, libc::SCM_CREDENTIALS) => {}
            _ => return Err(Errno::EOPNOTSUPP),
        }
        control = &control[len.next_multiple_of(8).min(control.len())..];
    }
    if numbers.len() > host::RIGHTS_MAX {
        return Err(Errno::EINVAL);
    }
    Ok(numbers)
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

fn setsockopt(call: &mut Call) -> Result<u64, Errno> {
    let (fd, level, name) = (call.int(0), call.int(1), call.int(2));
    if level == libc::SOL_SOCKET && matches!(name, libc::SO_ATTACH_FILTER | libc::SO_ATTACH_BPF) {
        return Err(Errno::EINVAL);
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
