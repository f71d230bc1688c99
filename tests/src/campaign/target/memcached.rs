//! memcached.

use std::{io, thread, time::Duration};

use super::{Attack, Keys, Target, Write, compare_keys, first_line, shared_key, shared_value};
use crate::{
    campaign::{
        healthy::{
            Clients,
            store::{Store, StoreClients},
        },
        trial::{Failure, FailureKind},
    },
    load::Random,
    memcached::{Client, command},
    net::Address,
};

/// Worker threads.
const THREADS: usize = 4;
/// Walks after the first, and the time between two.
const WALKS: usize = 5;
const BETWEEN_WALKS: Duration = Duration::from_millis(60);

/// Debian's `memcached`.
#[derive(Debug)]
pub struct Memcached;

impl Target for Memcached {
    fn name(&self) -> &'static str {
        "memcached"
    }

    fn version(&self) -> String {
        first_line("memcached", "--version")
    }

    fn command(&self, port: u16) -> Vec<String> {
        command(port, THREADS)
    }

    /// It is stripped, so that only functions of its libraries have names.
    fn symbols(&self) -> &'static [&'static str] {
        &[
            "pthread_mutex_lock",
            "pthread_mutex_unlock",
            "sendmsg",
            "event_active",
        ]
    }

    fn attack(&self, random: &mut Random, tag: &str, shared: (usize, u64)) -> Attack {
        let value = format!("{tag}-{}", "v".repeat(random.below(200) as usize)).into_bytes();
        let set = |key: &str, value: &[u8]| {
            let head = format!("set {key} 0 0 {}\r\n", value.len());
            [head.as_bytes(), value, b"\r\n"].concat()
        };
        let got = |key: &str, value: &[u8]| {
            let head = format!("VALUE {key} 0 {}\r\n", value.len());
            [head.as_bytes(), value, b"\r\nEND\r\n"].concat()
        };
        let get = |key: &str| format!("get {key}\r\n").into_bytes();
        let stored = |key: &str, value: &[u8]| {
            Some(Write {
                key: key.to_owned(),
                value: value.to_vec(),
                shared: None,
            })
        };
        let mut temporary = None;
        let (description, bytes, reply, write) = match random.below(6) {
            0 => {
                let (key, value) = (shared_key(shared.0), shared_value(shared.1));
                let write = Write {
                    key: key.clone(),
                    value: value.clone(),
                    shared: Some(shared),
                };
                (
                    "set of a shared key",
                    [get(tag), set(&key, &value)].concat(),
                    b"END\r\nSTORED\r\n".to_vec(),
                    Some(write),
                )
            }
            1 => ("get", get(tag), b"END\r\n".to_vec(), None),
            2 => (
                "set and get",
                [set(tag, &value), get(tag)].concat(),
                [b"STORED\r\n".to_vec(), got(tag, &value)].concat(),
                stored(tag, &value),
            ),
            3 => (
                "set, incr and append",
                [
                    set(tag, b"7"),
                    format!("incr {tag} 1\r\nappend {tag} 0 0 1\r\n0\r\n").into_bytes(),
                ]
                .concat(),
                b"STORED\r\n8\r\nSTORED\r\n".to_vec(),
                stored(tag, b"80"),
            ),
            4 => {
                temporary = Some(tag.to_owned());
                (
                    "set, get and delete",
                    [
                        set(tag, &value),
                        get(tag),
                        format!("delete {tag}\r\n").into_bytes(),
                    ]
                    .concat(),
                    [
                        b"STORED\r\n".to_vec(),
                        got(tag, &value),
                        b"DELETED\r\n".to_vec(),
                    ]
                    .concat(),
                    None,
                )
            }
            _ => (
                "set",
                set(tag, &value),
                b"STORED\r\n".to_vec(),
                stored(tag, &value),
            ),
        };
        Attack {
            description: description.to_owned(),
            bytes,
            reply,
            write,
            temporary,
        }
    }

    fn clients(&self) -> Box<dyn Clients> {
        Box::new(StoreClients::<Client>::default())
    }

    /// The keys that its LRU lists hold, and how many items it counts. It moves items from list to list all the time, so
    /// that a walk may miss some: what is missing once and not the next time is not.
    fn check(
        &self,
        address: &Address,
        keys: &Keys,
        patience: Duration,
    ) -> io::Result<Vec<Failure>> {
        let mut client = Client::connect(address, patience)?;
        let mut failures = walk(&mut client, keys)?;
        for _ in 0..WALKS {
            if failures.is_empty() {
                break;
            }
            thread::sleep(BETWEEN_WALKS);
            failures = walk(&mut client, keys)?;
        }
        Ok(failures)
    }
}

fn walk(client: &mut Client, keys: &Keys) -> io::Result<Vec<Failure>> {
    let found = client.keys()?;
    let mut failures: Vec<Failure> = compare_keys(&found, keys).into_iter().collect();
    let items = client.stats()?.remove("curr_items");
    if items.as_deref() != Some(found.len().to_string().as_str()) {
        failures.push(Failure {
            kind: FailureKind::Inconsistent,
            detail: format!(
                "curr_items is {items:?}, the lists hold {} items",
                found.len()
            ),
        });
    }
    Ok(failures)
}

impl Store for Client {
    fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        Client::connect(address, patience)
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        Client::get(self, key)
    }

    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        Client::set(self, key, value)
    }

    fn delete(&mut self, key: &str) -> io::Result<bool> {
        Client::delete(self, key)
    }
}
