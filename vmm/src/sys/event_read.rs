//! Reads from what is no file and no client's connection: pipes, socket pairs, eventfds, timerfds. Outside of a
//! request such a read is a wake-up by the server itself; inside of one, what was read is given back at
//! abandon. The read of what the thread was woken for together with a request ends that request.

use guest_agentless::{Errno, GuestRange};

use super::Call;
use super::io::room_in;
use crate::host::{self, Envelope};
use crate::process::domain::Early;
use crate::process::effects::{Deferred, Undo};
use crate::process::files::Kind;

/// How what a request reads is given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Source {
    /// The bytes are put back.
    Pipe,
    /// The bytes are looked at, and taken at the commit.
    Socket,
    /// The count is added again.
    Eventfd,
    /// The expirations are set again.
    Timerfd,
    /// Nothing is taken: `/dev/urandom` and the like.
    Endless,
    /// Not at all.
    Other,
}

fn source(fd: i32, kind: Kind) -> Source {
    if kind == Kind::Anonymous {
        let link = crate::host::handles::path_of(fd).unwrap_or_default();
        return match link.to_str() {
            Some("anon_inode:[eventfd]") => Source::Eventfd,
            Some("anon_inode:[timerfd]") => Source::Timerfd,
            _ => Source::Other,
        };
    }
    let Ok(mode) = host::mode(fd) else {
        return Source::Other;
    };
    match mode & libc::S_IFMT {
        libc::S_IFIFO => Source::Pipe,
        libc::S_IFSOCK => match host::socket_number(fd, libc::SO_TYPE) {
            Ok(libc::SOCK_STREAM) => Source::Socket,
            _ => Source::Other,
        },
        libc::S_IFCHR if host::is_memory_device(fd) => Source::Endless,
        _ => Source::Other,
    }
}

impl Call<'_, '_> {
    /// Reads; `flags` are those of `recv`.
    pub(super) fn read_event(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<u64, Errno> {
        let room = room_in(parts);
        if self.is_next_event(fd) {
            self.commit()?;
        }
        self.settle_event(fd)?;
        let source = match self.in_request() {
            true => source(fd, self.state.files.kind(fd)),
            false => Source::Other,
        };
        if source == Source::Other {
            match self.in_request() {
                true => self.commit_early(Early::External)?,
                false => self.commit()?,
            }
        }
        let len = self.receivable(fd, room);
        let mut bounce = self.take_bounce(len);
        let result = match (source, flags) {
            (Source::Socket, _) => self.look_at(fd, &mut bounce, len, flags, envelope),
            (_, 0) if envelope.room.is_none() => self.read_ready(fd, &mut bounce[..len]),
            _ => {
                let wait = self.waits(fd, flags)?;
                self.receive_into(fd, &mut bounce[..len], flags, wait, envelope)
            }
        };
        let done = result.and_then(|n| {
            // A wait has ended the request.
            if self.in_request() {
                self.note_taken(source, fd, &bounce[..n]);
            }
            // Taken even if it cannot be delivered.
            self.scatter(parts, &bounce[..n])?;
            Ok(n as u64)
        });
        self.put_bounce(bounce);
        done
    }

    /// Whether the thread has come to the next event of its loop: the wake-up that was about the connection of the
    /// running request was about `fd` too. What follows is no part of the request, and may be about other
    /// clients. What the thread has looked at in another request does not count.
    fn is_next_event(&mut self, fd: i32) -> bool {
        let domain = self.state.domain.as_ref();
        let (Some(request), Some(wakeup)) =
            (domain.and_then(|d| d.origin.fd()), &mut self.thread.wakeup)
        else {
            return false;
        };
        let files = &self.state.files;
        files.was_event(wakeup, request) && files.take_event(wakeup, fd)
    }

    fn note_taken(&mut self, source: Source, fd: i32, bytes: &[u8]) {
        let count = bytes.first_chunk().map(|count| u64::from_ne_bytes(*count));
        match (source, count) {
            (Source::Eventfd, Some(count)) => self.compensate(Undo::EventCount { fd, count }),
            (Source::Timerfd, Some(count)) => self.compensate(Undo::Expirations { fd, count }),
            (Source::Pipe, _) if !bytes.is_empty() => self.compensate(Undo::Unread {
                fd,
                bytes: bytes.to_vec(),
            }),
            _ => {}
        }
    }

    /// Reads up to `len` bytes from a stream socket without taking them, which is done at the commit. Descriptors
    /// that come with them are copies of those in the queue.
    fn look_at(
        &mut self,
        fd: i32,
        into: &mut [u8],
        len: usize,
        flags: i32,
        envelope: &mut Envelope,
    ) -> Result<usize, Errno> {
        let taken = self.looked_at(fd);
        let wait = self.waits(fd, flags)?;
        if taken == 0 {
            if host::peek_from(fd, 0).is_err() {
                self.commit_early(Early::External)?;
                return self.receive_into(fd, &mut into[..len], flags, wait, envelope);
            }
            self.compensate(Undo::PeekOffset { fd });
        }
        // As far as the kernel reads at once: up to the end of the next message that brings descriptors.
        let most = match envelope.room {
            None => len,
            Some(_) => into.len(),
        };
        let look = flags | libc::MSG_PEEK;
        let result = self.receive_into(fd, &mut into[..most], look, false, envelope);
        if result == Err(Errno::EAGAIN) && wait {
            // It waits for more: what it has looked at is taken by the commit.
            self.commit()?;
            return self.receive_into(fd, &mut into[..len], flags, wait, envelope);
        }
        let found = result?;
        let n = found.min(len);
        let brings = !envelope.descriptors().is_empty() || envelope.flags & libc::MSG_CTRUNC != 0;
        if brings && (found > len || found == into.len()) {
            // Whether they come with the first `len` bytes, or with a part of their own message, which would
            // show them again with the rest, only the kernel knows.
            envelope.drop_descriptors();
            self.commit_early(Early::External)?;
            return self.receive_into(fd, &mut into[..len], flags, wait, envelope);
        }
        let peeks = flags & libc::MSG_PEEK != 0;
        if peeks || n < found {
            let _ = host::peek_from(fd, if peeks { taken } else { taken + n } as i32);
        }
        if !peeks && n > 0 {
            self.defer(Deferred::Take { fd, len: n });
        }
        Ok(n)
    }

    /// Bytes that the domain has read from the socket and not taken yet.
    pub(super) fn looked_at(&self, fd: i32) -> usize {
        let effects = self
            .state
            .domain
            .iter()
            .flat_map(|domain| domain.journal.deferred());
        effects
            .filter_map(|effect| match effect {
                Deferred::Take { fd: of, len } if *of == fd => Some(*len),
                _ => None,
            })
            .sum()
    }
}
