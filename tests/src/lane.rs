//! The nested-paging lane: commands run in a machine whose KVM is SVM with nested paging, the
//! counterpart of whatever `/dev/kvm` the host has. QEMU's TCG emulates the machine; it boots
//! Debian's cloud kernel with an initramfs made of the programs under test, their libraries,
//! busybox and the KVM modules.
//!
//! - [`packages`]: the programs of Debian packages that this needs, and the kernel
//! - [`initramfs`]: the archive the machine boots from
//! - [`qemu`]: the machine, with a deadline
//! - [`report`]: what the machine said
//!
//! The emulated machine is some 20 to 50 times slower than the host: commands take their
//! durations and patience as options.

pub mod cpio;
pub mod initramfs;
mod modules;
pub mod packages;
pub mod qemu;
pub mod report;

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

pub use report::{CommandResult, Report};

use crate::paths;
use initramfs::Initramfs;
use report::Malformed;

/// A machine to boot and what to run in it.
#[derive(Debug)]
pub struct Lane {
    initramfs: Initramfs,
    commands: Vec<String>,
    kernel: packages::Kernel,
    token: String,
}

/// Why the lane gave no results.
#[derive(Debug, thiserror::Error)]
pub enum LaneError {
    /// A program or the kernel is missing.
    #[error(transparent)]
    Packages(#[from] packages::PackageError),
    /// The initramfs could not be made.
    #[error(transparent)]
    Initramfs(#[from] initramfs::InitramfsError),
    /// A file or a process failed.
    #[error("the nested-paging lane cannot work with its files")]
    Io(#[from] io::Error),
    /// The machine ran and its report is not complete.
    #[error("{reason}\n--- report ---\n{report}\n--- console ---\n{console}")]
    Incomplete {
        /// What happened to the machine or what is missing.
        reason: String,
        /// The end of the second serial port: the commands' output.
        report: String,
        /// The end of the first serial port: the kernel's messages.
        console: String,
    },
}

/// Lines of the console and of the report that an error shows.
const TAIL_LINES: usize = 60;

impl Lane {
    /// A machine with a shell, KVM modules and no commands yet. Fetches the kernel if it is not
    /// in the target directory yet.
    pub fn new() -> Result<Self, LaneError> {
        let busybox = packages::program("busybox")?;
        packages::program("qemu-system-x86_64")?;
        let kernel = packages::kernel()?;
        let token = random_token()?;
        let mut initramfs = Initramfs::new();
        initramfs.program("/bin/busybox", &busybox)?;
        initramfs.base_system(&token);
        initramfs.modules(&kernel)?;
        Ok(Self {
            initramfs,
            commands: Vec::new(),
            kernel,
            token,
        })
    }

    /// Adds the program at `path`, with the libraries it needs, as `/usr/bin/` and its own name.
    pub fn program(&mut self, path: &Path) -> Result<(), LaneError> {
        let name = path.file_name().ok_or_else(|| not_a_file(path))?;
        self.program_as(&name.to_string_lossy(), path)
    }

    /// Adds the program at `path`, with the libraries it needs, as `/usr/bin/` and `name`.
    pub fn program_as(&mut self, name: &str, path: &Path) -> Result<(), LaneError> {
        Ok(self.initramfs.program(&format!("/usr/bin/{name}"), path)?)
    }

    /// Adds the Debian program `name`, with the libraries it needs.
    pub fn debian_program(&mut self, name: &str) -> Result<(), LaneError> {
        let path = packages::program(name)?;
        self.program(&path)
    }

    /// Adds the test program `name`, with the libraries it needs, as `/usr/bin/` and its own name, and the guest program
    /// that it runs, where it looks for it. Its monitor is `/usr/bin/vmsrs`.
    pub fn test_program(&mut self, name: &str, guest: &Path) -> Result<(), LaneError> {
        self.program_as(name, &paths::test_program(name)?)?;
        let file = guest.file_name().ok_or_else(|| not_a_file(guest))?;
        let to = format!("guest-programs/{}", file.to_string_lossy());
        self.program_as(&to, guest)
    }

    /// Adds a command, which is killed after `limit`. Commands run one after another in the order
    /// in which they are added; their results come in the same order.
    pub fn command<A: AsRef<str>>(&mut self, argv: &[A], limit: Duration) {
        let quoted: Vec<String> = argv.iter().map(|arg| quote(arg.as_ref())).collect();
        let name = format!("{:02}", self.commands.len());
        let command = quoted.join(" ");
        let script = format!(
            "#!/bin/sh\nexec timeout -s KILL {} {command}\n",
            limit.as_secs()
        );
        self.initramfs
            .text(&format!("/lane/commands/{name}"), 0o755, script);
        self.commands.push(command);
    }

    /// Boots the machine, runs the commands and returns what they did. A machine that has not
    /// powered off after `deadline` is killed.
    pub fn run(self, deadline: Duration) -> Result<Report, LaneError> {
        let dir = tempfile::Builder::new().prefix("vmsrs-npt-").tempdir()?;
        let initrd = dir.path().join("initramfs");
        self.initramfs.write(&initrd)?;
        let begin = Instant::now();
        let (output, end) = qemu::run(&self.kernel.vmlinuz(), &initrd, dir.path(), deadline)?;
        let incomplete = |reason: String| LaneError::Incomplete {
            reason,
            report: crate::monitored::tail(&output.report, TAIL_LINES).to_owned(),
            console: crate::monitored::tail(&output.console, TAIL_LINES).to_owned(),
        };
        match end {
            qemu::End::PoweredOff => {}
            qemu::End::Failed(status) => {
                return Err(incomplete(format!("QEMU ended with {status}")));
            }
            qemu::End::Deadline => {
                return Err(incomplete(format!(
                    "the machine still ran after {deadline:?} and was killed"
                )));
            }
        }
        report::parse(&self.token, &output.report, &self.commands, begin.elapsed())
            .map_err(|Malformed(reason)| incomplete(reason))
    }
}

/// 128 random bits: what a command prints cannot be taken for a line of the init script.
fn random_token() -> io::Result<String> {
    let mut bytes = [0; 16];
    io::Read::read_exact(&mut std::fs::File::open("/dev/urandom")?, &mut bytes)?;
    Ok(format!("{:032x}", u128::from_ne_bytes(bytes)))
}

/// `word` as one word of a shell command.
fn quote(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./=:,+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word.to_owned();
    }
    format!("'{}'", word.replace('\'', r"'\''"))
}

fn not_a_file(path: &Path) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidInput,
        format!("{} is not a file", path.display()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_survive_the_shell() {
        for word in [
            "plain-word",
            "",
            "two words",
            "it's",
            "$HOME `id` \\ \"x\" *",
        ] {
            let script = format!("printf %s {}", quote(word));
            let output = std::process::Command::new("sh")
                .args(["-c", &script])
                .output()
                .unwrap();
            assert_eq!(String::from_utf8_lossy(&output.stdout), word);
        }
    }

    #[test]
    fn tokens_differ() {
        assert_ne!(random_token().unwrap(), random_token().unwrap());
    }
}
