//! A server under the monitor (or, for comparison, without it), as a test sees it: it is up when
//! `start` returns, and gone with everything it forked when the value is dropped.

use std::{
    ffi::{OsStr, OsString},
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tempfile::TempDir;

use crate::{
    event::{self, Event},
    net::{self, Address},
    paths::{self, NoMonitor},
    process::Bounded,
};

/// How long a server may take to listen, and to end, unless [`Launch::patience`] says otherwise.
pub const PATIENCE: Duration = Duration::from_secs(20);

const POLL: Duration = Duration::from_millis(20);

/// Lines of a server's output that an error shows.
const TAIL_LINES: usize = 30;
/// Events shown of a server whose test has failed, and how long the last of them may take to be written.
const LAST_EVENTS: usize = 5;
const REPORTER: Duration = Duration::from_secs(1);

/// Why a server did not come up.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// There is no monitor to start it with.
    #[error(transparent)]
    NoMonitor(#[from] NoMonitor),
    /// A file or process could not be created.
    #[error("cannot start {program} (tests/packages.txt names the packages that the tests need)")]
    Spawn {
        /// What was started.
        program: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It ended before it listened.
    #[error("the server ended with {status} before it listened; its output:\n{output}")]
    Ended {
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed.
        output: String,
    },
    /// It did not listen in time.
    #[error("the server does not listen on {address} after {patience:?}; its output:\n{output}")]
    Silent {
        /// Where it should have listened.
        address: Address,
        /// How long the test waited.
        patience: Duration,
        /// The end of what it printed.
        output: String,
    },
}

/// Why a server did not end well.
#[derive(Debug, thiserror::Error)]
pub enum StopError {
    /// It ignored SIGTERM and was killed.
    #[error("the server still ran {patience:?} after SIGTERM; its output:\n{output}")]
    Stuck {
        /// How long the test waited.
        patience: Duration,
        /// The end of what it printed.
        output: String,
    },
    /// It could not be signalled or waited for.
    #[error("cannot stop the server")]
    Io(#[from] io::Error),
}

/// A server to start: the program, and how the monitor is to run it.
#[derive(Clone, Debug)]
pub struct Launch {
    program: Vec<OsString>,
    monitor: Option<PathBuf>,
    options: Vec<OsString>,
    variables: Vec<(OsString, OsString)>,
    events: Option<PathBuf>,
    patience: Duration,
}

impl Launch {
    /// `program` with its arguments, under the monitor that [`paths::vmsrs`] finds. The program
    /// runs in an empty directory of its own.
    pub fn monitored<S: AsRef<OsStr>>(
        program: impl IntoIterator<Item = S>,
    ) -> Result<Self, NoMonitor> {
        Ok(Self::native(program).monitor(&paths::vmsrs()?))
    }

    /// `program` with its arguments, without the monitor.
    pub fn native<S: AsRef<OsStr>>(program: impl IntoIterator<Item = S>) -> Self {
        Self {
            program: program
                .into_iter()
                .map(|arg| arg.as_ref().to_owned())
                .collect(),
            monitor: None,
            options: Vec::new(),
            variables: Vec::new(),
            events: None,
            patience: PATIENCE,
        }
    }

    /// Runs the program under the monitor at the absolute path `vmsrs`.
    pub fn monitor(mut self, vmsrs: &Path) -> Self {
        self.monitor = Some(vmsrs.to_path_buf());
        self
    }

    /// Adds options for `vmsrs run`, such as `--protect off`. They mean nothing to a native server.
    pub fn options<S: AsRef<OsStr>>(mut self, options: impl IntoIterator<Item = S>) -> Self {
        self.options
            .extend(options.into_iter().map(|option| option.as_ref().to_owned()));
        self
    }

    /// Sets an environment variable.
    pub fn env(mut self, name: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        let variable = (name.as_ref().to_owned(), value.as_ref().to_owned());
        self.variables.push(variable);
        self
    }

    /// Has the events written to `path`, where [`Monitored::events`] does not look.
    pub fn events_to(mut self, path: PathBuf) -> Self {
        self.events = Some(path);
        self
    }

    /// How long the server may take to listen, and to end.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// Starts the server and waits until it accepts connections on `port`.
    pub fn start(self, port: u16) -> Result<Monitored, StartError> {
        self.start_at(Address::Tcp(port))
    }

    /// Starts the server and waits until it accepts connections at `address`.
    pub fn start_at(self, address: Address) -> Result<Monitored, StartError> {
        let name = self.program.first().cloned().unwrap_or_default();
        let spawned = self.spawn(address);
        let mut server = spawned.map_err(|source| StartError::Spawn {
            program: name.display().to_string(),
            source,
        })?;
        server.await_listening()?;
        Ok(server)
    }

    fn spawn(self, address: Address) -> io::Result<Monitored> {
        let dir = tempfile::Builder::new().prefix("vmsrs-test-").tempdir()?;
        let cwd = dir.path().join("cwd");
        fs::create_dir(&cwd)?;
        let output = File::create(dir.path().join(OUTPUT))?;
        let patience = self.patience;
        let variables = self.variables.clone();
        let argv = self.argv(dir.path());
        let (program, args) = argv
            .split_first()
            .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program"))?;
        let mut command = Command::new(program);
        command.args(args).current_dir(cwd).stdin(Stdio::null());
        command.envs(variables);
        command.stdout(output.try_clone()?).stderr(output);
        let child = Bounded::spawn_group(&mut command)?;
        Ok(Monitored {
            child,
            dir,
            address,
            patience,
        })
    }

    /// The command line; the monitor's files lie in `dir`.
    fn argv(self, dir: &Path) -> Vec<OsString> {
        let Some(vmsrs) = self.monitor else {
            return self.program;
        };
        let mut argv = vec![vmsrs.into_os_string(), "run".into()];
        for (option, file) in [
            ("--events", EVENTS),
            ("--stats", STATS),
            ("--report-dir", REPORTS),
        ] {
            let elsewhere = self.events.as_ref().filter(|_| file == EVENTS);
            let path = elsewhere.cloned().unwrap_or_else(|| dir.join(file));
            argv.extend([option.into(), path.into_os_string()]);
        }
        argv.extend(self.options);
        argv.push("--".into());
        argv.extend(self.program);
        argv
    }
}

const OUTPUT: &str = "output";
const EVENTS: &str = "events";
const STATS: &str = "stats";
const REPORTS: &str = "reports";

/// A running server with its own temporary directory. Dropping it kills the server.
#[derive(Debug)]
pub struct Monitored {
    // Declared before `dir`, so that the server is dead before its directory goes.
    child: Bounded,
    dir: TempDir,
    address: Address,
    patience: Duration,
}

impl Monitored {
    /// Starts `program` with its arguments under the monitor, with default options, and waits
    /// until it accepts connections on `port`.
    pub fn start<S: AsRef<OsStr>>(
        port: u16,
        program: impl IntoIterator<Item = S>,
    ) -> Result<Self, StartError> {
        Launch::monitored(program)?.start(port)
    }

    /// Where the server listens.
    pub fn address(&self) -> &Address {
        &self.address
    }

    /// The port the server listens on; 0 if it is not a TCP port.
    pub fn port(&self) -> u16 {
        match self.address {
            Address::Tcp(port) => port,
            Address::Unix(_) => 0,
        }
    }

    /// The process id of the monitor, or of the native server.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The events so far.
    pub fn events(&self) -> io::Result<Vec<Event>> {
        event::read(&self.dir.path().join(EVENTS))
    }

    /// The events so far of the kind `event`, such as `recovered`.
    pub fn events_of(&self, event: &str) -> io::Result<Vec<Event>> {
        Ok(self
            .events()?
            .into_iter()
            .filter(|found| found.event == event)
            .collect())
    }

    /// Likewise, when there are `count` of them, or after the server's patience: they are written in the
    /// background.
    pub fn await_events(&self, event: &str, count: usize) -> io::Result<Vec<Event>> {
        let deadline = Instant::now() + self.patience;
        loop {
            let found = self.events_of(event)?;
            if found.len() >= count || Instant::now() >= deadline {
                return Ok(found);
            }
            thread::sleep(POLL);
        }
    }

    /// Resident memory of the server and its monitor, which are one process, in KiB.
    pub fn resident_kib(&self) -> io::Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        line.and_then(|rest| rest.trim().strip_suffix(" kB")?.trim().parse().ok())
            .ok_or_else(|| io::Error::other("no VmRSS"))
    }

    /// The counters, which the monitor writes when it ends.
    pub fn stats(&self) -> io::Result<Value> {
        let text = fs::read_to_string(self.dir.path().join(STATS))?;
        serde_json::from_str(&text).map_err(io::Error::from)
    }

    /// The directory with the fault reports.
    pub fn report_dir(&self) -> PathBuf {
        self.dir.path().join(REPORTS)
    }

    /// The server's working directory.
    pub fn cwd(&self) -> PathBuf {
        self.dir.path().join("cwd")
    }

    /// What the monitor and the server printed so far, both streams.
    pub fn output(&self) -> String {
        let bytes = fs::read(self.dir.path().join(OUTPUT)).unwrap_or_default();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// The exit status, if the server has ended.
    pub fn try_wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.try_wait()
    }

    /// Sends `signal` to the monitor, or to the native server.
    pub fn signal(&mut self, signal: libc::c_int) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Stops the server, or lets it go on, so that what is sent meanwhile is there when it looks next.
    pub fn pause(&self, stop: bool) {
        let signal = if stop { libc::SIGSTOP } else { libc::SIGCONT };
        // SAFETY: `kill` takes no pointers. The server has not been reaped, since it is borrowed.
        let sent = unsafe { libc::kill(self.pid() as libc::pid_t, signal) };
        assert_eq!(sent, 0, "the server is gone");
    }

    /// Waits for the server to end by itself; `None` means that it still runs after its patience.
    pub fn wait(&mut self) -> io::Result<Option<ExitStatus>> {
        self.child.wait_for(self.patience)
    }

    /// Kills the server at once, as a crash of the whole machine would.
    pub fn kill(&mut self) {
        self.child.kill();
    }

    /// Sends SIGTERM and waits for the end. A server that does not end in time is killed. The
    /// events, the counters and the output can be read afterwards.
    pub fn terminate(&mut self) -> Result<ExitStatus, StopError> {
        self.child.signal(libc::SIGTERM)?;
        match self.child.wait_for(self.patience)? {
            Some(status) => Ok(status),
            None => {
                self.child.kill();
                Err(StopError::Stuck {
                    patience: self.patience,
                    output: self.output_tail(),
                })
            }
        }
    }

    fn await_listening(&mut self) -> Result<(), StartError> {
        let deadline = Instant::now() + self.patience;
        loop {
            if net::connect_to(&self.address, self.patience).is_ok() {
                return Ok(());
            }
            if let Ok(Some(status)) = self.try_wait() {
                return Err(StartError::Ended {
                    status,
                    output: self.output_tail(),
                });
            }
            if Instant::now() >= deadline {
                return Err(StartError::Silent {
                    address: self.address.clone(),
                    patience: self.patience,
                    output: self.output_tail(),
                });
            }
            thread::sleep(POLL);
        }
    }

    /// The last lines of [`Monitored::output`].
    pub fn output_tail(&self) -> String {
        tail(&self.output(), TAIL_LINES).to_owned()
    }
}

/// A test that fails says how its server was doing.
impl Drop for Monitored {
    fn drop(&mut self) {
        if thread::panicking() {
            let status = match self.try_wait() {
                Ok(Some(status)) => format!("ended with {status}"),
                _ => "still runs".into(),
            };
            // The reporter may be behind.
            thread::sleep(REPORTER);
            let events = fs::read_to_string(self.dir.path().join(EVENTS)).unwrap_or_default();
            eprintln!(
                "the server {status}; its last events:\n{}\nits output:\n{}",
                tail(&events, LAST_EVENTS),
                self.output_tail()
            );
        }
    }
}

/// The last `lines` lines of `text`.
pub fn tail(text: &str, lines: usize) -> &str {
    let text = text.trim_end_matches('\n');
    match text.rmatch_indices('\n').nth(lines.saturating_sub(1)) {
        Some((at, _)) => &text[at + 1..],
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_the_monitors_or_the_programs() {
        let native = Launch::native(["redis-server", "--port", "1"]);
        let dir = Path::new("/d");
        assert_eq!(native.clone().argv(dir), ["redis-server", "--port", "1"]);
        let argv = native
            .monitor(Path::new("/b/vmsrs"))
            .options(["--protect", "off"])
            .argv(dir);
        assert_eq!(
            argv,
            [
                "/b/vmsrs",
                "run",
                "--events",
                "/d/events",
                "--stats",
                "/d/stats",
                "--report-dir",
                "/d/reports",
                "--protect",
                "off",
                "--",
                "redis-server",
                "--port",
                "1"
            ]
        );
    }

    #[test]
    fn a_server_that_ends_early_shows_its_output() {
        let error = Launch::native(["sh", "-c", "echo no such option; exit 3"])
            .start(1)
            .unwrap_err();
        assert!(matches!(error, StartError::Ended { .. }), "{error}");
        assert!(error.to_string().contains("no such option"), "{error}");
    }

    #[test]
    fn a_server_that_never_listens_is_given_up() {
        let launch = Launch::native(["sleep", "60"]).patience(Duration::from_millis(100));
        let error = launch.start(net::free_port().unwrap()).unwrap_err();
        assert!(matches!(error, StartError::Silent { .. }), "{error}");
    }

    #[test]
    fn the_tail_is_the_last_lines() {
        assert_eq!(tail("a\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a\nb\n", 5), "a\nb");
        assert_eq!(tail("", 5), "");
    }
}
