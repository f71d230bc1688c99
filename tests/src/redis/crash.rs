//! The crash scenario: healthy clients work against their models while other clients crash the
//! server with `DEBUG SEGFAULT`, `PANIC` and `ASSERT`, alone, behind a write in the same packet,
//! and inside a transaction.

use std::{
    fmt, io, thread,
    time::{Duration, Instant},
};

use super::{
    client::{Client, Reply, encode},
    healthy::Healthy,
};
use crate::{
    error,
    load::{Load, LoadOutcome},
    monitored::Monitored,
    net::{self, Address},
};

const FAULTS: [&str; 3] = ["SEGFAULT", "PANIC", "ASSERT"];

/// How the crashing command reaches the server.
#[derive(Clone, Copy, Debug)]
enum Shape {
    /// Nothing else is sent.
    Alone,
    /// One packet: a write and the crash are one request domain.
    Pipelined,
    /// `MULTI`, a write, the crash, `EXEC`.
    Transaction,
}

const SHAPES: [Shape; 3] = [Shape::Alone, Shape::Pipelined, Shape::Transaction];

/// Between two crashes, so that healthy requests are in the majority.
const BREATH: Duration = Duration::from_millis(20);

/// The scenario's parameters.
#[derive(Clone, Debug)]
pub struct CrashScenario {
    /// Healthy clients.
    pub clients: usize,
    /// How long it crashes the server; every fault in every shape happens at least once in any case.
    pub duration: Duration,
    /// The longest time any single reply may take.
    pub patience: Duration,
    /// Whether anything crashes at all: a server without the monitor would not survive it.
    pub crash: bool,
}

impl Default for CrashScenario {
    fn default() -> Self {
        let (duration, patience) = (Duration::from_secs(8), Duration::from_secs(10));
        Self {
            clients: 20,
            duration,
            patience,
            crash: true,
        }
    }
}

/// What happened.
#[derive(Clone, Debug, Default)]
pub struct Outcome {
    /// Requests that crashed the server.
    pub crashes: usize,
    /// What the healthy clients did.
    pub load: LoadOutcome,
    /// The recovery pauses of the `recovered` events in microseconds, sorted.
    pub pauses_us: Vec<u64>,
    /// Everything that should not have happened, the healthy clients' problems included.
    pub problems: Vec<String>,
}

impl Outcome {
    /// Whether everything was as it should be.
    pub fn is_good(&self) -> bool {
        self.problems.is_empty()
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for problem in &self.problems {
            writeln!(f, "problem: {problem}")?;
        }
        write!(
            f,
            "{} crashes, {} healthy requests",
            self.crashes, self.load.requests
        )?;
        write!(
            f,
            ", slowest {:.1} ms",
            self.load.slowest.as_secs_f64() * 1e3
        )?;
        if let Some(max) = self.pauses_us.last() {
            let median = self.pauses_us[self.pauses_us.len() / 2];
            write!(f, ", pause median {median} us, max {max} us")?;
        }
        write!(f, ", {} problems", self.problems.len())
    }
}

impl CrashScenario {
    /// Runs the scenario against a `redis-server` that was started with [`super::command`], ends
    /// the server with SIGTERM, and checks its exit status and the events.
    pub fn run(&self, mut server: Monitored) -> Outcome {
        let mut outcome = self.attack(&server);
        self.finish(&mut server, &mut outcome);
        outcome
    }

    /// The scenario without its end: the server still runs, with everything the healthy clients
    /// have stored.
    pub fn attack(&self, server: &Monitored) -> Outcome {
        let mut outcome = Outcome::default();
        let address = server.address();
        let load = Load::start::<Healthy>(address, self.clients, self.patience);
        if let Err(error) = self.crash_until_end(address, &load, &mut outcome) {
            outcome.problems.push(format!("watcher: {error}"));
        }
        outcome.load = load.finish();
        outcome
            .problems
            .extend(outcome.load.problems.iter().cloned());
        if outcome.load.requests == 0 {
            outcome
                .problems
                .push("no healthy request was served".to_owned());
        }
        outcome
    }

    /// The end of the scenario: SIGTERM, exit status, events. The server's files can be read
    /// afterwards.
    pub fn finish(&self, server: &mut Monitored, outcome: &mut Outcome) {
        check_end(server, outcome);
        if self.crash {
            check_events(server, outcome);
        }
    }

    /// Crashes the server (or only waits) while the load is well. The watcher looks after each
    /// crash whether the crashed request left anything behind.
    fn crash_until_end(
        &self,
        address: &Address,
        load: &Load,
        outcome: &mut Outcome,
    ) -> io::Result<()> {
        let mut watcher = Client::connect(address, self.patience)?;
        let end = Instant::now() + self.duration;
        let each_once = if self.crash {
            FAULTS.len() * SHAPES.len()
        } else {
            0
        };
        let mut round = 0;
        while (Instant::now() < end || round < each_once)
            && load.is_well()
            && outcome.problems.is_empty()
        {
            if self.crash {
                let fault = FAULTS[round % FAULTS.len()];
                let shape = SHAPES[round / FAULTS.len() % SHAPES.len()];
                let key = format!("crash:{round}");
                match crash(address, fault, shape, &key, self.patience) {
                    Ok(()) => outcome.crashes += 1,
                    Err(error) => outcome.problems.push(format!("{shape:?} {fault}: {error}")),
                }
                match watcher.call(&["EXISTS", &key])? {
                    Reply::Integer(0) => {}
                    other => {
                        let problem =
                            format!("{shape:?} {fault}: the key of the crashed request: {other:?}");
                        outcome.problems.push(problem);
                    }
                }
            }
            round += 1;
            thread::sleep(BREATH);
        }
        Ok(())
    }
}

/// Crashes the server once. Good is exactly this: no reply, and the connection is reset.
fn crash(
    address: &Address,
    fault: &str,
    shape: Shape,
    key: &str,
    patience: Duration,
) -> io::Result<()> {
    let mut client = Client::connect(address, patience)?;
    match shape {
        Shape::Alone => client.send(&encode(&["DEBUG", fault]))?,
        Shape::Pipelined => {
            client.send(&[encode(&["SET", key, "1"]), encode(&["DEBUG", fault])].concat())?;
        }
        Shape::Transaction => {
            for command in [&["MULTI"][..], &["SET", key, "1"], &["DEBUG", fault]] {
                if let Reply::Error(error) = client.call(command)? {
                    return Err(io::Error::other(format!("{}: {error}", command.join(" "))));
                }
            }
            client.send(&encode(&["EXEC"]))?;
        }
    }
    match client.reply() {
        Err(error) if net::is_reset(address, &error) => Ok(()),
        Err(error) if net::is_disconnect(&error) => Err(io::Error::other(format!(
            "the connection was not reset: {error}"
        ))),
        Err(error) => Err(error),
        Ok(reply) => Err(io::Error::other(format!(
            "the crashed request got a reply: {reply:?}"
        ))),
    }
}

fn check_end(server: &mut Monitored, outcome: &mut Outcome) {
    let problems = &mut outcome.problems;
    match server.try_wait() {
        Ok(None) => match server.terminate() {
            Ok(status) if status.success() => {}
            Ok(status) => problems.push(format!("{status} after SIGTERM")),
            Err(error) => problems.push(error::chain(&error)),
        },
        Ok(Some(status)) => problems.push(format!("the server ended by itself: {status}")),
        Err(error) => problems.push(format!("the server's status is not known: {error}")),
    }
    if !problems.is_empty() {
        problems.push(format!(
            "the server's output ends with:\n{}",
            server.output_tail()
        ));
    }
}

/// Every crash is one `recovered` event, and nothing was degraded or escalated.
fn check_events(server: &Monitored, outcome: &mut Outcome) {
    let events = match server.events() {
        Ok(events) => events,
        Err(error) => return outcome.problems.push(format!("events: {error}")),
    };
    let count = |kind: &str| events.iter().filter(|event| event.event == kind).count();
    if count("recovered") != outcome.crashes {
        let problem = format!(
            "{} crashes, {} recovered events",
            outcome.crashes,
            count("recovered")
        );
        outcome.problems.push(problem);
    }
    for kind in ["degraded", "escalated"] {
        if count(kind) > 0 {
            outcome
                .problems
                .push(format!("{} {kind} events", count(kind)));
        }
    }
    let recovered = events.iter().filter(|event| event.event == "recovered");
    outcome.pauses_us = recovered
        .filter_map(|event| event.number("pause_us"))
        .collect();
    outcome.pauses_us.sort_unstable();
}
