//! What one system call costs that does nothing: the price of an exit on this machine.
//!
//! `dd` copies single bytes from `/dev/zero` to `/dev/null`, two system calls a byte, and prints how
//! long it took. The figure tells machines apart, whose exits differ by an order of magnitude.

use std::{
    fs::File,
    io::{Read, Seek},
    process::{Command, Stdio},
    time::Duration,
};

use serde::Serialize;
use vmsrs_tests::process::Bounded;

use crate::{Error, settings::Tools};

const PATIENCE: Duration = Duration::from_secs(30);

/// Microseconds for one system call.
#[derive(Clone, Debug, Serialize)]
pub struct ExitCost {
    /// Without the monitor.
    pub native_us: f64,
    /// Under the monitor, where each is an exit.
    pub monitored_us: f64,
}

/// Measures both.
pub fn measure(tools: &Tools) -> Result<ExitCost, Error> {
    eprintln!("the cost of an empty system call");
    let mut monitored = Command::new(&tools.vmsrs);
    monitored.args(["run", "--protect", "off", "--", "dd"]);
    Ok(ExitCost {
        native_us: call_cost(&mut Command::new("dd"), 200_000)?,
        monitored_us: call_cost(&mut monitored, 5_000)?,
    })
}

/// `dd` is the start of a command line that ends with `dd`.
fn call_cost(dd: &mut Command, bytes: u32) -> Result<f64, Error> {
    let mut output = tempfile::tempfile()?;
    let count = format!("count={bytes}");
    dd.args(["if=/dev/zero", "of=/dev/null", "bs=1", &count])
        .env("LC_ALL", "C")
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::try_clone(&output)?);
    let mut child = Bounded::spawn_group(dd).map_err(|e| format!("cannot run {dd:?}: {e}"))?;
    let status = child.wait_for(PATIENCE)?;
    let mut text = String::new();
    output.rewind()?;
    output.read_to_string(&mut text)?;
    match seconds(&text).filter(|_| status.is_some_and(|status| status.success())) {
        Some(seconds) => Ok(seconds * 1e6 / f64::from(bytes) / 2.0),
        None => Err(format!("{dd:?} failed ({status:?}):\n{text}").into()),
    }
}

/// `5000 bytes (5.0 kB, 4.9 KiB) copied, 0.465 s, 10.8 kB/s`.
fn seconds(output: &str) -> Option<f64> {
    let (_, rest) = output.split_once(" copied, ")?;
    rest.split_once(" s,")?.0.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dd_says_how_long_it_took() {
        let text = "5+0 records in\n5+0 records out\n5 bytes copied, 7.7e-05 s, 64.9 kB/s\n";
        assert_eq!(seconds(text), Some(7.7e-5));
        let text = "5000 bytes (5.0 kB, 4.9 KiB) copied, 0.465 s, 10.8 kB/s\n";
        assert_eq!(seconds(text), Some(0.465));
        assert_eq!(seconds("dd: failed to open"), None);
    }
}
