//! The demo server: sessions, whose commands take effect in the order in which they are sent.

use std::{
    collections::VecDeque,
    io::{self, BufRead, BufReader, Write as _},
    path::PathBuf,
    time::Duration,
};

use super::{Attack, Keys, Target, Write, shared_key, shared_value};
use crate::{
    campaign::{
        healthy::{
            Clients,
            store::{Store, StoreClients},
        },
        trial::{Failure, FailureKind},
    },
    guest::{self, BuildError},
    load::Random,
    net::{self, Address, Stream},
};

/// Worker threads.
const WORKERS: usize = 4;
/// Commands that a session remembers, and bytes of each.
const HISTORY: usize = 32;
const HISTORY_TEXT: usize = 64;

/// `tests/demo-server`.
#[derive(Debug)]
pub struct Demo {
    program: PathBuf,
}

impl Demo {
    /// Compiles it.
    pub fn new() -> Result<Demo, BuildError> {
        Ok(Demo {
            program: guest::server("demo-server")?,
        })
    }
}

impl Target for Demo {
    fn name(&self) -> &'static str {
        "demo"
    }

    fn version(&self) -> String {
        "demo-server".into()
    }

    fn command(&self, port: u16) -> Vec<String> {
        let program = self.program.display().to_string();
        let words = ["--port", &port.to_string(), "-t", &WORKERS.to_string()];
        std::iter::once(program)
            .chain(words.map(str::to_owned))
            .collect()
    }

    fn symbols(&self) -> &'static [&'static str] {
        &[
            "store_set",
            "store_get",
            "buffer_append",
            "hash_bytes",
            "malloc",
            "free",
            "send",
        ]
    }

    fn attack(&self, random: &mut Random, tag: &str, shared: (usize, u64)) -> Attack {
        let value = format!("{tag}-{}", "v".repeat(random.below(200) as usize));
        let login = format!("LOGIN {tag}\n");
        let hello = format!("+HELLO {tag}\n");
        let stored = |key: &str, value: &str| {
            Some(Write {
                key: key.to_owned(),
                value: value.as_bytes().to_vec(),
                shared: None,
            })
        };
        let (description, commands, replies, write) = match random.below(5) {
            0 => {
                let (key, value) = (shared_key(shared.0), shared_value(shared.1));
                let text = String::from_utf8_lossy(&value).into_owned();
                let commands = format!("SET {key} {text}\n");
                let write = Write {
                    key,
                    value,
                    shared: Some(shared),
                };
                (
                    "SET of a shared key",
                    commands,
                    "+OK\n".to_owned(),
                    Some(write),
                )
            }
            1 => ("GET", format!("GET {tag}\n"), "_\n".to_owned(), None),
            2 => (
                "SET and GET",
                format!("SET {tag} {value}\nGET {tag}\n"),
                format!("+OK\n${value}\n"),
                stored(tag, &value),
            ),
            3 => (
                "INCR and APPEND",
                format!("INCR {tag}\nAPPEND {tag} 0\n"),
                ":1\n:2\n".to_owned(),
                stored(tag, "10"),
            ),
            _ => (
                "SET",
                format!("SET {tag} {value}\n"),
                "+OK\n".to_owned(),
                stored(tag, &value),
            ),
        };
        Attack {
            description: format!("LOGIN, {description}"),
            bytes: (login + &commands).into_bytes(),
            reply: (hello + &replies).into_bytes(),
            write,
            temporary: None,
        }
    }

    fn clients(&self) -> Box<dyn Clients> {
        Box::new(StoreClients::<Client>::default())
    }

    /// It compares all of its structures with each other, and has as many entries as there are keys.
    fn check(
        &self,
        address: &Address,
        keys: &Keys,
        patience: Duration,
    ) -> io::Result<Vec<Failure>> {
        let mut client = Client::connect(address, patience)?;
        let said = client.call("CHECK")?;
        let entries = said
            .strip_prefix("+OK entries=")
            .and_then(|rest| rest.split(' ').next());
        let entries = entries.and_then(|entries| entries.parse::<usize>().ok());
        let least = keys.present.len();
        let expected = least..=least + keys.possible.len();
        Ok(match entries {
            Some(entries) if expected.contains(&entries) => Vec::new(),
            _ => vec![Failure {
                kind: FailureKind::Inconsistent,
                detail: format!("CHECK: {said}, with {expected:?} keys stored"),
            }],
        })
    }
}

/// A session with the server.
#[derive(Debug)]
struct Client {
    stream: BufReader<Stream>,
    history: VecDeque<String>,
}

impl Client {
    fn call(&mut self, line: &str) -> io::Result<String> {
        if self.history.len() == HISTORY {
            self.history.pop_front();
        }
        self.history
            .push_back(line.chars().take(HISTORY_TEXT).collect());
        self.stream
            .get_mut()
            .write_all(format!("{line}\n").as_bytes())?;
        self.line()
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 || !line.ends_with('\n') {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        line.pop();
        Ok(line)
    }
}

impl Store for Client {
    fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        let mut client = Client {
            stream: BufReader::new(net::connect_to(address, patience)?),
            history: VecDeque::new(),
        };
        match client.call("LOGIN healthy")?.as_str() {
            "+HELLO healthy" => Ok(client),
            other => Err(unexpected(other)),
        }
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        match self.call(&format!("GET {key}"))?.as_str() {
            "_" => Ok(None),
            reply => match reply.strip_prefix('$') {
                Some(value) => Ok(Some(value.as_bytes().to_vec())),
                None => Err(unexpected(reply)),
            },
        }
    }

    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let value = String::from_utf8_lossy(value);
        match self.call(&format!("SET {key} {value}"))?.as_str() {
            "+OK" => Ok(()),
            reply => Err(unexpected(reply)),
        }
    }

    fn delete(&mut self, key: &str) -> io::Result<bool> {
        match self.call(&format!("DEL {key}"))?.as_str() {
            ":0" => Ok(false),
            ":1" => Ok(true),
            reply => Err(unexpected(reply)),
        }
    }

    /// The session's own list of its last commands.
    fn check_order(&mut self) -> io::Result<Option<String>> {
        let head = self.call("HISTORY")?;
        let expected: Vec<String> = self.history.iter().cloned().collect();
        let Some(count) = head.strip_prefix('*').and_then(|n| n.parse::<usize>().ok()) else {
            return Err(unexpected(&head));
        };
        let mut found = Vec::new();
        for _ in 0..count.min(HISTORY * 2) {
            let line = self.line()?;
            found.push(line.strip_prefix('$').unwrap_or("?").to_owned());
        }
        let differs = found != expected;
        Ok(differs.then(|| format!("sent {expected:?}, the session has {found:?}")))
    }
}

fn unexpected(reply: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected: {reply:?}"))
}
