//! A user: a connection with a session, the model of it, and the ordinary work done on it.

use std::thread;
use std::time::{Duration, Instant};

use super::client::{Client, Failure};
use super::model::{Command, Expected, Model};
use crate::rng::Rng;

/// An own key is appended to up to this length: replies beyond one packet and one socket buffer.
const LONG_VALUE: usize = 64 * 1024;

/// What a user has done so far.
#[derive(Debug, Clone, Copy, Default)]
pub struct Tally {
    /// Replies received and found right.
    pub replies: u64,
    /// The longest wait for the replies to one packet.
    pub slowest: Duration,
    /// Sessions begun.
    pub logins: u64,
}

/// One user of the server.
#[derive(Debug)]
pub struct User {
    /// What the server must know about the user.
    pub model: Model,
    /// The user's present connection.
    pub client: Client,
    /// What the user's choices are drawn from.
    pub rng: Rng,
    port: u16,
    /// What the user has done.
    pub tally: Tally,
}

impl User {
    /// Connects and logs in.
    pub fn connect(port: u16, name: &str, rng: Rng) -> Result<Self, Failure> {
        let (model, client) = (Model::new(name), Client::connect(port)?);
        let mut user = Self {
            model,
            client,
            rng,
            port,
            tally: Tally::default(),
        };
        user.log_in()?;
        Ok(user)
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        self.model.name()
    }

    /// A new connection in place of a lost one.
    pub fn reconnect(&mut self) -> Result<(), Failure> {
        self.client = Client::connect(self.port)?;
        self.log_in()
    }

    fn log_in(&mut self) -> Result<(), Failure> {
        let (line, expected) = self.model.log_in();
        self.tally.logins += 1;
        self.converse(&[line], &[expected])
    }

    /// Sends commands in one packet and compares every reply with the model.
    pub fn exchange(&mut self, commands: &[Command]) -> Result<(), Failure> {
        let lines: Vec<_> = commands
            .iter()
            .map(|command| self.model.line(command))
            .collect();
        let expected: Vec<_> = commands
            .iter()
            .map(|command| self.model.apply(command))
            .collect();
        self.converse(&lines, &expected)
    }

    fn converse(&mut self, lines: &[String], expected: &[Expected]) -> Result<(), Failure> {
        let packet = lines.join("\n") + "\n";
        let began = Instant::now();
        if packet.len() > 8 && self.rng.below(16) == 0 {
            // A command in two packets: the server has to put it together.
            let (head, tail) = packet.as_bytes().split_at(packet.len() / 2);
            self.client.send(head)?;
            thread::sleep(Duration::from_micros(100));
            self.client.send(tail)?;
        } else {
            self.client.send(packet.as_bytes())?;
        }
        for (line, expected) in lines.iter().zip(expected) {
            let reply = self.client.receive()?;
            self.model
                .accept(expected, &reply)
                .map_err(|wanted| Failure::wrong_reply(line, &wanted, &reply))?;
            self.tally.replies += 1;
        }
        self.tally.slowest = self.tally.slowest.max(began.elapsed());
        Ok(())
    }

    /// A few ordinary commands, chosen at random.
    pub fn work(&mut self) -> Result<(), Failure> {
        let count = 1 + self.rng.below(4);
        let commands: Vec<_> = (0..count).map(|_| self.random_command()).collect();
        self.exchange(&commands)
    }

    fn random_command(&mut self) -> Command {
        let name = self.model.name();
        let key = format!("{name}:k{}", self.rng.below(24));
        let number = format!("{name}:n{}", self.rng.below(3));
        let log = format!("{name}:log");
        match self.rng.below(32) {
            0..=8 => {
                let len = 1 + self.rng.below(100) as usize;
                Command::Set(key, self.rng.text(len))
            }
            9..=16 => Command::Get(key),
            17..=18 => Command::Del(key),
            19..=21 => Command::Incr(number),
            22..=24 => Command::IncrShared,
            25..=26 if self.model.value_len(&log) > LONG_VALUE => Command::Del(log),
            25..=26 => {
                let len = 1 + self.rng.below(4000) as usize;
                Command::Append(log, self.rng.text(len))
            }
            27 => Command::Get(log),
            28 => Command::Keys,
            29 => Command::History,
            _ => Command::WhoAmI,
        }
    }

    /// Reads back everything the server must know about the user.
    pub fn verify(&mut self) -> Result<(), Failure> {
        let gets: Vec<_> = self.model.keys().cloned().map(Command::Get).collect();
        for batch in gets.chunks(8) {
            self.exchange(batch)?;
        }
        self.exchange(&[Command::Keys, Command::History, Command::WhoAmI])
    }
}
