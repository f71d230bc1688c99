//! The fault events of a run, read from the file that `vmsrs run --events` wrote.

use std::fs;
use std::io;
use std::path::Path;

use serde::Deserialize;

/// A fault as the monitor reported it. Members that are missing or null stay empty, unknown ones are ignored.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct FaultEvent {
    /// `recovered`, `degraded` or `escalated`; other events are not faults.
    pub event: String,
    /// The signal's name.
    pub signal: Option<String>,
    /// What kind of fault.
    pub kind: Option<String>,
    /// Whose request it was.
    pub peer: Option<String>,
    /// Pages given back their content.
    pub pages_restored: Option<u64>,
    /// The recovery pause in microseconds.
    pub pause_us: Option<u64>,
    /// Why not every guarantee was kept.
    pub reason: Option<String>,
}

impl FaultEvent {
    /// The fault on a line of the events file, if it is one.
    fn parse(line: &str) -> Option<Self> {
        let event: Self = serde_json::from_str(line).ok()?;
        matches!(event.event.as_str(), "recovered" | "degraded" | "escalated").then_some(event)
    }
}

/// All faults in an events file, in order.
pub fn read(file: &Path) -> io::Result<Vec<FaultEvent>> {
    Ok(fs::read_to_string(file)?
        .lines()
        .filter_map(FaultEvent::parse)
        .collect())
}

#[cfg(test)]
mod tests {
    use super::FaultEvent;

    #[test]
    fn faults_are_told_from_other_events() {
        let fault = FaultEvent::parse(
            r#"{"time":"t","event":"recovered","signal":"SIGFPE","kind":"divide-error","peer":"127.0.0.1:4",
               "pages_restored":3,"pause_us":80,"report":null,"new_member":[1]}"#,
        )
        .expect("a fault");
        assert_eq!(fault.signal.as_deref(), Some("SIGFPE"));
        assert_eq!((fault.pages_restored, fault.pause_us), (Some(3), Some(80)));
        assert!(
            FaultEvent::parse(r#"{"event":"degraded"}"#)
                .expect("a fault")
                .peer
                .is_none()
        );
        assert!(FaultEvent::parse(r#"{"event":"exited","signal":"SIGTERM"}"#).is_none());
        assert!(FaultEvent::parse("{").is_none());
    }
}
