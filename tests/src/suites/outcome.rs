//! What a test file's output says of its tests, and what passed natively and not under the monitor.

use std::{collections::BTreeMap, fmt, process::ExitStatus};

/// What came of a test.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It passed.
    Passed,
    /// It did not.
    Failed,
    /// It was left out.
    Skipped,
}

/// One test of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// What tells it from the file's other tests, in every run; several may have the same.
    pub key: String,
    /// What it is about.
    pub name: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// The tests in Perl's format: `ok 3 - name`, `not ok 4 - name`, `ok 5 # skip why`. Numbers tell them apart, since
/// names may tell of what was measured.
pub fn of_tap(output: &str) -> Vec<Test> {
    let line = |line: &str| {
        let (passed, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (Verdict::Failed, rest),
            None => (Verdict::Passed, line.strip_prefix("ok ")?),
        };
        let (number, name) = rest.split_once(' ').unwrap_or((rest, ""));
        number.parse::<u32>().ok()?;
        let is_skipped = name.to_lowercase().contains("# skip");
        Some(Test {
            key: number.to_owned(),
            name: format!("{number} {name}"),
            verdict: if is_skipped { Verdict::Skipped } else { passed },
        })
    };
    output.lines().filter_map(line).collect()
}

/// The tests in the format of Redis' `runtest`: `[ok]: name (3 ms)`, `[err]: name in file`, with colours.
pub fn of_redis(output: &str) -> Vec<Test> {
    let line = |line: &str| {
        let line = without_colours(line);
        let (word, rest) = line.strip_prefix('[')?.split_once("]: ")?;
        let (verdict, end) = match word {
            "ok" => (Verdict::Passed, " ("),
            "err" | "exception" | "timeout" => (Verdict::Failed, " in tests/"),
            "skip" | "ignore" => (Verdict::Skipped, "\n"),
            _ => return None,
        };
        let name = rest.rsplit_once(end).map_or(rest, |(name, _)| name);
        Some(Test {
            key: name.to_owned(),
            name: rest.to_owned(),
            verdict,
        })
    };
    output.lines().filter_map(line).collect()
}

/// Without the escape sequences of a terminal's colours.
fn without_colours(line: &str) -> String {
    let mut pieces = line.split("\x1b[");
    let mut text = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        text += piece.split_once('m').map_or(piece, |(_, rest)| rest);
    }
    text
}

/// How the run of a file ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// By itself.
    With(ExitStatus),
    /// It took too long.
    TimedOut,
}

/// What came of a file.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// How its run ended.
    pub ended: Ended,
    /// Its tests.
    pub tests: Vec<Test>,
    /// Seconds that it took.
    pub seconds: f64,
}

impl Outcome {
    /// How many tests came to `verdict`.
    pub fn count(&self, verdict: Verdict) -> usize {
        let tests = self.tests.iter();
        tests.filter(|test| test.verdict == verdict).count()
    }

    fn is_success(&self) -> bool {
        matches!(self.ended, Ended::With(status) if status.success())
    }

    /// What passed here and not in the other one. How many tests a file has may depend on time and chance: where all
    /// is well, and no more was left out, nothing is lost.
    pub fn lost_in(&self, other: &Self) -> Vec<String> {
        if other.is_success() && other.count(Verdict::Skipped) <= self.count(Verdict::Skipped) {
            return Vec::new();
        }
        let mut passed: BTreeMap<&str, usize> = BTreeMap::new();
        for test in of(&other.tests, Verdict::Passed) {
            *passed.entry(&test.key).or_default() += 1;
        }
        let mut lost = Vec::new();
        for test in of(&self.tests, Verdict::Passed) {
            match passed.get_mut(&*test.key) {
                Some(count) if *count > 0 => *count -= 1,
                _ => lost.push(test.name.clone()),
            }
        }
        if lost.is_empty() && self.is_success() && !other.is_success() {
            lost.push(format!("the file as a whole ({})", other.ended));
        }
        lost
    }
}

fn of(tests: &[Test], verdict: Verdict) -> impl Iterator<Item = &Test> {
    tests.iter().filter(move |test| test.verdict == verdict)
}

impl fmt::Display for Ended {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::With(status) => status.fmt(f),
            Self::TimedOut => f.write_str("timed out"),
        }
    }
}

/// Such as `12 passed, 1 failed, 3.5 s`.
impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = format!("{} passed", self.count(Verdict::Passed));
        let failed = self.count(Verdict::Failed);
        if failed > 0 {
            text += &format!(", {failed} failed");
        }
        match self.ended {
            Ended::TimedOut => text += ", timed out",
            Ended::With(status) if failed == 0 && !status.success() => {
                text += &format!(", {status}")
            }
            Ended::With(_) => {}
        }
        f.pad(&format!("{text}, {:.1} s", self.seconds))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;

    use super::*;

    fn outcome(tests: Vec<Test>, code: i32) -> Outcome {
        Outcome {
            ended: Ended::With(ExitStatus::from_raw(code << 8)),
            tests,
            seconds: 1.0,
        }
    }

    #[test]
    fn what_passed_only_natively_is_lost() {
        let native =
            of_tap("1..4\nok 1 - a\nok 2 - took 3 s\nnot ok 3 - b\nok 4 # skip no b\n# ok\n");
        let monitored = of_tap("1..4\nnot ok 1 - a\nok 2 - took 4 s\nnot ok 3 - b\n");
        let fewer = outcome(native[..2].to_vec(), 0);
        let (native, monitored) = (outcome(native, 1), outcome(monitored, 2));
        assert_eq!(native.lost_in(&monitored), ["1 - a"]);
        assert_eq!(native.to_string(), "2 passed, 1 failed, 1.0 s");
        assert!(native.lost_in(&native).is_empty() && native.lost_in(&fewer).is_empty());
        assert_eq!(
            outcome(Vec::new(), 0).lost_in(&outcome(Vec::new(), 1)),
            ["the file as a whole (exit status: 1)"]
        );
    }

    #[test]
    fn redis_names_may_come_twice() {
        let native =
            of_redis("[\x1b[0;32;49mok\x1b[0m]: a (b) (3 ms)\n[ok]: a (b) (0 ms)\n[ready]: 7\n");
        let monitored = of_redis(
            "[ok]: a (b) (5 ms)\n[\x1b[0;31;49merr\x1b[0m]: a (b) in tests/x.tcl\nExpected\n",
        );
        let lost = outcome(native, 0).lost_in(&outcome(monitored, 1));
        assert_eq!(lost, ["a (b) (0 ms)"]);
    }
}
