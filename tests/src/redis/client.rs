//! A Redis client: the part of RESP2 that the tests need, every wait bounded.

use std::{
    io::{self, BufRead, BufReader, Read, Write},
    time::Duration,
};

use crate::net::{self, Address, Stream};

/// A longer string, or an array of more elements, is not a reply to anything the tests send.
const MAX_LENGTH: i64 = 1 << 20;

/// Deepest nesting of arrays that is accepted.
const MAX_DEPTH: u32 = 4;

/// One reply of the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// `+`: a simple string.
    Simple(String),
    /// `-`: an error.
    Error(String),
    /// `:`: an integer.
    Integer(i64),
    /// `$`: a string of bytes.
    Bulk(Vec<u8>),
    /// `*`: an array.
    Array(Vec<Reply>),
    /// `$-1` or `*-1`: nothing.
    Nil,
}

impl Reply {
    /// Whether it is the simple string `+OK`.
    pub fn is_ok(&self) -> bool {
        matches!(self, Reply::Simple(text) if text == "OK")
    }
}

/// A connection to a Redis server.
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

    /// Sends one command and returns its reply.
    pub fn call<A: AsRef<[u8]>>(&mut self, command: &[A]) -> io::Result<Reply> {
        self.send(&encode(command))?;
        self.reply()
    }

    /// Sends encoded commands in one write.
    pub fn send(&mut self, encoded: &[u8]) -> io::Result<()> {
        self.stream.get_mut().write_all(encoded)
    }

    /// Reads the next reply. A connection that the server closed is `UnexpectedEof`.
    pub fn reply(&mut self) -> io::Result<Reply> {
        read_reply(&mut self.stream, 0)
    }
}

/// Encodes one command; the encodings of several commands may be sent together.
pub fn encode<A: AsRef<[u8]>>(command: &[A]) -> Vec<u8> {
    let mut out = format!("*{}\r\n", command.len()).into_bytes();
    for arg in command.iter().map(AsRef::as_ref) {
        out.extend_from_slice(format!("${}\r\n", arg.len()).as_bytes());
        out.extend_from_slice(arg);
        out.extend_from_slice(b"\r\n");
    }
    out
}

fn read_reply(stream: &mut impl BufRead, depth: u32) -> io::Result<Reply> {
    let line = read_line(stream)?;
    let (kind, rest) = line.split_at_checked(1).ok_or_else(|| malformed(&line))?;
    match kind {
        "+" => Ok(Reply::Simple(rest.to_owned())),
        "-" => Ok(Reply::Error(rest.to_owned())),
        ":" => rest
            .parse()
            .map(Reply::Integer)
            .map_err(|_| malformed(&line)),
        "$" => match length(rest, &line)? {
            None => Ok(Reply::Nil),
            Some(length) => {
                let mut data = vec![0; length + 2];
                stream.read_exact(&mut data)?;
                if !data.ends_with(b"\r\n") {
                    return Err(malformed(&line));
                }
                data.truncate(length);
                Ok(Reply::Bulk(data))
            }
        },
        "*" if depth < MAX_DEPTH => match length(rest, &line)? {
            None => Ok(Reply::Nil),
            Some(length) => (0..length)
                .map(|_| read_reply(stream, depth + 1))
                .collect::<io::Result<_>>()
                .map(Reply::Array),
        },
        _ => Err(malformed(&line)),
    }
}

fn read_line(stream: &mut impl BufRead) -> io::Result<String> {
    let mut line = Vec::new();
    stream
        .by_ref()
        .take(MAX_LENGTH as u64)
        .read_until(b'\n', &mut line)?;
    match line.strip_suffix(b"\r\n") {
        Some(line) => Ok(String::from_utf8_lossy(line).into_owned()),
        None if line.ends_with(b"\n") => Err(malformed(&String::from_utf8_lossy(&line))),
        None => Err(io::Error::new(
            io::ErrorKind::UnexpectedEof,
            "closed by the server",
        )),
    }
}

/// The length in a header line; `None` for -1.
fn length(digits: &str, line: &str) -> io::Result<Option<usize>> {
    match digits.parse::<i64>() {
        Ok(-1) => Ok(None),
        Ok(length @ 0..=MAX_LENGTH) => Ok(usize::try_from(length).ok()),
        _ => Err(malformed(line)),
    }
}

fn malformed(line: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, format!("not a reply: {line:?}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(bytes: &[u8]) -> io::Result<Reply> {
        read_reply(&mut &bytes[..], 0)
    }

    #[test]
    fn commands_are_arrays_of_bulk_strings() {
        assert_eq!(encode(&["GET", "k"]), b"*2\r\n$3\r\nGET\r\n$1\r\nk\r\n");
    }

    #[test]
    fn every_kind_of_reply_is_understood() {
        assert_eq!(parse(b"+OK\r\n").unwrap(), Reply::Simple("OK".into()));
        assert_eq!(
            parse(b"-ERR no\r\n").unwrap(),
            Reply::Error("ERR no".into())
        );
        assert_eq!(parse(b":-3\r\n").unwrap(), Reply::Integer(-3));
        assert_eq!(parse(b"$-1\r\n").unwrap(), Reply::Nil);
        assert_eq!(
            parse(b"$4\r\na\r\nb\r\n").unwrap(),
            Reply::Bulk(b"a\r\nb".to_vec())
        );
        let array = Reply::Array(vec![Reply::Integer(1), Reply::Nil]);
        assert_eq!(parse(b"*2\r\n:1\r\n$-1\r\n").unwrap(), array);
    }

    #[test]
    fn torn_and_wrong_replies_are_errors() {
        for torn in [&b""[..], b"+O", b"$4\r\nab", b"*2\r\n:1\r\n"] {
            assert_eq!(
                parse(torn).unwrap_err().kind(),
                io::ErrorKind::UnexpectedEof,
                "{torn:?}"
            );
        }
        for wrong in [
            &b"\r\n"[..],
            b"hello\r\n",
            b"$-2\r\n",
            b"$2\r\nabcd",
            b"$99999999999\r\n",
            b"+OK\n",
        ] {
            assert_eq!(
                parse(wrong).unwrap_err().kind(),
                io::ErrorKind::InvalidData,
                "{wrong:?}"
            );
        }
        assert!(parse(&b"*1\r\n".repeat(100)).is_err());
    }
}
