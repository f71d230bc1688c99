//! `vmsrs report`: lists the fault reports, or prints one.

use std::error::Error;
use std::io::{self, BufWriter, ErrorKind, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::SystemTime;

use recovery::report::{FaultReport, LoadError, OpenError, ReportArchive, ReportId};

/// The options of `vmsrs report`.
#[derive(Debug, clap::Args)]
pub struct ReportArgs {
    /// The report to print: its identifier, the beginning of it, or "last"; without it, all are listed
    id: Option<String>,
    /// Directory of the fault reports [default: under the XDG state directory]
    #[arg(long, value_name = "DIR")]
    report_dir: Option<PathBuf>,
    /// Print one JSON object per report
    #[arg(long)]
    json: bool,
    /// List every report; without it, faults of the same bug are one line
    #[arg(long)]
    all: bool,
}

/// Why nothing, or not everything, could be printed.
#[derive(Debug, thiserror::Error)]
enum ReportError {
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Load(#[from] LoadError),
    #[error("cannot print the report")]
    Print(#[from] io::Error),
}

/// Prints what `args` ask for; exit status 1 if there is no such report.
pub fn run(args: ReportArgs) -> ExitCode {
    let mut out = BufWriter::new(io::stdout().lock());
    let printed = print(&args, SystemTime::now(), &mut out).and_then(|()| Ok(out.flush()?));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        // `vmsrs report | head` has seen enough.
        Err(ReportError::Print(error)) if error.kind() == ErrorKind::BrokenPipe => {
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("vmsrs: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

/// An error with all its causes on one line.
pub(super) fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text += &format!(": {cause}");
        source = cause.source();
    }
    text
}

fn print(args: &ReportArgs, now: SystemTime, out: &mut impl Write) -> Result<(), ReportError> {
    let archive = ReportArchive::new(args.report_dir.clone())?;
    match (&args.id, args.json) {
        (Some(id), false) => out.write_all(archive.load(id)?.to_text().as_bytes())?,
        (Some(id), true) => print_json(&archive.load(id)?, out)?,
        (None, false) => print_table(&archive, now, args.all, out)?,
        (None, true) => {
            for id in archive.list()? {
                print_json(&archive.read(&id)?, out)?;
            }
        }
    }
    Ok(())
}

fn print_json(report: &FaultReport, out: &mut impl Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, report)?;
    out.write_all(b"\n")
}

/// A line of the table.
type Row = [String; 9];

fn print_table(
    archive: &ReportArchive,
    now: SystemTime,
    all: bool,
    out: &mut impl Write,
) -> Result<(), ReportError> {
    let ids = archive.list()?;
    if ids.is_empty() {
        writeln!(
            out,
            "No fault reports in {}: nothing has crashed yet.",
            archive.dir().display()
        )?;
        return Ok(());
    }
    let head = [
        "REPORT", "AGE", "COUNT", "OUTCOME", "SIGNAL", "KIND", "FUNCTION", "PEER", "PAUSE",
    ];
    let mut bugs: Vec<Bug> = Vec::new();
    for id in ids {
        let report = archive.read(&id).ok();
        let same = bugs
            .iter_mut()
            .find(|bug| !all && bug.is_of(report.as_ref()));
        match same {
            Some(bug) => bug.count += report.map_or(1, |report| report.count()),
            None => bugs.push(Bug {
                count: report.as_ref().map_or(1, FaultReport::count),
                id,
                report,
            }),
        }
    }
    let mut rows = vec![head.map(str::to_owned)];
    rows.extend(bugs.iter().map(|bug| row(bug, now)));
    let widths: [usize; 9] = std::array::from_fn(|i| {
        rows.iter()
            .map(|row| row[i].chars().count())
            .max()
            .unwrap_or(0)
    });
    for row in rows {
        let cells: Vec<String> = row
            .iter()
            .zip(widths)
            .map(|(cell, width)| format!("{cell:<width$}"))
            .collect();
        writeln!(out, "{}", cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Faults that are listed on one line: of the same bug, and with the same outcome.
struct Bug {
    /// The newest report.
    id: ReportId,
    /// What is in it; none if it was removed since by a running monitor, or damaged. The others are still
    /// worth listing.
    report: Option<FaultReport>,
    count: u64,
}

impl Bug {
    fn is_of(&self, report: Option<&FaultReport>) -> bool {
        let (Some(own), Some(other)) = (&self.report, report) else {
            return false;
        };
        let same = (&own.fault, own.outcome) == (&other.fault, other.outcome);
        same && !own.fault.is_empty()
    }
}

fn row(bug: &Bug, now: SystemTime) -> Row {
    let Some(report) = &bug.report else {
        let mut row: Row = std::array::from_fn(|_| "-".to_owned());
        row[0] = bug.id.to_string();
        row[3] = "unreadable".to_owned();
        return row;
    };
    [
        report.id.to_string(),
        report
            .when()
            .map_or_else(|| "?".to_owned(), |then| age(then, now)),
        bug.count.to_string(),
        report.outcome.to_string(),
        report
            .signal
            .as_deref()
            .map_or_else(|| "-".to_owned(), cell),
        report.kind.to_string(),
        cell(&report.place()),
        report.peer.as_deref().map_or_else(|| "-".to_owned(), cell),
        format!("{} us", report.pause_us),
    ]
}

/// Characters that a cell has at most.
const CELL_LIMIT: usize = 40;

/// Text of the guest as the cell of a table: short, and without control characters.
fn cell(text: &str) -> String {
    let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
    let mut cell: String = text.chars().take(CELL_LIMIT).map(visible).collect();
    if text.chars().nth(CELL_LIMIT).is_some() {
        cell.pop();
        cell.push('\u{2026}');
    }
    cell
}

/// How long ago `then` was: `5s`, `5m`, `5h`, `5d`.
fn age(then: SystemTime, now: SystemTime) -> String {
    let seconds = now.duration_since(then).map_or(0, |d| d.as_secs());
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..172_800 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use recovery::event::{FaultKind, Outcome};
    use recovery::origin::Origin;
    use recovery::report::ReportStore;
    use std::time::{Duration, UNIX_EPOCH};

    const NOW: SystemTime = UNIX_EPOCH;

    fn report(seconds_ago: u64) -> FaultReport {
        FaultReport {
            peer: Some("127.0.0.1:4242".into()),
            symbol: Some("evil\x1b[2J+0x1".into()),
            pause_us: 84,
            ..FaultReport::new(
                at(100_000 - seconds_ago),
                Outcome::Recovered,
                Some(11),
                FaultKind::NullRead,
                17,
                0x1000,
                Origin::Stream(7),
            )
        }
    }

    fn at(seconds: u64) -> SystemTime {
        NOW + Duration::from_secs(seconds)
    }

    fn output(
        dir: &tempfile::TempDir,
        id: Option<&str>,
        json: bool,
    ) -> Result<String, ReportError> {
        let args = ReportArgs {
            id: id.map(str::to_owned),
            report_dir: Some(dir.path().to_owned()),
            json,
            all: false,
        };
        let mut out = Vec::new();
        print(&args, at(100_000), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    fn filled() -> (tempfile::TempDir, Vec<FaultReport>) {
        let dir = tempfile::tempdir().unwrap();
        let store = ReportStore::open(Some(dir.path().to_owned())).unwrap();
        let reports = vec![report(90), report(5)];
        reports.iter().for_each(|r| drop(store.save(r).unwrap()));
        (dir, reports)
    }

    #[test]
    fn an_empty_store_is_not_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let text = output(&dir, None, false).unwrap();
        assert!(
            text.starts_with("No fault reports in ")
                && text.ends_with("nothing has crashed yet.\n")
        );
        assert_eq!(output(&dir, None, true).unwrap(), "");
    }

    #[test]
    fn the_table_has_the_newest_first() {
        let (dir, reports) = filled();
        std::fs::create_dir(dir.path().join("19690101T000000.000000Z-1-1")).unwrap();
        std::fs::write(
            dir.path().join("19690101T000000.000000Z-1-1/report.json"),
            "{}",
        )
        .unwrap();
        let text = output(&dir, None, false).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .map(|l| l.split_whitespace().collect())
            .collect();
        assert_eq!(lines.len(), 4);
        assert_eq!(lines[0][..4], ["REPORT", "AGE", "COUNT", "OUTCOME"]);
        assert_eq!(lines[1][0], reports[1].id.as_str());
        assert_eq!(
            lines[1][1..6],
            ["5s", "1", "recovered", "SIGSEGV", "null-read"]
        );
        assert_eq!(
            lines[1][6..],
            ["evil\u{fffd}[2J+0x1", "127.0.0.1:4242", "84", "us"]
        );
        assert_eq!(lines[2][1], "1m");
        assert_eq!(lines[3][3], "unreadable");
    }

    #[test]
    fn faults_of_one_bug_are_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let store = ReportStore::open(Some(dir.path().to_owned())).unwrap();
        let bug = |fault: &str, seconds| FaultReport {
            fault: fault.into(),
            ..report(seconds)
        };
        let reports = [bug("a", 90), bug("b", 80), bug("a", 70), bug("a", 60)];
        reports.iter().for_each(|r| drop(store.save(r).unwrap()));
        let tally = recovery::report::Tally {
            count: 10,
            last: String::new(),
            last_peer: None,
        };
        store.save_tally(&reports[0].id, &tally).unwrap();
        let mut other_outcome = bug("a", 50);
        other_outcome.outcome = Outcome::Degraded;
        store.save(&other_outcome).unwrap();
        let text = output(&dir, None, false).unwrap();
        let lines: Vec<Vec<&str>> = text
            .lines()
            .skip(1)
            .map(|l| l.split_whitespace().take(4).collect())
            .collect();
        let line =
            |of: &FaultReport, age, count, outcome| vec![of.id.to_string(), age, count, outcome];
        let text = str::to_owned;
        assert_eq!(
            lines,
            [
                line(&other_outcome, text("50s"), text("1"), text("degraded")),
                line(&reports[3], text("1m"), text("13"), text("recovered")),
                line(&reports[1], text("1m"), text("1"), text("recovered")),
            ]
        );
    }

    #[test]
    fn one_report_as_text_and_json() {
        let (dir, reports) = filled();
        let text = output(&dir, Some("last"), false).unwrap();
        assert!(text.contains(reports[1].id.as_str()) && !text.contains('\x1b'));
        let json = output(&dir, Some(reports[0].id.as_str()), true).unwrap();
        assert_eq!(
            serde_json::from_str::<FaultReport>(&json).unwrap(),
            reports[0]
        );
        assert_eq!(output(&dir, None, true).unwrap().lines().count(), 2);
    }

    #[test]
    fn a_wrong_identifier_names_near_ones() {
        let (dir, reports) = filled();
        let error = output(&dir, Some("1970x"), false).unwrap_err();
        assert!(chain(&error).contains(reports[0].id.as_str()), "{error}");
    }

    #[test]
    fn ages() {
        let age = |seconds| age(at(0), at(seconds));
        assert_eq!(
            [age(0), age(59), age(60), age(3599)],
            ["0s", "59s", "1m", "59m"]
        );
        assert_eq!([age(3600), age(172_799), age(172_800)], ["1h", "47h", "2d"]);
        assert_eq!(super::age(at(10), at(0)), "0s");
    }

    #[test]
    fn cells_are_short() {
        assert_eq!(cell(&"x".repeat(40)).chars().count(), 40);
        let long = cell(&"\u{e9}".repeat(41));
        assert!(long.chars().count() == 40 && long.ends_with('\u{2026}'));
    }

    #[test]
    fn errors_show_their_causes() {
        let error = ReportError::Print(io::Error::other("disk on fire"));
        assert_eq!(chain(&error), "cannot print the report: disk on fire");
    }
}
