//! `vmsrs demo`: shows, and checks, what the monitor is for.
//!
//! A multi-user server with planted bugs runs under the monitor. Most users work; two of them crash it in
//! every planted way. Every reply is compared with a model, and the same bugs are set off without the monitor
//! for contrast. The demo is a client of the command line only: it starts `vmsrs run` as any user would, and
//! reads the events file that `vmsrs run` writes.
//!
//! One reading order: [`scenario`] (the run under the monitor), [`user`] and [`crasher`] (what users do),
//! [`watcher`] and [`audit`] (what is checked besides), [`contrast`] (the run without), [`report`] (what is
//! printed).

mod audit;
mod client;
mod contrast;
mod crasher;
mod event;
mod model;
mod progress;
mod report;

mod scenario;
mod server;
mod table;
mod user;
mod watcher;

use std::io;
use std::path::PathBuf;
use std::process::ExitCode;

use client::Failure;
use scenario::Scenario;
use server::{Installation, Layout};

/// How many of the users crash the server.
const CRASHING_USERS: usize = 2;

/// Runs a server with planted bugs, lets users crash it, and shows what each of them saw.
#[derive(Debug, clap::Args)]
pub struct DemoOptions {
    /// Worker threads of the second server (0: show the single-threaded server only)
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(0..=64))]
    pub threads: u8,
    /// Users at a time; two of them crash the server, the others work
    #[arg(long, value_name = "N", default_value_t = 8, value_parser = clap::value_parser!(u8).range(3..=64))]
    pub users: u8,
    /// How often each crashing user sets off every bug (each time alone and behind writes in one packet)
    #[arg(long, value_name = "N", default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub rounds: u16,
    /// Seed of what the users do
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub seed: u64,
    /// Keep the events, statistics, fault reports and server logs in this directory
    #[arg(long, value_name = "DIR")]
    pub keep: Option<PathBuf>,
}

/// Whether the demo showed what it should.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DemoOutcome {
    /// No healthy user noticed anything, and nothing of a crashed request was left behind.
    Passed,
    /// Something was noticed; it has been printed.
    Failed,
}

impl From<DemoOutcome> for ExitCode {
    fn from(outcome: DemoOutcome) -> Self {
        match outcome {
            DemoOutcome::Passed => Self::SUCCESS,
            DemoOutcome::Failed => Self::FAILURE,
        }
    }
}

/// Why the demo could not be carried out at all.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The demo server's program or the files beside it cannot be written.
    #[error("cannot prepare {path}")]
    Prepare {
        /// The file or directory.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The server, or the monitor, cannot be started.
    #[error("cannot start {what}")]
    Start {
        /// The server, in words.
        what: String,
        /// What the system said.
        source: io::Error,
    },
    /// The server, or the monitor, ended or hung before it listened.
    #[error("{what} did not begin to listen: {detail}")]
    NotListening {
        /// The server, in words.
        what: String,
        /// Its end, and the last it wrote to standard error.
        detail: String,
    },
    /// The users could not even begin.
    #[error("the users of {what} could not begin")]
    Begin {
        /// The server, in words.
        what: String,
        /// What went wrong on the connection.
        source: Failure,
    },
    /// The result cannot be printed.
    #[error("cannot write the result")]
    Print(#[source] io::Error),
}

/// Runs the demo and prints its tables to standard output.
///
/// # Errors
///
/// When the demo could not be carried out; what the users noticed is not an error but [`DemoOutcome::Failed`].
pub fn run(options: &DemoOptions) -> Result<DemoOutcome, DemoError> {
    let installation = Installation::new(options.keep.as_deref())?;
    let mut layouts = vec![Layout { threads: 0 }];
    if options.threads > 0 {
        layouts.push(Layout {
            threads: options.threads,
        });
    }
    let mut outcome = DemoOutcome::Passed;
    for layout in layouts {
        let survival = Scenario::new(options, &installation, layout).run()?;
        let deaths = contrast::run(
            &installation,
            layout,
            &survival.bugs,
            usize::from(options.users),
        )?;
        report::print(&survival, &deaths).map_err(DemoError::Print)?;
        if !survival.passed() {
            outcome = DemoOutcome::Failed;
        }
    }
    Ok(outcome)
}
