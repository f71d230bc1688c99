//! `bench`: what the monitor costs, measured against the native servers in the same run.
//!
//! `redis-server` and `memcached` run native, under the monitor with `--protect off`, and with
//! `--protect on`, in turn, round after round, a fresh server each time. What is compared is
//! compared within a round, so that a machine that is busy for a while does not favour one of them.

#![forbid(unsafe_code)]

mod counters;
mod exit_cost;
mod load;
mod machine;
mod recovery;
mod report;
mod rounds;
mod server;
mod settings;
mod spread;
mod summary;
mod variant;

use std::{
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
};

use clap::Parser;
use vmsrs_tests::{error, interrupt, kvm, packages, paths, runner};

use crate::{
    machine::Machine,
    report::Report,
    settings::{Settings, Tools},
};

/// Anything that ends the benchmark; the message says what and where.
type Error = Box<dyn std::error::Error + Send + Sync>;

/// Compare redis-server and memcached under the monitor with the native servers.
#[derive(Parser)]
struct Args {
    /// How often each server is measured in each variant
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// A look at everything in half a minute, to see that it works; the figures mean little
    #[arg(long, conflicts_with = "rounds")]
    quick: bool,
    /// Start no further round that would end after so many seconds
    #[arg(long, value_name = "SECONDS", default_value_t = 330)]
    time_limit: u64,
    /// Also write everything measured to FILE, as JSON
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        // Whatever failed has failed because of it.
        Err(_) if interrupt::requested() => {
            eprintln!("bench: interrupted");
            ExitCode::FAILURE
        }
        Err(failure) => {
            eprintln!("bench: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    interrupt::install()?;
    let tools = find_tools()?;
    let settings = match args.quick {
        true => Settings::quick(),
        false => Settings::full(args.rounds, args.time_limit),
    };
    if let Some(path) = &args.json {
        create_for(path)?;
    }
    let mut machine = Machine::look(tools.built_here)?;
    let exit_cost = exit_cost::measure(&tools)?;
    let measured = rounds::measure(&settings, &tools)?;
    let recovery = recovery::measure(&settings, &tools)?;
    machine.entry_path = recovery.entry_path.clone();
    machine.load_average_after = machine::load_average();
    let report = Report {
        summaries: summary::summarize(&measured.samples),
        machine,
        settings,
        rounds: measured.rounds,
        exit_cost,
        recovery,
        samples: measured.samples,
    };
    if let Some(path) = &args.json {
        let mut text = serde_json::to_vec_pretty(&report)?;
        text.push(b'\n');
        fs::write(path, text).map_err(|e| format!("cannot write {}: {e}", path.display()))?;
    }
    print!("{report}");
    Ok(())
}

/// Now, and not after minutes of measuring.
fn create_for(path: &Path) -> Result<(), Error> {
    let parent = path.parent().unwrap_or(Path::new(""));
    fs::create_dir_all(parent)
        .and_then(|()| fs::write(path, ""))
        .map_err(|e| format!("cannot write {}: {e}", path.display()).into())
}

/// Everything that is run has to be there; the monitor is built unless one is named.
fn find_tools() -> Result<Tools, Error> {
    let needed = [
        ("redis-server", "redis-server"),
        ("redis-benchmark", "redis-tools"),
        ("memcached", "memcached"),
    ];
    let missing: Vec<_> = needed
        .into_iter()
        .filter(|(program, _)| !is_in_path(program))
        .collect();
    if !missing.is_empty() {
        let (programs, needed): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
        let (programs, command) = (programs.join(", "), packages::install_command(&needed));
        return Err(format!("not installed: {programs}; as root, run `{command}`").into());
    }
    kvm::usable()?;
    let built_here = std::env::var_os(paths::VMSRS_BIN).is_none();
    if built_here {
        runner::cargo::build_monitor()?;
    }
    Ok(Tools {
        vmsrs: paths::vmsrs()?,
        built_here,
    })
}

fn is_in_path(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}
