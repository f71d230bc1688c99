//! Sockets.

use guest_agentless::{Errno, GuestRange};
use recovery::Origin;
use recovery::event::Event;

use super::wait::For;
use super::{BOUNCE, Call, Handler, errno_of};
use crate::host;
use crate::memory::window;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, Undo};
use crate::process::files::Kind;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_socket => super::file::handler(libc::SYS_dup)?,
        libc::SYS_socketpair => socketpair,
        libc::SYS_accept | libc::SYS_accept4 => accept,
        libc::SYS_listen => listen,
        libc::SYS_bind => bind,
        libc::SYS_recvfrom => recvfrom,
        libc::SYS_recvmsg => recvmsg,
        libc::SYS_sendto => sendto,
        libc::SYS_sendmsg => sendmsg,
        libc::SYS_shutdown => shutdown,
        libc::SYS_setsockopt => setsockopt,
        libc::SYS_getsockopt => getsockopt,
        _ => return None,
    })
}

/// Bytes of the largest `sockaddr`.
const ADDRESS_MAX: usize = 128;

fn socketpair(call: &mut Call) -> Result<u64, Errno> {
    call.pass()?;
    call.made_pair(call.args[3])
}

fn listen(call: &mut Call) -> Result<u64, Errno> {
    call.commit_early(Early::External);
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

fn bind(call: &mut Call) -> Result<u64, Errno> {
    call.commit_early(Early::External);
    call.pass()
}

fn accept(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let (address, address_len) = (call.args[1], call.args[2]);
    let flags = match i64::from(call.row.number) {
        libc::SYS_accept4 => call.args[3],
        _ => 0,
    };
    call.commit();
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
    let accepted = if call.is_nonblocking(fd)? || host::is_readable(fd) {
        // SAFETY: address and length are in the monitor and fit together.
        unsafe { host::syscall(number as u64, args) }
    } else {
        // SAFETY: as above.
        unsafe { call.block(number, args, For::Work) }
    };
    let connection = accepted? as i32;
    call.begin(Origin::Accept(fd))?;
    call.state.files.forget(connection);
    if connection as u64 >= call.state.descriptor_limit.0 {
        let _ = host::close(connection);
        return Err(Errno::EMFILE);
    }
    call.state.files.accepted(connection);
    call.compensate(Undo::Reset { fd: connection });
    call.write_address(
        address,
        address_len,
        &peer[..(peer_len as usize).min(ADDRESS_MAX)],
    )?;
    Ok(connection as u64)
}

impl Call<'_, '_> {
    /// Writes a socket address and its length as the kernel does: cut to the room there is, with the full
    /// length.
    fn write_address(&mut self, address: u64, len_address: u64, value: &[u8]) -> Result<(), Errno> {
        if address == 0 || len_address == 0 {
            return Ok(());
        }
        let room = u32::from_ne_bytes(self.read(len_address)?) as usize;
        self.write(address, &value[..value.len().min(room)])?;
        self.write(len_address, &(value.len() as u32).to_ne_bytes())
    }

    /// Receives a datagram: it begins a request.
    pub(super) fn receive_datagram(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
    ) -> Result<u64, Errno> {
        self.receive_datagram_from(fd, parts, flags).map(|(n, _)| n)
    }

    fn receive_datagram_from(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
    ) -> Result<(u64, Vec<u8>), Errno> {
        self.commit();
        let room: u64 = parts.iter().map(|part| part.len()).sum();
        let mut bounce = std::mem::take(&mut self.thread.bounce);
        let result = self
            .datagram(fd, &mut bounce, room, flags)
            .and_then(|(n, full, peer)| {
                if flags & libc::MSG_PEEK == 0 {
                    self.begin(Origin::Datagram(fd))?;
                    if let Some(domain) = &mut self.state.domain {
                        domain.add_input(&bounce[..n]);
                    }
                }
                self.scatter(parts, &bounce[..n])?;
                Ok((
                    if flags & libc::MSG_TRUNC != 0 {
                        full
                    } else {
                        n as u64
                    },
                    peer,
                ))
            });
        self.thread.bounce = bounce;
        result
    }

    fn datagram(
        &mut self,
        fd: i32,
        into: &mut [u8],
        room: u64,
        flags: i32,
    ) -> Result<(usize, u64, Vec<u8>), Errno> {
        let len = room.min(BOUNCE as u64) as usize;
        let mut peer = vec![0u8; ADDRESS_MAX];
        let mut peer_len = ADDRESS_MAX as u32;
        let args = [
            fd as u64,
            into.as_mut_ptr() as u64,
            len as u64,
            (flags | libc::MSG_TRUNC) as u64,
            peer.as_mut_ptr() as u64,
            &raw mut peer_len as u64,
        ];
        let number = libc::SYS_recvfrom;
        let wait = flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        let full = if !wait || host::is_readable(fd) {
            // SAFETY: buffer, address and length are in the monitor and fit together.
            unsafe { host::syscall(number as u64, args) }
        } else {
            // SAFETY: as above.
            unsafe { self.block(number, args, For::Work) }
        }?;
        peer.truncate(peer_len as usize);
        Ok((len.min(full as usize), full, peer))
    }

    /// Sends a datagram: when the domain commits.
    pub(super) fn send_datagram(
        &mut self,
        fd: i32,
        bytes: Vec<u8>,
        address: Vec<u8>,
    ) -> Result<u64, Errno> {
        let len = bytes.len() as u64;
        match &mut self.state.domain {
            Some(domain) => {
                domain.held_bytes += bytes.len();
                domain
                    .journal
                    .defer(Deferred::SendTo { fd, bytes, address });
                Ok(len)
            }
            None => host::send_to(fd, &bytes, &address)
                .map(|n| n as u64)
                .map_err(|e| errno_of(&e)),
        }
    }

    fn send(
        &mut self,
        fd: i32,
        bytes: Vec<u8>,
        flags: i32,
        address: Vec<u8>,
    ) -> Result<u64, Errno> {
        const HOLDABLE: i32 =
            libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT | libc::MSG_MORE | libc::MSG_ZEROCOPY;
        if flags & !HOLDABLE != 0 {
            return Err(Errno::EOPNOTSUPP);
        }
        let wait = flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        match self.state.files.kind(fd) {
            Kind::Stream => self.send_stream(fd, bytes, wait),
            Kind::Pipe => {
                self.commit_early(Early::External);
                host::send(fd, &bytes)
                    .map(|n| n as u64)
                    .map_err(|e| errno_of(&e))
            }
            Kind::Datagram => self.send_datagram(fd, bytes, address),
            Kind::Closed => Err(Errno::EBADF),
            Kind::Listening => Err(Errno::ENOTCONN),
            Kind::File | Kind::Anonymous => Err(Errno::ENOTSOCK),
        }
    }

    fn receive_parts(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
    ) -> Result<(u64, Vec<u8>), Errno> {
        match self.state.files.kind(fd) {
            Kind::Stream => Ok((self.receive_stream(fd, parts, flags)?, Vec::new())),
            Kind::Datagram => self.receive_datagram_from(fd, parts, flags),
            Kind::Pipe => Ok((self.read_event(fd, parts)?, Vec::new())),
            Kind::Closed => Err(Errno::EBADF),
            Kind::Listening => Err(Errno::ENOTCONN),
            Kind::File | Kind::Anonymous => Err(Errno::ENOTSOCK),
        }
    }
}

fn recvfrom(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let range = window::checked(call.args[1], call.args[2]).ok_or(Errno::EFAULT)?;
    let (n, peer) = call.receive_parts(call.int(0), &[range], call.int(3))?;
    call.write_address(call.args[4], call.args[5], &peer)?;
    Ok(n)
}

/// The fields of a `struct msghdr`.
struct Header {
    name: u64,
    name_len: u32,
    vector: u64,
    count: u64,
    control_len: u64,
}

const NAME_LEN: u64 = 8;
const CONTROL_LEN: u64 = 40;
const FLAGS: u64 = 48;

fn header(call: &mut Call) -> Result<Header, Errno> {
    let bytes: [u8; 56] = call.read(call.args[1])?;
    let word = |i: usize| u64::from_ne_bytes(bytes[i..i + 8].try_into().unwrap_or([0; 8]));
    Ok(Header {
        name: word(0),
        name_len: word(8) as u32,
        vector: word(16),
        count: word(24),
        control_len: word(40),
    })
}

fn recvmsg(call: &mut Call) -> Result<u64, Errno> {
    let header = header(call)?;
    let parts = call.vector(header.vector, header.count)?;
    let (n, peer) = call.receive_parts(call.int(0), &parts, call.int(2))?;
    let message = call.args[1];
    if header.name != 0 {
        let room = (header.name_len as usize).min(peer.len());
        call.write(header.name, &peer[..room])?;
        call.write(message + NAME_LEN, &(peer.len() as u32).to_ne_bytes())?;
    }
    // Ancillary data is not carried yet; the kernel would close descriptors that find no room.
    call.write(message + CONTROL_LEN, &0u64.to_ne_bytes())?;
    call.write(message + FLAGS, &0u32.to_ne_bytes())?;
    Ok(n)
}

fn sendto(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let len = call.args[2].min(1 << 20) as usize;
    window::checked(call.args[1], call.args[2]).ok_or(Errno::EFAULT)?;
    let bytes = call.read_vec(call.args[1], len)?;
    let address = match call.args[4] {
        0 => Vec::new(),
        at => call.read_vec(
            at,
            call.row.count(5, &call.args).min(ADDRESS_MAX as u64) as usize,
        )?,
    };
    call.send(call.int(0), bytes, call.int(3), address)
}

fn sendmsg(call: &mut Call) -> Result<u64, Errno> {
    let header = header(call)?;
    if header.control_len != 0 {
        // Passing descriptors and credentials is not carried yet.
        return Err(Errno::EOPNOTSUPP);
    }
    let bytes = call.gather_vector(header.vector, header.count)?;
    let address = match header.name {
        0 => Vec::new(),
        at => call.read_vec(at, (header.name_len as usize).min(ADDRESS_MAX))?,
    };
    call.send(call.int(0), bytes, call.int(2), address)
}

fn shutdown(call: &mut Call) -> Result<u64, Errno> {
    let (fd, how) = (call.int(0), call.int(1));
    if !call.in_domain() {
        return call.pass();
    }
    if call.state.files.kind(fd) == Kind::Closed {
        return Err(Errno::EBADF);
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
        call.commit_early(Early::External);
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
