//! The monitor's events file as the tests read it: one JSON object per line.

use std::{fs, io, path::Path};

use serde::Deserialize;
use serde_json::{Map, Value};

/// One line of the events file. Only the two members every event has are typed; the others are
/// looked up by name, so that a test names exactly the members it relies on.
#[derive(Clone, Debug, Deserialize, PartialEq)]
pub struct Event {
    /// When it happened, in RFC 3339.
    pub time: String,
    /// What happened: `started`, `listening`, `recovered`, `degraded`, `escalated`, `exited`.
    pub event: String,
    /// Everything else.
    #[serde(flatten)]
    pub members: Map<String, Value>,
}

impl Event {
    /// The member `name`, if the event has it.
    pub fn get(&self, name: &str) -> Option<&Value> {
        self.members.get(name)
    }

    /// The member `name`, if the event has it and it is a string.
    pub fn text(&self, name: &str) -> Option<&str> {
        self.get(name)?.as_str()
    }

    /// The member `name`, if the event has it and it is a whole number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.get(name)?.as_u64()
    }
}

/// Parses the text of an events file. Blank lines are allowed; anything else that is not an event
/// is an error which names its line.
pub fn parse(text: &str) -> io::Result<Vec<Event>> {
    let lines = text
        .lines()
        .enumerate()
        .filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(at, line)| {
            serde_json::from_str(line).map_err(|error| {
                let message = format!("events, line {}: {error}: {line}", at + 1);
                io::Error::new(io::ErrorKind::InvalidData, message)
            })
        })
        .collect()
}

/// Reads an events file, which may still be written to. A file that does not exist yet holds no events, and what is
/// behind its last newline is none yet: a read may see the first part of a write.
pub fn read(path: &Path) -> io::Result<Vec<Event>> {
    match fs::read_to_string(path) {
        Ok(text) => parse(text.rsplit_once('\n').map_or("", |(written, _)| written)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_are_found_by_name() {
        let text =
            "{\"time\":\"t\",\"event\":\"recovered\",\"pause_us\":90,\"kind\":\"SIGSEGV\"}\n\n";
        let events = parse(text).unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!(events[0].event, "recovered");
        assert_eq!(events[0].number("pause_us"), Some(90));
        assert_eq!(events[0].text("kind"), Some("SIGSEGV"));
        assert_eq!(events[0].text("pause_us"), None);
    }

    #[test]
    fn a_torn_line_is_an_error_that_names_it() {
        let error = parse("{\"time\":\"t\",\"event\":\"started\"}\n{\"time\":").unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error}");
    }

    #[test]
    fn a_line_that_is_being_written_is_no_event_yet() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let whole = "{\"time\":\"t\",\"event\":\"started\"}\n";
        for (text, events) in [
            ("{\"time\":", 0),
            (whole, 1),
            (&format!("{whole}{{\"time\":"), 1),
        ] {
            fs::write(&path, text).unwrap();
            assert_eq!(read(&path).unwrap().len(), events, "{text}");
        }
    }

    #[test]
    fn a_file_that_does_not_exist_holds_no_events() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(read(&dir.path().join("events")).unwrap(), []);
    }
}
