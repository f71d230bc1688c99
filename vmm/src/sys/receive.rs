//! Receiving from sockets: bytes, datagrams, and what comes with them.

use std::collections::VecDeque;

use guest_agentless::{Errno, GuestRange};
use recovery::Origin;

use super::buffer::message_buffer;
use super::io::room_in;
use super::net::{self, Header};
use super::wait::For;
use super::{BOUNCE, Call, Handler};
use crate::host::{self, Envelope, Incoming};
use crate::memory::first_reserved;
use crate::process::domain::{Domain, Early};
use crate::process::effects::Undo;
use crate::process::files::{Delivery, GivenBack, Kind};
use crate::process::rerun::REPLAY_LIMIT;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_recvfrom => recvfrom,
        libc::SYS_recvmsg => recvmsg,
        libc::SYS_recvmmsg => recvmmsg,
        _ => return None,
    })
}

/// Bytes that one call receives at most: more than a socket holds, unless its buffer was made that large.
pub(super) const RECEIVED_MOST: usize = 64 << 20;

/// Bytes that one read takes from what cannot tell how many there are (`/dev/zero`).
const ENDLESS: usize = 1 << 20;
/// Bytes that the datagrams of one request have at most.
const BATCH_MOST: u64 = 1 << 20;

fn recvfrom(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let range = message_buffer(call.args[1], call.args[2])?;
    let (fd, flags) = (call.int(0), call.int(3));
    let mut envelope = match call.args[4] {
        0 => Envelope::none(),
        _ => Envelope::with_room(0),
    };
    let n = call.receive_parts(fd, &[range], flags, &mut envelope)?;
    call.write_address(call.args[4], call.args[5], &envelope.name)?;
    Ok(envelope.told(n, flags))
}

fn recvmsg(call: &mut Call) -> Result<u64, Errno> {
    let (fd, message, flags) = (call.int(0), call.args[1], call.int(2));
    let mut envelope = Envelope::none();
    call.receive_message(fd, message, flags, false, &mut envelope)
}

/// Several datagrams of one sender, as far as they are there, make one request. Those of another sender are
/// left for the next call, since they would be lost with it. On a stream it is one message at a time.
fn recvmmsg(call: &mut Call) -> Result<u64, Errno> {
    let (fd, first) = (call.int(0), call.args[1]);
    let flags = call.int(3) & !libc::MSG_WAITFORONE;
    let count = call.row.count(2, &call.args).min(net::MESSAGES_MOST);
    let mut envelope = Envelope::none();
    for i in 0..count {
        let another = i > 0;
        if another && !call.has_another(fd, &envelope) {
            return Ok(i);
        }
        let message = first.checked_add(i * net::MESSAGE).ok_or(Errno::EFAULT)?;
        let flags = match another {
            true => flags | libc::MSG_DONTWAIT,
            false => flags,
        };
        let received = call
            .receive_message(fd, message, flags, another, &mut envelope)
            .and_then(|n| call.write(message + net::MESSAGE_LEN, &(n as u32).to_ne_bytes()));
        match received {
            Ok(()) => {}
            // The call does not take place.
            Err(error) if i == 0 || call.done.is_some() => return Err(error),
            Err(_) => return Ok(i),
        }
    }
    Ok(count)
}

impl Call<'_, '_> {
    /// Receives into a buffer of the monitor; waits without the run token if there is nothing yet.
    pub(super) fn receive_into(
        &mut self,
        fd: i32,
        into: &mut [u8],
        flags: i32,
        wait: bool,
        envelope: &mut Envelope,
    ) -> Result<usize, Errno> {
        let len = into.len();
        let mut incoming = Incoming::new(into, envelope);
        let (number, args) = incoming.call(fd, flags | libc::MSG_DONTWAIT);
        // SAFETY: all that the call is given is in `incoming`, which stays where it is.
        let full = match unsafe { host::syscall(number as u64, args) } {
            Err(Errno::EAGAIN) if wait => {
                let (number, args) = incoming.call(fd, flags);
                // SAFETY: as above.
                unsafe { self.block(number, args, For::Work) }?
            }
            other => other?,
        };
        incoming.fill(envelope);
        envelope.full = full;
        Ok(len.min(full as usize))
    }

    /// Whether a receiving call with these flags waits.
    pub(super) fn waits(&self, fd: i32, flags: i32) -> Result<bool, Errno> {
        Ok(flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?)
    }

    fn receive_parts(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        let kind = self.state.files.kind(fd);
        let all = flags & (libc::MSG_WAITALL | libc::MSG_PEEK) == libc::MSG_WAITALL;
        match kind {
            _ if flags & libc::MSG_ERRQUEUE != 0 => self.receive_error(fd, parts, flags, envelope),
            Kind::Stream | Kind::Pipe if all && !self.state.files.keeps_records(fd) => {
                self.receive_all(fd, kind, parts, flags & !libc::MSG_WAITALL, envelope)
            }
            // One that is not connected may have been, until its peer has reset it: the kernel knows.
            Kind::Stream | Kind::Listening => self.receive_stream(fd, parts, flags, envelope),
            Kind::Datagram => self.receive_datagram(fd, parts, flags, envelope),
            Kind::Pipe => self.read_event(fd, parts, flags, envelope),
            Kind::Closed => Err(Errno::EBADF),
            Kind::File | Kind::Anonymous => Err(Errno::ENOTSOCK),
        }
    }

    /// What has gone wrong with output of the socket: no input of a client.
    fn receive_error(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        self.commit_early(Early::External)?;
        let room = room_in(parts);
        let mut bytes = vec![0; room.min(BOUNCE as u64) as usize];
        let n = self.receive_into(fd, &mut bytes, flags, false, envelope)?;
        self.scatter(parts, &bytes[..n])?;
        Ok(n as u64)
    }

    /// `MSG_WAITALL`: piece by piece until there is no more room, or something else has happened.
    fn receive_all(
        &mut self,
        fd: i32,
        kind: Kind,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        let room = room_in(parts);
        let mut total = 0;
        while total < room {
            let rest = behind(parts, total);
            let received = match kind {
                Kind::Stream => self.receive_stream(fd, &rest, flags, envelope),
                _ => self.read_event(fd, &rest, flags, envelope),
            };
            match received {
                Ok(0) => break,
                Ok(n) => total += n,
                Err(error) if total == 0 || self.done.is_some() || self.is_outdated() => {
                    return Err(error);
                }
                Err(_) => {
                    // The call is over, with what it has got.
                    self.thread.restart = None;
                    break;
                }
            }
            if !envelope.control.is_empty() {
                break;
            }
        }
        self.keep_all(fd, parts, total, envelope);
        Ok(total)
    }

    /// If the request runs again, so does the call, which has to find all that it has received. Pieces that it
    /// has waited for have ended the domain before.
    fn keep_all(&mut self, fd: i32, parts: &[GuestRange], total: u64, envelope: &Envelope) {
        let of_this = |d: &&mut Domain| d.origin == Origin::Stream(fd);
        let Some(domain) = self.state.domain.as_mut().filter(of_this) else {
            return;
        };
        let kept = match &domain.replay {
            Some(GivenBack::Bytes(pieces)) => pieces.iter().map(|p| p.bytes.len() as u64).sum(),
            _ => 0,
        };
        if kept >= total {
            return;
        }
        let mut bytes = Vec::new();
        if total <= REPLAY_LIMIT as u64 {
            for part in parts {
                let len = part.len().min(total - bytes.len() as u64) as usize;
                match self.read_vec(part.start(), len) {
                    Ok(piece) => bytes.extend(piece),
                    Err(_) => break,
                }
            }
        }
        let Some(domain) = &mut self.state.domain else {
            return;
        };
        if bytes.len() as u64 != total {
            domain.pass_through = true;
            return;
        }
        domain.replay = Some(GivenBack::Bytes(vec![Delivery {
            bytes,
            envelope: envelope.clone(),
        }]));
    }

    /// Receives a datagram: it begins a request.
    pub(super) fn receive_datagram(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        self.commit()?;
        self.take_datagram(fd, parts, flags, false, envelope)
    }

    fn take_datagram(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        another: bool,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        let len = self.receivable(fd, room_in(parts));
        let mut bounce = self.take_bounce(len);
        let result = self
            .datagram(fd, &mut bounce[..len], flags, envelope)
            .and_then(|n| {
                let bytes = &bounce[..n];
                if flags & libc::MSG_PEEK == 0 {
                    if !another {
                        self.begin(Origin::Datagram(fd))?;
                    }
                    self.note_datagram(bytes, envelope);
                    self.thread.choose_target(self.state);
                }
                self.scatter(parts, bytes)?;
                Ok(n as u64)
            });
        self.put_bounce(bounce);
        result
    }

    /// Bytes that one receiving call on `fd` can bring, with `room` for them, as far as is known.
    pub(super) fn receivable(&self, fd: i32, room: u64) -> usize {
        let known = match self.state.files.is_given_back(fd) {
            true => RECEIVED_MOST,
            false if room <= BOUNCE as u64 => BOUNCE,
            false => host::bytes_waiting(fd)
                .unwrap_or(ENDLESS)
                .clamp(BOUNCE, RECEIVED_MOST),
        };
        room.min(known as u64) as usize
    }

    /// A buffer of the monitor with `len` bytes at least, to be put back.
    pub(super) fn take_bounce(&mut self, len: usize) -> Vec<u8> {
        let mut bounce = std::mem::take(&mut self.thread.bounce);
        if bounce.len() < len {
            bounce.resize(len, 0);
        }
        bounce
    }

    pub(super) fn put_bounce(&mut self, mut bounce: Vec<u8>) {
        bounce.resize(BOUNCE, 0);
        bounce.shrink_to_fit();
        self.thread.bounce = bounce;
    }

    fn note_datagram(&mut self, bytes: &[u8], envelope: &Envelope) {
        let Some(domain) = &mut self.state.domain else {
            return;
        };
        domain.add_input(bytes);
        let delivery = Delivery {
            bytes: bytes.to_vec(),
            envelope: envelope.clone(),
        };
        match &mut domain.replay {
            Some(GivenBack::Datagrams(queue)) => queue.push_back(delivery),
            _ => domain.replay = Some(GivenBack::Datagrams(VecDeque::from([delivery]))),
        }
    }

    fn datagram(
        &mut self,
        fd: i32,
        into: &mut [u8],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<usize, Errno> {
        if let Some(GivenBack::Datagrams(mut queue)) = self.state.files.take_given_back(fd) {
            let next = match flags & libc::MSG_PEEK {
                0 => queue.pop_front(),
                _ => queue.front().cloned(),
            };
            if !queue.is_empty() {
                self.state.files.give_back(fd, GivenBack::Datagrams(queue));
            }
            if let Some(delivery) = next {
                let n = delivery.bytes.len().min(into.len());
                into[..n].copy_from_slice(&delivery.bytes[..n]);
                *envelope = delivery.envelope;
                return Ok(n);
            }
        }
        let wait = self.waits(fd, flags)?;
        if envelope.room.is_none() {
            // Who has sent it is needed if it is delivered again.
            *envelope = Envelope::with_room(0);
        }
        self.receive_into(fd, into, flags | libc::MSG_TRUNC, wait, envelope)
    }

    /// Whether `recvmmsg` goes on after the message of `last`.
    fn has_another(&mut self, fd: i32, last: &Envelope) -> bool {
        match self.state.files.kind(fd) {
            Kind::Pipe => return true,
            Kind::Datagram => {}
            _ => return false,
        }
        if !self.protected() || self.state.files.is_given_back(fd) {
            return true;
        }
        let goes_on = |d: &Domain| d.origin == Origin::Datagram(fd) && d.input_len < BATCH_MOST;
        // None is running before tracking begins, or if it was committed for want of room.
        if !self.state.domain.as_ref().is_some_and(goes_on) {
            return false;
        }
        let mut next = Envelope::with_room(0);
        self.receive_into(fd, &mut [], libc::MSG_PEEK, false, &mut next)
            .is_ok_and(|_| next.name == last.name)
    }

    /// Receives into the `struct msghdr` at `message`.
    fn receive_message(
        &mut self,
        fd: i32,
        message: u64,
        flags: i32,
        another: bool,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        let header = net::header(self, message)?;
        let parts = self.vector(header.vector, header.count)?;
        let room = match header.control {
            0 => 0,
            _ => header.control_len,
        };
        *envelope = Envelope::with_room(usize::try_from(room).unwrap_or(usize::MAX));
        let received = match another && self.state.files.kind(fd) == Kind::Datagram {
            true => self.take_datagram(fd, &parts, flags, true, envelope),
            false => self.receive_parts(fd, &parts, flags, envelope),
        };
        let n = match received {
            Ok(n) => n,
            Err(error) => {
                envelope.drop_descriptors();
                return Err(error);
            }
        };
        self.take_descriptors(envelope);
        self.tell(&header, message, envelope)?;
        Ok(envelope.told(n, flags))
    }

    /// The kernel has made descriptors for what the message brought. Those beyond the guest's limit have found no
    /// room.
    fn take_descriptors(&mut self, envelope: &mut Envelope) {
        let limit = self
            .state
            .own_limits
            .descriptors
            .0
            .min(first_reserved() as u64);
        let all = envelope.descriptors();
        let fits = all
            .iter()
            .take_while(|(_, fd)| (*fd as u64) < limit)
            .count();
        let (own, beyond) = all.split_at(fits);
        for (_, fd) in own {
            self.state.files.forget(*fd);
            self.compensate(Undo::Received { fd: *fd });
        }
        if let Some((at, _)) = beyond.first() {
            for (_, fd) in beyond {
                let _ = host::close(*fd);
            }
            envelope.cut_at(*at);
        }
    }

    fn tell(&mut self, header: &Header, message: u64, envelope: &Envelope) -> Result<(), Errno> {
        if header.name != 0 {
            let room = (header.name_len as usize).min(envelope.name.len());
            self.write(header.name, &envelope.name[..room])?;
            let len = envelope.name.len() as u32;
            self.write(message + net::NAME_LEN, &len.to_ne_bytes())?;
        }
        let control = &envelope.control;
        self.write(header.control, control)?;
        let len = control.len() as u64;
        self.write(message + net::CONTROL_LEN, &len.to_ne_bytes())?;
        self.write(message + net::FLAGS, &envelope.flags.to_ne_bytes())
    }
}

/// The parts without their first `len` bytes.
fn behind(parts: &[GuestRange], mut len: u64) -> Vec<GuestRange> {
    let mut rest = Vec::with_capacity(parts.len());
    for part in parts {
        let skipped = part.len().min(len);
        len -= skipped;
        if skipped < part.len() {
            rest.push(GuestRange::from_bounds(part.start() + skipped, part.end()));
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_filled_one_after_the_other() {
        let part = GuestRange::from_bounds;
        let parts = [part(100, 110), part(200, 205)];
        assert_eq!(behind(&parts, 0), parts);
        assert_eq!(behind(&parts, 4), [part(104, 110), part(200, 205)]);
        assert_eq!(behind(&parts, 10), [part(200, 205)]);
        assert_eq!(behind(&parts, 12), [part(202, 205)]);
        assert_eq!(behind(&parts, 15), []);
    }
}
