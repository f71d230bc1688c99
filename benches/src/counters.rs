//! The monitor's counters (`vmsrs run --stats`), and what a load adds to them.
//!
//! The monitor writes them when it ends. What a load adds is therefore the difference to a server
//! of the same kind that was started, answered one request and was stopped.

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

/// Members of the stats that count events, and so may be subtracted.
const COUNTING: [&str; 8] = [
    "deferred",
    "domains",
    "exits",
    "held",
    "pages",
    "run_token_waits",
    "syscalls",
    "unsupported",
];

/// Counters by their path in the stats, such as `exits.syscall`.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Counters(BTreeMap<String, u64>);

impl Counters {
    /// The counting members of `stats`.
    pub fn of(stats: &Value) -> Self {
        let mut counters = Self::default();
        for name in COUNTING {
            counters.add(name, &stats[name]);
        }
        counters
    }

    fn add(&mut self, path: &str, value: &Value) {
        match value {
            Value::Number(number) => {
                self.0.insert(path.to_owned(), number.as_u64().unwrap_or(0));
            }
            Value::Object(members) => {
                for (name, value) in members {
                    self.add(&format!("{path}.{name}"), value);
                }
            }
            _ => {}
        }
    }

    /// What was counted in addition to `idle`. What happens less often under load (an idle server
    /// polls) counts as nothing.
    pub fn since(&self, idle: &Counters) -> Counters {
        let added = |(path, n): (&String, &u64)| (path.clone(), n.saturating_sub(idle.get(path)));
        Counters(self.0.iter().map(added).collect())
    }

    /// One counter; one that the monitor does not know is 0.
    pub fn get(&self, path: &str) -> u64 {
        self.0.get(path).copied().unwrap_or(0)
    }

    /// The sum of all counters below `path`.
    pub fn sum(&self, path: &str) -> u64 {
        self.below(path).map(|(_, n)| n).sum()
    }

    /// The names and values of the counters below `path`.
    pub fn below(&self, path: &str) -> impl Iterator<Item = (&str, u64)> {
        self.0.iter().filter_map(move |(name, n)| {
            let name = name.strip_prefix(path)?.strip_prefix('.')?;
            Some((name, *n))
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn only_what_counts_is_subtracted() {
        let idle = json!({"pid": 7, "exits": {"syscall": 10, "kick": 3}, "run_token_waits": 1});
        let busy = json!({
            "pid": 9, "shadow_bytes_peak": 4096, "startup_us": null, "run_token_waits": 2,
            "exits": {"syscall": 110, "kick": 1, "page_fault": 5},
            "domains": {"committed": 50, "early_committed": {"external": 2}},
        });
        let added = Counters::of(&busy).since(&Counters::of(&idle));
        assert_eq!(added.get("exits.syscall"), 100);
        assert_eq!(added.get("exits.kick"), 0);
        assert_eq!(added.sum("exits"), 105);
        assert_eq!(added.get("run_token_waits"), 1);
        assert_eq!(added.get("domains.early_committed.external"), 2);
        assert_eq!((added.get("pid"), added.get("shadow_bytes_peak")), (0, 0));
        assert_eq!(added.below("domains").count(), 2);
    }
}
