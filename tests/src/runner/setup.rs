//! Makes the machine fit for the tests: as root it installs what is missing, otherwise it says
//! what has to be done.

use std::{
    io,
    process::{Command, ExitStatus, Stdio},
};

use super::policy::NoServices;
use crate::{
    kvm,
    lane::{self, packages::PackageError},
    packages,
};

/// Why the machine is not fit for the tests.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// Packages are missing, and only root can install them.
    #[error(
        "the tests need Debian packages that are not installed; as root, run:\n\n    apt-get update && {0}\n"
    )]
    NeedsRoot(String),
    /// Packages could not be installed.
    #[error("`{command}` failed ({status})")]
    Apt {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A tool or a file failed.
    #[error("cannot set the machine up")]
    Io(#[from] io::Error),
    /// KVM cannot be used.
    #[error("the tests need KVM: {0}")]
    NoKvm(String),
    /// The nested-paging lane has no kernel.
    #[error(transparent)]
    Kernel(#[from] PackageError),
}

/// Makes the machine fit, or says why it is not.
pub fn ensure() -> Result<(), SetupError> {
    kvm::usable().map_err(SetupError::NoKvm)?;
    let missing = packages::missing()?;
    if !missing.is_empty() {
        if !is_root() {
            return Err(SetupError::NeedsRoot(packages::install_command(&missing)));
        }
        install(&missing)?;
    }
    match lane::packages::kernel() {
        Ok(_) => Ok(()),
        // The package lists may be missing or too old.
        Err(_) if is_root() => {
            apt_get(&["update"])?;
            lane::packages::kernel().map(drop).map_err(SetupError::from)
        }
        Err(error) => Err(error.into()),
    }
}

fn install(missing: &[&str]) -> Result<(), SetupError> {
    println!("installing {}", missing.join(" "));
    let _guard = NoServices::forbid()?;
    apt_get(&["update"])?;
    let options = [
        "install",
        "--yes",
        "--no-install-recommends",
        "-o",
        "Dpkg::Options::=--force-confold",
    ];
    apt_get(&[&options[..], missing].concat())
}

fn apt_get(args: &[&str]) -> Result<(), SetupError> {
    let mut apt = Command::new("apt-get");
    apt.args(args)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null());
    match apt.status()? {
        status if status.success() => Ok(()),
        status => Err(SetupError::Apt {
            command: format!("apt-get {}", args.join(" ")),
            status,
        }),
    }
}

fn is_root() -> bool {
    // SAFETY: `geteuid` takes nothing, cannot fail and touches no memory.
    unsafe { libc::geteuid() == 0 }
}
