//! What the machine said: the init script's lines, each with the run's token, frame what the
//! commands printed.

use std::{collections::BTreeMap, fmt, time::Duration};

/// One command's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CommandResult {
    /// The command line.
    pub command: String,
    /// Its exit status, as a shell sees it.
    pub status: i32,
    /// What it printed, both streams.
    pub output: String,
}

/// A complete report: the machine came up, every command ended, the machine powered off.
#[derive(Clone, Debug)]
pub struct Report {
    /// The kernel's version.
    pub kernel: String,
    /// `kvm_amd`'s parameter `npt`: `Y` when nested paging is on.
    pub npt: String,
    /// One result for each command, in order.
    pub results: Vec<CommandResult>,
    /// From QEMU's start to its end.
    pub elapsed: Duration,
}

impl Report {
    /// The commands that failed.
    pub fn failures(&self) -> impl Iterator<Item = &CommandResult> {
        self.results.iter().filter(|result| result.status != 0)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.elapsed.as_secs_f64();
        writeln!(
            f,
            "Linux {} with kvm_amd npt={}, {seconds:.1} s",
            self.kernel, self.npt
        )?;
        for CommandResult {
            command,
            status,
            output,
        } in &self.results
        {
            writeln!(f, "$ {command}")?;
            if !output.is_empty() {
                writeln!(f, "{output}")?;
            }
            writeln!(f, "[status {status}]")?;
        }
        Ok(())
    }
}

/// Why a report is not complete.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub String);

/// Reads the report of a run with `token` of `commands`.
pub fn parse(
    token: &str,
    text: &str,
    commands: &[String],
    elapsed: Duration,
) -> Result<Report, Malformed> {
    let mut facts = BTreeMap::new();
    let mut results: Vec<CommandResult> = Vec::new();
    let mut running: Option<(&str, Vec<&str>)> = None;
    let mut done = false;
    for line in text.lines() {
        let Some(words) = line.strip_prefix(token) else {
            if let Some((_, output)) = &mut running {
                output.push(line);
            }
            continue;
        };
        match words.split_whitespace().collect::<Vec<_>>()[..] {
            ["fact", name, value] => drop(facts.insert(name, value)),
            ["begin", name] => running = Some((name, Vec::new())),
            ["end", name, status] => {
                let result = running
                    .take()
                    .filter(|(begun, _)| *begun == name)
                    .and_then(|(_, output)| {
                        let command = commands.get(results.len())?.clone();
                        let status = status.parse().ok()?;
                        Some(CommandResult {
                            command,
                            status,
                            output: output.join("\n").trim_end().to_owned(),
                        })
                    })
                    .ok_or_else(|| Malformed(format!("a line out of order:{words}")))?;
                results.push(result);
            }
            ["done"] => done = true,
            _ => return Err(Malformed(format!("an unknown line:{words}"))),
        }
    }
    let fact = |name: &str| {
        let value = facts.get(name).map(|value| (*value).to_owned());
        value.ok_or_else(|| {
            Malformed(format!(
                "the machine did not come up: it did not report `{name}`"
            ))
        })
    };
    if let Some(failed) = facts.keys().find(|name| name.starts_with("insmod-")) {
        return Err(Malformed(format!(
            "a kernel module was not loaded: {failed}"
        )));
    }
    let (kernel, kvm, npt) = (fact("kernel")?, fact("kvm")?, fact("npt")?);
    if kvm != "yes" {
        return Err(Malformed("the machine has no /dev/kvm".to_owned()));
    }
    if let Some(command) = commands.get(results.len()) {
        return Err(Malformed(format!(
            "the machine ended before this command did: {command}"
        )));
    }
    if !done {
        return Err(Malformed(
            "the machine ended before its report did".to_owned(),
        ));
    }
    Ok(Report {
        kernel,
        npt,
        results,
        elapsed,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const UP: &str = "T fact kernel 6.1\nT fact kvm yes\nT fact npt Y\n";

    fn report(rest: &str) -> Result<Report, Malformed> {
        parse(
            "T",
            &format!("{UP}{rest}"),
            &["a x".into(), "b".into()],
            Duration::ZERO,
        )
    }

    #[test]
    fn commands_get_their_output_and_status() {
        let text = "T begin 00\none\n\ntwo\n\nT end 00 0\nT begin 01\nX end 01 0\n\nT end 01 137\nT done\n";
        let report = report(text).unwrap();
        assert_eq!(report.npt, "Y");
        let expected = CommandResult {
            command: "a x".into(),
            status: 0,
            output: "one\n\ntwo".into(),
        };
        assert_eq!(report.results[0], expected);
        assert_eq!(report.results[1].output, "X end 01 0");
        let failures: Vec<_> = report
            .failures()
            .map(|result| result.command.as_str())
            .collect();
        assert_eq!(failures, ["b"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        let error = |text: &str| report(text).unwrap_err().0;
        assert!(error("").contains("a x"));
        assert!(error("T begin 00\nT end 00 0\nT begin 01\n").contains("this command did: b"));
        assert!(
            error("T begin 00\nT end 00 0\nT begin 01\nT end 01 0\n").contains("before its report")
        );
        assert!(error("T begin 00\nT end 01 0\n").contains("out of order"));
        assert!(error("T fact insmod-kvm failed\n").contains("insmod-kvm"));
        assert!(error("T hello there\n").contains("unknown line"));
        assert!(error("T fact kvm no\n").contains("no /dev/kvm"));
        assert!(
            parse("T", "", &[], Duration::ZERO)
                .unwrap_err()
                .0
                .contains("did not come up")
        );
    }
}
