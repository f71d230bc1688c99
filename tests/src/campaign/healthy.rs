//! Healthy clients: they use the server all the time, know what every answer must be, and go on after a failure, so
//! that one of them is not the end of a campaign.

pub mod load;
pub mod store;
pub mod web;

use std::{io, time::Duration};

use super::trial::{Failure, FailureKind};
use crate::{
    load::Random,
    net::{self, Address},
    oracle::{Log, Recorder},
};

/// The clients of a server.
pub trait Clients {
    /// A healthy client, which no other has the number of.
    fn healthy(
        &self,
        address: &Address,
        ident: usize,
        patience: Duration,
        recorder: &Recorder,
    ) -> Box<dyn Healthy>;

    /// The value of a key, for servers that have such.
    fn value(
        &self,
        address: &Address,
        key: &str,
        patience: Duration,
    ) -> io::Result<Option<Vec<u8>>>;
}

/// A healthy client. It connects by itself, again after a failure.
pub trait Healthy: Send {
    /// Sends one request and checks its answer.
    fn step(&mut self, random: &mut Random) -> Result<(), Failure>;

    /// Checks all that it has stored.
    fn check_all(&mut self) -> Vec<Failure>;

    /// The keys that it has stored: those that must be there, and those of which it does not know.
    fn keys(&self) -> (Vec<String>, Vec<String>);

    /// What it has done to the keys of all clients.
    fn into_log(self: Box<Self>) -> Option<Log>;
}

/// What it means to a healthy client that a request has ended with `error`.
fn failure_of(request: &str, error: &io::Error) -> Failure {
    let kind = match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => FailureKind::LateReply,
        io::ErrorKind::InvalidData => FailureKind::WrongValue,
        io::ErrorKind::ConnectionRefused => FailureKind::LostConnection,
        _ if net::is_disconnect(error) => FailureKind::LostConnection,
        _ => FailureKind::WrongValue,
    };
    Failure {
        kind,
        detail: format!("{request}: {error}"),
    }
}
