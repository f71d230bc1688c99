//! What `--verify-heap` costs: servers on glibc's heap with and without it, in turn, in one run.
//!
//! Each pair starts two fresh servers one after the other, in alternating order; ratios are taken within a
//! pair, then the median over the pairs.

#![forbid(unsafe_code)]

#[path = "../spread.rs"]
#[allow(dead_code)]
mod spread;

use std::{
    ffi::OsString,
    fs,
    process::ExitCode,
    thread,
    time::{Duration, Instant},
};

use clap::Parser;
use spread::Spread;
use vmsrs_tests::{
    Launch, free_port, guest,
    heap::{DemoUser, Healthy},
    load::{HealthyClient, Load},
    memcached,
};

type Error = Box<dyn std::error::Error + Send + Sync>;

const PATIENCE: Duration = Duration::from_secs(20);
const CLIENTS: usize = 12;

/// Compare servers with and without `--verify-heap`.
#[derive(Parser)]
struct Args {
    /// Pairs of runs of each server
    #[arg(long, default_value_t = 7, value_parser = clap::value_parser!(u32).range(1..))]
    rounds: u32,
    /// Seconds of load in each run
    #[arg(long, default_value_t = 2)]
    seconds: u64,
}

/// One run of one server.
struct Sample {
    requests_per_second: f64,
    /// Of the monitor's process, in microseconds.
    cpu_per_request: f64,
    checks: f64,
    us_per_check: f64,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("verify-heap: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Error> {
    let heap: OsString = guest::server("heap-server")?.into();
    let demo: OsString = guest::server("demo-server")?.into();
    println!(
        "medians, least and greatest of {} pairs of {} s",
        args.rounds, args.seconds
    );
    pairs::<memcached::Healthy>("memcached -t 4", args, |port| {
        memcached::command(port, 4)
            .into_iter()
            .map(Into::into)
            .collect()
    })?;
    pairs::<DemoUser>("demo server, one event loop", args, |port| {
        vec![demo.clone(), "--port".into(), port.to_string().into()]
    })?;
    pairs::<Healthy>("heap server (much malloc), one event loop", args, |port| {
        vec![heap.clone(), port.to_string().into(), "0".into()]
    })
}

fn pairs<C: HealthyClient + 'static>(
    name: &str,
    args: &Args,
    command: impl Fn(u16) -> Vec<OsString>,
) -> Result<(), Error> {
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for round in 0..args.rounds {
        for second in [false, true] {
            let verify = second == (round % 2 == 0);
            let sample = sample::<C>(&command, verify, args.seconds)?;
            if verify { &mut with } else { &mut without }.push(sample);
        }
    }
    println!("\n{name}");
    show(
        "requests/s without",
        without.iter().map(|s| s.requests_per_second),
    );
    show(
        "requests/s with",
        with.iter().map(|s| s.requests_per_second),
    );
    let ratio = |part: fn(&Sample) -> f64| {
        let pairs = with.iter().zip(&without);
        pairs
            .map(move |(with, without)| part(with) / part(without))
            .collect::<Vec<_>>()
    };
    show("requests/s, ratio", ratio(|s| s.requests_per_second));
    show(
        "CPU us/request without",
        without.iter().map(|s| s.cpu_per_request),
    );
    show(
        "CPU us/request with",
        with.iter().map(|s| s.cpu_per_request),
    );
    show("CPU us/request, ratio", ratio(|s| s.cpu_per_request));
    show("checks/request", with.iter().map(|s| s.checks));
    show("us/check", with.iter().map(|s| s.us_per_check));
    Ok(())
}

fn show(what: &str, values: impl IntoIterator<Item = f64>) {
    if let Some(spread) = Spread::of(values) {
        let Spread { median, min, max } = spread;
        println!("  {what:<24} {median:>10.3} ({min:.3} to {max:.3})");
    }
}

fn sample<C: HealthyClient + 'static>(
    command: &impl Fn(u16) -> Vec<OsString>,
    verify: bool,
    seconds: u64,
) -> Result<Sample, Error> {
    let port = free_port()?;
    let options: &[&str] = if verify { &["--verify-heap"] } else { &[] };
    let mut server = Launch::monitored(command(port))?
        .options(options)
        .start(port)?;
    let before = cpu_ticks(server.pid())?;
    let begun = Instant::now();
    let load = Load::start::<C>(port, CLIENTS, PATIENCE);
    thread::sleep(Duration::from_secs(seconds));
    let outcome = load.finish();
    let elapsed = begun.elapsed();
    let ticks = cpu_ticks(server.pid())? - before;
    if !outcome.problems.is_empty() || !server.events_of("recovered")?.is_empty() {
        return Err(format!("{outcome:?}\n{}", server.output_tail()).into());
    }
    server.terminate()?;
    let stats = server.stats()?;
    let counter = |name: &str| stats["verify_heap"][name].as_f64().unwrap_or(0.0);
    let requests = outcome.requests as f64;
    Ok(Sample {
        requests_per_second: requests / elapsed.as_secs_f64(),
        // A tick is a hundredth of a second on every Linux that the monitor runs on.
        cpu_per_request: ticks as f64 * 10_000.0 / requests,
        checks: counter("checks") / requests,
        us_per_check: counter("time_us") / counter("checks"),
    })
}

/// User and system time of a process, its ended threads included.
fn cpu_ticks(pid: u32) -> Result<u64, Error> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields = stat.rsplit(')').next().unwrap_or_default();
    let mut times = fields.split_whitespace().skip(11).take(2);
    let mut next = || times.next().unwrap_or_default().parse::<u64>();
    Ok(next()? + next()?)
}
