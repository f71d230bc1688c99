//! The demo's own connection, which looks at the server as a whole.

use std::thread;
use std::time::{Duration, Instant};

use super::audit::Trouble;
use super::client::{Client, Failure};
use super::model::{Model, SHARED_COUNTER};

/// How long the server may take to notice that a connection is gone.
const SETTLE_LIMIT: Duration = Duration::from_secs(1);

/// A user who stores nothing.
#[derive(Debug)]
pub struct Watcher {
    client: Client,
    /// What it had to object to.
    pub troubles: Vec<Trouble>,
}

impl Watcher {
    /// Connects and logs in.
    pub fn connect(port: u16) -> Result<Self, Failure> {
        let mut client = Client::connect(port)?;
        client.ask("LOGIN watcher")?;
        Ok(Self {
            client,
            troubles: Vec::new(),
        })
    }

    /// The names of the planted bugs.
    pub fn list_bugs(&mut self) -> Result<Vec<String>, Failure> {
        let list = self.client.ask("CRASH list")?;
        Ok(list
            .lines()
            .filter_map(|line| line.strip_prefix('$'))
            .map(str::to_owned)
            .collect())
    }

    /// Notes something that ought not to be.
    pub fn object(&mut self, bug: Option<usize>, what: String) {
        self.troubles.push(Trouble::of_the_demo(bug, what));
    }

    /// Objects unless all invariants of the server's shared structures hold.
    pub fn check(&mut self, bug: usize) {
        match self.client.ask("CHECK") {
            Ok(reply) if reply.starts_with("+OK ") => {}
            Ok(reply) => self.object(Some(bug), format!("CHECK found: {reply}")),
            Err(failure) => self.object(Some(bug), format!("CHECK failed: {failure}")),
        }
    }

    /// Objects unless the server holds exactly what these users, all still connected, put there.
    pub fn verify_totals<'a>(&mut self, users: impl Iterator<Item = &'a Model>) {
        let (mut increments, mut entries, mut sessions) = (0, 0, 1);
        for user in users {
            increments += user.shared_increments();
            entries += user.keys().len();
            sessions += 1;
        }
        let counter = if increments > 0 {
            entries += 1;
            format!("${increments}")
        } else {
            "_".to_owned()
        };
        let check = format!("+OK entries={entries} sessions={sessions}");
        let deadline = Instant::now() + SETTLE_LIMIT;
        let result = self
            .expect(&format!("GET {SHARED_COUNTER}"), &counter)
            .and_then(|()| {
                loop {
                    // The server frees the session of a lost connection in its own time.
                    match self.expect("CHECK", &check) {
                        Err(Failure::WrongReply { .. }) if Instant::now() < deadline => {
                            thread::sleep(Duration::from_millis(5));
                        }
                        result => return result,
                    }
                }
            });
        if let Err(failure) = result {
            self.object(None, failure.to_string());
        }
    }

    fn expect(&mut self, command: &str, wanted: &str) -> Result<(), Failure> {
        let reply = self.client.ask(command)?;
        if reply == wanted {
            Ok(())
        } else {
            Err(Failure::wrong_reply(command, wanted, &reply))
        }
    }
}
