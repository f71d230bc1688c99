//! `campaign`: injects faults by the thousand into real servers under load, and says what came of them.

use std::{
    error::Error,
    fs,
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use clap::Parser;
use serde_json::{Map, Value, json};
use vmsrs_tests::{
    campaign::{
        report::{html, json::Summary, markdown},
        run::{Campaign, Trials, write},
        target,
    },
    error, interrupt, kvm, runner,
};

/// Inject faults into servers under load, with an oracle that checks every healthy client's history.
///
/// Each fault is injected twice: into a server that recovers, and into one that does not (the control run). DIR gets
/// trials.jsonl (one line for each injection), summary.json, survival.md and survival.html. A campaign that was
/// interrupted goes on where it was.
#[derive(Parser)]
struct Args {
    /// The servers: redis, memcached, nginx, demo
    #[arg(long = "server", value_name = "NAME", default_values_t = ["redis".to_owned(), "memcached".to_owned()])]
    servers: Vec<String>,
    /// Faults to inject into each server
    #[arg(long, default_value_t = 10_000)]
    injections: u64,
    /// All choices follow from it
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Only this class of faults, as in `vmsrs run --inject CLASS:...`; may be given several times
    #[arg(long = "class", value_name = "CLASS")]
    classes: Vec<String>,
    /// Leave the control run out
    #[arg(long)]
    no_control: bool,
    /// Where everything is written
    #[arg(long, value_name = "DIR", default_value = "target/campaign")]
    out: PathBuf,
    /// The monitor [default: it is built, or VMSRS_BIN]
    #[arg(long, value_name = "PATH")]
    vmsrs: Option<PathBuf>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("campaign: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<(), Box<dyn Error>> {
    interrupt::install()?;
    kvm::usable()?;
    let vmsrs = runner::cargo::monitor(args.vmsrs.as_deref())?;
    let servers: Vec<_> = args
        .servers
        .iter()
        .map(|name| target::by_name(name))
        .collect::<Result<_, _>>()?;
    fs::create_dir_all(&args.out)?;
    let parameters =
        json!({ "seed": args.seed, "classes": args.classes, "control": !args.no_control });
    keep_parameters(&args.out.join("campaign.json"), &parameters)?;
    let mut trials = Trials::open(&args.out.join("trials.jsonl"))?;
    let campaign = Campaign {
        injections: args.injections,
        seed: args.seed,
        control: !args.no_control,
        classes: args.classes.clone(),
        vmsrs,
    };
    let mut requests = 0;
    for server in &servers {
        requests += campaign.run(server.as_ref(), &mut trials)?;
    }

    let mut about = Map::new();
    about.insert("date".into(), first_line("date", &["--utc", "+%F"]).into());
    about.insert(
        "commit".into(),
        first_line("git", &["rev-parse", "--short", "HEAD"]).into(),
    );
    about.insert("machine".into(), machine().into());
    about.insert("seed".into(), args.seed.into());
    about.insert("healthy requests of this run".into(), requests.into());
    for server in &servers {
        about.insert(server.name().into(), server.version().into());
    }
    let summary = Summary::new(about, &trials.all);
    write(&args.out.join("summary.json"), &summary.to_json()?)?;
    let table = markdown::report(&summary, &trials.all);
    write(&args.out.join("survival.md"), &table)?;
    write(
        &args.out.join("survival.html"),
        &html::report(&summary, &trials.all)?,
    )?;
    println!("{table}");
    println!("written to {}", args.out.display());
    Ok(())
}

/// A campaign that goes on has the parameters that it began with.
fn keep_parameters(path: &Path, parameters: &Value) -> Result<(), Box<dyn Error>> {
    if let Ok(text) = fs::read_to_string(path) {
        let before: Value = serde_json::from_str(&text)?;
        return match before == *parameters {
            true => Ok(()),
            false => Err(format!(
                "{} says that it was begun with {before}; name another directory with --out",
                path.display()
            )
            .into()),
        };
    }
    fs::write(path, parameters.to_string())?;
    Ok(())
}

fn machine() -> String {
    let cpus = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let models = cpus
        .lines()
        .filter_map(|line| line.strip_prefix("model name\t: "));
    let models: Vec<&str> = models.collect();
    let model = models.first().copied().unwrap_or("unknown CPU");
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    format!("{} x {model}, Linux {}", models.len(), kernel.trim())
}

fn first_line(program: &str, args: &[&str]) -> String {
    let output = Command::new(program).args(args).output();
    let text = output.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    let text = text.unwrap_or_default();
    text.lines().next().unwrap_or("unknown").to_owned()
}
