//! A campaign as Markdown: tables of counts, and lists of what went wrong.

use std::fmt::Write as _;

use super::{
    groups::Groups,
    json::{self, Summary},
    table::{self, COLUMNS, FIRST},
};
use crate::campaign::trial::Trial;

/// The report on `trials`, of which `summary` is the summary.
pub fn report(summary: &Summary, trials: &[Trial]) -> String {
    let mut text = String::from("# Fault-injection campaign\n\n");
    for (name, value) in &summary.parameters {
        text += &format!("- {}: {}\n", escaped(name), escaped(&json::shown(value)));
    }
    let _ = write!(
        text,
        "\nSurvival: {} of {} trials that count. Silent corruption: {} of {} injected faults.\n\n{}\n",
        summary.total.survival,
        summary.total.survival.of,
        summary.total.silent,
        summary.total.injected,
        table::LEGEND,
    );
    for server in &summary.servers {
        text += &format!("\n## {}\n\n", escaped(&server.server));
        let titles = COLUMNS.iter().map(|(title, _)| (*title).to_owned());
        text += &row([FIRST.to_owned()].into_iter().chain(titles));
        text += &format!("|---|{}\n", "---:|".repeat(COLUMNS.len()));
        for (class, funnel) in table::rows(server) {
            let cells = COLUMNS.iter().map(|(_, cell)| cell(funnel));
            text += &row([escaped(class)].into_iter().chain(cells));
        }
    }
    text += &list("Silent corruption", &Groups::silent(trials));
    text + &list("Not recovered and correct", &Groups::not_survived(trials))
}

fn list(title: &str, groups: &Groups) -> String {
    let mut text = format!("\n## {title}\n\n");
    if groups.is_empty() {
        return text + "None.\n";
    }
    for group in &groups.groups {
        let (server, class) = (escaped(&group.server), escaped(&group.class));
        let (reason, example) = (escaped(&group.reason), escaped(&group.example));
        text += &format!(
            "- {} × {server}, {class}: {reason}. Example: {example}\n",
            group.count
        );
    }
    if let Some(rest) = groups.rest() {
        text += &format!("\n{rest}\n");
    }
    text
}

/// A row of a table; the cells are Markdown already.
pub(super) fn row(cells: impl Iterator<Item = String>) -> String {
    let cells: Vec<_> = cells.collect();
    format!("| {} |\n", cells.join(" | "))
}

/// `text` as a reader of Markdown sees it: on one line, and without a meaning of its own.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            c if c.is_control() => escaped.push(' '),
            '&' => escaped += "&amp;",
            '<' => escaped += "&lt;",
            '>' => escaped += "&gt;",
            '\\' | '`' | '*' | '_' | '[' | ']' | '|' | '~' | '$' => {
                escaped.extend(['\\', character])
            }
            c => escaped.push(c),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::sample;
    use serde_json::{Map, Value};

    fn sample_report() -> String {
        let parameters = Map::from_iter([("commit".to_owned(), Value::from("abc_1"))]);
        let trials = sample::trials();
        report(&Summary::new(parameters, &trials), &trials)
    }

    #[test]
    fn a_table_has_a_row_for_each_class_and_one_for_all() {
        let text = sample_report();
        let row = |start: &str| text.lines().find(|line| line.starts_with(start)).unwrap();
        assert_eq!(
            row("| pointer=bit"),
            "| pointer=bit | 6 | 5 | 4 | 4 | 4 | 4 | 3 | 0 | 0 | 0 | 1 | 0 | 66.7 % (20.8–93.9) | \
             75.0 % (30.1–95.4) | 1: 20.0 % (3.6–62.4) | 200 µs, 4000 µs |"
        );
        assert_eq!(
            row("| pointer=null"),
            "| pointer=null | 4 | 4 | 4 | 4 | 3 | 0 | 0 | 1 | 1 | 1 | 0 | 2 | 0.0 % (0.0–56.1) | \
             0.0 % (0.0–56.1) | 0: 0.0 % (0.0–49.0) | – |"
        );
        let totals = text.lines().filter(|line| line.starts_with("| total | "));
        let trials = totals.map(|line| line.split(" | ").nth(1).unwrap());
        assert_eq!(trials.collect::<Vec<_>>(), ["2", "10"]);
        assert!(text.contains("- commit: abc\\_1\n"));
    }

    #[test]
    fn every_row_has_as_many_cells_as_the_head() {
        let text = sample_report();
        let cells = |line: &str| line.replace("\\|", "").matches('|').count();
        let tables = text.lines().filter(|line| line.starts_with('|'));
        let counts: Vec<_> = tables.map(cells).collect();
        assert_eq!(counts, [COLUMNS.len() + 2; 4 + 5]);
    }

    #[test]
    fn what_went_wrong_is_listed_and_escaped() {
        let text = sample_report();
        assert!(text.contains(
            "- 1 × nginx, stack\\|&lt;b&gt;: not caught: WrongValue. Example: trial 10: \
             bit 5 of rax; &lt;script&gt;alert(1)&lt;/script&gt; \\| \\`x\\`\n"
        ));
        assert!(text.contains("escalated (no &lt;safe&gt; point \\| found): ServerDied"));
        assert!(!text.contains("<b>") && !text.contains("<script>"));
        let lists = text
            .split("\n## ")
            .skip(3)
            .map(|list| list.matches("\n- ").count());
        assert_eq!(lists.collect::<Vec<_>>(), [2, 5]);
    }

    #[test]
    fn an_empty_campaign_is_reported_too() {
        let text = report(&Summary::new(Map::new(), &[]), &[]);
        assert_eq!(text.matches("None.").count(), 2);
    }

    #[test]
    fn a_line_break_does_not_end_a_row() {
        assert_eq!(escaped("a\nb\u{1b}[c"), "a b \\[c");
    }
}
