//! `server-suites`: runs the servers' own test suites natively and under the monitor, and tells what differs.

use std::{
    error::Error,
    fs, io,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use vmsrs_tests::{
    error, interrupt, kvm, runner,
    suites::{self, Suite, SuiteError, outcome::Verdict, run, tree},
};

/// Run the servers' own test suites natively and under the monitor, and tell what differs.
///
/// The suites come with Debian's source packages, which are downloaded and built in DIR the first time. Every test file
/// runs natively, and then in a copy of the tree in which the server is the monitor with the server. A line tells how
/// many tests passed each way; one that fails natively is no difference. What differs is listed, and what was printed
/// is kept in DIR/logs. Exits 0 if every test that passes natively passes under the monitor.
///
/// Suites: memcached (t/ and testapp), memcached-tls (what it has for TLS), redis (runtest), redis-external (runtest with
/// --host), lighttpd (tests/).
///
/// Examples:
///
///   server-suites --suite memcached
///
///   server-suites --suite redis --file unit/type --skip corrupt-dump
///
///   server-suites --suite redis --file integration/logging -- --recover off
#[derive(Parser)]
#[command(verbatim_doc_comment)]
struct Args {
    /// The suite; may be given several times [default: all]
    #[arg(long, value_name = "NAME")]
    suite: Vec<String>,
    /// Only files with this in their name; may be given several times
    #[arg(long, value_name = "TEXT")]
    file: Vec<String>,
    /// No files with this in their name; may be given several times
    #[arg(long, value_name = "TEXT")]
    skip: Vec<String>,
    /// Seconds after which a file is given up
    #[arg(long, default_value_t = 600)]
    timeout: u64,
    /// How often a file that differs is run; it differs if it does every time
    #[arg(long, default_value_t = 1, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    tries: u32,
    /// Where the suites are built
    #[arg(long, value_name = "DIR", default_value = "target/server-suites")]
    work: PathBuf,
    /// The monitor [default: it is built, or VMSRS_BIN]
    #[arg(long, value_name = "PATH")]
    vmsrs: Option<PathBuf>,
    /// Options for `vmsrs run`
    #[arg(last = true)]
    options: Vec<String>,
}

fn main() -> ExitCode {
    match run(&Args::parse()) {
        Ok(0) => ExitCode::SUCCESS,
        Ok(_) => ExitCode::FAILURE,
        Err(failure) => {
            eprintln!("server-suites: {}", error::chain(failure.as_ref()));
            ExitCode::FAILURE
        }
    }
}

/// How many files differ.
fn run(args: &Args) -> Result<usize, Box<dyn Error>> {
    interrupt::install()?;
    kvm::usable()?;
    let mut chosen = suites::all();
    let known: Vec<_> = chosen.iter().map(|suite| suite.name).collect();
    if let Some(name) = args.suite.iter().find(|name| !known.contains(&&***name)) {
        return Err(format!("no suite {name}: there are {}", known.join(", ")).into());
    }
    chosen
        .retain(|suite| args.suite.is_empty() || args.suite.iter().any(|name| name == suite.name));
    let vmsrs = runner::cargo::monitor(args.vmsrs.as_deref())?;
    fs::create_dir_all(&args.work)?;
    let work = args.work.canonicalize()?;
    let mut monitor = vec![vmsrs.to_string_lossy().into_owned(), "run".to_owned()];
    monitor.extend(args.options.iter().cloned());
    let mut differing = 0;
    for suite in &chosen {
        differing += whole(suite, args, &work, &monitor)?;
    }
    Ok(differing)
}

/// Runs the files of a suite that were asked for; how many of them differ.
fn whole(suite: &Suite, args: &Args, work: &Path, monitor: &[String]) -> Result<usize, SuiteError> {
    let trees = tree::built(suite, work, monitor)?;
    let logs = work.join("logs").join(suite.name);
    match fs::remove_dir_all(&logs) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            return Err(SuiteError::Io { path: logs, source });
        }
        _ => {}
    }
    let is_in = |file: &str, texts: &[String]| texts.iter().any(|text| file.contains(&**text));
    let mut files = (suite.files)(&trees.native)?;
    files.retain(|file| {
        (args.file.is_empty() || is_in(file, &args.file)) && !is_in(file, &args.skip)
    });
    let width = files.iter().map(String::len).max().unwrap_or(0);
    println!("{:width$}  {:34}  UNDER THE MONITOR", suite.name, "NATIVE");

    let timeout = Duration::from_secs(args.timeout);
    let (mut differing, mut passed) = (0, [0, 0]);
    for file in &files {
        for tried in 1..=args.tries {
            let ran = run::compare(suite, &trees, file, timeout, &logs)?;
            let mut notes = String::new();
            if ran.faults > 0 {
                notes += &format!("  {} faults", ran.faults);
            }
            if !ran.lost.is_empty() {
                notes += "  DIFFERS";
            }
            println!(
                "{file:width$}  {:34}  {:34}{notes}",
                ran.native, ran.monitored
            );
            for name in &ran.lost {
                println!("{:width$}      {name}", "");
            }
            if ran.lost.is_empty() || tried == args.tries {
                differing += usize::from(!ran.lost.is_empty());
                passed[0] += ran.native.count(Verdict::Passed);
                passed[1] += ran.monitored.count(Verdict::Passed);
                break;
            }
        }
    }
    println!(
        "{}: {} files, {} tests pass natively and {} under the monitor; {differing} files differ\n",
        suite.name,
        files.len(),
        passed[0],
        passed[1]
    );
    if differing > 0 {
        println!("what they printed is in {}\n", logs.display());
    }
    Ok(differing)
}
