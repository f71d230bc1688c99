//! Redis.

use std::{io, time::Duration};

use super::{Attack, Keys, Target, Write, compare_keys, first_line, shared_key, shared_value};
use crate::{
    campaign::{
        healthy::{
            Clients,
            store::{Store, StoreClients},
        },
        plan::{CLASSES, Class},
        trial::{Failure, FailureKind},
    },
    load::Random,
    net::Address,
    redis::{Client, Reply, command, encode},
};

/// Debian's `redis-server`.
#[derive(Debug)]
pub struct Redis;

impl Target for Redis {
    fn name(&self) -> &'static str {
        "redis"
    }

    fn version(&self) -> String {
        first_line("redis-server", "--version")
    }

    fn command(&self, port: u16) -> Vec<String> {
        // Without recovery it would test its memory for seconds when it crashes.
        let no_memory_test = ["--crash-memcheck-enabled", "no"].map(str::to_owned);
        command(port).into_iter().chain(no_memory_test).collect()
    }

    fn symbols(&self) -> &'static [&'static str] {
        &[
            "processCommand",
            "call",
            "dictFind",
            "dictAddRaw",
            "addReply",
            "addReplyBulk",
            "sdsnewlen",
            "setKey",
            "createStringObject",
            "resetClient",
            "zmalloc_usable",
            "tryObjectEncoding",
        ]
    }

    /// Its allocator is jemalloc, whose chunks have no headers.
    fn classes(&self) -> Vec<Class> {
        let mut classes = CLASSES.to_vec();
        classes.retain(|class| class.name != "heap");
        classes
    }

    fn attack(&self, random: &mut Random, tag: &str, shared: (usize, u64)) -> Attack {
        let value = format!("{tag}-{}", "v".repeat(random.below(200) as usize)).into_bytes();
        let stored = |key: &str, value: Vec<u8>| {
            Some(Write {
                key: key.to_owned(),
                value,
                shared: None,
            })
        };
        let bulk =
            |value: &[u8]| [format!("${}\r\n", value.len()).as_bytes(), value, b"\r\n"].concat();
        let mut temporary = None;
        let (description, bytes, reply, write) = match random.below(7) {
            0 => {
                let key = shared_key(shared.0);
                let value = shared_value(shared.1);
                let bytes = [
                    encode(&["ECHO", tag]),
                    encode(&[b"SET", key.as_bytes(), &value]),
                ];
                let reply = [bulk(tag.as_bytes()), b"+OK\r\n".to_vec()].concat();
                let write = Write {
                    key,
                    value,
                    shared: Some(shared),
                };
                ("SET of a shared key", bytes.concat(), reply, Some(write))
            }
            1 => ("GET", encode(&["GET", tag]), b"$-1\r\n".to_vec(), None),
            2 => (
                "SET and GET",
                [
                    encode(&[b"SET", tag.as_bytes(), &value]),
                    encode(&["GET", tag]),
                ]
                .concat(),
                [b"+OK\r\n".to_vec(), bulk(&value)].concat(),
                stored(tag, value),
            ),
            3 => (
                "INCR and APPEND",
                [encode(&["INCR", tag]), encode(&["APPEND", tag, "0"])].concat(),
                b":1\r\n:2\r\n".to_vec(),
                stored(tag, b"10".to_vec()),
            ),
            4 => (
                "MULTI, SET, EXEC",
                [
                    encode(&["MULTI"]),
                    encode(&[b"SET", tag.as_bytes(), &value]),
                    encode(&["EXEC"]),
                ]
                .concat(),
                b"+OK\r\n+QUEUED\r\n*1\r\n+OK\r\n".to_vec(),
                stored(tag, value),
            ),
            5 => {
                let list = format!("list-{tag}");
                temporary = Some(list.clone());
                (
                    "LPUSH, LRANGE, DEL",
                    [
                        encode(&["LPUSH", &list, "a", "b", "c"]),
                        encode(&["LRANGE", &list, "0", "-1"]),
                        encode(&["DEL", &list]),
                    ]
                    .concat(),
                    b":3\r\n*3\r\n$1\r\nc\r\n$1\r\nb\r\n$1\r\na\r\n:1\r\n".to_vec(),
                    None,
                )
            }
            _ => (
                "SET",
                encode(&[b"SET", tag.as_bytes(), &value]),
                b"+OK\r\n".to_vec(),
                stored(tag, value),
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

    /// All keys; and the digest of the data set must be the same after it was saved and loaded again.
    fn check(
        &self,
        address: &Address,
        keys: &Keys,
        patience: Duration,
    ) -> io::Result<Vec<Failure>> {
        let mut client = Client::connect(address, patience)?;
        let Reply::Array(found) = client.call(&["KEYS", "*"])? else {
            return Err(io::ErrorKind::InvalidData.into());
        };
        let name = |reply: Reply| match reply {
            Reply::Bulk(name) => String::from_utf8_lossy(&name).into_owned(),
            other => format!("{other:?}"),
        };
        let found: Vec<String> = found.into_iter().map(name).collect();
        let mut failures: Vec<Failure> = compare_keys(&found, keys).into_iter().collect();
        let before = client.call(&["DEBUG", "DIGEST"])?;
        let reloaded = client.call(&["DEBUG", "RELOAD"])?;
        let after = client.call(&["DEBUG", "DIGEST"])?;
        if !reloaded.is_ok() || before != after {
            failures.push(Failure {
                kind: FailureKind::Inconsistent,
                detail: format!(
                    "DEBUG RELOAD: {reloaded:?}, digest {before:?} before, {after:?} after"
                ),
            });
        }
        Ok(failures)
    }
}

impl Store for Client {
    fn connect(address: &Address, patience: Duration) -> io::Result<Self> {
        Client::connect(address, patience)
    }

    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        match self.call(&["GET", key])? {
            Reply::Bulk(value) => Ok(Some(value)),
            Reply::Nil => Ok(None),
            other => Err(unexpected(&other)),
        }
    }

    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        match self.call(&[b"SET", key.as_bytes(), value])? {
            reply if reply.is_ok() => Ok(()),
            other => Err(unexpected(&other)),
        }
    }

    fn delete(&mut self, key: &str) -> io::Result<bool> {
        match self.call(&["DEL", key])? {
            Reply::Integer(count) if (0..2).contains(&count) => Ok(count == 1),
            other => Err(unexpected(&other)),
        }
    }
}

fn unexpected(reply: &Reply) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("unexpected: {reply:?}"))
}
