//! `redis-crash`: the Redis crash scenario as a program, for the machines where the tests
//! themselves do not run, such as the nested-paging lane. Exits 0 if nothing went wrong.

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use vmsrs_tests::{
    Launch, error, free_port, paths,
    redis::{self, CrashScenario},
};

/// Crash redis-server in every way it offers while healthy clients use it.
#[derive(Parser)]
struct Args {
    /// The monitor [default: the one beside this program]
    #[arg(long, value_name = "PATH")]
    vmsrs: Option<PathBuf>,
    /// Run the server without the monitor and crash nothing: only the healthy clients work
    #[arg(long, conflicts_with = "vmsrs")]
    native: bool,
    /// Healthy clients
    #[arg(long, default_value_t = 20)]
    clients: usize,
    /// How long to crash the server
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// The longest time that a start, a reply or a stop may take, in seconds
    #[arg(long, default_value_t = 10)]
    patience: u64,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("redis-crash: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let patience = Duration::from_secs(args.patience);
    let port = free_port()?;
    let mut launch = Launch::native(redis::command(port)).patience(patience);
    if !args.native {
        let vmsrs = match args.vmsrs {
            Some(path) => path
                .canonicalize()
                .map_err(|error| format!("{}: {error}", path.display()))?,
            None => paths::vmsrs()?,
        };
        launch = launch.monitor(&vmsrs);
    }
    let server = launch.start(port)?;
    let duration = Duration::from_secs(args.seconds);
    let scenario = CrashScenario {
        clients: args.clients,
        duration,
        patience,
        crash: !args.native,
    };
    let outcome = scenario.run(server);
    println!("{outcome}");
    Ok(outcome.is_good())
}
