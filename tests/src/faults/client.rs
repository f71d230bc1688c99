//! Connections to the fault server.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::{
    load::{HealthyClient, Random, Surprise},
    net::{self, Address},
};

/// A connection.
#[derive(Debug)]
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects to the server. A reply that takes longer than `patience` is an error.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Self> {
        Ok(Self(BufReader::new(net::connect(port, patience)?)))
    }

    /// Makes a request and returns the one line that answers it.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.send(request)?;
        self.line()
    }

    /// What a fault must leave as it was.
    pub fn state(&mut self) -> io::Result<String> {
        self.send("state")?;
        let mut state = String::new();
        loop {
            match self.line()? {
                end if end == "." => return Ok(state),
                line => state = state + &line + "\n",
            }
        }
    }

    /// Sends a request and returns what comes back until the connection is reset. That it is not is an
    /// error.
    pub fn until_reset(mut self, request: &str) -> io::Result<String> {
        self.send(request)?;
        let mut answer = String::new();
        match self.0.read_to_string(&mut answer) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(answer),
            Err(error) => Err(error),
            Ok(_) => Err(io::Error::other(format!(
                "the connection ended without a reset after {answer:?}"
            ))),
        }
    }

    fn send(&mut self, request: &str) -> io::Result<()> {
        self.0
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        match line.pop() {
            Some('\n') => Ok(line),
            _ => Err(io::ErrorKind::UnexpectedEof.into()),
        }
    }
}

/// A client that adds numbers, and knows their sum.
#[derive(Debug)]
pub struct Healthy {
    client: Client,
    count: u64,
    sum: u64,
}

impl Healthy {
    fn add(&mut self, number: u64) -> Result<(), Surprise> {
        let answer = self.client.ask(&format!("add {number}"))?;
        self.count += 1;
        self.sum = self.sum.wrapping_add(number);
        let expected = format!("sum {} {}", self.count, self.sum);
        match answer == expected {
            true => Ok(()),
            false => Err(format!("{answer:?} instead of {expected:?}").into()),
        }
    }
}

impl HealthyClient for Healthy {
    fn connect(address: &Address, _: usize, patience: Duration) -> Result<Self, Surprise> {
        match address {
            Address::Tcp(port) => Ok(Self {
                client: Client::connect(*port, patience)?,
                count: 0,
                sum: 0,
            }),
            Address::Unix(_) => Err("the fault server speaks TCP".into()),
        }
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        self.add(random.below(1 << 40))
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        self.add(0)
    }
}
