//! Runs a test file natively and under the monitor.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use super::{
    Suite, SuiteError,
    outcome::{Ended, Outcome},
    tree::Trees,
};
use crate::{event, interrupt, monitored::Launch, net, process::Bounded};

const POLL: Duration = Duration::from_millis(200);

/// Events that tell of a fault which the monitor saw.
const FAULTS: [&str; 4] = ["recovered", "degraded", "escalated", "restarted"];

/// A file that ran both ways.
pub struct Compared {
    /// What came of it natively.
    pub native: Outcome,
    /// What came of it under the monitor.
    pub monitored: Outcome,
    /// Faults that the monitor saw.
    pub faults: usize,
    /// What passed natively and not under the monitor.
    pub lost: Vec<String>,
}

/// Runs `file` both ways. What both printed, and the monitor's events, are kept in `logs` if they differ.
pub fn compare(
    suite: &Suite,
    trees: &Trees,
    file: &str,
    timeout: Duration,
    logs: &Path,
) -> Result<Compared, SuiteError> {
    let log = |what: &str| logs.join(format!("{}.{what}", file.replace('/', "-")));
    let (natively, monitored, events) = (log("native"), log("monitored"), log("events"));
    fs::create_dir_all(logs).map_err(SuiteError::io(logs))?;
    let native = run(suite, &trees.native, file, timeout, &natively)?;
    // Appended to by every server that the file starts.
    File::create(&trees.events).map_err(SuiteError::io(&trees.events))?;
    let under = run(suite, &trees.monitored, file, timeout, &monitored)?;
    let happened = event::read(&trees.events).map_err(SuiteError::io(&trees.events))?;
    let is_fault = |event: &&event::Event| FAULTS.contains(&&*event.event);
    let faults = happened.iter().filter(is_fault).count();
    let lost = native.lost_in(&under);
    if lost.is_empty() {
        for log in [natively, monitored] {
            fs::remove_file(&log).map_err(SuiteError::io(&log))?;
        }
    } else {
        fs::copy(&trees.events, &events).map_err(SuiteError::io(&events))?;
    }
    Ok(Compared {
        native,
        monitored: under,
        faults,
        lost,
    })
}

/// Runs `file` in `tree`; what it prints goes to `log`.
fn run(
    suite: &Suite,
    tree: &Path,
    file: &str,
    timeout: Duration,
    log: &PathBuf,
) -> Result<Outcome, SuiteError> {
    let output = File::create(log).map_err(SuiteError::io(log))?;
    let again = output.try_clone().map_err(SuiteError::io(log))?;
    let port = net::free_port().map_err(SuiteError::io(tree))?;
    let server = suite.serve.map(|arguments| {
        let server = tree.join(suite.server).into_os_string();
        let arguments = arguments(port).into_iter().map(Into::into);
        Launch::native([server].into_iter().chain(arguments)).start(port)
    });
    let _server = server.transpose()?;
    let mut command = (suite.command)(tree, file, port);
    command.stdin(Stdio::null()).stdout(output).stderr(again);
    let begin = Instant::now();
    let mut child = Bounded::spawn_group(&mut command).map_err(SuiteError::io(tree))?;
    let ended = loop {
        interrupt::check()?;
        if let Some(status) = child.wait_for(POLL).map_err(SuiteError::io(tree))? {
            break Ended::With(status);
        }
        if begin.elapsed() >= timeout {
            break Ended::TimedOut;
        }
    };
    let seconds = begin.elapsed().as_secs_f64();
    child.kill();
    // Servers may print what is not UTF-8.
    let printed = fs::read(log).map_err(SuiteError::io(log))?;
    Ok(Outcome {
        ended,
        tests: (suite.tests)(&String::from_utf8_lossy(&printed)),
        seconds,
    })
}
