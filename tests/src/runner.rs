//! The `run-tests` command: one command that sets a fresh Debian machine up and passes the tests.
//!
//! - [`setup`]: packages, `/dev/kvm`, the nested-paging lane's kernel
//! - [`policy`]: installing a server's package must not start the server
//! - [`cargo`]: builds, tests, and counts what passed

pub mod cargo;
pub mod policy;
pub mod setup;

use std::{fs, io};

use crate::{kvm, paths};
use cargo::Tally;

/// Why the tests could not be run at all.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The machine is not fit, and this program may not or cannot change that.
    #[error(transparent)]
    Setup(#[from] setup::SetupError),
    /// The monitor or the tests could not be built or run.
    #[error(transparent)]
    Cargo(#[from] cargo::CargoError),
    /// The count of the KVM tests could not be kept.
    #[error("cannot count the tests that use KVM")]
    Count(#[source] io::Error),
}

/// Sets the machine up, builds the release monitor and runs every test of the workspace.
/// `test_args` are handed to the test programs. Returns what passed and failed.
pub fn run(test_args: &[String]) -> Result<Tally, RunError> {
    setup::ensure()?;
    cargo::build_monitor()?;
    let ran_file = paths::target_dir()
        .map_err(RunError::Count)?
        .join("kvm-tests-ran");
    match fs::remove_file(&ran_file) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            return Err(RunError::Count(error));
        }
        _ => {}
    }
    let mut tally = cargo::test(&ran_file, test_args)?;
    let ran = kvm::ran(&ran_file).map_err(RunError::Count)?;
    println!("{} tests used KVM", ran.len());
    if ran.is_empty() {
        println!("failed: no test used KVM, so the monitor was not tested");
        tally.failed += 1;
    }
    Ok(tally)
}
