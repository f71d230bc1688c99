//! A program that is run to its end, under the monitor or natively, with everything it printed.

use std::{
    ffi::{OsStr, OsString},
    fmt,
    io::{self, Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Command, ExitStatus, Stdio},
    thread,
    time::Duration,
};

use crate::{
    paths::{self, NoMonitor},
    process::Bounded,
};

/// How long a program may run.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// How a program ended, and what it printed.
#[derive(Clone, PartialEq, Eq)]
pub struct Ended {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Ended {
    /// Its exit status as a shell shows it: 128 and the signal's number if a signal ended it.
    pub fn code(&self) -> i32 {
        let by_signal = self.status.signal().map(|signal| 128 + signal);
        self.status.code().or(by_signal).unwrap_or(-1)
    }

    /// Its standard output as text.
    pub fn out(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Its standard error as text.
    pub fn err(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }
}

impl fmt::Debug for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (out, err) = (self.out(), self.err());
        write!(f, "{}\n--- stdout\n{out}\n--- stderr\n{err}", self.status)
    }
}

/// `vmsrs` with `args`.
pub fn vmsrs<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> Result<Command, NoMonitor> {
    let mut command = Command::new(paths::vmsrs()?);
    command.args(args);
    Ok(command)
}

/// `vmsrs run` of `argv`; the fault reports go to the build's directory, not to the user's.
pub fn monitored<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Result<Command, NoMonitor> {
    let reports = paths::target_dir()
        .map_err(NoMonitor::Here)?
        .join("fault-reports");
    let mut command = vmsrs(["run", "--report-dir"])?;
    command.arg(reports).arg("--").args(argv);
    Ok(command)
}

/// `argv` without the monitor.
///
/// # Panics
///
/// If `argv` is empty.
pub fn native<S: AsRef<OsStr>>(argv: impl IntoIterator<Item = S>) -> Command {
    let argv: Vec<OsString> = argv
        .into_iter()
        .map(|arg| arg.as_ref().to_owned())
        .collect();
    let (program, args) = argv.split_first().expect("a program");
    let mut command = Command::new(program);
    command.args(args);
    command
}

/// Runs `command` with pipes as its three standard streams and `input` to read, and waits for its
/// end. One that runs longer than [`PATIENCE`] is killed, and an error.
pub fn to_end(command: &mut Command, input: &[u8]) -> io::Result<Ended> {
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = Bounded::spawn_group(command)?;
    let (stdin, stdout, stderr) = child.take_pipes();
    let input = input.to_vec();
    // A program that ends without reading everything is no error of this function's.
    let feed = thread::spawn(move || stdin.map(|mut pipe| pipe.write_all(&input)));
    let stdout = thread::spawn(move || read_all(stdout));
    let stderr = thread::spawn(move || read_all(stderr));
    let status = child.wait_for(PATIENCE)?;
    child.kill();
    // What is left of it, and of its children, is dead: the pipes end.
    let _ = feed.join();
    let stdout = stdout.join().unwrap_or_default();
    let stderr = stderr.join().unwrap_or_default();
    match status {
        Some(status) => Ok(Ended {
            status,
            stdout,
            stderr,
        }),
        None => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            format!(
                "still running after {PATIENCE:?}; its output:\n{}\n{}",
                String::from_utf8_lossy(&stdout),
                String::from_utf8_lossy(&stderr)
            ),
        )),
    }
}

/// Runs `argv` natively and under the monitor, both with `input`, and returns what both did.
///
/// # Panics
///
/// If they did not do the same: exit status (a signal counts as 128 and its number), standard
/// output, standard error but for the monitor's lines about new faults; or if one of them could not
/// be run.
pub fn same<S: AsRef<OsStr>>(argv: &[S], input: &[u8]) -> Ended {
    let monitored = monitored(argv).unwrap_or_else(|error| panic!("{error}"));
    let run = |mut command: Command| {
        to_end(&mut command, input).unwrap_or_else(|error| panic!("{command:?}: {error}"))
    };
    let (native, monitored) = (run(native(argv)), run(monitored));
    let told = |ended: &Ended| {
        (
            ended.code(),
            ended.stdout.clone(),
            without_faults(&ended.stderr),
        )
    };
    assert!(
        told(&native) == told(&monitored),
        "=== natively: {native}\n=== under the monitor: {monitored}"
    );
    monitored
}

/// What is printed without the monitor's lines about new faults, such as a refused `exit`.
fn without_faults(printed: &[u8]) -> Vec<u8> {
    let lines = printed.split_inclusive(|byte| *byte == b'\n');
    let others = lines.filter(|line| !line.starts_with(b"[WARN  vmsrs] "));
    others.flatten().copied().collect()
}

fn read_all(pipe: Option<impl Read>) -> Vec<u8> {
    let mut bytes = Vec::new();
    if let Some(mut pipe) = pipe {
        // What was read before an error still tells the most.
        let _ = pipe.read_to_end(&mut bytes);
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn input_output_and_status_are_those_of_the_program() {
        let mut command = native(["sh", "-c", "cat; echo no >&2; exit 7"]);
        let ended = to_end(&mut command, b"yes").unwrap();
        assert_eq!(
            (ended.code(), ended.out(), ended.err()),
            (7, "yes".into(), "no\n".into())
        );
        let ended = to_end(&mut native(["sh", "-c", "kill -TERM $$"]), b"").unwrap();
        assert_eq!(ended.code(), 143);
    }
}
