//! Clients of the servers that answer a command with a line and crash when they are told to.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    time::Duration,
};

use crate::net;

/// What the server answers to `command`, without its line end.
///
/// # Panics
///
/// If it does not answer.
pub fn ask(client: &mut TcpStream, command: &str) -> String {
    client.write_all(command.as_bytes()).unwrap();
    let mut answer = [0; 64];
    let n = client.read(&mut answer).unwrap();
    String::from_utf8_lossy(&answer[..n]).trim().to_owned()
}

/// Sends `command` on a connection of its own, and expects nothing but a reset within `patience`.
///
/// # Panics
///
/// If anything else comes of it.
pub fn crash(port: u16, command: &str, patience: Duration) {
    let mut client = net::connect(port, patience).unwrap();
    client.write_all(command.as_bytes()).unwrap();
    let error = client.read(&mut [0; 8]).expect_err("a reset");
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
}
