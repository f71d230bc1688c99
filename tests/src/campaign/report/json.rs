//! The counts of a campaign, for programs.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::campaign::{
    funnel::{self, Funnel, ServerFunnel},
    trial::Trial,
};

/// A campaign in numbers.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Summary {
    /// What was run: commit, machine, seed, versions of the servers, date.
    pub parameters: Map<String, Value>,
    /// All trials.
    pub total: Funnel,
    /// Those of each server, and of each of its fault classes.
    pub servers: Vec<ServerFunnel>,
}

impl Summary {
    /// Counts `trials`.
    pub fn new(parameters: Map<String, Value>, trials: &[Trial]) -> Self {
        Self {
            parameters,
            total: Funnel::new(trials),
            servers: funnel::by_server(trials),
        }
    }

    /// As indented text.
    pub fn to_json(&self) -> serde_json::Result<String> {
        serde_json::to_string_pretty(self).map(|text| text + "\n")
    }
}

/// A parameter as a reader sees it: a string without its quotation marks.
pub(super) fn shown(value: &Value) -> String {
    value.as_str().map_or(value.to_string(), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::sample;

    #[test]
    fn a_summary_is_read_back_as_it_was_written() {
        let parameters = Map::from_iter([("seed".to_owned(), Value::from(7))]);
        let summary = Summary::new(parameters, &sample::trials());
        let text = summary.to_json().unwrap();
        // The last digit of a fraction may differ.
        let back: Summary = serde_json::from_str(&text).unwrap();
        assert_eq!(back.parameters, summary.parameters);
        assert_eq!(
            back.total.survival.to_string(),
            summary.total.survival.to_string()
        );
        assert_eq!(back.total.pause, summary.total.pause);
        let names = |of: &Summary| {
            of.servers
                .iter()
                .map(|s| s.server.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(names(&back), names(&summary));
        let value: Value = serde_json::from_str(&text).unwrap();
        assert_eq!(value["parameters"]["seed"], 7);
        assert_eq!(value["total"]["survival"]["of"], 6);
        assert_eq!(value["servers"][1]["classes"][0]["funnel"]["trials"], 6);
    }
}
