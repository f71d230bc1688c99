//! The orderly end of a connection whose request was abandoned.
//!
//! A reset throws away what the kernel has not sent yet, and with it replies of earlier requests that have
//! completed. So a reset waits until the peer has acknowledged them. An error reply, where one is configured,
//! comes after them; then the stream ends, and what the peer still sends is thrown away until it has ended its
//! side too: data that arrives at a closed socket would be answered with a reset, which may overtake the reply.
//!
//! None of that keeps the guest waiting. The monitor works on a descriptor of its own for the same socket, on
//! a thread that exists only while a connection is ending. The guest may close its descriptor meanwhile. Time
//! and number are bounded: a peer that does not answer is reset.

use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::host;
use crate::memory::kept_copy;

/// How long a connection may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// Connections that may be ending at the same time; past it the oldest is reset.
const MOST: usize = 256;
/// How often they are looked at. Nothing wakes up a waiter when a peer acknowledges.
const PERIOD: Duration = Duration::from_millis(5);
/// Bytes that a peer may still send after the error reply.
const DISCARD_LIMIT: usize = 16 << 20;
/// Bytes that are thrown away at a time.
const DISCARD_STEP: usize = 32 << 10;

/// What is still to be done for one connection.
#[derive(Debug)]
struct Ending {
    /// Not given to the kernel yet.
    unsent: Vec<u8>,
    /// The stream ends by itself, after an error reply; otherwise it is reset.
    in_order: bool,
    shut: bool,
    peer_has_ended: bool,
    discarded: usize,
    until: Instant,
}

impl Ending {
    /// Does what can be done at once. True if that was all, or there is no point in going on.
    fn step(&mut self, fd: i32, now: Instant) -> bool {
        self.step_or_fail(fd).unwrap_or(true) || now >= self.until
    }

    fn step_or_fail(&mut self, fd: i32) -> std::io::Result<bool> {
        while !self.unsent.is_empty() {
            match host::send(fd, &self.unsent) {
                Ok(n) => drop(self.unsent.drain(..n)),
                Err(e) => return later(e),
            }
        }
        if self.in_order && !self.shut {
            host::shutdown(fd, libc::SHUT_WR)?;
            self.shut = true;
        }
        if !is_tcp(fd) {
            // The peer of a local socket keeps what it was sent.
            return Ok(true);
        }
        if self.in_order && !self.peer_has_ended && !self.discard(fd)? {
            return Ok(false);
        }
        Ok(host::unacknowledged(fd)? == 0)
    }

    /// Throws away what the peer sends. True when it has ended its side.
    fn discard(&mut self, fd: i32) -> std::io::Result<bool> {
        let mut buffer = [0u8; 16 << 10];
        let enough = self.discarded + DISCARD_STEP;
        while self.discarded < enough {
            match host::receive(fd, &mut buffer, false) {
                Ok(0) => {
                    self.peer_has_ended = true;
                    return Ok(true);
                }
                Ok(n) => self.discarded += n,
                Err(e) => return later(e),
            }
            if self.discarded > DISCARD_LIMIT {
                return Err(std::io::ErrorKind::QuotaExceeded.into());
            }
        }
        Ok(false)
    }
}

/// Not yet, if that is all that is wrong.
fn later(error: std::io::Error) -> std::io::Result<bool> {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::Interrupted => Ok(false),
        _ => Err(error),
    }
}

fn is_tcp(fd: i32) -> bool {
    host::socket_number(fd, libc::SO_PROTOCOL).is_ok_and(|protocol| protocol == libc::IPPROTO_TCP)
}

/// The last act: from here on the guest's reads fail, and the peer gets a reset unless both sides have ended.
fn reset(fd: i32) {
    if host::abort_connection(fd).is_err() {
        // Not TCP: the peer sees the end of the stream.
        let _ = host::shutdown(fd, libc::SHUT_RDWR);
    }
}

/// The connections that are ending.
#[derive(Debug, Default)]
pub struct Endings {
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    ending: Vec<(OwnedFd, Ending)>,
    /// Whether there is a thread.
    running: bool,
}

impl Endings {
    /// Ends the connection `fd` after `unsent`, with `reply` or with a reset. It is over when this returns, or
    /// goes on in the background.
    pub fn end(self: &Arc<Self>, fd: i32, mut unsent: Vec<u8>, reply: Option<&[u8]>) {
        let now = Instant::now();
        unsent.extend_from_slice(reply.unwrap_or_default());
        let mut ending = Ending {
            unsent,
            in_order: reply.is_some(),
            shut: false,
            peer_has_ended: false,
            discarded: 0,
            until: now + PATIENCE,
        };
        if ending.step(fd, now) {
            return reset(fd);
        }
        match kept_copy(fd) {
            Ok(own) => self.add(own, ending),
            Err(error) => {
                log::debug!("a connection is reset at once: {error}");
                reset(fd);
            }
        }
    }

    fn add(self: &Arc<Self>, fd: OwnedFd, ending: Ending) {
        let mut state = self.lock();
        if state.ending.len() >= MOST {
            let (oldest, _) = state.ending.remove(0);
            reset(oldest.as_raw_fd());
        }
        state.ending.push((fd, ending));
        if state.running {
            return;
        }
        let own = Arc::clone(self);
        let started = host::with_signals_blocked(|| {
            std::thread::Builder::new()
                .name("vmsrs-ending".into())
                .spawn(move || own.run())
        });
        match started {
            Ok(_) => state.running = true,
            Err(error) => {
                log::error!("cannot start a thread: {error}");
                state
                    .ending
                    .drain(..)
                    .for_each(|(fd, _)| reset(fd.as_raw_fd()));
            }
        }
    }

    fn run(&self) {
        while self.step() {
            std::thread::sleep(PERIOD);
        }
    }

    /// Whether there is more to do; otherwise the thread has ended.
    fn step(&self) -> bool {
        let now = Instant::now();
        let mut state = self.lock();
        state.ending.retain_mut(|(fd, ending)| {
            let over = ending.step(fd.as_raw_fd(), now);
            if over {
                reset(fd.as_raw_fd());
            }
            !over
        });
        state.running = !state.ending.is_empty();
        state.running
    }

    /// The process is about to end: waits for the connections that are ending, at most `limit`.
    pub fn finish(&self, limit: Duration) {
        let until = Instant::now() + limit;
        while !self.lock().ending.is_empty() && Instant::now() < until {
            std::thread::sleep(PERIOD);
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{ErrorKind, Read, Write};
    use std::net::{TcpListener, TcpStream};
    use std::os::unix::net::UnixStream;

    fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        peer.set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        (listener.accept().unwrap().0, peer)
    }

    /// Output of which the kernel has taken only a part, and all that was to be sent.
    fn fill(own: &TcpStream) -> (Vec<u8>, Vec<u8>) {
        let all: Vec<u8> = (0..16u32 << 20).map(|i| (i / 7) as u8).collect();
        let n = host::send(own.as_raw_fd(), &all).unwrap();
        assert!(n < all.len());
        (all[n..].to_vec(), all)
    }

    #[test]
    fn earlier_output_comes_before_the_reset() {
        let (own, mut peer) = pair();
        let (unsent, all) = fill(&own);
        let endings = Arc::new(Endings::default());
        endings.end(own.as_raw_fd(), unsent, None);
        // The guest has closed it.
        drop(own);
        let mut got = vec![0; all.len()];
        peer.read_exact(&mut got).unwrap();
        assert!(got == all);
        let error = peer.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        endings.finish(Duration::from_secs(20));
        assert!(endings.lock().ending.is_empty());
    }

    #[test]
    fn nothing_unsent_is_reset_at_once() {
        let (own, mut peer) = pair();
        let endings = Arc::new(Endings::default());
        endings.end(own.as_raw_fd(), Vec::new(), None);
        assert!(!endings.lock().running);
        let error = peer.read(&mut [0; 1]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    }

    #[test]
    fn a_reply_arrives_although_the_peer_goes_on_sending() {
        let (own, mut peer) = pair();
        let (unsent, mut all) = fill(&own);
        // Input that nobody has read would turn a close into a reset.
        peer.write_all(&[b'x'; 1000]).unwrap();
        let endings = Arc::new(Endings::default());
        endings.end(own.as_raw_fd(), unsent, Some(b"sorry"));
        drop(own);
        let mut sender = peer.try_clone().unwrap();
        let sending = std::thread::spawn(move || {
            for _ in 0..100 {
                sender.write_all(&[b'y'; 10_000]).unwrap();
                std::thread::sleep(Duration::from_millis(1));
            }
        });
        all.extend_from_slice(b"sorry");
        let mut got = Vec::new();
        peer.read_to_end(&mut got).unwrap();
        assert!(got == all);
        sending.join().unwrap();
        drop(peer);
        endings.finish(Duration::from_secs(20));
        assert!(endings.lock().ending.is_empty());
    }

    #[test]
    fn a_local_peer_keeps_what_it_was_sent() {
        let (own, mut peer) = UnixStream::pair().unwrap();
        let endings = Arc::new(Endings::default());
        endings.end(own.as_raw_fd(), b"earlier ".to_vec(), Some(b"sorry"));
        let mut got = String::new();
        peer.read_to_string(&mut got).unwrap();
        assert_eq!(got, "earlier sorry");
    }

    #[test]
    fn no_more_than_so_many_wait() {
        let endings = Arc::new(Endings::default());
        let mut peers = Vec::new();
        for _ in 0..MOST + 3 {
            let (own, peer) = pair();
            // The peer does not end its side.
            endings.end(own.as_raw_fd(), Vec::new(), Some(b"sorry"));
            peers.push(peer);
        }
        assert_eq!(endings.lock().ending.len(), MOST);
        drop(peers);
        endings.finish(Duration::from_secs(20));
    }

    #[test]
    fn patience_ends() {
        let (own, _peer) = pair();
        let now = Instant::now();
        let mut ending = Ending {
            unsent: b"sorry".to_vec(),
            in_order: true,
            shut: false,
            peer_has_ended: false,
            discarded: 0,
            until: now + PATIENCE,
        };
        assert!(!ending.step(own.as_raw_fd(), now));
        assert!(ending.step(own.as_raw_fd(), now + PATIENCE));
    }
}
