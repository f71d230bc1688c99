//! Builds the fault server, and runs it without the monitor.

use std::{
    fs, io,
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{Command, Output, Stdio},
};

use tempfile::TempDir;

/// Why there is no server.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or a compiler could not be used.
    #[error("cannot build the fault server (tests/packages.txt names the packages)")]
    Io(#[from] io::Error),
    /// The compiler refused it.
    #[error("the fault server does not compile:\n{0}")]
    Refused(String),
}

/// The compiled server, gone when the value is dropped.
#[derive(Debug)]
pub struct Program {
    dir: TempDir,
}

impl Program {
    /// Compiles `tests/guest/fault-server`.
    pub fn build() -> Result<Self, BuildError> {
        let dir = tempfile::tempdir()?;
        let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/fault-server");
        let mut objects = Vec::new();
        for entry in fs::read_dir(source)? {
            let path = entry?.path();
            let compiler = match path.extension().and_then(|extension| extension.to_str()) {
                Some("c") => ["gcc", "-std=gnu11"],
                Some("cc") => ["g++", "-std=c++17"],
                _ => continue,
            };
            let object = dir.path().join(format!("{}.o", objects.len()));
            let mut command = Command::new(compiler[0]);
            command.args([compiler[1], "-D_GNU_SOURCE", "-O1", "-g", "-pthread"]);
            command.args(["-fno-omit-frame-pointer", "-fstack-protector-strong"]);
            // The faults are there on purpose.
            command.args([
                "-Wall",
                "-Wextra",
                "-Werror",
                "-Wno-error=stringop-overflow",
            ]);
            compile(command.arg("-c").arg(&path).arg("-o").arg(&object))?;
            objects.push(object);
        }
        let program = Self { dir };
        let mut link = Command::new("g++");
        link.arg("-pthread")
            .arg("-o")
            .arg(program.path())
            .args(objects);
        compile(link.arg("-lm"))?;
        Ok(program)
    }

    /// Where it lies.
    pub fn path(&self) -> PathBuf {
        self.dir.path().join("fault-server")
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

    /// Runs it on bare Linux.
    pub fn run(&self, arguments: &[&str]) -> io::Result<Output> {
        Command::new(self.path())
            .args(arguments)
            .current_dir(self.dir.path())
            .stdin(Stdio::null())
            .output()
    }
}

fn compile(command: &mut Command) -> Result<(), BuildError> {
    let output = command.output()?;
    match output.status.success() {
        true => Ok(()),
        false => Err(BuildError::Refused(
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )),
    }
}
