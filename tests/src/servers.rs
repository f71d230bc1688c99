//! Debian's servers: how each is set up and started, what a client says to it, and how it is asked to reload and to stop.

mod dialogue;
mod setup;

use std::{
    io,
    process::ExitStatus,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use crate::{Launch, Monitored, free_port, process::Bounded};

pub use setup::all;

/// How long anything may take: the first start of a database, the end of a server with open connections.
const PATIENCE: Duration = Duration::from_secs(60);
/// Clients go on for so long after a reload.
const SETTLING: Duration = Duration::from_secs(1);
/// How long it has to stop before it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(10);
/// Clients that ask at the same time, and how often each asks before and after the reload.
const CLIENTS: usize = 8;
const ROUNDS: u64 = 6;

/// Connects to the port, says who it is with the tag, and checks what it hears.
pub type Visit = Box<dyn Fn(u16, &str) -> io::Result<()> + Sync>;

/// A server that is set up in a directory of its own.
pub struct Server {
    /// Its files, gone with it.
    pub dir: TempDir,
    /// Where it will listen.
    pub port: u16,
    /// Its command line.
    pub command: Vec<String>,
    /// The server that it asks in its turn, if it asks one.
    pub backend: Option<Bounded>,
    /// How it is asked to read its configuration again, if it can be asked.
    pub reload: Option<libc::c_int>,
    /// How it is asked to end without haste.
    pub stop: libc::c_int,
    /// A client's visit.
    pub visit: Visit,
    /// Whether one of its requests is to crash.
    pub crash: Crash,
}

/// What comes of a crash under the monitor.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Crash {
    /// Nothing for others, and a report.
    Reported,
    /// Others may notice, so there is none.
    None,
}

/// How to set up a server; the name is that of its test.
pub struct Recipe {
    /// The name.
    pub name: &'static str,
    /// Makes its files.
    pub set_up: fn(port: u16) -> io::Result<Server>,
}

/// What came of a server.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Its exit status as a shell shows it.
    pub code: i32,
    /// What clients did not expect.
    pub problems: Vec<String>,
}

/// A server of that name.
///
/// # Panics
///
/// When there is none.
pub fn recipe(name: &str) -> Recipe {
    let found = all().into_iter().find(|recipe| recipe.name == name);
    found.unwrap_or_else(|| panic!("no server is called {name}"))
}

/// Starts the server, lets clients visit it, asks it to reload meanwhile, and to stop. Under the monitor, one request
/// crashes.
pub fn exercise(recipe: &Recipe, monitored: bool) -> io::Result<Outcome> {
    let port = free_port()?;
    let server = (recipe.set_up)(port)?;
    let launch = match monitored {
        true => Launch::monitored(&server.command).map_err(io::Error::other)?,
        false => Launch::native(&server.command),
    };
    let crashes = monitored && server.crash == Crash::Reported;
    let options = match crashes {
        true => vec!["--inject", "abort:match=crash-this,times=1"],
        false => vec![],
    };
    let mut running = launch
        .patience(PATIENCE)
        .options(options)
        .start(port)
        .map_err(io::Error::other)?;
    let mut problems = visits(&server, &mut running, crashes)?;
    let status = stop(&mut running, server.stop)?;
    let code = status.map_or(-1, |status| {
        let by_signal = std::os::unix::process::ExitStatusExt::signal(&status);
        status.code().or(by_signal.map(|n| 128 + n)).unwrap_or(-1)
    });
    if status.is_none() {
        problems.push("it did not stop".into());
    }
    if crashes {
        problems.extend(faults(&running)?);
    }
    if !problems.is_empty() {
        problems.push(running.output_tail());
    }
    Ok(Outcome { code, problems })
}

/// What is wrong with what the monitor says of the one crash.
fn faults(running: &Monitored) -> io::Result<Option<String>> {
    let events = running.events()?;
    let outcomes = ["recovered", "degraded", "escalated"];
    let told: Vec<_> = events
        .iter()
        .filter(|event| outcomes.contains(&event.event.as_str()))
        .collect();
    let is_right = match told[..] {
        [fault] => fault.event != "escalated" && fault.text("report").is_some(),
        _ => false,
    };
    Ok((!is_right).then(|| format!("not one fault with a report: {told:?} of {events:?}")))
}

/// Asks it to stop, and again if it does not: HAProxy forgets it when it is still reloading.
fn stop(running: &mut Monitored, signal: libc::c_int) -> io::Result<Option<ExitStatus>> {
    let deadline = Instant::now() + PATIENCE;
    while Instant::now() < deadline {
        running.signal(signal)?;
        let asked = Instant::now();
        while asked.elapsed() < ASK_AGAIN {
            if let Some(status) = running.try_wait()? {
                return Ok(Some(status));
            }
            thread::sleep(Duration::from_millis(10));
        }
    }
    Ok(None)
}

fn visits(server: &Server, running: &mut Monitored, crashes: bool) -> io::Result<Vec<String>> {
    let (visited, ended) = (AtomicU64::new(0), AtomicBool::new(false));
    let visit = |tag: String| {
        let result = (server.visit)(server.port, &tag);
        result.map_err(|error| format!("{tag}: {error}"))
    };
    // The port may be open before the server is ready, as a database's is.
    let deadline = Instant::now() + PATIENCE;
    while let Err(error) = visit("first".into()) {
        if Instant::now() > deadline {
            return Ok(vec![error]);
        }
        thread::sleep(Duration::from_millis(50));
    }
    let come_and_go = |client: usize| -> Result<(), String> {
        let mut round = 0;
        while round < ROUNDS || !ended.load(Ordering::Acquire) {
            visit(format!("client-{client}-{round}"))?;
            visited.fetch_add(1, Ordering::AcqRel);
            round += 1;
        }
        Ok(())
    };
    let wait_for = |more: u64| {
        let aim = visited.load(Ordering::Acquire) + more;
        let deadline = Instant::now() + PATIENCE;
        while visited.load(Ordering::Acquire) < aim && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
        }
    };
    thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| scope.spawn(move || come_and_go(client)))
            .collect();
        let mut problems = Vec::new();
        wait_for(ROUNDS);
        if crashes && visit("crash-this".into()).is_ok() {
            problems.push("a request that crashes was answered".into());
        }
        wait_for(ROUNDS);
        if let Some(signal) = server.reload {
            running.signal(signal)?;
        }
        wait_for(2 * ROUNDS);
        if server.reload.is_some() {
            thread::sleep(SETTLING);
        }
        ended.store(true, Ordering::Release);
        let results = clients.into_iter().map(|client| match client.join() {
            Ok(result) => result,
            Err(_) => Err("a client panicked".into()),
        });
        problems.extend(results.filter_map(Result::err));
        Ok(problems)
    })
}
