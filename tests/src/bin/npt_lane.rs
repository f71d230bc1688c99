//! `npt-lane`: runs one command in the nested-paging lane, to look into what fails there.

use std::{error::Error, path::PathBuf, process::ExitCode, time::Duration};

use clap::Parser;
use vmsrs_tests::{error, lane::Lane};

/// Boot the nested-paging lane, run one command in it, and print what it printed.
#[derive(Parser)]
struct Args {
    /// Programs to take along, with their libraries; they are in /usr/bin there
    #[arg(long = "program", value_name = "PATH")]
    programs: Vec<PathBuf>,
    /// Test programs to take along, each with a guest program
    #[arg(long = "test", value_name = "NAME,PROGRAM")]
    tests: Vec<String>,
    /// Kill the machine after this many seconds
    #[arg(long, default_value_t = 300)]
    deadline: u64,
    /// The command and its arguments
    #[arg(required = true, trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

fn main() -> ExitCode {
    match run(Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("npt-lane: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Whether the command succeeded.
fn run(args: Args) -> Result<bool, Box<dyn Error>> {
    let deadline = Duration::from_secs(args.deadline);
    let mut lane = Lane::new()?;
    for server in ["redis-server", "memcached"] {
        lane.debian_program(server)?;
    }
    for program in &args.programs {
        lane.program(program)?;
    }
    for test in &args.tests {
        let (name, program) = test.split_once(',').ok_or("--test takes NAME,PROGRAM")?;
        lane.test_program(name, program.as_ref())?;
    }
    // The command is killed first, so that its output comes with a complete report.
    lane.command(&args.command, deadline * 3 / 4);
    let report = lane.run(deadline)?;
    print!("{report}");
    Ok(report.failures().next().is_none())
}
