//! Servers on glibc's heap, as guests: `tests/guest/heap-server`, which damages it on request, and the
//! demo server; with their clients.

use std::{
    collections::HashMap,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use crate::{
    load::{HealthyClient, Random, Surprise},
    net::{self, Address},
};

/// A connection over which lines go to and fro.
#[derive(Debug)]
pub struct Client(BufReader<TcpStream>);

impl Client {
    /// Connects; a reply that takes longer than `patience` is an error.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Self> {
        Ok(Self(BufReader::new(net::connect(port, patience)?)))
    }

    /// The client's own address: the peer in the events.
    pub fn address(&self) -> io::Result<SocketAddr> {
        self.0.get_ref().local_addr()
    }

    /// Sends a line and returns the reply's.
    pub fn ask(&mut self, request: &str) -> io::Result<String> {
        self.0
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())?;
        let mut line = String::new();
        if self.0.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        Ok(line.trim_end().to_owned())
    }

    fn expect(&mut self, request: &str, reply: &str) -> Result<(), Surprise> {
        match self.ask(request)? {
            found if found == reply => Ok(()),
            found => Err(format!("\"{found}\" instead of \"{reply}\" to {request}").into()),
        }
    }
}

fn port(address: &Address) -> Result<u16, Surprise> {
    match address {
        Address::Tcp(port) => Ok(*port),
        Address::Unix(_) => Err("the server speaks TCP".into()),
    }
}

/// Slots of one client of the heap server.
const SLOTS: u64 = 40;

/// A client of the heap server that damages nothing.
#[derive(Debug)]
pub struct Healthy {
    client: Client,
    first: u64,
}

impl HealthyClient for Healthy {
    fn connect(address: &Address, ident: usize, patience: Duration) -> Result<Self, Surprise> {
        let client = Client::connect(port(address)?, patience)?;
        let first = 100 + ident as u64 * SLOTS;
        Ok(Self { client, first })
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let slot = self.first + random.below(SLOTS);
        let request = match random.below(8) {
            0..3 => format!("set {slot} {}", 1 + random.below(600)),
            3 => format!("set {slot} {}", 1 + random.below(60_000)),
            4 => format!("del {slot}"),
            5 => format!("churn 0 {}", random.below(1 << 40)),
            _ => format!("get {slot}"),
        };
        self.client.expect(&request, "ok")
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        for slot in self.first..self.first + SLOTS {
            self.client.expect(&format!("get {slot}"), "ok")?;
        }
        Ok(())
    }
}

/// A client of the demo server, with a model of what it has stored.
#[derive(Debug)]
pub struct DemoUser {
    client: Client,
    ident: usize,
    model: HashMap<String, String>,
}

impl HealthyClient for DemoUser {
    fn connect(address: &Address, ident: usize, patience: Duration) -> Result<Self, Surprise> {
        let mut client = Client::connect(port(address)?, patience)?;
        client.expect(
            &format!("LOGIN user{ident}"),
            &format!("+HELLO user{ident}"),
        )?;
        Ok(Self {
            client,
            ident,
            model: HashMap::new(),
        })
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let key = format!("u{}:{}", self.ident, random.below(50));
        let text = "v".repeat(1 + random.below(700) as usize);
        match random.below(6) {
            0..2 => {
                self.client.expect(&format!("SET {key} {text}"), "+OK")?;
                self.model.insert(key, text);
            }
            2 => {
                let value = self.model.entry(key.clone()).or_default();
                value.push_str(&text);
                let reply = format!(":{}", value.len());
                self.client
                    .expect(&format!("APPEND {key} {text}"), &reply)?;
            }
            3 => {
                let reply = format!(":{}", i32::from(self.model.remove(&key).is_some()));
                self.client.expect(&format!("DEL {key}"), &reply)?;
            }
            _ => self.get(&key)?,
        }
        Ok(())
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        let keys: Vec<_> = self.model.keys().cloned().collect();
        keys.iter().try_for_each(|key| self.get(key))
    }
}

impl DemoUser {
    fn get(&mut self, key: &str) -> Result<(), Surprise> {
        let value = self.model.get(key);
        let reply = value.map_or_else(|| "_".to_owned(), |value| format!("${value}"));
        self.client.expect(&format!("GET {key}"), &reply)
    }
}
