//! Input and output by kind of descriptor: where requests begin, and where their output is held.

use std::time::{Duration, Instant};

use guest_agentless::{Errno, GuestRange};
use recovery::Origin;

use super::receive::RECEIVED_MOST;
use super::wait::For;
use super::{BOUNCE, Call, errno_of};
use crate::host::{self, Envelope};
use crate::process::domain::{Domain, Early};
use crate::process::effects::{Deferred, Undo};
use crate::process::files::{GivenBack, Kind};

/// Bytes that fit into `parts`.
pub(super) fn room_in(parts: &[GuestRange]) -> u64 {
    parts.iter().map(|part| part.len()).sum()
}

/// When a send that begins now gives up (`SO_SNDTIMEO`), if it does.
pub(super) fn send_limit(fd: i32) -> Option<Instant> {
    let value = host::socket_option(fd, libc::SOL_SOCKET, libc::SO_SNDTIMEO).ok()?;
    let word = |i: usize| Some(u64::from_ne_bytes(*value.get(i..)?.first_chunk()?));
    let limit = Duration::from_secs(word(0)?) + Duration::from_micros(word(8)?);
    (!limit.is_zero()).then(|| Instant::now().checked_add(limit))?
}

impl Call<'_, '_> {
    /// Whether the descriptor is in non-blocking mode.
    pub(super) fn is_nonblocking(&self, fd: i32) -> Result<bool, Errno> {
        let flags = host::fcntl(fd, libc::F_GETFL, 0).map_err(|e| errno_of(&e))?;
        Ok(flags & libc::O_NONBLOCK != 0)
    }

    /// Receives from a stream socket: the bytes begin a request, or belong to the one that is running.
    pub(super) fn receive_stream(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        if self.state.files.is_poisoned(fd) {
            return Err(Errno::ECONNRESET);
        }
        let room = room_in(parts);
        if room == 0 {
            return Ok(0);
        }
        let peeks = flags & libc::MSG_PEEK != 0;
        let origin = Origin::Stream(fd);
        // More bytes of the same request, unless it has answered already. After an early commit they are
        // where a fault can be undone to.
        let goes_on = self.serves(origin);
        let is_open = |d: &Domain| !d.has_deferred() && d.committed_early.is_none();
        let continues = goes_on && self.state.domain.as_ref().is_some_and(is_open);
        if !continues && !peeks {
            self.commit()?;
        }
        // TCP drops the bytes then. They are received all the same, to be given again if the request runs again.
        let drops = flags & libc::MSG_TRUNC != 0 && host::is_tcp(fd);
        let keeps = flags & libc::MSG_TRUNC != 0 && self.state.files.keeps_records(fd);
        let flags = if keeps {
            flags
        } else {
            flags & !libc::MSG_TRUNC
        };
        let wait = self.waits(fd, flags)?;
        let mut bounce = self.take_bounce(self.receivable(fd, room));
        let received = self.receive_available(fd, &mut bounce, room, flags, wait, envelope);
        let result = match received.and_then(|n| self.unless_failed(fd, n)) {
            Ok(n) if self.refuses(fd, &bounce[..n], n as u64 == room) => Err(Errno::ECONNRESET),
            Ok(n) => {
                let into: &[GuestRange] = if drops { &[] } else { parts };
                self.deliver_stream(&bounce[..n], into, origin, peeks, envelope)
            }
            Err(error) => {
                // Nothing new, but what the server does next is still about this connection: it may have
                // more of it in its buffer.
                if goes_on && self.state.domain.is_none() && self.thread.restart.is_none() {
                    self.begin(origin)?;
                }
                Err(error)
            }
        };
        self.put_bounce(bounce);
        result
    }

    /// Receives all that is there, as far as there is room: a read of less than was asked for tells the server that it has
    /// read everything (epoll(7) on edge-triggered descriptors).
    fn receive_available(
        &mut self,
        fd: i32,
        bounce: &mut Vec<u8>,
        room: u64,
        flags: i32,
        wait: bool,
        envelope: &mut Envelope,
    ) -> Result<usize, Errno> {
        let mut len = self.receivable(fd, room);
        let mut total = self.receive(fd, &mut bounce[..len], flags, wait, envelope)?;
        let goes_on = total == len
            && (len as u64) < room
            && flags & libc::MSG_PEEK == 0
            && envelope.control.is_empty()
            && !self.state.files.keeps_records(fd);
        while goes_on && total == len {
            let more = host::bytes_to_read(fd) as u64;
            let more = more.min(room - len as u64) as usize;
            let more = more.min(RECEIVED_MOST.saturating_sub(len));
            if more == 0 {
                break;
            }
            len += more;
            if bounce.len() < len {
                bounce.resize(len, 0);
            }
            let mut next = Envelope::none();
            let flags = flags | libc::MSG_DONTWAIT;
            match self.receive(fd, &mut bounce[total..len], flags, false, &mut next) {
                Ok(n) if n > 0 => total += n,
                _ => break,
            }
        }
        Ok(total)
    }

    /// Whether the running domain is charged to `origin`.
    fn serves(&self, origin: Origin) -> bool {
        let domain = self.state.domain.as_ref();
        domain.is_some_and(|domain| domain.origin == origin)
    }

    /// Whether these bytes begin a request that is refused. One that runs again has been let through.
    fn refuses(&mut self, fd: i32, bytes: &[u8], filled: bool) -> bool {
        let origin = Origin::Stream(fd);
        !bytes.is_empty()
            && self.thread.pass_through != Some(origin)
            && !self.serves(origin)
            && self.thread.refuses(self.state, fd, bytes, filled)
    }

    fn deliver_stream(
        &mut self,
        bytes: &[u8],
        parts: &[GuestRange],
        origin: Origin,
        peeks: bool,
        envelope: &Envelope,
    ) -> Result<u64, Errno> {
        if !peeks {
            if !self.serves(origin) {
                self.begin(origin)?;
                let owing = origin.fd().is_some_and(|fd| self.state.files.is_owing(fd));
                if let Some(domain) = &mut self.state.domain {
                    domain.is_fresh = !owing;
                }
            }
            if let Some(domain) = &mut self.state.domain {
                domain.add_input(bytes);
                domain.keep_for_replay(bytes, envelope);
            }
            if let Some(fd) = origin.fd() {
                self.thread
                    .note_received(self.state, fd, parts, bytes.len() as u64);
            }
            self.thread.choose_target(self.state);
        }
        self.scatter(parts, bytes)?;
        Ok(bytes.len() as u64)
    }

    fn receive(
        &mut self,
        fd: i32,
        into: &mut [u8],
        flags: i32,
        wait: bool,
        envelope: &mut Envelope,
    ) -> Result<usize, Errno> {
        if let Some(GivenBack::Bytes(mut pieces)) = self.state.files.take_given_back(fd)
            && let Some(piece) = pieces.first_mut()
        {
            let n = piece.bytes.len().min(into.len());
            into[..n].copy_from_slice(&piece.bytes[..n]);
            *envelope = piece.envelope.clone();
            if flags & libc::MSG_PEEK == 0 {
                piece.bytes.drain(..n);
                piece.envelope.control.clear();
                if piece.bytes.is_empty() {
                    pieces.remove(0);
                }
            }
            if !pieces.is_empty() {
                self.state.files.give_back(fd, GivenBack::Bytes(pieces));
            }
            return Ok(n);
        }
        self.receive_into(fd, into, flags, wait, envelope)
    }

    /// Sends to a stream socket: held until the request has ended.
    pub(super) fn send_stream(
        &mut self,
        fd: i32,
        bytes: Vec<u8>,
        wait: bool,
    ) -> Result<u64, Errno> {
        let len = bytes.len();
        if self.state.files.is_poisoned(fd) {
            return Err(Errno::ECONNRESET);
        }
        let reader = self.state.files.reader(fd);
        if reader.is_some_and(|tid| tid != self.thread.tid()) {
            self.thread.note_handoff(self.state);
            self.thread.answers_for_others |= self.state.files.is_owing(fd);
        }
        if self.is_shut(fd) {
            return Err(Errno::EPIPE);
        }
        self.unless_gone(fd)?;
        if self.in_pass_through() {
            self.commit_early(Early::PassThrough)?;
        }
        self.await_room(fd, wait)?;
        if self.would_exceed_limit(len) {
            self.commit_early(Early::HoldLimit)?;
            // What has just been committed may fill the socket.
            self.await_room(fd, wait)?;
        }
        self.state.files.set_cut(fd, false);
        let Some(domain) = &mut self.state.domain else {
            return self.send_now(fd, &bytes, wait);
        };
        domain.held_bytes += len;
        match domain.journal.last_deferred() {
            Some(Deferred::Send {
                fd: last,
                bytes: held,
            }) if *last == fd => {
                held.extend_from_slice(&bytes);
            }
            _ => domain.journal.defer(Deferred::Send { fd, bytes }),
        }
        Ok(len as u64)
    }

    /// Whether so much more output has to be kept from being held.
    pub(super) fn would_exceed_limit(&self, len: usize) -> bool {
        let limit = self.thread.process.options.hold_limit;
        self.state
            .domain
            .as_ref()
            .is_some_and(|d| d.held_bytes.saturating_add(len) > limit)
    }

    /// Output that was committed before comes first: waits until the socket has taken it, or answers EAGAIN
    /// as the kernel does, whose event comes when there is room again.
    fn await_room(&mut self, fd: i32, wait: bool) -> Result<(), Errno> {
        let mut limit = None;
        let mut left = self.state.files.unsent(fd);
        while !self.state.files.flush(fd) {
            if !wait {
                self.state.files.set_cut(fd, true);
                return Err(Errno::EAGAIN);
            }
            let until = *limit.get_or_insert_with(|| send_limit(fd));
            let writable = self.await_writable(fd, until);
            let now = self.state.files.unsent(fd);
            if now < std::mem::replace(&mut left, now) {
                self.note_progress(fd);
            }
            if writable == Err(Errno::EAGAIN) {
                self.state.files.set_cut(fd, true);
            }
            writable?;
        }
        Ok(())
    }

    /// Waits until a socket has room; EAGAIN when the time is up that [`send_limit`] has told.
    pub(super) fn await_writable(&mut self, fd: i32, until: Option<Instant>) -> Result<(), Errno> {
        self.let_output_go()?;
        let mut entry = libc::pollfd {
            fd,
            events: libc::POLLOUT,
            revents: 0,
        };
        let rest = until.map(|until| until.saturating_duration_since(Instant::now()));
        let mut rest = rest.map(|rest| libc::timespec {
            tv_sec: rest.as_secs() as i64,
            tv_nsec: i64::from(rest.subsec_nanos()),
        });
        let limit = rest.as_mut().map_or(0, |rest| &raw mut *rest as u64);
        let args = [&raw mut entry as u64, 1, limit, 0, 8, 0];
        // SAFETY: one entry and the time, which are in the monitor; the mask is null.
        match unsafe { self.block(libc::SYS_ppoll, args, For::Midway) }? {
            0 => Err(Errno::EAGAIN),
            _ => Ok(()),
        }
    }

    /// A receive has returned `n`: at the end, a connection that has failed tells its error once more if a request that was
    /// undone has heard it.
    fn unless_failed(&mut self, fd: i32, n: usize) -> Result<usize, Errno> {
        match n {
            0 => self.state.files.take_error(fd).map_or(Ok(0), Err),
            n => Ok(n),
        }
    }

    /// The error that a send would get now, because the peer has gone or the guest has shut the connection down:
    /// output is not held for nobody.
    fn unless_gone(&mut self, fd: i32) -> Result<(), Errno> {
        let kept = self.state.files.take_error(fd);
        let error = match kept {
            None if self.in_domain() => self.state.files.send_error(fd),
            kept => kept,
        };
        let Some(error) = error else {
            return Ok(());
        };
        // The kernel tells it once.
        if error != Errno::EPIPE {
            self.compensate(Undo::SocketError { fd, error });
        }
        Err(error)
    }

    fn send_now(&mut self, fd: i32, bytes: &[u8], wait: bool) -> Result<u64, Errno> {
        self.state.files.note_sent(fd);
        let sent = match host::send(fd, bytes).map_err(|e| errno_of(&e)) {
            Err(Errno::EAGAIN) if wait => 0,
            Ok(n) if wait && n < bytes.len() => n,
            other => return other.map(|n| n as u64),
        };
        let rest = &bytes[sent..];
        let flags = libc::MSG_NOSIGNAL as u64;
        let args = [
            fd as u64,
            rest.as_ptr() as u64,
            rest.len() as u64,
            flags,
            0,
            0,
        ];
        // SAFETY: the bytes are a live slice of the monitor.
        let result = unsafe { self.block(libc::SYS_sendto, args, For::Midway) };
        self.with_part_done(sent as u64, result)
    }

    pub(super) fn read_ready(&mut self, fd: i32, into: &mut [u8]) -> Result<usize, Errno> {
        let args = [
            fd as u64,
            into.as_mut_ptr() as u64,
            into.len() as u64,
            0,
            0,
            0,
        ];
        if self.is_nonblocking(fd)? || host::is_readable(fd) {
            // SAFETY: the buffer is a live exclusive slice of the monitor.
            return unsafe { host::syscall(libc::SYS_read as u64, args) }.map(|n| n as usize);
        }
        // SAFETY: as above.
        unsafe { self.block(libc::SYS_read, args, For::Work) }.map(|n| n as usize)
    }

    /// Reads from a regular file, piece by piece: only what is really read becomes part of the write set.
    pub(super) fn read_file(&mut self, fd: i32, parts: &[GuestRange]) -> Result<u64, Errno> {
        if let Some(foretold) = self.foretold(fd)? {
            return self.read_foretold(fd, parts, None, &foretold);
        }
        self.note_offset(fd);
        let mut bounce = std::mem::take(&mut self.thread.bounce);
        let mut total = 0;
        let mut result = Ok(0);
        'parts: for part in parts {
            let mut at = part.start();
            while at < part.end() {
                let len = (part.end() - at).min(BOUNCE as u64);
                let args = [fd as u64, bounce.as_mut_ptr() as u64, len, 0, 0, 0];
                // SAFETY: the buffer has BOUNCE bytes and is the monitor's.
                let n = unsafe { host::syscall(libc::SYS_read as u64, args) };
                result = n.and_then(|n| self.write(at, &bounce[..n as usize]).map(|()| n));
                match result {
                    Ok(n) => {
                        total += n;
                        at += n;
                        if n < len {
                            break 'parts;
                        }
                    }
                    Err(_) => break 'parts,
                }
            }
        }
        self.thread.bounce = bounce;
        if total > 0 { Ok(total) } else { result }
    }

    /// Writes to a file, a pipe, a terminal or an eventfd: when the domain commits.
    pub(super) fn write_later(
        &mut self,
        fd: i32,
        bytes: Vec<u8>,
        offset: Option<u64>,
    ) -> Result<u64, Errno> {
        let len = bytes.len();
        // What the kernel would refuse is refused now.
        let flags = host::fcntl(fd, libc::F_GETFL, 0).map_err(|e| errno_of(&e))?;
        if flags & libc::O_ACCMODE == libc::O_RDONLY {
            return Err(Errno::EBADF);
        }
        if self.in_pass_through() {
            self.commit_early(Early::PassThrough)?;
        } else if self.would_exceed_limit(len) {
            self.commit_early(Early::HoldLimit)?;
        } else if self.in_domain()
            && (!self.can_foretell(fd, &bytes, offset) || self.is_mapped(fd, len, offset))
        {
            self.commit_early(Early::External)?;
        }
        let Some(domain) = &mut self.state.domain else {
            return match flags & libc::O_DIRECT {
                0 => self.write_now(fd, &bytes, offset),
                _ => self.write_now(fd, host::Aligned::copy(&bytes).bytes(), offset),
            };
        };
        domain.held_bytes += len;
        domain.journal.defer(Deferred::Write {
            fd,
            bytes,
            offset,
            appends: flags & libc::O_APPEND != 0,
        });
        if matches!(self.state.files.kind(fd), Kind::Pipe | Kind::Anonymous) {
            self.thread.note_handoff(self.state);
        }
        Ok(len as u64)
    }

    fn write_now(&mut self, fd: i32, bytes: &[u8], offset: Option<u64>) -> Result<u64, Errno> {
        self.state.note_file_write(fd);
        let (number, at) = match offset {
            Some(at) => (libc::SYS_pwrite64, at),
            None => (libc::SYS_write, 0),
        };
        let args = [
            fd as u64,
            bytes.as_ptr() as u64,
            bytes.len() as u64,
            at,
            0,
            0,
        ];
        // SAFETY: the bytes are a live slice of the monitor.
        unsafe { self.block(number, args, For::Midway) }
    }

    /// A call that would see the difference between a write that is deferred and one that is done makes
    /// the deferred ones real: this one looks at the file behind `fd`.
    pub(super) fn settle_writes(&mut self, fd: i32) -> Result<(), Errno> {
        let pending = self.pending_writes();
        if pending.is_empty() {
            return Ok(());
        }
        let file = host::identity(fd).ok();
        // What is written to one end of a pseudo-terminal is read from the other.
        let is_terminal = host::is_terminal(fd);
        let same = |to: &i32| {
            *to == fd || host::identity(*to).ok() == file || is_terminal && host::is_terminal(*to)
        };
        if pending.iter().any(same) {
            self.commit_early(Early::External)?;
        }
        Ok(())
    }

    /// Likewise, for a read from what is no file. The other end of a pipe has another number, but the same
    /// inode; an eventfd shares its inode with all others of its kind.
    pub(super) fn settle_event(&mut self, fd: i32) -> Result<(), Errno> {
        match self.state.files.kind(fd) {
            Kind::Anonymous if self.pending_writes().contains(&fd) => {
                self.commit_early(Early::External)
            }
            Kind::Anonymous => Ok(()),
            _ => self.settle_writes(fd),
        }
    }

    pub(super) fn has_pending_writes(&self) -> bool {
        !self.pending_writes().is_empty()
    }

    fn pending_writes(&self) -> Vec<i32> {
        let effects = self
            .state
            .domain
            .iter()
            .flat_map(|domain| domain.journal.deferred());
        effects
            .filter_map(|effect| match effect {
                Deferred::Write { fd, .. } => Some(*fd),
                _ => None,
            })
            .collect()
    }
}
