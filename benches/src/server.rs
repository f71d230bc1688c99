//! A server under measurement: started, looked at from outside, stopped.

use std::{
    fs, io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use serde_json::Value;
use vmsrs_tests::{Monitored, free_port, memcached, redis};

use crate::{Error, settings::Tools, variant::Variant};

/// How long a single reply may take.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often a server that starts is asked whether it answers: the resolution of the start-up time.
const POLL: Duration = Duration::from_millis(1);

/// Worker threads of memcached.
const MEMCACHED_THREADS: usize = 4;

/// Which server.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Service {
    /// `redis-server`, without persistence.
    Redis,
    /// `memcached -t 4`.
    Memcached,
}

impl Service {
    /// Both.
    pub const ALL: [Service; 2] = [Service::Redis, Service::Memcached];

    /// The program's name.
    pub fn name(self) -> &'static str {
        match self {
            Service::Redis => "redis-server",
            Service::Memcached => "memcached",
        }
    }

    fn command(self, port: u16) -> Vec<String> {
        match self {
            Service::Redis => redis::command(port),
            Service::Memcached => memcached::command(port, MEMCACHED_THREADS),
        }
    }

    /// Has one request answered.
    fn ask(self, port: u16) -> io::Result<()> {
        match self {
            Service::Redis => redis::Client::connect(port, PATIENCE)?
                .call(&["PING"])
                .map(drop),
            Service::Memcached => memcached::Client::connect(port, PATIENCE)?
                .get("none")
                .map(drop),
        }
    }
}

/// Memory of a server's process, the monitor's own included.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Memory {
    /// Resident bytes.
    pub rss: u64,
    /// Resident bytes, of shared pages only this process' share.
    pub pss: u64,
}

/// A running server. Dropping it kills it.
pub struct Server {
    process: Monitored,
    /// From the start of the process until it answered a first request.
    pub startup: Duration,
}

impl Server {
    /// Starts `service` and waits until it has answered a request.
    pub fn start(service: Service, variant: Variant, tools: &Tools) -> Result<Self, Error> {
        let port = free_port()?;
        let launch = variant.launch(service.command(port), tools);
        let given_up = AtomicBool::new(false);
        thread::scope(|scope| {
            let begin = Instant::now();
            // `Launch::start` looks at the port too seldom to tell the time by.
            let answer = scope.spawn(|| first_answer(service, port, &given_up));
            let process = launch.start(port);
            let begun = process.is_ok();
            let deadline = Instant::now() + PATIENCE;
            while begun && !answer.is_finished() && Instant::now() < deadline {
                thread::sleep(POLL);
            }
            given_up.store(true, Ordering::Relaxed);
            let answered = answer.join().map_err(|_| "the start-up probe panicked")?;
            let process = process?;
            let answered = answered
                .ok_or_else(|| format!("no answer; its output:\n{}", process.output_tail()))?;
            Ok(Self {
                process,
                startup: answered.duration_since(begin),
            })
        })
    }

    /// The port it listens on.
    pub fn port(&self) -> u16 {
        self.process.port()
    }

    /// The process behind it.
    pub fn process(&self) -> &Monitored {
        &self.process
    }

    /// What its process keeps in memory.
    pub fn memory(&self) -> Result<Memory, Error> {
        let path = format!("/proc/{}/smaps_rollup", self.process.pid());
        let text = fs::read_to_string(&path).map_err(|e| format!("{path}: {e}"))?;
        parse_memory(&text).ok_or_else(|| format!("{path} has no Rss and Pss").into())
    }

    /// The processor time that its threads have used, those of the monitor and time in the guest
    /// included.
    pub fn cpu_time(&self) -> Result<Duration, Error> {
        let mut nanoseconds = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.process.pid()))? {
            // A thread may end at any time.
            let text = fs::read_to_string(task?.path().join("schedstat")).unwrap_or_default();
            let used = text.split(' ').next().and_then(|word| word.parse().ok());
            nanoseconds += used.unwrap_or(0u64);
        }
        Ok(Duration::from_nanos(nanoseconds))
    }

    /// Ends it with SIGTERM. Returns the monitor's counters, if there is a monitor.
    pub fn stop(&mut self, variant: Variant) -> Result<Option<Value>, Error> {
        let status = self.process.terminate()?;
        if !status.success() {
            let output = self.process.output_tail();
            return Err(format!("it ended with {status}; its output:\n{output}").into());
        }
        match variant {
            Variant::Native => Ok(None),
            _ => Ok(Some(self.process.stats()?)),
        }
    }
}

/// When the server answered for the first time, unless the wait is given up before.
fn first_answer(service: Service, port: u16, given_up: &AtomicBool) -> Option<Instant> {
    while !given_up.load(Ordering::Relaxed) {
        if service.ask(port).is_ok() {
            return Some(Instant::now());
        }
        thread::sleep(POLL);
    }
    None
}

/// From the text of `/proc/PID/smaps_rollup`.
fn parse_memory(text: &str) -> Option<Memory> {
    let field = |name: &str| -> Option<u64> {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        let kibibytes: u64 = line.trim().strip_suffix(" kB")?.parse().ok()?;
        kibibytes.checked_mul(1024)
    };
    Some(Memory {
        rss: field("Rss:")?,
        pss: field("Pss:")?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_in_bytes() {
        let text =
            "0-1 ---p 0 00:00 0 [rollup]\nRss:   19068 kB\nPss:     15055 kB\nPss_Dirty: 1 kB\n";
        let (rss, pss) = (19068 * 1024, 15055 * 1024);
        assert_eq!(parse_memory(text), Some(Memory { rss, pss }));
        assert_eq!(parse_memory("Rss: 1 kB\n"), None);
    }

    #[test]
    fn a_native_server_is_started_timed_and_stopped() {
        let tools = Tools {
            vmsrs: "unused".into(),
            built_here: false,
        };
        let mut server = Server::start(Service::Memcached, Variant::Native, &tools).unwrap();
        assert!(server.startup > Duration::ZERO && server.startup < PATIENCE);
        assert!(server.memory().unwrap().rss > 0);
        assert!(server.cpu_time().unwrap() > Duration::ZERO);
        assert_eq!(server.stop(Variant::Native).unwrap(), None);
    }
}
