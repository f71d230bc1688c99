//! What the monitor knows of the guest's descriptors: their kind, poisoned connections, announced closes,
//! output that a peer has not taken yet, and interest lists.
//!
//! Guest descriptors are host descriptors of the same number. What the kernel can be asked for is not
//! kept here, so that it cannot drift.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use guest_agentless::Errno;
use recovery::Origin;
use recovery::handoff::Producer;

use super::domain::Delivered;
use super::ending::Endings;
use crate::host::{self, Envelope};
use crate::memory::kept_copy;

mod image;

pub use image::FilesRestored;

/// What a descriptor stands for, as far as recovery tells them apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A connected stream socket: a client, or a server that the guest is a client of.
    Stream,
    /// A stream socket that accepts connections or is not connected yet.
    Listening,
    /// A datagram socket.
    Datagram,
    /// A regular file or directory.
    File,
    /// A pipe, a socket pair, a terminal.
    Pipe,
    /// An eventfd, timerfd, signalfd, epoll or the like.
    Anonymous,
    /// Nothing is open there.
    Closed,
}

#[derive(Debug, Clone, Copy)]
struct Known {
    kind: Kind,
    poisoned: bool,
    closing: bool,
    /// The guest is the server on this connection.
    accepted: bool,
    /// The guest's last output found no room.
    cut: bool,
    /// See [`Files::is_owing`].
    owing: bool,
    /// The guest has shut the sending half down.
    shut: bool,
    /// What the next call on the socket fails with, since it was told to a request that was undone.
    error: Option<Errno>,
}

impl Known {
    fn new(kind: Kind) -> Known {
        Known {
            kind,
            poisoned: false,
            closing: false,
            accepted: false,
            cut: false,
            owing: false,
            shut: false,
            error: None,
        }
    }
}

/// What an origin call delivers again, because its domain runs again.
#[derive(Debug)]
pub enum GivenBack {
    /// Bytes of a stream, in the pieces in which they were received if something came with them.
    Bytes(Vec<Delivery>),
    /// An accepted connection.
    Connection {
        /// Its descriptor.
        fd: i32,
        /// The peer's address.
        peer: Vec<u8>,
    },
    /// Datagrams.
    Datagrams(VecDeque<Delivery>),
}

/// Bytes that were received, and what came with them.
#[derive(Debug, Clone)]
pub struct Delivery {
    /// The bytes, as many as there was room for.
    pub bytes: Vec<u8>,
    /// What came with them.
    pub envelope: Envelope,
}

impl GivenBack {
    /// Whether `fd` was received with it.
    pub fn brings(&self, fd: i32) -> bool {
        let brings = |delivery: &Delivery| {
            let mut descriptors = delivery.envelope.descriptors().into_iter();
            descriptors.any(|(_, number)| number == fd)
        };
        match self {
            GivenBack::Connection { fd: own, .. } => *own == fd,
            GivenBack::Bytes(pieces) => pieces.iter().any(brings),
            GivenBack::Datagrams(queue) => queue.iter().any(brings),
        }
    }
}

/// What `dup2` has replaced, to be put back.
pub struct Replaced {
    fd: i32,
    kept: OwnedFd,
    flags: i32,
    known: Option<Known>,
    connection: Option<Connection>,
    interests: Vec<((i32, i32), libc::epoll_event)>,
}

impl Replaced {
    /// The descriptor.
    pub fn fd(&self) -> i32 {
        self.fd
    }
}

/// Committed output that a peer has no room for yet.
#[derive(Default)]
struct Waiting {
    bytes: VecDeque<u8>,
    /// The guest has shut the connection down behind it.
    shutdown: Option<i32>,
    /// The guest has closed its descriptor: this one is closed when all is sent.
    _kept: Option<OwnedFd>,
}

impl Waiting {
    fn new(bytes: &[u8]) -> Waiting {
        Waiting {
            bytes: bytes.iter().copied().collect(),
            ..Waiting::default()
        }
    }
}

/// How long the end of the process waits for connections that are ending.
const LAST_CHANCE: Duration = Duration::from_millis(500);

/// The guest's descriptors.
#[derive(Default)]
pub struct Files {
    known: HashMap<i32, Known>,
    /// By member and epoll descriptor.
    interests: BTreeMap<(i32, i32), libc::epoll_event>,
    connections: HashMap<i32, Connection>,
    last_generation: u64,
    backlog: BTreeMap<i32, Waiting>,
    given_back: BTreeMap<i32, GivenBack>,
    endings: Arc<Endings>,
    serves: bool,
    /// Made since the image was taken.
    opened: BTreeSet<i32>,
    /// What a restart goes back to.
    image: Option<Box<image::FilesImage>>,
    image_lost: Option<String>,
}

/// What is known of a connection whose work may be handed from thread to thread.
struct Connection {
    generation: u64,
    peer: Option<String>,
    /// The thread (TID) that last read from it.
    reader: i32,
}

impl Files {
    /// Whether the peer finds what was sent to it in the same pieces.
    pub fn keeps_records(&self, fd: i32) -> bool {
        host::socket_number(fd, libc::SO_TYPE).is_ok_and(|kind| kind != libc::SOCK_STREAM)
    }

    /// What `fd` stands for.
    pub fn kind(&mut self, fd: i32) -> Kind {
        self.known(fd).map_or(Kind::Closed, |known| known.kind)
    }

    fn known(&mut self, fd: i32) -> Option<&mut Known> {
        use std::collections::hash_map::Entry;
        match self.known.entry(fd) {
            Entry::Occupied(entry) => Some(entry.into_mut()),
            Entry::Vacant(entry) => match probe(fd) {
                Kind::Closed => None,
                kind => Some(entry.insert(Known::new(kind))),
            },
        }
    }

    /// Says what `fd` stands for where the kernel does not know (a socket pair is a pipe).
    pub fn set_kind(&mut self, fd: i32, kind: Kind) {
        self.known.insert(fd, Known::new(kind));
    }

    /// A new connection, on which the guest is the server.
    pub fn accepted(&mut self, fd: i32) {
        self.forget(fd);
        // Also if the peer has reset it meanwhile, after which the kernel knows none.
        let known = Known {
            accepted: true,
            ..Known::new(Kind::Stream)
        };
        self.known.insert(fd, known);
    }

    /// A number for what is open at `fd` now, that nothing opened there later has.
    pub fn generation(&mut self, fd: i32) -> u64 {
        self.connection(fd).generation
    }

    /// The address of the peer.
    pub fn peer(&mut self, fd: i32) -> Option<String> {
        self.connection(fd).peer.clone()
    }

    /// The thread that reads from `fd`.
    pub fn set_reader(&mut self, fd: i32, tid: i32) {
        self.connection(fd).reader = tid;
    }

    /// The thread that has read from `fd`, if one has.
    pub fn reader(&self, fd: i32) -> Option<i32> {
        let reader = self.connections.get(&fd)?.reader;
        (reader != 0).then_some(reader)
    }

    /// Whether what is open at the descriptor is still the same connection.
    pub fn is_open(&self, producer: Producer) -> bool {
        let connection = producer
            .origin
            .fd()
            .and_then(|fd| self.connections.get(&fd));
        connection.is_some_and(|c| c.generation == producer.generation)
    }

    /// The connections that have been read from, by what the guest wants to be told with their events.
    pub fn by_event_data(&self) -> HashMap<u64, Producer> {
        let known = self.interests.iter().filter_map(|((fd, _), event)| {
            let producer = Producer {
                origin: Origin::Stream(*fd),
                generation: self
                    .connections
                    .get(fd)
                    .filter(|c| c.reader != 0)?
                    .generation,
            };
            Some((event.u64, producer))
        });
        known.collect()
    }

    fn connection(&mut self, fd: i32) -> &mut Connection {
        self.connections.entry(fd).or_insert_with(|| {
            self.last_generation += 1;
            Connection {
                generation: self.last_generation,
                peer: host::peer_name(fd),
                reader: 0,
            }
        })
    }

    /// The process has accepted a connection.
    pub fn set_serves(&mut self) {
        self.serves = true;
    }

    /// Whether the process is a server: it has accepted a connection, and can accept more. One that has closed its
    /// sockets for that is about to end.
    pub fn serves(&self) -> bool {
        let mut known = self.known.iter();
        let listens =
            |(fd, known): (&i32, &Known)| known.kind == Kind::Listening && host::is_listening(*fd);
        self.serves && known.any(listens)
    }

    /// The descriptor is new or has changed its meaning (`connect`, `listen`, `dup2`): look again.
    pub fn forget(&mut self, fd: i32) {
        self.connections.remove(&fd);
        self.known.remove(&fd);
        if self.image.is_some() {
            self.opened.insert(fd);
        }
    }

    /// Whether an abandoned request has poisoned the connection.
    pub fn is_poisoned(&self, fd: i32) -> bool {
        self.known.get(&fd).is_some_and(|known| known.poisoned)
    }

    /// Whether the running domain has closed the descriptor.
    pub fn is_closing(&self, fd: i32) -> bool {
        self.known.get(&fd).is_some_and(|known| known.closing)
    }

    /// Announces that the running domain closes `fd`, or takes that back.
    pub fn set_closing(&mut self, fd: i32, closing: bool) {
        if let Some(known) = self.known(fd) {
            known.closing = closing;
        }
    }

    /// Says whether the guest's last output to `fd` found no room.
    pub fn set_cut(&mut self, fd: i32, cut: bool) {
        if let Some(known) = self.known.get_mut(&fd).filter(|known| known.cut != cut) {
            known.cut = cut;
        }
    }

    /// A request on the connection has ended without any output to it.
    pub fn set_owing(&mut self, fd: i32) {
        if let Some(known) = self.known(fd) {
            known.owing = true;
        }
    }

    /// There was output to it.
    pub fn note_sent(&mut self, fd: i32) {
        if let Some(known) = self.known.get_mut(&fd) {
            known.owing = false;
        }
    }

    /// Whether nothing was sent on the connection since then.
    pub fn is_owing(&self, fd: i32) -> bool {
        self.known.get(&fd).is_some_and(|known| known.owing)
    }

    /// Whether an error reply would be the answer to a client's request: the guest is the server, and nothing
    /// of an earlier answer is left, as far as one can see from outside. A server that waits for room to send
    /// more has either found none, or asks for an event when there is.
    pub fn can_be_answered(&self, fd: i32) -> bool {
        const WAITS_FOR_ROOM: u32 = libc::EPOLLOUT as u32;
        const ALWAYS_ASKS: u32 = libc::EPOLLET as u32;
        let known = self.known.get(&fd);
        let shut = |waiting: &Waiting| waiting.shutdown.is_some();
        let waits = |event: &libc::epoll_event| {
            event.events & (WAITS_FOR_ROOM | ALWAYS_ASKS) == WAITS_FOR_ROOM
        };
        known.is_some_and(|known| known.accepted && !known.cut && !known.poisoned)
            && !self.backlog.get(&fd).is_some_and(shut)
            && !self
                .interests
                .range((fd, i32::MIN)..=(fd, i32::MAX))
                .any(|(_, event)| waits(event))
    }

    /// Makes the next origin call on `fd` deliver this.
    pub fn give_back(&mut self, fd: i32, given: GivenBack) {
        self.given_back.insert(fd, given);
    }

    /// Whether something was given back on `fd`.
    pub fn is_given_back(&self, fd: i32) -> bool {
        self.given_back.contains_key(&fd)
    }

    /// What was given back on `fd`.
    pub fn take_given_back(&mut self, fd: i32) -> Option<GivenBack> {
        self.given_back.remove(&fd)
    }

    /// Keeps what `fd` stands for, which is about to be replaced.
    pub fn replace(&mut self, fd: i32) -> io::Result<Replaced> {
        let flags = host::fcntl(fd, libc::F_GETFD, 0)?;
        let kept = kept_copy(fd)?;
        let mine = |(epoll, member): &(i32, i32)| *epoll == fd || *member == fd;
        let interests = self
            .interests
            .iter()
            .map(|(key, event)| (*key, *event))
            .filter(|(key, _)| mine(key))
            .collect();
        self.interests.retain(|key, _| !mine(key));
        let known = self.known.remove(&fd);
        let connection = self.connections.remove(&fd);
        // For a restart the number is not what it was.
        self.forget(fd);
        Ok(Replaced {
            fd,
            kept,
            flags,
            known,
            connection,
            interests,
        })
    }

    /// Undoes the replacement.
    pub fn put_back(&mut self, replaced: Replaced) -> io::Result<()> {
        let fd = replaced.fd;
        host::dup_to(&replaced.kept, fd, replaced.flags & libc::FD_CLOEXEC != 0)?;
        self.interests
            .retain(|(epoll, member), _| *epoll != fd && *member != fd);
        self.interests.extend(replaced.interests);
        match replaced.known {
            Some(known) => self.known.insert(fd, known),
            None => self.known.remove(&fd),
        };
        match replaced.connection {
            Some(connection) => self.connections.insert(fd, connection),
            None => self.connections.remove(&fd),
        };
        Ok(())
    }

    /// Closes `fd`, and forgets about it. Output that the peer has not taken yet is still sent.
    pub fn close(&mut self, fd: i32) {
        if self.is_poisoned(fd) {
            // The monitor may still have the socket open, see `Endings`.
            self.leave_interest_lists(fd);
        }
        if !self.flush(fd)
            && let Some(waiting) = self.backlog.remove(&fd)
            && let Ok(kept) = kept_copy(fd)
        {
            self.leave_interest_lists(fd);
            let number = kept.as_raw_fd();
            let _kept = Some(kept);
            self.backlog.insert(number, Waiting { _kept, ..waiting });
        }
        self.leave(fd);
        self.given_back.remove(&fd);
        self.connections.remove(&fd);
        self.known.remove(&fd);
        self.opened.remove(&fd);
        self.interests
            .retain(|(member, epoll), _| *epoll != fd && *member != fd);
        let _ = host::close(fd);
    }

    /// A copy of `fd` that stays open would keep its places.
    fn leave_interest_lists(&self, fd: i32) {
        for (_, epoll) in self.interests.keys().filter(|(member, _)| *member == fd) {
            let _ = epoll_ctl(*epoll, libc::EPOLL_CTL_DEL, fd, None);
        }
    }

    /// `shutdown`, after what is still to be sent.
    pub fn shutdown(&mut self, fd: i32, how: i32) {
        if self.is_poisoned(fd) {
            return;
        }
        self.flush(fd);
        if let Some(known) = self.known.get_mut(&fd) {
            known.shut |= how != libc::SHUT_RD;
        }
        match self.backlog.get_mut(&fd) {
            Some(waiting) if how != libc::SHUT_RD => waiting.shutdown = Some(how),
            _ => drop(host::shutdown(fd, how)),
        }
    }

    /// Resets the connection for good: the peer gets a reset after what was sent to it before, the guest's
    /// reads fail, the descriptor stays open until the guest closes it.
    pub fn reset(&mut self, fd: i32) {
        self.end(fd, None);
    }

    /// Likewise, with `reply` and the end of the stream in place of the reset, if there is one.
    pub fn end(&mut self, fd: i32, reply: Option<&[u8]>) {
        let unsent = self.backlog.remove(&fd).unwrap_or_default().bytes.into();
        match self.known(fd) {
            Some(known) if !known.poisoned => known.poisoned = true,
            _ => return,
        }
        self.endings.end(fd, unsent, reply);
    }

    /// The process is about to end: gives the connections that are ending a little time.
    pub fn finish_endings(&self) {
        self.endings.finish(LAST_CHANCE);
    }

    /// Sends committed output. What the socket has no room for is kept and sent later, in order.
    pub fn send(&mut self, fd: i32, bytes: Vec<u8>) {
        if self.is_poisoned(fd) {
            return;
        }
        self.note_sent(fd);
        match self.backlog.get_mut(&fd) {
            Some(waiting) => waiting.bytes.extend(bytes),
            None => match host::send(fd, &bytes) {
                Ok(n) if n == bytes.len() => return,
                Ok(n) => drop(self.backlog.insert(fd, Waiting::new(&bytes[n..]))),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    self.backlog.insert(fd, Waiting::new(&bytes));
                }
                // The connection has failed: the guest will find out on its next read or write.
                Err(_) => return,
            },
        }
        self.flush(fd);
    }

    /// Why a send on the stream socket would fail: the peer has gone, or the guest has shut it down. Connection
    /// errors are told once, as by the kernel.
    pub fn send_error(&mut self, fd: i32) -> Option<Errno> {
        if self.known.get(&fd).is_some_and(|known| known.shut) {
            return Some(Errno::EPIPE);
        }
        if !host::has_hung_up(fd) || self.keeps_records(fd) {
            return None;
        }
        // Without bytes a send does nothing but fail.
        let error = host::send(fd, &[]).err()?.raw_os_error()?;
        Some(Errno::from_raw(error)).filter(|error| *error != Errno::EAGAIN)
    }

    /// The error that `set_error` has left.
    pub fn take_error(&mut self, fd: i32) -> Option<Errno> {
        self.known.get_mut(&fd)?.error.take()
    }

    /// Makes the next call on the socket fail.
    pub fn set_error(&mut self, fd: i32, error: Errno) {
        if let Some(known) = self.known(fd) {
            known.error = Some(error);
        }
    }

    /// Bytes of committed output that the peer has not taken yet.
    pub fn unsent(&self, fd: i32) -> usize {
        self.backlog
            .get(&fd)
            .map_or(0, |waiting| waiting.bytes.len())
    }

    /// Sends what is waiting for `fd`, as far as the socket takes it. True if nothing is left.
    pub fn flush(&mut self, fd: i32) -> bool {
        let Some(waiting) = self.backlog.get_mut(&fd) else {
            return true;
        };
        while !waiting.bytes.is_empty() {
            match host::send(fd, waiting.bytes.as_slices().0) {
                Ok(n) => drop(waiting.bytes.drain(..n)),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => return false,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(_) => break,
            }
        }
        if let Some(how) = waiting.shutdown {
            let _ = host::shutdown(fd, how);
        }
        self.backlog.remove(&fd);
        true
    }

    /// The same descriptors in a forked child, whose parent sends what waits to be sent and ends what is ending. The child
    /// serves nobody until it accepts a connection itself.
    pub fn for_child(mut self) -> Files {
        // The monitor's descriptors in them are closed already, their numbers may be taken, and a lock may be
        // held by a thread that is not there.
        std::mem::forget(std::mem::take(&mut self.backlog));
        std::mem::forget(std::mem::take(&mut self.endings));
        self.given_back.clear();
        self.serves = false;
        self
    }

    /// Whether output waits for a peer to take it.
    pub fn has_waiting(&self) -> bool {
        !self.backlog.is_empty()
    }

    /// The descriptors with output that is still to be sent.
    pub fn waiting(&self) -> Vec<i32> {
        self.backlog.keys().copied().collect()
    }

    /// `epoll_ctl`; returns the interest as it was before.
    pub fn change_interest(
        &mut self,
        epoll: i32,
        operation: i32,
        fd: i32,
        event: Option<libc::epoll_event>,
    ) -> io::Result<Option<libc::epoll_event>> {
        epoll_ctl(epoll, operation, fd, event)?;
        Ok(match event {
            Some(event) if operation != libc::EPOLL_CTL_DEL => {
                self.interests.insert((fd, epoll), event)
            }
            _ => self.interests.remove(&(fd, epoll)),
        })
    }

    /// The connections that a wake-up was about.
    pub fn connections(&mut self, delivered: &Delivered) -> Vec<i32> {
        let fds: Vec<i32> = match delivered {
            Delivered::Descriptors(fds) => fds.clone(),
            Delivered::Events { epoll, data } => self
                .interests
                .iter()
                .filter(|((_, of), event)| of == epoll && data.contains(&{ event.u64 }))
                .map(|((fd, _), _)| *fd)
                .collect(),
        };
        fds.into_iter()
            .filter(|fd| self.kind(*fd) == Kind::Stream)
            .collect()
    }

    /// Whether a wake-up was about `fd`.
    pub fn was_event(&self, wakeup: &Delivered, fd: i32) -> bool {
        match wakeup {
            Delivered::Descriptors(fds) => fds.contains(&fd),
            Delivered::Events { epoll, data } => self
                .interests
                .get(&(fd, *epoll))
                .is_some_and(|event| data.contains(&{ event.u64 })),
        }
    }

    /// Likewise; the next time it is not.
    pub fn take_event(&self, wakeup: &mut Delivered, fd: i32) -> bool {
        match wakeup {
            Delivered::Descriptors(fds) => take_out(fds, fd),
            Delivered::Events { epoll, data } => self
                .interests
                .get(&(fd, *epoll))
                .is_some_and(|event| take_out(data, event.u64)),
        }
    }

    /// Puts the interest of `epoll` in `fd` back to `event`.
    pub fn restore_interest(
        &mut self,
        epoll: i32,
        fd: i32,
        event: Option<libc::epoll_event>,
    ) -> io::Result<()> {
        let present = self.interests.contains_key(&(fd, epoll));
        let operation = match (event, present) {
            (Some(_), true) => libc::EPOLL_CTL_MOD,
            (Some(_), false) => libc::EPOLL_CTL_ADD,
            (None, true) => libc::EPOLL_CTL_DEL,
            (None, false) => return Ok(()),
        };
        self.change_interest(epoll, operation, fd, event).map(drop)
    }
}

fn take_out<T: PartialEq>(from: &mut Vec<T>, item: T) -> bool {
    let position = from.iter().position(|other| *other == item);
    position.map(|at| from.swap_remove(at)).is_some()
}

fn epoll_ctl(
    epoll: i32,
    operation: i32,
    fd: i32,
    event: Option<libc::epoll_event>,
) -> io::Result<()> {
    let mut event = event.unwrap_or(libc::epoll_event { events: 0, u64: 0 });
    // SAFETY: `event` is valid for the call to read.
    match unsafe { libc::epoll_ctl(epoll, operation, fd, &mut event) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

fn probe(fd: i32) -> Kind {
    let Ok(mode) = host::mode(fd) else {
        return Kind::Closed;
    };
    match mode & libc::S_IFMT {
        libc::S_IFREG | libc::S_IFDIR | libc::S_IFBLK => Kind::File,
        libc::S_IFSOCK => match host::socket_number(fd, libc::SO_TYPE) {
            // A connection that its peer has reset has no peer any more, and can still be read.
            Ok(libc::SOCK_STREAM | libc::SOCK_SEQPACKET) => match host::is_listening(fd) {
                true => Kind::Listening,
                false => Kind::Stream,
            },
            _ => Kind::Datagram,
        },
        libc::S_IFIFO | libc::S_IFCHR => Kind::Pipe,
        _ => Kind::Anonymous,
    }
}
