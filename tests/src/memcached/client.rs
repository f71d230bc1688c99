//! A memcached client: the part of the text protocol that the tests need, every wait bounded.

use std::{
    collections::BTreeMap,
    io::{self, BufRead, BufReader, Read, Write},
    time::Duration,
};

use crate::net::{self, Address, Stream};

/// A longer value or line is not an answer to anything the tests send.
const MAX_LENGTH: usize = 1 << 20;

/// A connection to a memcached server.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<Stream>,
}

impl Client {
    /// Connects to the server at `address`; whatever takes longer than `patience` is an error.
    pub fn connect(address: impl Into<Address>, patience: Duration) -> io::Result<Self> {
        Ok(Self {
            stream: BufReader::new(net::connect_to(&address.into(), patience)?),
        })
    }

    /// Stores `value` without expiry.
    pub fn set(&mut self, key: &str, value: &[u8]) -> io::Result<()> {
        let header = format!("set {key} 0 0 {}\r\n", value.len());
        self.send(&[header.as_bytes(), value, b"\r\n"].concat())?;
        match self.line()?.as_str() {
            "STORED" => Ok(()),
            line => Err(unexpected(line)),
        }
    }

    /// The value of `key`, if it is stored.
    pub fn get(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        self.send(format!("get {key}\r\n").as_bytes())?;
        self.value(key)
    }

    /// Reads the answer to a `get` of `key` that was sent before.
    pub fn value(&mut self, key: &str) -> io::Result<Option<Vec<u8>>> {
        read_value(&mut self.stream, key)
    }

    /// The server's general-purpose counters.
    pub fn stats(&mut self) -> io::Result<BTreeMap<String, String>> {
        self.send(b"stats\r\n")?;
        let mut stats = BTreeMap::new();
        loop {
            let line = self.line()?;
            let mut words = line.splitn(3, ' ');
            match (words.next(), words.next(), words.next()) {
                (Some("STAT"), Some(name), Some(value)) => {
                    stats.insert(name.to_owned(), value.to_owned());
                }
                (Some("END"), None, None) => return Ok(stats),
                _ => return Err(unexpected(&line)),
            }
        }
    }

    /// The keys that the server's lists hold.
    pub fn keys(&mut self) -> io::Result<Vec<String>> {
        self.send(b"lru_crawler metadump all\r\n")?;
        let mut keys = Vec::new();
        loop {
            // Its lines end as in a file, and only the last as in the protocol.
            let mut line = String::new();
            let mut bounded = self.stream.by_ref().take(MAX_LENGTH as u64);
            if bounded.read_line(&mut line)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            match line.trim_end().strip_prefix("key=") {
                Some(rest) => {
                    let key = rest.split(' ').next().unwrap_or_default();
                    // They are written as in a URL.
                    keys.push(key.replace("%3A", ":"));
                }
                None if line.trim_end() == "END" => return Ok(keys),
                None => return Err(unexpected(&line)),
            }
        }
    }

    /// Deletes `key`; whether it was stored.
    pub fn delete(&mut self, key: &str) -> io::Result<bool> {
        self.send(format!("delete {key}\r\n").as_bytes())?;
        match self.line()?.as_str() {
            "DELETED" => Ok(true),
            "NOT_FOUND" => Ok(false),
            line => Err(unexpected(line)),
        }
    }

    /// Adds `by` to the decimal number stored under `key`; the new number, if there was one.
    pub fn incr(&mut self, key: &str, by: u64) -> io::Result<Option<u64>> {
        self.send(format!("incr {key} {by}\r\n").as_bytes())?;
        match self.line()?.as_str() {
            "NOT_FOUND" => Ok(None),
            line => line.parse().map(Some).map_err(|_| unexpected(line)),
        }
    }

    /// Sends bytes as they are.
    pub fn send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(bytes)
    }

    /// Reads one line of an answer, without its end. A connection that the server closed is
    /// `UnexpectedEof`.
    pub fn line(&mut self) -> io::Result<String> {
        read_line(&mut self.stream)
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream
        .by_ref()
        .take(MAX_LENGTH as u64)
        .read_until(b'\n', &mut line)?;
    let line = String::from_utf8_lossy(&line);
    match line.strip_suffix("\r\n") {
        Some(line) => Ok(line.to_owned()),
        None if line.ends_with('\n') => Err(unexpected(&line)),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed by the server",
        )),
    }
}

/// Reads the answer to `get`: `VALUE key flags length`, the data, `END`; or only `END`.
fn read_value(stream: &mut impl BufRead, key: &str) -> io::Result<Option<Vec<u8>>> {
    let header = read_line(stream)?;
    if header == "END" {
        return Ok(None);
    }
    let words: Vec<&str> = header.split(' ').collect();
    let length = match words[..] {
        ["VALUE", found, _, length] if found == key => length.parse().ok(),
        _ => None,
    };
    let length = length
        .filter(|length| *length <= MAX_LENGTH)
        .ok_or_else(|| unexpected(&header))?;
    let mut data = vec![0; length + 2];
    stream.read_exact(&mut data)?;
    if !data.ends_with(b"\r\n") {
        return Err(unexpected(&header));
    }
    data.truncate(length);
    match read_line(stream)?.as_str() {
        "END" => Ok(Some(data)),
        line => Err(unexpected(line)),
    }
}

fn unexpected(line: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("unexpected answer: {line:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(bytes: &[u8]) -> io::Result<Option<Vec<u8>>> {
        read_value(&mut &bytes[..], "k")
    }

    #[test]
    fn a_value_may_hold_line_ends() {
        assert_eq!(
            value(b"VALUE k 0 4\r\na\r\nb\r\nEND\r\n").unwrap(),
            Some(b"a\r\nb".to_vec())
        );
        assert_eq!(value(b"END\r\n").unwrap(), None);
    }

    #[test]
    fn torn_and_wrong_answers_are_errors() {
        for torn in [
            &b""[..],
            b"EN",
            b"VALUE k 0 4\r\nab",
            b"VALUE k 0 1\r\na\r\n",
        ] {
            assert_eq!(
                value(torn).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{torn:?}"
            );
        }
        let other_key = b"VALUE j 0 1\r\na\r\nEND\r\n";
        for wrong in [
            &b"ERROR\r\n"[..],
            other_key,
            b"VALUE k 0 99999999\r\n",
            b"VALUE k 0 1\r\nabcEND\r\n",
        ] {
            assert_eq!(
                value(wrong).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{wrong:?}"
            );
        }
    }
}
