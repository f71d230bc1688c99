//! Reads from what is no file and no client's connection: pipes, socket pairs, eventfds, timerfds. Outside of a
//! request such a read is a wake-up by the server itself; inside of one, what was read is given back at
//! abandon. The read of what the thread was woken for together with a request ends that request.

use guest_agentless::{Errno, GuestRange};

use super::wait::For;
use super::{BOUNCE, Call};
use crate::host;
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
        let link = std::fs::read_link(format!("/proc/self/fd/{fd}")).unwrap_or_default();
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
    ) -> Result<u64, Errno> {
        let room: u64 = parts.iter().map(|part| part.len()).sum();
        let len = room.min(BOUNCE as u64) as usize;
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
        let mut bounce = std::mem::take(&mut self.thread.bounce);
        let result = match (source, flags) {
            (Source::Socket, _) => self.look_at(fd, &mut bounce[..len], flags),
            (_, 0) => self.read_ready(fd, &mut bounce[..len]),
            _ => self.receive_event(fd, &mut bounce[..len], flags),
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
        self.thread.bounce = bounce;
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

    fn receive_event(&mut self, fd: i32, into: &mut [u8], flags: i32) -> Result<usize, Errno> {
        let args = [
            fd as u64,
            into.as_mut_ptr() as u64,
            into.len() as u64,
            flags as u64,
            0,
            0,
        ];
        let waits = flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        if !waits || host::is_readable(fd) {
            // SAFETY: the buffer is a live exclusive slice of the monitor.
            return unsafe { host::syscall(libc::SYS_recvfrom as u64, args) }.map(|n| n as usize);
        }
        // SAFETY: as above.
        unsafe { self.block(libc::SYS_recvfrom, args, For::Work) }.map(|n| n as usize)
    }

    /// Reads from a stream socket without taking the bytes, which are taken at the commit.
    fn look_at(&mut self, fd: i32, into: &mut [u8], flags: i32) -> Result<usize, Errno> {
        let taken = self.looked_at(fd);
        if taken == 0 {
            if host::peek_from(fd, 0).is_err() {
                self.commit_early(Early::External)?;
                return self.receive_event(fd, into, flags);
            }
            self.compensate(Undo::PeekOffset { fd });
        }
        let look = flags | libc::MSG_PEEK | libc::MSG_DONTWAIT;
        let result = self.receive_event(fd, into, look);
        let waits = flags & libc::MSG_DONTWAIT == 0 && !self.is_nonblocking(fd)?;
        if result == Err(Errno::EAGAIN) && waits {
            // It waits for more: what it has looked at is taken by the commit.
            self.commit()?;
            return self.receive_event(fd, into, flags);
        }
        let n = result?;
        if flags & libc::MSG_PEEK != 0 {
            let _ = host::peek_from(fd, taken as i32);
        } else if n > 0 {
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
