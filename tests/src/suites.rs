//! The servers' own test suites, which Debian's source packages carry. Each file of a suite runs natively and with the
//! monitor in the server's place; whatever passes natively has to pass under the monitor, too.
//!
//! - [`source`]: gets a source package
//! - [`tree`]: two copies of it that differ in one file, the server
//! - [`memcached`], [`redis`], [`lighttpd`]: what there is to know of each suite
//! - [`outcome`]: what a file's output says of its tests
//! - [`run`]: runs a file both ways, and tells what differs

pub mod lighttpd;
pub mod memcached;
pub mod outcome;
pub mod redis;
pub mod run;
pub mod source;
pub mod tree;

use std::{
    io,
    path::{Path, PathBuf},
    process::{Command, ExitStatus},
};

use crate::{guest, interrupt::Interrupted, monitored::StartError};
use outcome::Test;

/// One server's own suite.
pub struct Suite {
    /// What it is called here.
    pub name: &'static str,
    /// Debian's source package.
    pub source: &'static str,
    /// Debian packages that building and running it needs.
    pub packages: &'static [&'static str],
    /// Where its files have the server.
    pub server: &'static str,
    /// Options for `vmsrs run` without which the suite cannot pass.
    pub options: &'static [&'static str],
    /// Builds what the suite needs in the unpacked source package, the server included.
    pub build: fn(&Path) -> Result<(), SuiteError>,
    /// The test files of a tree.
    pub files: fn(&Path) -> Result<Vec<String>, SuiteError>,
    /// The server's arguments, if the suite does not start the server itself.
    pub serve: Option<fn(u16) -> Vec<String>>,
    /// Runs a file in a tree, against the server at the port if it does not start its own.
    pub command: fn(&Path, &str, u16) -> Command,
    /// The tests in what a file has printed.
    pub tests: fn(&str) -> Vec<Test>,
}

/// All suites.
pub fn all() -> Vec<Suite> {
    vec![
        memcached::suite(),
        memcached::with_tls(),
        redis::suite(),
        redis::external(),
        lighttpd::suite(),
    ]
}

/// Why a suite could not be run.
#[derive(Debug, thiserror::Error)]
pub enum SuiteError {
    /// Packages are missing.
    #[error("the suite needs Debian packages that are not installed; as root, run:\n\n    {0}\n")]
    Packages(String),
    /// apt has no such source package.
    #[error(
        "there is no source package {0}: apt has to know the sources of this release, and reach them"
    )]
    NoSource(String),
    /// A command has failed.
    #[error("`{command}` failed ({status}); its output is above")]
    Command {
        /// The command line.
        command: String,
        /// How it ended.
        status: ExitStatus,
    },
    /// A file or a process could not be used.
    #[error("cannot use {path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The program that stands in for the server does not build.
    #[error(transparent)]
    StandIn(#[from] guest::BuildError),
    /// The server of a suite that does not start it did not come up.
    #[error(transparent)]
    Server(#[from] StartError),
    /// The run was interrupted.
    #[error(transparent)]
    Interrupted(#[from] Interrupted),
}

impl SuiteError {
    /// `path` could not be used.
    fn io(path: &Path) -> impl FnOnce(io::Error) -> Self {
        let path = path.to_path_buf();
        move |source| Self::Io { path, source }
    }
}

/// Runs a command whose output the user sees.
fn run(command: &mut Command) -> Result<(), SuiteError> {
    let program = PathBuf::from(command.get_program());
    let status = command.status().map_err(SuiteError::io(&program))?;
    match status.success() {
        true => Ok(()),
        false => Err(SuiteError::Command {
            command: format!("{command:?}"),
            status,
        }),
    }
}

/// The names in `dir` that end in `suffix`, in order.
fn names(dir: &Path, suffix: &str) -> Result<Vec<String>, SuiteError> {
    let listed = dir.read_dir().map_err(SuiteError::io(dir))?;
    let names = listed.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.ends_with(suffix)).collect();
    names.sort();
    Ok(names)
}
