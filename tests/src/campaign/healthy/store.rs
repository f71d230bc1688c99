//! A client of a store: keys of its own, whose values it knows, and keys that all clients share, whose history the
//! oracle judges.

use std::{
    collections::{HashMap, HashSet},
    io,
    marker::PhantomData,
    time::{Duration, Instant},
};

use super::{Clients, Healthy, failure_of};
use crate::{
    campaign::{
        SHARED_KEYS,
        target::{shared_key, shared_value, version_of},
        trial::{Failure, FailureKind},
    },
    load::Random,
    net::Address,
    oracle::{Fate, Log, Recorder},
};

/// Keys of each client.
const KEYS: u64 = 60;
const LONGEST_VALUE: u64 = 300;

/// A connection to a store.
pub trait Store: Send + Sized {
    /// Connects; whatever takes longer than `patience` is an error.
    fn connect(address: &Address, patience: Duration) -> io::Result<Self>;
    /// The value of a key.
    fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>>;
    /// Stores a value.
    fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()>;
    /// Removes a key; whether it was there.
    fn delete(&mut self, key: &str) -> io::Result<bool>;
    /// What is wrong with the order of the requests of this connection, where the server can be asked.
    fn check_order(&mut self) -> io::Result<Option<String>> {
        Ok(None)
    }
}

/// Clients of a store that is spoken to by `S`.
pub struct StoreClients<S>(PhantomData<S>);

impl<S> Default for StoreClients<S> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<S: Store + 'static> Clients for StoreClients<S> {
    fn healthy(
        &self,
        address: &Address,
        ident: usize,
        patience: Duration,
        recorder: &Recorder,
    ) -> Box<dyn Healthy> {
        let log = recorder.log();
        Box::new(StoreClient::<S>::new(address, ident, patience, log))
    }

    fn value(
        &self,
        address: &Address,
        key: &str,
        patience: Duration,
    ) -> io::Result<Option<Vec<u8>>> {
        S::connect(address, patience)?.get(key)
    }
}

/// The client and its model.
pub struct StoreClient<S> {
    address: Address,
    ident: usize,
    patience: Duration,
    store: Option<S>,
    serial: u64,
    /// Values that were acknowledged.
    model: HashMap<String, Vec<u8>>,
    /// Keys of whose last request nothing is known.
    unknown: HashSet<String>,
    log: Log,
}

impl<S: Store> StoreClient<S> {
    /// A client that is not connected yet. No other has the same `ident`.
    pub fn new(address: &Address, ident: usize, patience: Duration, log: Log) -> Self {
        Self {
            address: address.clone(),
            ident,
            patience,
            store: None,
            serial: 0,
            model: HashMap::new(),
            unknown: HashSet::new(),
            log,
        }
    }

    /// Sends a request; the connection is given up if it fails.
    fn ask<T>(
        &mut self,
        what: &str,
        request: impl FnOnce(&mut S) -> io::Result<T>,
    ) -> Result<T, Failure> {
        let ident = self.ident;
        let connected = match self.store.take() {
            Some(store) => Ok(store),
            None => S::connect(&self.address, self.patience),
        };
        let done = connected.and_then(|mut store| {
            let result = request(&mut store)?;
            Ok((result, store))
        });
        match done {
            Ok((result, store)) => {
                self.store = Some(store);
                Ok(result)
            }
            Err(error) => Err(failure_of(&format!("client {ident}, {what}"), &error)),
        }
    }

    fn own_key(&self, random: &mut Random) -> String {
        format!("u{}:{}", self.ident, random.below(KEYS))
    }

    fn set_own(&mut self, random: &mut Random) -> Result<(), Failure> {
        let key = self.own_key(random);
        self.serial += 1;
        let padding = "x".repeat(random.below(LONGEST_VALUE) as usize);
        let value = format!("{key}-{}-{padding}", self.serial).into_bytes();
        match self.ask(&format!("set {key}"), |store| store.set(&key, &value)) {
            Ok(()) => {
                self.unknown.remove(&key);
                self.model.insert(key, value);
                Ok(())
            }
            Err(failure) => {
                self.unknown.insert(key);
                Err(failure)
            }
        }
    }

    fn delete_own(&mut self, random: &mut Random) -> Result<(), Failure> {
        let key = self.own_key(random);
        let was_known = !self.unknown.contains(&key);
        match self.ask(&format!("delete {key}"), |store| store.delete(&key)) {
            Ok(found) => {
                self.unknown.remove(&key);
                let expected = self.model.remove(&key).is_some();
                match found == expected || !was_known {
                    true => Ok(()),
                    false if expected => Err(Failure {
                        kind: FailureKind::LostWrite,
                        detail: format!("client {}, delete {key}: it is not there", self.ident),
                    }),
                    false => Err(Failure {
                        kind: FailureKind::StaleValue,
                        detail: format!("client {}, delete {key}: it is there", self.ident),
                    }),
                }
            }
            Err(failure) => {
                self.unknown.insert(key);
                Err(failure)
            }
        }
    }

    fn check_own(&mut self, key: &str) -> Result<(), Failure> {
        let found = self.ask(&format!("get {key}"), |store| store.get(key))?;
        if self.unknown.remove(key) {
            // Whatever it is, from now on it stays so.
            match found {
                Some(value) => self.model.insert(key.to_owned(), value),
                None => self.model.remove(key),
            };
            return Ok(());
        }
        let expected = self.model.get(key);
        match difference(key, found.as_deref(), expected.map(Vec::as_slice)) {
            None => Ok(()),
            Some(kind) => {
                let text = |value: Option<&[u8]>| {
                    value.map(|value| String::from_utf8_lossy(value).into_owned())
                };
                let detail = format!(
                    "client {}, get {key}: {:?} instead of {:?}",
                    self.ident,
                    text(found.as_deref()),
                    text(expected.map(Vec::as_slice)),
                );
                // Told once.
                self.unknown.insert(key.to_owned());
                Err(Failure { kind, detail })
            }
        }
    }

    fn read_shared(&mut self, number: usize) -> Result<(), Failure> {
        let key = shared_key(number);
        let begin = Instant::now();
        let found = self.ask(&format!("get {key}"), |store| store.get(&key))?;
        let version = match &found {
            None => None,
            Some(value) => Some(version_of(value).ok_or_else(|| Failure {
                kind: FailureKind::WrongValue,
                detail: format!("{key}: {:?}", String::from_utf8_lossy(value)),
            })?),
        };
        self.log.read(number, version, begin);
        Ok(())
    }

    fn write_shared(&mut self, number: usize) -> Result<(), Failure> {
        self.serial += 1;
        let version = (self.ident as u64 + 1) << 32 | self.serial;
        let key = shared_key(number);
        let begin = Instant::now();
        let done = self.ask(&format!("set {key}"), |store| {
            store.set(&key, &shared_value(version))
        });
        let fate = match done {
            Ok(()) => Fate::Acknowledged,
            Err(_) => Fate::Unknown,
        };
        self.log.write(number, version, fate, begin);
        done
    }
}

impl<S: Store> Healthy for StoreClient<S> {
    fn step(&mut self, random: &mut Random) -> Result<(), Failure> {
        let shared = random.below(SHARED_KEYS as u64) as usize;
        match random.below(20) {
            0..7 => self.set_own(random),
            7..9 => self.delete_own(random),
            9..15 => {
                let key = self.own_key(random);
                self.check_own(&key)
            }
            15..18 => self.read_shared(shared),
            18 => self.write_shared(shared),
            _ => match self.ask("order", Store::check_order)? {
                None => Ok(()),
                Some(detail) => Err(Failure {
                    kind: FailureKind::BrokenOrder,
                    detail: format!("client {}: {detail}", self.ident),
                }),
            },
        }
    }

    fn check_all(&mut self) -> Vec<Failure> {
        let all: Vec<String> = self.model.keys().cloned().collect();
        let check = |key: &String| self.check_own(key).err();
        let mut failures: Vec<Failure> = all.iter().filter_map(check).take(4).collect();
        let shared = (0..SHARED_KEYS).filter_map(|number| self.read_shared(number).err());
        failures.extend(shared);
        failures
    }

    fn keys(&self) -> (Vec<String>, Vec<String>) {
        let known = self.model.keys().filter(|key| !self.unknown.contains(*key));
        (
            known.cloned().collect(),
            self.unknown.iter().cloned().collect(),
        )
    }

    fn into_log(self: Box<Self>) -> Option<Log> {
        Some(self.log)
    }
}

/// What is wrong with the value `found` for a key, if it should be `expected`.
fn difference(key: &str, found: Option<&[u8]>, expected: Option<&[u8]>) -> Option<FailureKind> {
    if found == expected {
        return None;
    }
    let serial = |value: &[u8]| -> Option<u64> {
        let text = std::str::from_utf8(value).ok()?;
        let rest = text.strip_prefix(key)?.strip_prefix('-')?;
        rest.split('-').next()?.parse().ok()
    };
    Some(match (found, expected) {
        (None, _) => FailureKind::LostWrite,
        (Some(found), expected) => {
            let newest = expected.and_then(serial).unwrap_or(u64::MAX);
            match serial(found) {
                Some(serial) if serial < newest => FailureKind::StaleValue,
                _ => FailureKind::WrongValue,
            }
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_wrong_with_a_value_has_a_name() {
        let difference = |found: Option<&str>, expected: Option<&str>| {
            super::difference("k", found.map(str::as_bytes), expected.map(str::as_bytes))
        };
        assert_eq!(difference(Some("k-2-x"), Some("k-2-x")), None);
        assert_eq!(difference(None, None), None);
        let (stale, lost, wrong) = (
            Some(FailureKind::StaleValue),
            Some(FailureKind::LostWrite),
            Some(FailureKind::WrongValue),
        );
        assert_eq!(difference(Some("k-1-xx"), Some("k-2-x")), stale);
        assert_eq!(difference(Some("k-1-xx"), None), stale);
        assert_eq!(difference(None, Some("k-2-x")), lost);
        assert_eq!(difference(Some("k-2-y"), Some("k-2-x")), wrong);
        assert_eq!(difference(Some("j-1-x"), Some("k-2-x")), wrong);
    }
}
