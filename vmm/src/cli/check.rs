//! `vmsrs check`: can this machine run a guest? Each missing thing is named with the command that mends it.
//!
//! [`facts`] looks at the machine, [`rules`] judges what it saw without looking itself, and this module prints.

mod facts;
mod rules;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use self::facts::Facts;

/// The options of `vmsrs check`.
#[derive(Debug, clap::Args)]
pub struct CheckArgs {
    /// Directory for fault reports that is to be checked [default: under the XDG state directory]
    #[arg(long, value_name = "DIR")]
    report_dir: Option<PathBuf>,
    /// Print one JSON object per line
    #[arg(long)]
    json: bool,
}

/// How one requirement is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Level {
    /// Met.
    Ok,
    /// Some guests will have trouble.
    Warn,
    /// No guest can run.
    Missing,
}

/// One requirement and what was found.
#[derive(Debug, Clone, PartialEq, Serialize)]
struct Finding {
    level: Level,
    requirement: &'static str,
    found: String,
    /// The command, or the change, that mends it.
    #[serde(skip_serializing_if = "Option::is_none")]
    mend: Option<String>,
}

impl Finding {
    fn ok(requirement: &'static str, found: impl Into<String>) -> Self {
        Self {
            level: Level::Ok,
            requirement,
            found: found.into(),
            mend: None,
        }
    }

    fn warn(requirement: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            level: Level::Warn,
            requirement,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }

    fn missing(
        requirement: &'static str,
        found: impl Into<String>,
        mend: impl Into<String>,
    ) -> Self {
        Self {
            level: Level::Missing,
            requirement,
            found: found.into(),
            mend: Some(mend.into()),
        }
    }
}

/// Checks the machine and prints the findings; exit status 0 if it can run a guest, 1 if not.
///
/// `probe` really enters a guest and says how that went; it is called only if nothing that it needs is missing.
pub fn run(args: CheckArgs, probe: impl FnOnce() -> Result<String, String>) -> ExitCode {
    let mut findings = rules::judge(&Facts::gather(args.report_dir));
    if can_run(&findings) {
        findings.push(match probe() {
            Ok(path) => Finding::ok("guest entry", path),
            Err(error) => Finding::missing(
                "guest entry",
                error,
                "report it, with the output of this command and of `sudo dmesg | grep -i kvm`",
            ),
        });
    }
    let mut out = io::stdout().lock();
    let printed = if args.json {
        print_json(&mut out, &findings)
    } else {
        print(&mut out, &findings)
    };
    // Who closes the pipe early has seen enough; the exit status still tells.
    if let Err(error) = printed
        && error.kind() != io::ErrorKind::BrokenPipe
    {
        eprintln!("vmsrs: cannot print the findings: {error}");
        return ExitCode::FAILURE;
    }
    if can_run(&findings) {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}

fn can_run(findings: &[Finding]) -> bool {
    findings
        .iter()
        .all(|finding| finding.level != Level::Missing)
}

fn print(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    let width = findings
        .iter()
        .map(|f| f.requirement.len())
        .max()
        .unwrap_or(0);
    for Finding {
        level,
        requirement,
        found,
        mend,
    } in findings
    {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Missing => "MISSING",
        };
        writeln!(out, "{level:<8} {requirement:<width$}  {found}")?;
        if let Some(mend) = mend {
            writeln!(out, "{:<8} {:<width$}  to mend it: {mend}", "", "")?;
        }
    }
    let missing = findings
        .iter()
        .filter(|f| f.level == Level::Missing)
        .count();
    match missing {
        0 => writeln!(out, "\nThis machine can run guests."),
        1 => writeln!(
            out,
            "\nThis machine cannot run guests: one thing is missing."
        ),
        n => writeln!(
            out,
            "\nThis machine cannot run guests: {n} things are missing."
        ),
    }
}

fn print_json(out: &mut impl Write, findings: &[Finding]) -> io::Result<()> {
    for finding in findings {
        serde_json::to_writer(&mut *out, finding)?;
        out.write_all(b"\n")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn findings() -> Vec<Finding> {
        vec![
            Finding::ok("CPU", "x86-64"),
            Finding::warn("open files", "soft limit 64", "ulimit -n 1024"),
            Finding::missing("/dev/kvm", "does not exist", "sudo modprobe kvm-intel"),
        ]
    }

    #[test]
    fn each_requirement_is_a_line_and_each_lack_names_its_cure() {
        let mut out = Vec::new();
        print(&mut out, &findings()).unwrap();
        let expected = "\
ok       CPU         x86-64
warn     open files  soft limit 64
                     to mend it: ulimit -n 1024
MISSING  /dev/kvm    does not exist
                     to mend it: sudo modprobe kvm-intel

This machine cannot run guests: one thing is missing.
";
        assert_eq!(String::from_utf8(out).unwrap(), expected);
    }

    #[test]
    fn warnings_do_not_stop_a_guest() {
        assert!(can_run(&findings()[..2]));
        assert!(!can_run(&findings()));
        let mut out = Vec::new();
        print(&mut out, &findings()[..2]).unwrap();
        assert!(
            String::from_utf8(out)
                .unwrap()
                .ends_with("\nThis machine can run guests.\n")
        );
    }

    #[test]
    fn json_is_one_object_per_line() {
        let mut out = Vec::new();
        print_json(&mut out, &findings()).unwrap();
        let text = String::from_utf8(out).unwrap();
        let first = r#"{"level":"ok","requirement":"CPU","found":"x86-64"}"#;
        assert_eq!(text.lines().next(), Some(first));
        assert!(text.contains(r#""level":"missing""#) && text.lines().count() == 3);
    }
}
