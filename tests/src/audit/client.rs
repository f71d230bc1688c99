//! Connections to the guest.

use std::{
    fmt,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use super::{Model, sets};
use crate::{
    load::{HealthyClient, Random, Surprise},
    net::{self, Address},
};

/// Bytes of a request.
const RECORD: usize = 64;
/// Operations in a request of a healthy client, at most.
const OPERATIONS: u64 = 15;

/// How a request ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// With a reply.
    Reply,
    /// Without one: the next request follows.
    Nothing,
    /// With a crash, one of [`super::CRASHES`].
    Crash(&'static str),
}

/// A request: operations `0..count` of `seed`, drawn from the classes `sets`.
#[derive(Clone, Copy, Debug)]
pub struct Run {
    /// Decides what the operations do.
    pub seed: u64,
    /// How many.
    pub count: u32,
    /// Of which classes.
    pub sets: u32,
    /// And then.
    pub end: Ending,
}

impl fmt::Display for Run {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let end = match self.end {
            Ending::Reply => "reply",
            Ending::Nothing => "none",
            Ending::Crash(kind) => kind,
        };
        let Self {
            seed, count, sets, ..
        } = self;
        write!(f, "{seed} 0 {count} {sets} {end} -")
    }
}

/// A connection, and what the guest must hold for it.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<TcpStream>,
    model: Model,
}

impl Client {
    /// Connects to the guest. A reply that takes longer than `patience` is an error.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(net::connect(port, patience)?),
            model: Model::default(),
        })
    }

    /// Makes a request that is answered, and checks the answer.
    pub fn run(&mut self, run: Run) -> io::Result<()> {
        self.send(run)?;
        let reply = self.line()?;
        let expected = format!("ok {:016x} 0 -", self.model.sum());
        if reply == expected {
            Ok(())
        } else {
            let names = self.names(run)?;
            let message = format!("\"{reply}\" instead of \"{expected}\" to {run} ({names})");
            Err(io::Error::new(io::ErrorKind::InvalidData, message))
        }
    }

    /// Makes a request that is not answered.
    pub fn send(&mut self, run: Run) -> io::Result<()> {
        self.model.step(run.seed, run.count);
        self.record(&format!("RUN {run}"))
    }

    /// Makes a request that crashes. An error unless the connection is reset, without an answer.
    pub fn crash(mut self, run: Run) -> io::Result<()> {
        self.send(run)?;
        match self.stream.read(&mut [0; 16]) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
            Ok(n) => {
                let message = format!("{n} bytes instead of a reset");
                Err(io::Error::new(io::ErrorKind::InvalidData, message))
            }
        }
    }

    /// What the kernel knows of the guest.
    pub fn state(&mut self) -> io::Result<String> {
        self.record("STATE 0 0 0 0 - -")?;
        self.text()
    }

    /// The names of a request's operations.
    pub fn names(&mut self, run: Run) -> io::Result<String> {
        self.record(&format!("NAMES {run}"))?;
        self.text()
    }

    fn record(&mut self, text: &str) -> io::Result<()> {
        let record = format!("{text:<width$}\n", width = RECORD - 1);
        self.stream.get_mut().write_all(record.as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn text(&mut self) -> io::Result<String> {
        let len: usize = self.line()?.parse().map_err(io::Error::other)?;
        let mut text = vec![0; len];
        self.stream.read_exact(&mut text)?;
        Ok(String::from_utf8_lossy(&text).into_owned())
    }
}

/// A client that makes random requests that do not crash.
#[derive(Debug)]
pub struct Healthy(Client);

impl HealthyClient for Healthy {
    fn connect(address: &Address, _: usize, patience: Duration) -> Result<Self, Surprise> {
        match address {
            Address::Tcp(port) => Ok(Self(Client::connect(*port, patience)?)),
            Address::Unix(_) => Err("the random server speaks TCP".into()),
        }
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let run = Run {
            seed: random.below(u64::from(u32::MAX)),
            count: random.below(OPERATIONS) as u32,
            sets: sets::ALL,
            end: Ending::Reply,
        };
        Ok(self.0.run(run)?)
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        let nothing = Run {
            seed: 0,
            count: 0,
            sets: 0,
            end: Ending::Reply,
        };
        Ok(self.0.run(nothing)?)
    }
}

/// The lines that two states do not have in common; none if they are the same.
pub fn difference(before: &str, after: &str) -> Option<String> {
    if before == after {
        return None;
    }
    let lines = |text: &str, other: &str, sign: char| -> String {
        let other: Vec<&str> = other.lines().collect();
        text.lines()
            .filter(|line| !other.contains(line))
            .map(|line| format!("{sign} {line}\n"))
            .collect()
    };
    Some(lines(before, after, '-') + &lines(after, before, '+'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_what_the_guest_reads() {
        let run = Run {
            seed: 5,
            count: 3,
            sets: 7,
            end: Ending::Crash("null"),
        };
        assert_eq!(run.to_string(), "5 0 3 7 null -");
    }

    #[test]
    fn the_difference_names_the_lines() {
        assert_eq!(difference("a\nb\n", "a\nb\n"), None);
        assert_eq!(
            difference("a\nb\n", "a\nc\n").as_deref(),
            Some("- b\n+ c\n")
        );
    }
}
