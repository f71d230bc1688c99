//! Report identifiers: unique, sortable by time, and safe as the name of a directory.

use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use crate::event::rfc3339;

/// `20261122T061500.123456Z-<pid>-<n>`: the time of the fault, the process, and its how-manieth report.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct ReportId(String);

/// A string that is not a report identifier.
#[derive(Debug, thiserror::Error)]
#[error("{0:?} is not a report identifier")]
pub struct NotAnId(String);

/// The shape of the time; `0` stands for a digit.
const TIME_SHAPE: &str = "00000000T000000.000000Z";

impl ReportId {
    /// A new identifier for a fault at `time`.
    pub fn new(time: SystemTime) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let time = rfc3339(time).replace(['-', ':'], "");
        Self(format!("{time}-{}-{n}", std::process::id()))
    }

    /// An identifier that comes before those of all faults at `time` and later.
    pub(super) fn earliest(time: SystemTime) -> Self {
        Self(rfc3339(time).replace(['-', ':'], ""))
    }

    /// The identifier as it is written.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ReportId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl TryFrom<String> for ReportId {
    type Error = NotAnId;

    fn try_from(text: String) -> Result<Self, NotAnId> {
        let shape = |b: u8| if b.is_ascii_digit() { b'0' } else { b };
        let number = |s: &str| (1..=20).contains(&s.len()) && s.bytes().all(|b| b.is_ascii_digit());
        let parts: Vec<&str> = text.split('-').collect();
        match parts[..] {
            [time, pid, n]
                if time.bytes().map(shape).eq(TIME_SHAPE.bytes()) && number(pid) && number(n) =>
            {
                Ok(Self(text))
            }
            _ => Err(NotAnId(text)),
        }
    }
}

impl From<ReportId> for String {
    fn from(id: ReportId) -> Self {
        id.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::{Duration, UNIX_EPOCH};

    #[test]
    fn new_identifiers_are_valid_unique_and_sorted_by_time() {
        let times = (0..100).map(|i| UNIX_EPOCH + Duration::from_millis(i * 997));
        let ids: Vec<ReportId> = times.map(ReportId::new).collect();
        assert!(ids.is_sorted_by(|a, b| a < b));
        for id in &ids {
            assert_eq!(ReportId::try_from(id.to_string()).unwrap(), *id);
        }
        assert!(ids[1].as_str().starts_with("19700101T000000.997000Z-"));
        assert_ne!(ReportId::new(UNIX_EPOCH), ReportId::new(UNIX_EPOCH));
    }

    #[test]
    fn everything_else_is_refused() {
        for text in [
            "",
            "last",
            "..",
            "../20261122T061500.123456Z-1-2",
            "20261122T061500.123456Z",
            "20261122T061500.123456Z-1",
            "20261122T061500.123456Z-1-2-3",
            "20261122T061500.123456Z-1-/",
            "20261122T061500.123456Z--2",
            "20261122t061500.123456Z-1-2",
            "2026112\u{662}T061500.123456Z-1-2",
        ] {
            assert!(ReportId::try_from(text.to_owned()).is_err(), "{text:?}");
        }
    }
}
