//! `vmsrs`: runs an unmodified server in a minimal virtual machine and turns a request that would crash it
//! into a reset of that one connection.

mod cli;
mod clock;
mod control;
mod demo;
mod host;
mod inject;
mod kvm;
mod loader;
mod memory;
mod process;
mod rng;
mod sys;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::main()
}
