//! A request that is to be struck, and what its client gets.

use std::{
    io::{self, Read, Write},
    time::Duration,
};

use super::target::{Attack, Progress, Target};
use crate::net::{self, Address};

/// What the client of a struck request gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// What it would have got otherwise.
    Right,
    /// Something else.
    Wrong(String),
    /// A reset.
    Reset,
    /// The end of the connection.
    Closed,
    /// Nothing, until it lost its patience.
    Nothing,
}

/// Sends the request on a connection of its own. Also returns the client's address, as the monitor names it.
///
/// # Errors
///
/// If no connection is made.
pub fn exchange(
    target: &dyn Target,
    address: &Address,
    attack: &Attack,
    patience: Duration,
) -> io::Result<(Answer, String)> {
    let Address::Tcp(port) = *address else {
        return Err(io::ErrorKind::Unsupported.into());
    };
    let mut stream = net::connect(port, patience)?;
    let own = stream.local_addr()?.to_string();
    let mut got = Vec::new();
    let answer = match stream.write_all(&attack.bytes) {
        Ok(()) => receive(target, &mut stream, attack, &mut got),
        Err(error) => failed(&error),
    };
    Ok((answer, own))
}

fn receive(
    target: &dyn Target,
    stream: &mut impl Read,
    attack: &Attack,
    got: &mut Vec<u8>,
) -> Answer {
    loop {
        let mut part = [0; 16 << 10];
        match stream.read(&mut part) {
            Ok(0) => return Answer::Closed,
            Ok(n) => got.extend_from_slice(&part[..n]),
            Err(error) => return failed(&error),
        }
        match target.judge(attack, got) {
            Progress::Right => return Answer::Right,
            Progress::Wrong => {
                let start = &got[..got.len().min(200)];
                return Answer::Wrong(String::from_utf8_lossy(start).into_owned());
            }
            Progress::Incomplete => {}
        }
    }
}

fn failed(error: &io::Error) -> Answer {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Answer::Reset,
        _ => Answer::Nothing,
    }
}
