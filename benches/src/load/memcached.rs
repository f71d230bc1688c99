//! Clients of memcached: a few threads with a dozen connections each, and one request under way on
//! every connection at all times. Nine requests of ten are `get`, and every reply is checked.
//!
//! The client of the tests waits for each reply; here one thread has to wait for many connections
//! at once, so this speaks the text protocol itself, as far as to know each reply beforehand: all
//! clients store the same value under a key.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    os::fd::AsRawFd,
    thread,
    time::{Duration, Instant},
};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmsrs_tests::{interrupt, load::Random, memcached::Client, net};

use super::{Operation, Outcome};
use crate::{Error, server::PATIENCE, spread::quantile};

pub const DESCRIPTION: &str =
    "4 client threads with 12 connections each, 90 % get, 10 % set, values of 100 bytes";

const THREADS: usize = 4;
const CONNECTIONS: usize = 12;
const KEYS: usize = 1_000;
const VALUE_LENGTH: usize = 100;
const SETS_IN_TEN: u64 = 1;
const WARM_UP: Duration = Duration::from_millis(500);

pub fn run(port: u16, duration: Duration) -> Result<Outcome, Error> {
    let mut client = Client::connect(port, PATIENCE)?;
    for key in 0..KEYS {
        client.set(&name(key), &value(key))?;
    }
    let exchanges = Exchanges::new();
    let begin = Instant::now() + WARM_UP;
    let end = begin + duration;
    let tallies: Vec<io::Result<Tally>> = thread::scope(|scope| {
        let workers: Vec<_> = (0..THREADS)
            .map(|seed| {
                let exchanges = &exchanges;
                scope.spawn(move || work(port, seed as u64, exchanges, begin, end))
            })
            .collect();
        let panicked = |_| Err(io::Error::other("a client thread panicked"));
        workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_else(panicked))
            .collect()
    });
    interrupt::check()?;
    let (mut served, mut latencies) = (KEYS as u64, Vec::new());
    for tally in tallies {
        let tally = tally?;
        served += tally.served;
        latencies.extend(tally.latencies_us);
    }
    latencies.sort_unstable();
    let millis = |q: f64| quantile(&latencies, q).map(|us| f64::from(us) / 1e3);
    let (Some(p50_ms), Some(p99_ms)) = (millis(0.5), millis(0.99)) else {
        return Err("no request was answered in time".into());
    };
    let operation = Operation {
        name: "get/set".to_owned(),
        throughput: latencies.len() as f64 / duration.as_secs_f64(),
        p50_ms,
        p99_ms,
    };
    Ok(Outcome {
        operations: vec![operation],
        served,
    })
}

/// A request, and the only reply to it that is right.
struct Exchange {
    request: Vec<u8>,
    reply: Vec<u8>,
}

/// Of every key.
struct Exchanges {
    gets: Vec<Exchange>,
    sets: Vec<Exchange>,
}

impl Exchanges {
    fn new() -> Self {
        let get = |key| Exchange {
            request: format!("get {}\r\n", name(key)).into_bytes(),
            reply: [
                format!("VALUE {} 0 {VALUE_LENGTH}\r\n", name(key)).as_bytes(),
                &value(key),
                b"\r\nEND\r\n",
            ]
            .concat(),
        };
        let set = |key| Exchange {
            request: [
                format!("set {} 0 0 {VALUE_LENGTH}\r\n", name(key)).as_bytes(),
                &value(key),
                b"\r\n",
            ]
            .concat(),
            reply: b"STORED\r\n".to_vec(),
        };
        Self {
            gets: (0..KEYS).map(get).collect(),
            sets: (0..KEYS).map(set).collect(),
        }
    }

    fn pick(&self, random: &mut Random) -> &Exchange {
        let key = random.below(KEYS as u64) as usize;
        match random.below(10) < SETS_IN_TEN {
            true => &self.sets[key],
            false => &self.gets[key],
        }
    }
}

fn name(key: usize) -> String {
    format!("key:{key:06}")
}

fn value(key: usize) -> Vec<u8> {
    format!("{key:0VALUE_LENGTH$}").into_bytes()
}

#[derive(Default)]
struct Tally {
    /// All requests answered.
    served: u64,
    /// Of the requests that were answered between begin and end.
    latencies_us: Vec<u32>,
}

struct Connection<'a> {
    stream: TcpStream,
    awaited: Option<&'a Exchange>,
    got: usize,
    sent: Instant,
}

impl<'a> Connection<'a> {
    fn send(&mut self, exchange: &'a Exchange) -> io::Result<()> {
        self.sent = Instant::now();
        (self.awaited, self.got) = (Some(exchange), 0);
        self.stream.write_all(&exchange.request)
    }

    /// Reads what has come. True if the reply is complete.
    fn receive(&mut self) -> io::Result<bool> {
        let expected = self.awaited.map_or(&[][..], |exchange| &exchange.reply);
        let mut buffer = [0; 512];
        let n = self.stream.read(&mut buffer)?;
        if n == 0 {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "closed by memcached",
            ));
        }
        if !expected[self.got..].starts_with(&buffer[..n]) {
            let reply = String::from_utf8_lossy(&buffer[..n]);
            return Err(io::Error::other(format!("wrong reply: {reply:?}")));
        }
        self.got += n;
        Ok(self.got == expected.len())
    }
}

/// One client thread: keeps its connections busy until `end`, then awaits the last replies.
fn work(
    port: u16,
    seed: u64,
    exchanges: &Exchanges,
    begin: Instant,
    end: Instant,
) -> io::Result<Tally> {
    let mut random = Random::new(seed);
    let mut tally = Tally::default();
    let epoll = Epoll::new()?;
    let mut connections = Vec::new();
    for at in 0..CONNECTIONS {
        let stream = net::connect(port, PATIENCE)?;
        let event = EpollEvent::new(EventSet::IN, at as u64);
        epoll.ctl(ControlOperation::Add, stream.as_raw_fd(), event)?;
        let mut connection = Connection {
            stream,
            awaited: None,
            got: 0,
            sent: Instant::now(),
        };
        connection.send(exchanges.pick(&mut random))?;
        connections.push(connection);
    }
    let mut under_way = connections.len();
    let mut events = [EpollEvent::default(); CONNECTIONS];
    while under_way > 0 {
        let ready = match epoll.wait(PATIENCE.as_millis() as i32, &mut events) {
            Ok(0) => return Err(io::Error::new(io::ErrorKind::TimedOut, "no reply")),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            ready => ready?,
        };
        for event in &events[..ready] {
            let connection = &mut connections[event.data() as usize];
            if !connection.receive()? {
                continue;
            }
            let now = Instant::now();
            tally.served += 1;
            if now >= begin && now < end {
                let latency = now.duration_since(connection.sent).as_micros();
                tally
                    .latencies_us
                    .push(latency.try_into().unwrap_or(u32::MAX));
            }
            match now < end {
                true => connection.send(exchanges.pick(&mut random))?,
                false => under_way -= 1,
            }
        }
    }
    Ok(tally)
}

#[cfg(test)]
mod tests {
    use vmsrs_tests::{Launch, free_port, memcached};

    use super::*;

    #[test]
    fn the_native_server_gives_every_reply_as_expected() {
        let port = free_port().unwrap();
        let _server = Launch::native(memcached::command(port, 2))
            .start(port)
            .unwrap();
        let outcome = run(port, Duration::from_millis(100)).unwrap();
        let operation = &outcome.operations[0];
        assert!(operation.throughput > 0.0 && operation.p50_ms <= operation.p99_ms);
        assert!(outcome.served as f64 > operation.throughput / 10.0);
    }

    #[test]
    fn a_wrong_reply_is_an_error() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let stream = net::connect(listener.local_addr().unwrap().port(), PATIENCE).unwrap();
        let exchanges = Exchanges::new();
        let mut connection = Connection {
            stream,
            awaited: None,
            got: 0,
            sent: Instant::now(),
        };
        let (mut peer, _) = listener.accept().unwrap();
        connection.send(&exchanges.sets[0]).unwrap();
        peer.write_all(b"STOR").unwrap();
        assert!(!connection.receive().unwrap());
        peer.write_all(b"ED\r\n").unwrap();
        assert!(connection.receive().unwrap());
        connection.send(&exchanges.gets[0]).unwrap();
        peer.write_all(b"END\r\n").unwrap();
        assert!(
            connection
                .receive()
                .unwrap_err()
                .to_string()
                .contains("END")
        );
        drop(peer);
        assert!(connection.receive().is_err());
    }
}
