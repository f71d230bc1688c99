//! The command line.

pub mod check;
mod control;
mod limit;
pub mod report;
pub mod run;

use std::error::Error;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

use crate::host::handles::Messages;

/// Runs a server so that a crashing request cannot take it down.
#[derive(Parser)]
#[command(name = "vmsrs", version, about, after_help = AFTER_HELP)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Examples:
  vmsrs check                                  can this machine run it?
  vmsrs demo                                   see it work
  vmsrs run -- redis-server --port 6379        a server, protected
  vmsrs run --events e.jsonl -- memcached -t 4
  vmsrs report last                            what the last fault was

VMSRS_LOG=debug shows what the monitor does, on standard error.";

#[derive(Subcommand)]
enum Command {
    /// Run a program under the monitor
    Run(Box<run::RunArgs>),
    /// Show it: a demo server, users, and crashes in every way
    Demo(crate::demo::DemoOptions),
    /// Check whether this machine can run it, and say how to mend what is missing
    Check(check::CheckArgs),
    /// Give a running monitor a command: inject faults, ask for its counters
    Control(control::ControlArgs),
    /// List fault reports, or print one
    Report(report::ReportArgs),
}

/// Parses the arguments and runs the command.
pub fn main() -> ExitCode {
    let environment = env_logger::Env::new().filter_or("VMSRS_LOG", "warn");
    env_logger::Builder::from_env(environment)
        .format_timestamp(None)
        .target(env_logger::Target::Pipe(Box::new(Messages)))
        .init();
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            let _ = error.print();
            // Help is not an error; everything else is the monitor's, not the guest's.
            return if error.use_stderr() {
                ExitCode::from(125)
            } else {
                ExitCode::SUCCESS
            };
        }
    };
    match arguments.command {
        Command::Run(arguments) => run::run(*arguments),
        Command::Demo(options) => match crate::demo::run(&options) {
            Ok(outcome) => outcome.into(),
            Err(error) => {
                eprintln!("vmsrs demo: {}", chain(&error));
                ExitCode::from(125)
            }
        },
        Command::Check(arguments) => check::run(arguments, run::probe),
        Command::Control(arguments) => control::run(&arguments),
        Command::Report(arguments) => report::run(arguments),
    }
}

/// An error with all its causes.
pub fn chain(error: &dyn Error) -> String {
    report::chain(error)
}
