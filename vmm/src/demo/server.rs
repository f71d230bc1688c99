//! The demo server's program and its processes, under the monitor or without it.

use std::fmt;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use recovery::event::signal_name;

use super::DemoError;

/// The server as the build made it.
const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/demo-server"));

/// The monitor's events in the directory of a run.
const EVENTS: &str = "events.jsonl";

/// How long a server may take to listen, and to end when told to.
const START_LIMIT: Duration = Duration::from_secs(10);
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// How the server is built from threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Worker threads; 0: one event loop in the main thread.
    pub threads: u8,
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.threads {
            0 => f.write_str("one event loop"),
            1 => f.write_str("1 worker thread"),
            n => write!(f, "{n} worker threads"),
        }
    }
}

/// The server's program in a private directory, which is removed when this is dropped.
#[derive(Debug)]
pub struct Installation {
    private: tempfile::TempDir,
    keep: Option<PathBuf>,
}

impl Installation {
    /// Writes the program out. `keep` is where the files of the runs go instead of the private directory.
    pub fn new(keep: Option<&Path>) -> Result<Self, DemoError> {
        let private = tempfile::Builder::new()
            .prefix("vmsrs-demo-")
            .permissions(fs::Permissions::from_mode(0o700))
            .tempdir()
            .map_err(|source| DemoError::Prepare {
                path: std::env::temp_dir(),
                source,
            })?;
        let program = private.path().join("demo-server");
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o700)
            .open(&program)
            .and_then(|mut file| file.write_all(PROGRAM))
            .map_err(|source| DemoError::Prepare {
                path: program,
                source,
            })?;
        Ok(Self {
            private,
            keep: keep.map(Path::to_owned),
        })
    }

    fn program(&self) -> PathBuf {
        self.private.path().join("demo-server")
    }

    /// The directory for the files of one run. Of a former run only the events are removed, as the monitor
    /// appends to them.
    fn run_dir(&self, name: &str) -> Result<PathBuf, DemoError> {
        let parent = self.keep.as_deref().unwrap_or(self.private.path());
        let dir = parent.join(name);
        let fail = |source| DemoError::Prepare {
            path: dir.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&dir)
            .map_err(fail)?;
        match fs::remove_file(dir.join(EVENTS)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fail(error)),
            _ => Ok(dir),
        }
    }
}

/// How a server ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// With this exit status.
    Status(i32),
    /// By the signal of this name.
    Signal(String),
    /// It had to be killed.
    Stuck,
}

impl fmt::Display for Ending {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Status(status) => write!(f, "exit status {status}"),
            Self::Signal(name) => f.write_str(name),
            Self::Stuck => f.write_str("did not end"),
        }
    }
}

impl From<ExitStatus> for Ending {
    fn from(status: ExitStatus) -> Self {
        match (status.code(), status.signal()) {
            (Some(code), _) => Self::Status(code),
            (None, Some(signal)) => Self::Signal(signal_name(signal)),
            (None, None) => Self::Stuck,
        }
    }
}

/// A running server; killed when dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    what: String,
    dir: PathBuf,
    port: u16,
}

impl Server {
    /// Starts the server without the monitor.
    pub fn native(installation: &Installation, layout: Layout) -> Result<Self, DemoError> {
        let dir = installation.run_dir("native")?;
        let command = Command::new(installation.program());
        Self::start(command, layout, dir, format!("the server with {layout}"))
    }

    /// Starts the server under the monitor: this program's own `run` command.
    pub fn monitored(installation: &Installation, layout: Layout) -> Result<Self, DemoError> {
        let dir = installation.run_dir(&match layout.threads {
            0 => "event-loop".to_owned(),
            n => format!("threads-{n}"),
        })?;
        let what = format!("the server with {layout} under the monitor");
        let monitor = std::env::current_exe().map_err(|source| DemoError::Start {
            what: what.clone(),
            source,
        })?;
        let mut command = Command::new(monitor);
        command.arg("run").arg("--events").arg(dir.join(EVENTS));
        command.arg("--stats").arg(dir.join("stats.json"));
        command.arg("--report-dir").arg(dir.join("reports"));
        command.arg("--").arg(installation.program());
        Self::start(command, layout, dir, what)
    }

    fn start(
        mut command: Command,
        layout: Layout,
        dir: PathBuf,
        what: String,
    ) -> Result<Self, DemoError> {
        command.args(["--port", "0"]);
        if layout.threads > 0 {
            command.arg("-t").arg(layout.threads.to_string());
        }
        let log = dir.join("server.log");
        let stderr =
            File::create(&log).map_err(|source| DemoError::Prepare { path: log, source })?;
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(stderr);
        // SAFETY: the closure calls async-signal-safe functions only, as the child of a process with threads
        // must, and touches no memory but its own stack.
        unsafe { command.pre_exec(prepare_child) };
        let child = command.spawn().map_err(|source| DemoError::Start {
            what: what.clone(),
            source,
        })?;
        let mut server = Self {
            child,
            what,
            dir,
            port: 0,
        };
        server.port = server.await_port()?;
        Ok(server)
    }

    /// Reads the port from the line in which the server says that it listens.
    fn await_port(&mut self) -> Result<u16, DemoError> {
        let (sender, receiver) = mpsc::channel();
        if let Some(stdout) = self.child.stdout.take() {
            // Not joined: it ends with the server's standard output.
            thread::spawn(move || {
                let mut line = String::new();
                if BufReader::new(stdout).read_line(&mut line).is_ok() {
                    // Nobody listens any more when the server took too long.
                    let _ = sender.send(line);
                }
            });
        }
        let line = receiver.recv_timeout(START_LIMIT).unwrap_or_default();
        line.strip_prefix("listening on ")
            .and_then(|port| port.trim_end().parse().ok())
            .ok_or_else(|| {
                let ending = self.wait_for_end(Duration::from_millis(100));
                let detail = format!("{ending}\n{}", self.log_tail());
                DemoError::NotListening {
                    what: self.what.clone(),
                    detail,
                }
            })
    }

    /// The port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The server in words.
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The events file, if this server runs under the monitor.
    pub fn events_file(&self) -> PathBuf {
        self.dir.join(EVENTS)
    }

    /// Tells the server to end, and waits for it.
    pub fn stop(&mut self) -> Ending {
        if let Ok(pid) = i32::try_from(self.child.id()) {
            // SAFETY: a system call without pointers; the child is not reaped yet, so the ID is still its own.
            unsafe { libc::kill(pid, libc::SIGTERM) };
        }
        self.wait_for_end(STOP_LIMIT)
    }

    /// Waits until the server has ended by itself; kills it after `limit`.
    pub fn wait_for_end(&mut self, limit: Duration) -> Ending {
        let deadline = Instant::now() + limit;
        loop {
            match self.child.try_wait() {
                Ok(Some(status)) => return status.into(),
                Ok(None) if Instant::now() < deadline => thread::sleep(Duration::from_millis(1)),
                Ok(None) | Err(_) => {
                    self.kill();
                    return Ending::Stuck;
                }
            }
        }
    }

    /// The last lines that the server, or the monitor, wrote to standard error.
    pub fn log_tail(&self) -> String {
        const LINES: usize = 8;
        let log = fs::read(self.dir.join("server.log")).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(LINES)..].join("\n")
    }

    fn kill(&mut self) {
        // Both fail only for a child that is gone already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

/// Runs in the child between fork and exec: no core files from servers that are meant to crash, and no server
/// left behind should the demo be killed.
fn prepare_child() -> io::Result<()> {
    let no_core = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: setrlimit reads the structure that it is given; prctl takes no pointers here.
    let failed = unsafe {
        libc::setrlimit(libc::RLIMIT_CORE, &no_core) < 0
            || libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) < 0
    };
    if failed {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
