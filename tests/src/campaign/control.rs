//! The control socket of a running monitor.

use std::{
    io::{self, BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    time::Duration,
};

use serde::Deserialize;
use serde_json::Value;

/// A connection to it.
#[derive(Debug)]
pub struct Control {
    stream: BufReader<UnixStream>,
}

/// What came of an injection so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
pub struct Counts {
    /// Its number.
    pub id: u64,
    /// Requests that were chosen.
    pub chosen: u64,
    /// Requests that were struck.
    pub struck: u64,
    /// Requests that had nothing to strike.
    pub missed: u64,
}

impl Control {
    /// Connects to the socket at `path`; an answer that takes longer than `patience` is an error.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Control> {
        let stream = UnixStream::connect(path)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Ok(Control {
            stream: BufReader::new(stream),
        })
    }

    /// Sends a command; what the monitor answers, unless it refuses.
    pub fn ask(&mut self, command: &str) -> io::Result<Value> {
        self.stream
            .get_mut()
            .write_all(format!("{command}\n").as_bytes())?;
        let mut line = String::new();
        if self.stream.read_line(&mut line)? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        let mut answer: Value = serde_json::from_str(&line)?;
        match answer.get_mut("ok") {
            Some(result) => Ok(result.take()),
            None => Err(io::Error::other(format!("{command}: {answer}"))),
        }
    }

    /// Injects; the injection's number.
    pub fn inject(&mut self, spec: &str) -> io::Result<u64> {
        let answer = self.ask(&format!("inject {spec}"))?;
        answer["id"]
            .as_u64()
            .ok_or_else(|| io::Error::other("no number"))
    }

    /// What came of injection `id`, which is taken away.
    pub fn conclude(&mut self, id: u64) -> io::Result<Counts> {
        let all: Vec<Counts> = serde_json::from_value(self.ask("injections")?)?;
        self.ask(&format!("clear {id}"))?;
        let counts = all.into_iter().find(|counts| counts.id == id);
        counts.ok_or_else(|| io::Error::other("the injection is gone"))
    }

    /// Faults that the monitor has done something about.
    pub fn faults(&mut self) -> io::Result<u64> {
        let stats = self.ask("stats")?;
        let ladder = stats["ladder"].as_object();
        let rungs = ladder.into_iter().flat_map(|ladder| ladder.values());
        Ok(rungs.filter_map(Value::as_u64).sum())
    }
}
