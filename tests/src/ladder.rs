//! The client of the ladder server (`tests/guest/ladder-server`).

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::net;

/// A connection to the server.
pub struct Client(TcpStream);

impl Client {
    /// Connects.
    pub fn connect(port: u16, patience: Duration) -> io::Result<Client> {
        net::connect(port, patience).map(Client)
    }

    /// Sends a line.
    pub fn send(&mut self, line: &str) -> io::Result<()> {
        self.0.write_all(format!("{line}\n").as_bytes())
    }

    /// Sends a line and returns the one that is answered.
    pub fn ask(&mut self, line: &str) -> io::Result<String> {
        self.send(line)?;
        let mut reply = Vec::new();
        while reply.last() != Some(&b'\n') {
            let mut byte = [0];
            self.0.read_exact(&mut byte)?;
            reply.push(byte[0]);
        }
        reply.pop();
        Ok(String::from_utf8_lossy(&reply).into_owned())
    }

    /// Waits for the end of the connection; the error it ends with, none for an orderly end.
    pub fn end(&mut self) -> Option<io::ErrorKind> {
        let mut buffer = [0; 64];
        loop {
            match self.0.read(&mut buffer) {
                Ok(0) => return None,
                Ok(_) => {}
                Err(error) => return Some(error.kind()),
            }
        }
    }

    /// The own address, as events show it.
    pub fn address(&self) -> io::Result<String> {
        self.0.local_addr().map(|address| address.to_string())
    }
}
