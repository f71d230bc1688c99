//! `soak`: a share of all requests crashes for as long as you say; what healthy clients get meanwhile.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use indicatif::{ProgressBar, ProgressStyle};
use vmsrs_tests::{
    campaign::{report::timeline, soak::Soak, target},
    error, interrupt, kvm, runner,
};

/// Let a share of all requests crash a server under load, and measure what healthy clients get.
///
/// Windows take turns: with crashes, without such requests at all, and between them with the same requests that do not
/// crash. DIR gets soak.html (throughput, latencies, resident memory, descriptors and pages that wait for the cleaner,
/// over time), soak.md and soak.json. Exits 0 if no healthy client saw anything wrong.
#[derive(Parser)]
struct Args {
    /// The server: redis, memcached, nginx, demo
    #[arg(long, default_value = "redis")]
    server: String,
    /// For how long
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// How many of 100 requests come on connections of their own, and crash in every fourth window
    #[arg(long, default_value_t = 1.0, value_parser = percent)]
    percent: f64,
    /// Seconds of a window
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u64).range(2..))]
    window: u64,
    /// Healthy clients
    #[arg(long, default_value_t = 8)]
    clients: usize,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "target/soak")]
    out: PathBuf,
    /// The monitor [default: it is built, or VMSRS_BIN]
    #[arg(long, value_name = "PATH")]
    vmsrs: Option<PathBuf>,
}

fn percent(text: &str) -> Result<f64, String> {
    let percent = text.parse().ok().filter(|p| (0.0..100.0).contains(p));
    percent.ok_or_else(|| "not a number from 0 up to 100".to_owned())
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("soak: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// Whether everything was as it should be.
fn run(args: &Args) -> Result<bool, Box<dyn Error>> {
    interrupt::install()?;
    kvm::usable()?;
    let vmsrs = runner::cargo::monitor(args.vmsrs.as_deref())?;
    let target = target::by_name(&args.server)?;
    fs::create_dir_all(&args.out)?;
    let soak = Soak {
        duration: Duration::from_secs(args.seconds),
        percent: args.percent,
        window: args.window as usize,
        clients: args.clients,
        vmsrs,
    };
    let bar = ProgressBar::new(args.seconds).with_prefix(args.server.clone());
    let style = "{prefix:10} {bar:30} {pos}/{len} s  {msg}";
    bar.set_style(ProgressStyle::with_template(style)?);
    let soaked = soak.run(target.as_ref(), |sample| {
        bar.set_position(sample.at_s as u64);
        bar.set_message(format!(
            "{:.0} healthy requests/s, {} crashes/s, p99 {:.1} ms, {} MiB",
            sample.healthy_per_s,
            sample.crashes,
            sample.p99_us / 1e3,
            sample.resident_bytes >> 20
        ));
    })?;
    bar.finish();

    let title = format!(
        "{}: {} % of requests crash in every fourth window of {} s",
        args.server, args.percent, args.window
    );
    let mut table = format!(
        "# Soak\n\n{title}.\n\n{}\n",
        timeline::markdown(&soaked.samples)
    );
    table += &soaked.to_string();
    let write = |name: &str, text: &str| fs::write(Path::new(&args.out).join(name), text);
    write("soak.md", &table)?;
    write("soak.html", &timeline::html(&title, &soaked.samples)?)?;
    write("soak.json", &serde_json::to_string_pretty(&soaked.samples)?)?;
    println!("{table}\nwritten to {}", args.out.display());
    Ok(soaked.is_good())
}
