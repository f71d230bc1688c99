//! `run-tests`: sets the machine up and passes the tests; see [`vmsrs_tests::runner`].

use std::process::ExitCode;

use clap::Parser;
use vmsrs_tests::{error, runner};

/// Install what the tests need (as root), build the monitor and run every test.
#[derive(Parser)]
struct Args {
    /// Arguments for the test programs, such as a part of the names of the tests to run
    #[arg(last = true)]
    test_args: Vec<String>,
}

fn main() -> ExitCode {
    match runner::run(&Args::parse().test_args) {
        Ok(tally) => {
            for line in &tally.failures {
                println!("{line}");
            }
            for (program, time) in tally.slowest() {
                println!("{:>7.1} s  {program}", time.as_secs_f64());
            }
            println!(
                "{} tests in {} min {} s: {} passed, {} failed",
                tally.passed + tally.failed,
                tally.time.as_secs() / 60,
                tally.time.as_secs() % 60,
                tally.passed,
                tally.failed
            );
            if tally.failed == 0 {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Err(failure) => {
            eprintln!("run-tests: {}", error::chain(&failure));
            ExitCode::FAILURE
        }
    }
}
