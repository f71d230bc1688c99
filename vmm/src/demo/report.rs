//! What the demo prints: the verdict, the crashes, the users; all of it fits 80 columns.

use std::collections::BTreeSet;
use std::io::{self, Write};

use super::audit;
use super::contrast::Death;
use super::crasher::Saw;
use super::scenario::{Summary, Survival};
use super::server::Ending;
use super::table::Table;

/// Prints the result of one server.
pub fn print(survival: &Survival, deaths: &[Death]) -> io::Result<()> {
    let mut out = io::stdout().lock();
    let crashing = survival.users.iter().filter(|user| user.crashing).count();
    writeln!(
        out,
        "\nA server with {}: {} users work, {crashing} others crash it {} times.\n",
        survival.layout,
        survival.users.len() - crashing,
        survival.crashes.len()
    )?;
    for line in verdict(survival, deaths) {
        for line in wrapped(&line) {
            writeln!(out, "{line}")?;
        }
    }
    writeln!(out, "\n{}", crash_table(survival, deaths))?;
    writeln!(out, "{}", user_table(survival))?;
    out.flush()
}

fn crash_table(survival: &Survival, deaths: &[Death]) -> Table {
    let mut table = Table::new(&[
        "crash",
        "kind",
        "undone",
        "hit",
        "µs (worst)",
        "|without",
        "lost",
    ]);
    let (paired, _) = audit::pair(&survival.crashes, &survival.events);
    for (bug, name) in survival.bugs.iter().enumerate() {
        let crashes: Vec<_> = survival
            .crashes
            .iter()
            .filter(|crash| crash.bug == bug)
            .collect();
        let all = survival.crashes.iter().zip(&paired);
        let events: Vec<_> = all
            .filter(|(crash, _)| crash.bug == bug)
            .filter_map(|(_, event)| *event)
            .collect();
        let resets = crashes
            .iter()
            .filter(|crash| crash.saw == Saw::Reset)
            .count();
        let hit: BTreeSet<_> = survival
            .troubles
            .iter()
            .filter(|trouble| trouble.healthy && trouble.bug == Some(bug))
            .map(|trouble| &trouble.who)
            .collect();
        let recovered = events
            .iter()
            .filter(|event| event.event == "recovered")
            .count();
        let pauses: Vec<_> = events.iter().filter_map(|event| event.pause_us).collect();
        let (died, lost) = deaths.get(bug).map_or_else(Default::default, |death| {
            (
                death.ending.to_string(),
                format!("{}/{}", death.lost.0, death.lost.1),
            )
        });
        table.row(vec![
            name.clone(),
            distinct(events.iter().filter_map(|event| event.kind.as_deref())),
            format!("{}/{}", recovered.min(resets), crashes.len()),
            hit.len().to_string(),
            format!(
                "{} ({})",
                number(median(pauses.clone())),
                number(pauses.into_iter().max())
            ),
            died,
            lost,
        ]);
    }
    table
}

fn user_table(survival: &Survival) -> Table {
    let mut table = Table::new(&[
        "user",
        "role",
        "sessions",
        "right replies",
        "slowest ms",
        "noticed",
    ]);
    for Summary {
        name,
        crashing,
        tally,
    } in &survival.users
    {
        let noticed = survival
            .troubles
            .iter()
            .find(|trouble| trouble.who == *name);
        table.row(vec![
            name.clone(),
            if *crashing { "crashes" } else { "works" }.to_owned(),
            tally.logins.to_string(),
            tally.replies.to_string(),
            format!("{:.1}", tally.slowest.as_secs_f64() * 1e3),
            match noticed {
                Some(trouble) => shortened(&trouble.what),
                None if *crashing => "own crashes only".to_owned(),
                None => "nothing".to_owned(),
            },
        ]);
    }
    table
}

fn verdict(survival: &Survival, deaths: &[Death]) -> Vec<String> {
    let users = survival.users.len();
    let killed = deaths
        .iter()
        .filter(|death| matches!(death.ending, Ending::Signal(_)))
        .count();
    let everybody = if deaths.iter().all(|death| death.lost.0 == death.lost.1) {
        "all"
    } else {
        "up to"
    };
    let contrast = format!(
        "Without the monitor {killed} of {} bugs killed the server, each time for {everybody} {users} users.",
        deaths.len()
    );
    if !survival.passed() {
        let mut lines = vec!["FAILED:".to_owned()];
        for trouble in &survival.troubles {
            let bug = trouble.bug.and_then(|bug| survival.bugs.get(bug));
            let during = bug.map_or_else(String::new, |bug| format!(" (during {bug})"));
            lines.push(format!("  {}{during}: {}", trouble.who, trouble.what));
        }
        lines.push(format!("The server ended with {}.", survival.ending));
        if !survival.log_tail.is_empty() {
            lines.push("The last that it wrote to standard error:".to_owned());
            lines.extend(survival.log_tail.lines().map(|line| format!("  {line}")));
        }
        lines.push(contrast);
        return lines;
    }
    let (crashing, healthy): (Vec<_>, Vec<_>) =
        survival.users.iter().partition(|user| user.crashing);
    let replies: u64 = healthy.iter().map(|user| user.tally.replies).sum();
    let pauses: Vec<_> = survival
        .events
        .iter()
        .filter_map(|event| event.pause_us)
        .collect();
    let mut lines = vec![format!(
        "PASSED: {} crashes, and nobody noticed but the {} users who caused them, each by a reset of that \
             one connection. {} users got {replies} right replies on connections that never broke, and every \
             crashed request was undone as a whole, the writes sent with it in the same packet included.",
        survival.crashes.len(),
        crashing.len(),
        healthy.len()
    )];
    if let (Some(middle), Some(worst)) = (median(pauses.clone()), pauses.into_iter().max()) {
        lines.push(format!(
            "The recovery pause was {middle} µs (median; worst {worst} µs)."
        ));
    }
    let degraded = survival
        .events
        .iter()
        .filter(|event| event.event == "degraded")
        .count();
    if degraded > 0 {
        lines.push(format!(
            "{degraded} recoveries were degraded: not every guarantee could be kept."
        ));
    }
    lines.push(contrast);
    lines
}

/// Columns of a line.
const WIDTH: usize = 80;

/// `text` in lines that fit, with its indentation in each.
fn wrapped(text: &str) -> Vec<String> {
    let indent = &text[..text.len() - text.trim_start().len()];
    let mut lines = vec![indent.to_owned()];
    for word in text.split_whitespace() {
        let last = lines.len() - 1;
        let line = &mut lines[last];
        let is_empty = line.len() == indent.len();
        match line.chars().count() + 1 + word.chars().count() > WIDTH && !is_empty {
            true => lines.push(format!("{indent}{word}")),
            false if is_empty => line.push_str(word),
            false => {
                line.push(' ');
                line.push_str(word);
            }
        }
    }
    lines
}

/// What a cell of the users' table shows of a text.
fn shortened(text: &str) -> String {
    const LIMIT: usize = 28;
    match text.chars().count() > LIMIT {
        true => text.chars().take(LIMIT - 1).chain(['\u{2026}']).collect(),
        false => text.to_owned(),
    }
}

/// The different values, or `-` when there are none.
fn distinct<'a>(values: impl Iterator<Item = &'a str>) -> String {
    let values: Vec<_> = values.collect::<BTreeSet<_>>().into_iter().collect();
    if values.is_empty() {
        "-".to_owned()
    } else {
        values.join(", ")
    }
}

fn median(mut values: Vec<u64>) -> Option<u64> {
    values.sort_unstable();
    values.get(values.len() / 2).copied()
}

fn number(value: Option<u64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| value.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::demo::audit::Trouble;
    use crate::demo::crasher::Crash;
    use crate::demo::event::FaultEvent;
    use crate::demo::server::Layout;
    use crate::demo::user::Tally;

    fn survival(troubles: Vec<Trouble>) -> Survival {
        let user = |name: &str, crashing| Summary {
            name: name.into(),
            crashing,
            tally: Tally::default(),
        };
        Survival {
            layout: Layout { threads: 0 },
            bugs: vec!["abort".into()],
            crashes: vec![Crash {
                bug: 0,
                peer: ([127, 0, 0, 1], 7).into(),
                saw: Saw::Reset,
            }],
            users: vec![user("ada", false), user("mallory", true)],
            events: vec![FaultEvent {
                event: "recovered".into(),
                signal: Some("SIGABRT".into()),
                peer: Some("127.0.0.1:7".into()),
                pages_restored: Some(12),
                ..FaultEvent::default()
            }],
            troubles,
            ending: Ending::Status(0),
            log_tail: "last words".into(),
        }
    }

    fn deaths() -> Vec<Death> {
        vec![Death {
            ending: Ending::Signal("SIGABRT".into()),
            lost: (2, 2),
        }]
    }

    #[test]
    fn a_crash_and_its_event_meet_in_one_row() {
        let table = crash_table(&survival(Vec::new()), &deaths()).to_string();
        let row = table.lines().last().expect("a row");
        let cells: Vec<_> = row.split_whitespace().collect();
        let expected = "abort - 1/1 0 - (-) | SIGABRT 2/2";
        assert_eq!(cells.join(" "), expected);
    }

    #[test]
    fn the_verdict_names_what_went_wrong() {
        assert!(verdict(&survival(Vec::new()), &deaths())[0].starts_with("PASSED: 1 crash"));
        let what = "the connection was reset".to_owned();
        let trouble = Trouble {
            who: "ada".into(),
            healthy: true,
            bug: Some(0),
            what,
        };
        let survival = survival(vec![trouble]);
        let lines = verdict(&survival, &deaths()).join("\n");
        assert!(
            lines.contains("ada (during abort): the connection was reset"),
            "{lines}"
        );
        assert!(lines.contains("last words"));
        let users = user_table(&survival).to_string();
        assert!(users.contains("the connection was reset"));
        for line in lines.lines().flat_map(wrapped) {
            assert!(line.chars().count() <= WIDTH, "{line}");
        }
    }

    #[test]
    fn medians() {
        assert_eq!(median(vec![]), None);
        assert_eq!(median(vec![3, 1, 2]), Some(2));
    }
}
