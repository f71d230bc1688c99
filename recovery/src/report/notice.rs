//! The line on standard error about a fault: by default an operator sees every new bug and every loss.

use super::FaultReport;
use crate::event::{Event, FaultKind, Outcome};
use crate::ladder::Rung;

/// The reason of a fault before the program has served a request: it is none of the monitor's business.
pub const NOT_SERVING: &str = "the server was not serving requests yet";

/// A line for standard error.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Notice {
    /// How much it matters.
    pub level: log::Level,
    /// The line, without control characters.
    pub text: String,
}

impl Notice {
    fn new(level: log::Level, text: String) -> Notice {
        let visible = |c: char| if c.is_control() { '\u{fffd}' } else { c };
        Notice {
            level,
            text: text.chars().map(visible).collect(),
        }
    }

    /// What is to be said of a fault that `is_new`: the first of its bug. `saved` is the report to refer to.
    pub fn of_fault(report: &FaultReport, is_new: bool, saved: Option<&str>) -> Option<Notice> {
        let what = what(report);
        let reason = report.reason.as_deref().unwrap_or("no reason given");
        let (level, text) = match report.outcome {
            // The event of the restart follows, and says what was lost.
            Outcome::Escalated if report.rung == Rung::Restart.name() => return None,
            Outcome::Escalated if report.reason.as_deref() == Some(NOT_SERVING) => {
                (log::Level::Info, format!("{what}: {reason}"))
            }
            Outcome::Escalated => (
                log::Level::Error,
                format!(
                    "gave up, process {} ends: {what}: {reason}; its memory and all its connections are lost",
                    report.pid
                ),
            ),
            _ if !is_new => return None,
            _ if report.kind == FaultKind::Exit => (
                log::Level::Warn,
                format!(
                    "refused to exit: {what}; --allow-exit lets a client's request end the server"
                ),
            ),
            Outcome::Recovered => (
                log::Level::Warn,
                format!("recovered: {what}; lost: {}", lost(report)),
            ),
            Outcome::Degraded => (
                log::Level::Warn,
                format!(
                    "recovered in part: {what}: {reason}; lost: {}",
                    lost(report)
                ),
            ),
        };
        let saved = saved.map_or_else(String::new, |id| format!("; vmsrs report {id}"));
        Some(Notice::new(level, text + &saved))
    }

    /// What is to be said of an event that is no fault.
    pub fn of_event(event: &Event) -> Option<Notice> {
        let Event::Restarted {
            reason,
            lost_since,
            connections_reset,
            threads_ended,
            ..
        } = event
        else {
            return None;
        };
        let text = format!(
            "restarted in place: {reason}; lost: everything in memory since {lost_since}, \
             {connections_reset} connections, {threads_ended} threads"
        );
        Some(Notice::new(log::Level::Error, text))
    }
}

/// `SIGSEGV (null-write) in setCommand (t_string.c:120), request of 127.0.0.1:4242`.
fn what(report: &FaultReport) -> String {
    let mut text = match &report.signal {
        Some(signal) => format!("{signal} ({})", report.kind),
        None => report.kind.to_string(),
    };
    text += &format!(" in {}", report.place());
    match &report.peer {
        Some(peer) => text + &format!(", request of {peer}"),
        None => text + &format!(", {}", report.origin),
    }
}

fn lost(report: &FaultReport) -> &'static str {
    match (report.rung.as_str(), &report.peer) {
        (rung, _) if rung == Rung::ResetDelivered.name() => {
            "the connections that had delivered its work"
        }
        (rung, _) if rung == Rung::Rerun.name() => "nothing, the work is run again",
        (_, Some(_)) => "this connection",
        (_, None) => "this work",
    }
}

#[cfg(test)]
mod tests {
    use super::super::tests::sample;
    use super::*;
    use std::time::UNIX_EPOCH;

    fn text(report: &FaultReport, is_new: bool) -> Option<(log::Level, String)> {
        Notice::of_fault(report, is_new, Some("r1")).map(|notice| (notice.level, notice.text))
    }

    #[test]
    fn a_new_fault_is_one_warning_and_a_repeated_one_none() {
        let report = sample(UNIX_EPOCH);
        let line = "recovered: SIGSEGV (null-write) in set_value (server.c:120), request of 127.0.0.1:4242; \
                    lost: this connection; vmsrs report r1";
        assert_eq!(text(&report, true), Some((log::Level::Warn, line.into())));
        assert_eq!(text(&report, false), None);
    }

    #[test]
    fn a_refused_exit_names_the_option() {
        let mut report = sample(UNIX_EPOCH);
        (report.kind, report.signal) = (FaultKind::Exit, None);
        let (level, line) = text(&report, true).unwrap();
        assert!(
            level == log::Level::Warn && line.contains("--allow-exit"),
            "{line}"
        );
    }

    #[test]
    fn every_end_is_an_error_but_not_before_it_serves() {
        let mut report = sample(UNIX_EPOCH);
        report.outcome = Outcome::Escalated;
        report.rung = "give-up".into();
        report.reason = Some("a storm\x1b[2J".into());
        let (level, line) = text(&report, false).unwrap();
        assert!(
            level == log::Level::Error && line.contains("a storm\u{fffd}[2J"),
            "{line}"
        );
        report.reason = Some(NOT_SERVING.into());
        assert_eq!(text(&report, true).unwrap().0, log::Level::Info);
        report.rung = "restart".into();
        assert_eq!(text(&report, true), None);
    }
}
