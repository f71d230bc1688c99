//! The fault server, and what it does without the monitor.

use std::{
    io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use crate::guest::{self, BuildError};

/// The compiled server.
#[derive(Debug)]
pub struct Program(PathBuf);

impl Program {
    /// Compiles `tests/guest/fault-server`.
    pub fn build() -> Result<Self, BuildError> {
        guest::server("fault-server").map(Self)
    }

    /// Where it lies.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The command that serves `port` with so many worker threads.
    pub fn serve(&self, port: u16, workers: u32) -> Vec<String> {
        vec![
            self.path().display().to_string(),
            port.to_string(),
            workers.to_string(),
        ]
    }

    /// Every fault that it can commit.
    pub fn faults(&self) -> io::Result<Vec<String>> {
        let output = self.run(&["--list"])?;
        Ok(String::from_utf8_lossy(&output.stdout)
            .lines()
            .map(str::to_owned)
            .collect())
    }

    /// Commits a fault on bare Linux, on the first thread or another: the signal that it dies of.
    pub fn native_signal(&self, fault: &str, on_thread: bool) -> io::Result<Option<i32>> {
        let on_thread = on_thread.then_some("thread");
        let arguments: Vec<&str> = ["--commit", fault].into_iter().chain(on_thread).collect();
        Ok(self.run(&arguments)?.status.signal())
    }

    /// Runs it on bare Linux, in a directory of its own.
    pub fn run(&self, arguments: &[&str]) -> io::Result<Output> {
        let dir = tempfile::tempdir()?;
        Command::new(self.path())
            .args(arguments)
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
    }
}
