//! The servers of a campaign: how each is started, used by healthy clients, attacked, and checked.

pub mod demo;
pub mod memcached;
pub mod nginx;
pub mod redis;

use std::{fmt::Debug, io, time::Duration};

use super::{
    healthy::Clients,
    plan::{CLASSES, Class},
    trial::Failure,
};
use crate::{load::Random, net::Address};

/// A request that is to be struck.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Attack {
    /// In words.
    pub description: String,
    /// What is sent.
    pub bytes: Vec<u8>,
    /// What is answered if nothing happens.
    pub reply: Vec<u8>,
    /// What is stored then, if it is a write.
    pub write: Option<Write>,
    /// The key that it stores and deletes again: it stays where the request was cut off in between.
    pub temporary: Option<String>,
}

/// What a request stores.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Write {
    /// Where; the key was absent before, unless it is one that all clients share.
    pub key: String,
    /// What.
    pub value: Vec<u8>,
    /// The number of the shared key, and the version.
    pub shared: Option<(usize, u64)>,
}

/// How far an answer has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// There is more to come.
    Incomplete,
    /// It is what it should be.
    Right,
    /// It is something else.
    Wrong,
}

/// Keys that are in the server at the end: those that must be, and those that may.
#[derive(Clone, Debug, Default)]
pub struct Keys {
    /// Acknowledged, and not deleted since.
    pub present: Vec<String>,
    /// Of whose last write or deletion nothing is known.
    pub possible: Vec<String>,
}

/// A server.
pub trait Target: Debug + Send + Sync {
    /// Its name in tables.
    fn name(&self) -> &'static str;

    /// Its version, as it says itself.
    fn version(&self) -> String;

    /// The command line, to listen on `port`.
    fn command(&self, port: u16) -> Vec<String>;

    /// Functions that its requests enter, and that have a name in its files.
    fn symbols(&self) -> &'static [&'static str];

    /// The classes that there is something to hit for.
    fn classes(&self) -> Vec<Class> {
        CLASSES.to_vec()
    }

    /// A request with `tag` in it. `shared` is a key of all clients, by number, and a version for it.
    fn attack(&self, random: &mut Random, tag: &str, shared: (usize, u64)) -> Attack;

    /// How far the answer `got` to `attack` has come.
    fn judge(&self, attack: &Attack, got: &[u8]) -> Progress {
        judge_bytes(&attack.reply, got)
    }

    /// Its clients.
    fn clients(&self) -> Box<dyn Clients>;

    /// The server's own checks of its data, which holds `keys` and nothing else.
    fn check(&self, address: &Address, keys: &Keys, patience: Duration)
    -> io::Result<Vec<Failure>>;
}

/// The server with this name.
pub fn by_name(name: &str) -> Result<Box<dyn Target>, String> {
    Ok(match name {
        "redis" => Box::new(redis::Redis),
        "memcached" => Box::new(memcached::Memcached),
        "nginx" => Box::new(nginx::Nginx::new().map_err(|error| format!("nginx: {error}"))?),
        "demo" => Box::new(demo::Demo::new().map_err(|error| crate::error::chain(&error))?),
        _ => {
            return Err(format!(
                "`{name}` is no server; there are redis, memcached, nginx and demo"
            ));
        }
    })
}

/// The value that all clients write to shared keys for a version, and back.
pub fn shared_value(version: u64) -> Vec<u8> {
    format!("version-{version}-end").into_bytes()
}

/// The version in such a value.
pub fn version_of(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?;
    let number = text.strip_prefix("version-")?.strip_suffix("-end")?;
    number.parse().ok()
}

/// The name of a shared key.
pub fn shared_key(number: usize) -> String {
    format!("shared:{number}")
}

fn judge_bytes(wanted: &[u8], got: &[u8]) -> Progress {
    match got == wanted {
        true => Progress::Right,
        false if wanted.starts_with(got) => Progress::Incomplete,
        false => Progress::Wrong,
    }
}

/// The first line that a program prints about itself.
fn first_line(program: &str, option: &str) -> String {
    let output = std::process::Command::new(program).arg(option).output();
    let text = output.map_or_else(
        |error| error.to_string(),
        |output| {
            let both = [output.stdout, output.stderr].concat();
            String::from_utf8_lossy(&both).into_owned()
        },
    );
    text.lines().next().unwrap_or_default().to_owned()
}

/// Compares the keys that a server has with those that it should have.
fn compare_keys(found: &[String], keys: &Keys) -> Option<Failure> {
    use std::collections::BTreeSet;
    let found: BTreeSet<&String> = found.iter().collect();
    let present: BTreeSet<&String> = keys.present.iter().collect();
    let missing = present.difference(&found).next();
    let mut others = found.difference(&present);
    let other = others.find(|key| !keys.possible.contains(key));
    let detail = match (missing, other) {
        (Some(key), _) => format!("the server does not list {key}"),
        (_, Some(key)) => format!("the server lists {key}, which nobody has stored"),
        (None, None) => return None,
    };
    Some(Failure {
        kind: super::trial::FailureKind::Inconsistent,
        detail,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_found_in_their_values() {
        assert_eq!(version_of(&shared_value(17)), Some(17));
        for damaged in [&b"version-1"[..], b"version-x-end", b"", b"\xff"] {
            assert_eq!(version_of(damaged), None);
        }
    }

    #[test]
    fn keys_that_are_missing_or_too_many_are_told() {
        let all = |keys: &[&str]| keys.iter().map(|key| (*key).to_owned()).collect::<Vec<_>>();
        let keys = Keys {
            present: all(&["a", "b"]),
            possible: all(&["c"]),
        };
        assert_eq!(compare_keys(&all(&["b", "a"]), &keys), None);
        assert_eq!(compare_keys(&all(&["b", "a", "c"]), &keys), None);
        assert!(compare_keys(&all(&["a", "c"]), &keys).is_some());
        assert!(compare_keys(&all(&["a", "b", "d"]), &keys).is_some());
    }
}
