//! Runs cargo, shows what it prints as it comes, and counts the tests.

use std::{
    env,
    ffi::OsString,
    io::{self, BufRead, BufReader},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::{Duration, Instant},
};

use crate::{kvm, paths};

/// Why cargo did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CargoError {
    /// It could not be run.
    #[error("cannot run cargo")]
    Run(#[source] io::Error),
    /// The monitor does not build.
    #[error("the monitor could not be built ({0})")]
    Build(ExitStatus),
    /// The monitor that was named is not there.
    #[error("{0}")]
    NotThere(PathBuf, #[source] io::Error),
    /// There is none.
    #[error(transparent)]
    NoMonitor(#[from] paths::NoMonitor),
}

/// Tests that passed and failed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Tests that passed.
    pub passed: u64,
    /// Tests that failed, and test programs that did not get as far as to count theirs.
    pub failed: u64,
    /// What was printed of those that failed: their names, and what they said without the backtraces.
    pub failures: Vec<String>,
    /// The test programs, as cargo names them, and how long each took.
    pub programs: Vec<(String, Duration)>,
    /// How long all of it took, with the building.
    pub time: Duration,
    /// Lines of the failed test's output that may still be kept.
    room: usize,
    in_backtrace: bool,
}

/// Lines kept of what one failed test printed.
const FAILURE_LINES: usize = 30;

/// Builds the release monitor, which the end-to-end tests start.
pub fn build_monitor() -> Result<(), CargoError> {
    let mut build = cargo();
    let status = build
        .args(["build", "--release", "-p", "vmm"])
        .status()
        .map_err(CargoError::Run)?;
    if status.success() {
        Ok(())
    } else {
        Err(CargoError::Build(status))
    }
}

/// The monitor for a program that runs servers: the one that is `given`, or that the environment names, or the one that is
/// built now.
pub fn monitor(given: Option<&Path>) -> Result<PathBuf, CargoError> {
    if let Some(path) = given {
        let there = path.canonicalize();
        return there.map_err(|source| CargoError::NotThere(path.to_path_buf(), source));
    }
    if env::var_os(paths::VMSRS_BIN).is_none() {
        build_monitor()?;
    }
    Ok(paths::vmsrs()?)
}

/// Runs every test of the workspace. The tests note in `kvm_ran` that they used KVM.
pub fn test(kvm_ran: &Path, test_args: &[String]) -> Result<Tally, CargoError> {
    let mut test = cargo();
    test.args(["test", "--workspace", "--release", "--no-fail-fast"]);
    if !test_args.is_empty() {
        test.arg("--").args(test_args);
    }
    test.env(kvm::RAN_FILE, kvm_ran);
    test.stdout(Stdio::piped()).stderr(Stdio::piped());
    let begun = Instant::now();
    let mut child = test.spawn().map_err(CargoError::Run)?;
    let mut tally = Tally::default();
    // Cargo says on standard error which program it runs.
    let running = Arc::new(Mutex::new(String::new()));
    if let Some(stderr) = child.stderr.take() {
        let running = Arc::clone(&running);
        thread::spawn(move || {
            for line in BufReader::new(stderr).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                eprintln!("{line}");
                if let Some(program) = program_of(&line) {
                    *running.lock().unwrap_or_else(PoisonError::into_inner) = program.to_owned();
                }
            }
        });
    }
    let mut program_begun = begun;
    if let Some(stdout) = child.stdout.take() {
        // Tests print what is not UTF-8 when they show a server's output.
        for line in BufReader::new(stdout).split(b'\n') {
            let line = line.map_err(CargoError::Run)?;
            let line = String::from_utf8_lossy(&line);
            println!("{line}");
            tally.count(&line);
            if line.starts_with("running ") {
                program_begun = Instant::now();
            } else if line.starts_with("test result: ") {
                let program = running.lock().unwrap_or_else(PoisonError::into_inner);
                tally
                    .programs
                    .push((program.clone(), program_begun.elapsed()));
            }
        }
    }
    let status = child.wait().map_err(CargoError::Run)?;
    tally.time = begun.elapsed();
    if !status.success() && tally.failed == 0 {
        println!("failed: cargo test ended with {status} and counted no failed test");
        tally.failed = 1;
    }
    Ok(tally)
}

/// The test program that a line such as `     Running tests/learn.rs (target/release/...)` names.
fn program_of(line: &str) -> Option<&str> {
    let line = line.trim_start();
    let rest = line
        .strip_prefix("Running ")
        .or(line.strip_prefix("Doc-tests "))?;
    Some(rest.split(" (").next().unwrap_or(rest))
}

/// Programs that the last lines name.
const SLOWEST: usize = 10;

impl Tally {
    /// The test programs that took longest, longest first.
    pub fn slowest(&self) -> Vec<(String, Duration)> {
        let mut programs = self.programs.clone();
        programs.sort_by_key(|(_, time)| std::cmp::Reverse(*time));
        programs.truncate(SLOWEST);
        programs
    }

    /// Adds a line such as `test result: ok. 5 passed; 1 failed; 0 ignored; ...`, and takes note of those that tell of a
    /// failure.
    fn count(&mut self, line: &str) {
        if line.starts_with("---- ") && line.ends_with(" stdout ----") {
            self.room = FAILURE_LINES;
            self.in_backtrace = false;
        } else if line == "failures:" || line.starts_with("test result: ") {
            self.room = 0;
        } else if line.starts_with("stack backtrace:") {
            self.in_backtrace = true;
        }
        let is_failure = line.starts_with("test ") && line.ends_with(" ... FAILED");
        let is_told = self.room > 0 && !self.in_backtrace && !line.is_empty();
        if is_failure || is_told {
            self.failures.push(line.to_owned());
        }
        if is_told {
            self.room -= 1;
        }
        if line.starts_with("note: ") {
            self.in_backtrace = false;
        }
        let Some((_, counts)) = line
            .strip_prefix("test result: ")
            .and_then(|rest| rest.split_once(". "))
        else {
            return;
        };
        for count in counts.split(';') {
            if let Some((number, what)) = count.trim().split_once(' ') {
                let number: u64 = number.parse().unwrap_or(0);
                match what {
                    "passed" => self.passed += number,
                    "failed" => self.failed += number,
                    _ => {}
                }
            }
        }
    }
}

/// The cargo that runs this program, in the workspace.
fn cargo() -> Command {
    let mut cargo = Command::new(env::var_os("CARGO").unwrap_or_else(|| OsString::from("cargo")));
    cargo
        .current_dir(paths::workspace_dir())
        .stdin(Stdio::null());
    signals_as_usual(&mut cargo);
    cargo
}

/// Undoes what `nohup` and background jobs of shells pass on: programs under test inherit ignored signals, and some
/// would behave otherwise. Where hang-ups are ignored, `command` gets a session of its own, so that none reaches it.
pub fn signals_as_usual(command: &mut Command) {
    let reset = || {
        for signal in 1..=64 {
            // SAFETY: takes numbers only; it is safe after `fork`, and signals that cannot be changed are an error.
            let old = unsafe { libc::signal(signal, libc::SIG_DFL) };
            if signal == libc::SIGHUP && old == libc::SIG_IGN {
                // SAFETY: as above.
                unsafe { libc::setsid() };
            }
        }
        Ok(())
    };
    // SAFETY: the closure only makes calls that are safe between `fork` and `exec`.
    unsafe { command.pre_exec(reset) };
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_that_nohup_ignores_are_not_passed_on() {
        let mut command = Command::new("sh");
        command.args(["-c", "grep SigIgn /proc/self/status"]);
        let ignore = || {
            // SAFETY: takes numbers only.
            unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
            Ok(())
        };
        // SAFETY: as in `signals_as_usual`.
        unsafe { command.pre_exec(ignore) };
        let ignored = |command: &mut Command| {
            let out = String::from_utf8(command.output().unwrap().stdout).unwrap();
            let mask = out.split_whitespace().last().unwrap();
            u64::from_str_radix(mask, 16).unwrap()
        };
        // A shell may have others ignored in its background jobs, and those that the C library keeps for itself (32 and 33)
        // cannot be set.
        assert_eq!(ignored(&mut command) & 1, 1);
        signals_as_usual(&mut command);
        assert_eq!(ignored(&mut command) & 0x7fff_ffff, 0);
    }

    #[test]
    fn cargo_names_the_programs_that_it_runs() {
        let line = "     Running tests/learn.rs (target/release/deps/learn-0)";
        assert_eq!(program_of(line), Some("tests/learn.rs"));
        let unit = "     Running unittests src/lib.rs (target/release/deps/x-0)";
        assert_eq!(program_of(unit), Some("unittests src/lib.rs"));
        assert_eq!(program_of("   Doc-tests recovery"), Some("recovery"));
        assert_eq!(program_of("   Compiling vmm v0.1.0"), None);
    }

    #[test]
    fn results_of_all_test_programs_add_up() {
        let mut tally = Tally::default();
        for line in [
            "running 2 tests",
            "test result: ok. 5 passed; 0 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.1s",
            "test it_works ... ok",
            "test it_does_not ... FAILED",
            "failures:",
            "",
            "---- it_does_not stdout ----",
            "",
            "thread 'it_does_not' (7) panicked at tests/it.rs:5:9:",
            "two is not one",
            "stack backtrace:",
            "   0: it::does_not",
            "note: Some details are omitted",
            "its server still runs",
            "",
            "failures:",
            "    it_does_not",
            "test result: FAILED. 1 passed; 3 failed; 0 ignored; 0 measured; 0 filtered out",
            "test result of something else: 9 passed",
        ] {
            tally.count(line);
        }
        assert_eq!(
            tally,
            Tally {
                passed: 6,
                failed: 3,
                failures: vec![
                    "test it_does_not ... FAILED".into(),
                    "---- it_does_not stdout ----".into(),
                    "thread 'it_does_not' (7) panicked at tests/it.rs:5:9:".into(),
                    "two is not one".into(),
                    "its server still runs".into(),
                ],
                ..Tally::default()
            }
        );
    }
}
