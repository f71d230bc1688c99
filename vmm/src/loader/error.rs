//! Why a program cannot be run.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use crate::sys::errno_of;
use guest_agentless::script::ScriptError;
use guest_agentless::{ElfError, Errno, GuestRange};
use thiserror::Error;

use super::resolve::MAX_SCRIPTS;
use crate::memory::window;

/// Exit status if the monitor failed, as `env` and `timeout` have it.
const MONITOR_FAILED: u8 = 125;
/// Exit status if the program is there but cannot be run.
const NOT_EXECUTABLE: u8 = 126;
/// Exit status if there is no such program.
const NOT_FOUND: u8 = 127;

/// Why a program was not loaded. The sources say more.
#[derive(Debug, Error)]
pub enum LoadError {
    /// There is no such program.
    #[error("{}: not found", .0.display())]
    NotFound(OsString),
    /// The file cannot be run.
    #[error("cannot run {}", path.display())]
    NotExecutable {
        /// The program.
        path: PathBuf,
        /// What is wrong with it.
        source: Unusable,
    },
    /// The interpreter of a script or a program cannot be run.
    #[error("cannot run {}: its interpreter {} cannot be used", path.display(), interpreter.display())]
    Interpreter {
        /// The program.
        path: PathBuf,
        /// What it is to be run by.
        interpreter: PathBuf,
        /// What is wrong with that.
        source: Unusable,
    },
    /// The interpreter of a script is a script, and so on.
    #[error(
        "cannot run {}: more than {MAX_SCRIPTS} scripts are each the interpreter of the one before",
        .0.display()
    )]
    TooManyScripts(PathBuf),
    /// `E2BIG`.
    #[error("arguments and environment are too long: {0}")]
    ArgumentsTooLong(&'static str),
    /// The monitor could not do what it had to.
    #[error("cannot {action}")]
    Monitor {
        /// What it was.
        action: &'static str,
        /// What the host said.
        source: Errno,
    },
}

impl LoadError {
    /// For `map_err`: the monitor could not do `action`.
    pub(super) fn monitor(action: &'static str) -> impl Fn(Errno) -> LoadError {
        move |source| LoadError::Monitor { action, source }
    }

    /// The exit status that a shell and its relatives give for it.
    pub fn exit_status(&self) -> u8 {
        match self {
            LoadError::NotFound(_) => NOT_FOUND,
            LoadError::NotExecutable { .. }
            | LoadError::Interpreter { .. }
            | LoadError::TooManyScripts(_)
            | LoadError::ArgumentsTooLong(_) => NOT_EXECUTABLE,
            LoadError::Monitor { .. } => MONITOR_FAILED,
        }
    }
}

impl LoadError {
    /// What `execve` answers for it.
    pub fn errno(&self) -> Errno {
        match self {
            LoadError::NotFound(_) => Errno::ENOENT,
            LoadError::NotExecutable { source, .. } | LoadError::Interpreter { source, .. } => {
                source.errno()
            }
            LoadError::TooManyScripts(_) => Errno::ELOOP,
            LoadError::ArgumentsTooLong(_) => Errno::E2BIG,
            LoadError::Monitor { source, .. } => *source,
        }
    }
}

impl Unusable {
    fn errno(&self) -> Errno {
        match self {
            Unusable::Missing => Errno::ENOENT,
            Unusable::PermissionDenied
            | Unusable::Unreadable
            | Unusable::Directory
            | Unusable::NotRegular => Errno::EACCES,
            Unusable::Io(error) => errno_of(error),
            _ => Errno::ENOEXEC,
        }
    }
}

/// The error for `file`, which is `program` itself or runs it.
pub(super) fn refuse(program: &Path, file: &Path, source: Unusable) -> LoadError {
    match source {
        Unusable::Missing if program == file => LoadError::NotFound(program.into()),
        source if program == file => LoadError::NotExecutable {
            path: program.into(),
            source,
        },
        source => LoadError::Interpreter {
            path: program.into(),
            interpreter: file.into(),
            source,
        },
    }
}

/// What is wrong with a file that was to be run.
#[derive(Debug, Error)]
pub enum Unusable {
    /// It is not there.
    #[error("no such file")]
    Missing,
    /// It may not be executed.
    #[error("permission denied")]
    PermissionDenied,
    /// It may be executed but not read.
    #[error("permission denied: a program has to be readable to run in the virtual machine")]
    Unreadable,
    /// A directory.
    #[error("it is a directory")]
    Directory,
    /// A device, a socket or a pipe.
    #[error("it is not a regular file")]
    NotRegular,
    /// Neither ELF nor a script.
    #[error("exec format error: neither an ELF program nor a script with a #! line")]
    ExecFormat,
    /// A script with a malformed first line.
    #[error("exec format error")]
    Script(#[source] ScriptError),
    /// A 32-bit program.
    #[error("a 32-bit program; only x86-64 is supported")]
    ThirtyTwoBit,
    /// An ELF file that cannot be loaded.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// Its headers are not where a loader looks for them.
    #[error("the headers of the ELF file lie beyond the first {} MiB", limit >> 20)]
    HeadersTooFar {
        /// How many bytes a loader looks at.
        limit: u64,
    },
    /// It cannot be loaded where it has to be.
    #[error(
        "it has to be loaded at {range:?}; programs can lie at {:?} only",
        window::windows().collect::<Vec<_>>()
    )]
    Placement {
        /// Where it has to be.
        range: GuestRange,
    },
    /// It begins to run outside of itself.
    #[error("its entry point {0:#x} lies outside of it")]
    EntryPoint(u64),
    /// The host cannot open or read it.
    #[error("it cannot be opened")]
    Io(#[source] io::Error),
}

impl From<io::Error> for Unusable {
    fn from(error: io::Error) -> Unusable {
        match error.raw_os_error() {
            Some(libc::ENOENT) => Unusable::Missing,
            Some(libc::EACCES) => Unusable::PermissionDenied,
            _ => Unusable::Io(error),
        }
    }
}
