//! The same bugs without the monitor: what each does to the server and to everybody on it.

use std::time::Duration;

use super::DemoError;
use super::client::Failure;
use super::model::Command;
use super::progress::Progress;
use super::server::{Ending, Installation, Layout, Server};
use super::user::User;
use crate::rng::Rng;

/// How long a crash may take to end the server.
const DEATH_LIMIT: Duration = Duration::from_secs(5);

/// What one bug does without the monitor.
#[derive(Debug, Clone)]
pub struct Death {
    /// How the server ended.
    pub ending: Ending,
    /// Users who lost their connection, of how many.
    pub lost: (usize, usize),
}

/// Sets off each bug in a fresh server with that many users.
pub fn run(
    installation: &Installation,
    layout: Layout,
    bugs: &[String],
    users: usize,
) -> Result<Vec<Death>, DemoError> {
    let progress = Progress::new();
    bugs.iter()
        .map(|bug| {
            progress.show(&format!("{layout}, without the monitor: {bug}"));
            let mut server = Server::native(installation, layout)?;
            kill(&mut server, bug, users).map_err(|source| DemoError::Begin {
                what: server.what().to_owned(),
                source,
            })
        })
        .collect()
}

fn kill(server: &mut Server, bug: &str, count: usize) -> Result<Death, Failure> {
    let mut users = (0..count)
        .map(|i| User::connect(server.port(), &format!("user{i}"), Rng::new(0, i as u64)))
        .collect::<Result<Vec<_>, _>>()?;
    if let Some(user) = users.first_mut() {
        user.client.send(format!("CRASH {bug}\n").as_bytes())?;
    }
    let ending = server.wait_for_end(DEATH_LIMIT);
    let lost = users
        .iter_mut()
        .filter_map(|user| user.exchange(&[Command::WhoAmI]).err())
        .count();
    Ok(Death {
        ending,
        lost: (lost, count),
    })
}
