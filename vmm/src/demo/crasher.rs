//! What a crashing user does: sets off a planted bug, and looks at what is left of the request.

use std::net::SocketAddr;

use super::client::Failure;
use super::model::{Command, SHARED_COUNTER};
use super::user::User;

/// How the crashing command is sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// In a packet of its own.
    Alone,
    /// Behind writes in the same packet: they belong to the same request domain and must be undone with it.
    BehindWrites,
}

/// What the crashing user saw of its request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Saw {
    /// The connection was reset or closed, without a reply: what is wanted.
    Reset,
    /// A reply came, or none and the connection stayed.
    Other(String),
}

/// One crash that a user caused.
#[derive(Debug, Clone)]
pub struct Crash {
    /// Index of the bug.
    pub bug: usize,
    /// The crashing connection as the server saw it.
    pub peer: SocketAddr,
    /// What became of the request, seen from outside.
    pub saw: Saw,
}

/// Crashes the server with a bug, after a command that completes and so is kept.
///
/// The error is what the user noticed before the crashing request was sent.
pub fn crash(user: &mut User, (bug, name): (usize, &str), style: Style) -> Result<Crash, Failure> {
    let value = user.rng.text(24);
    user.exchange(&[Command::Set(kept_key(user), value), Command::WhoAmI])?;

    let packet = match style {
        Style::Alone => format!("CRASH {name}\n"),
        Style::BehindWrites => {
            let (ghost, kept, user) = (ghost_key(user), kept_key(user), user.name());
            format!(
                "SET {ghost} x\nSET {kept} overwritten\nAPPEND {user}:log lost\nINCR {SHARED_COUNTER}\n\
                 INCR {user}:n0\nDEL {user}:k0\nCRASH {name}\n"
            )
        }
    };
    let peer = user.client.local_addr();
    let saw = match user
        .client
        .send(packet.as_bytes())
        .and_then(|()| user.client.receive())
    {
        Err(Failure::Reset | Failure::Closed) => Saw::Reset,
        Err(other) => Saw::Other(other.to_string()),
        Ok(reply) => Saw::Other(format!("the reply `{reply}`")),
    };
    Ok(Crash { bug, peer, saw })
}

/// Reconnects and checks that exactly the crashed request is gone.
pub fn check_aftermath(user: &mut User) -> Result<(), Failure> {
    user.reconnect()?;
    user.exchange(&[
        Command::Get(ghost_key(user)),
        Command::Get(kept_key(user)),
        Command::Keys,
    ])?;
    user.verify()?;
    user.work()
}

/// A key that is only ever written in a packet that crashes.
fn ghost_key(user: &User) -> String {
    format!("{}:ghost", user.name())
}

/// A key that is written right before every crash.
fn kept_key(user: &User) -> String {
    format!("{}:kept", user.name())
}
