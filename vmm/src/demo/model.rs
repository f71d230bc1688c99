//! The model of one user: what the server must answer to each of the user's commands.
//!
//! A user's keys begin with the user's name, so that the answers depend on nobody else. The one exception is
//! [`SHARED_COUNTER`], which all users increment: its value can only be bounded by one user, and is checked
//! against the sum over all users at the end.

use std::collections::{BTreeMap, VecDeque};

/// The key that every user increments.
pub const SHARED_COUNTER: &str = "shared:hits";

/// Commands the server remembers per session, and bytes of each.
const HISTORY_ITEMS: usize = 32;
const HISTORY_TEXT: usize = 64;

/// A command with a predictable answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Command {
    /// Stores a value.
    Set(String, String),
    /// Reads a value.
    Get(String),
    /// Removes a key.
    Del(String),
    /// Adds one to a key of the user's own.
    Incr(String),
    /// Adds one to the key of all users.
    IncrShared,
    /// Appends to a value.
    Append(String, String),
    /// Counts the user's keys.
    Keys,
    /// Asks for the session's counters.
    WhoAmI,
    /// Asks for the session's last commands.
    History,
}

/// What the answer to a command must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Expected {
    /// This reply.
    Reply(String),
    /// A number above this one.
    Above(u64),
}

/// What the server must know about one user.
#[derive(Debug, Clone)]
pub struct Model {
    name: String,
    keys: BTreeMap<String, String>,
    commands: u64,
    writes: u64,
    history: VecDeque<String>,
    shared_increments: u64,
    shared_seen: u64,
}

impl Model {
    /// A user that has not logged in yet.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            keys: BTreeMap::new(),
            commands: 0,
            writes: 0,
            history: VecDeque::new(),
            shared_increments: 0,
            shared_seen: 0,
        }
    }

    /// The user's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The user's keys.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &String> {
        self.keys.keys()
    }

    /// The length of a value, 0 if there is none.
    pub fn value_len(&self, key: &str) -> usize {
        self.keys.get(key).map_or(0, String::len)
    }

    /// How often the user incremented the shared counter.
    pub fn shared_increments(&self) -> u64 {
        self.shared_increments
    }

    /// The line of a command, without its newline.
    pub fn line(&self, command: &Command) -> String {
        match command {
            Command::Set(key, value) => format!("SET {key} {value}"),
            Command::Get(key) => format!("GET {key}"),
            Command::Del(key) => format!("DEL {key}"),
            Command::Incr(key) => format!("INCR {key}"),
            Command::IncrShared => format!("INCR {SHARED_COUNTER}"),
            Command::Append(key, tail) => format!("APPEND {key} {tail}"),
            Command::Keys => format!("KEYS {}:", self.name),
            Command::WhoAmI => "WHOAMI".to_owned(),
            Command::History => "HISTORY".to_owned(),
        }
    }

    /// A new session: returns the line that begins it and its reply. The keys stay, the counters begin again.
    pub fn log_in(&mut self) -> (String, Expected) {
        (self.commands, self.writes) = (0, 0);
        self.history.clear();
        let line = format!("LOGIN {}", self.name);
        self.count(&line);
        (line, Expected::Reply(format!("+HELLO {}", self.name)))
    }

    /// Carries a command out and returns what the server must answer.
    pub fn apply(&mut self, command: &Command) -> Expected {
        self.count(&self.line(command));
        Expected::Reply(match command {
            Command::Set(key, value) => {
                self.keys.insert(key.clone(), value.clone());
                self.writes += 1;
                "+OK".to_owned()
            }
            Command::Get(key) => self
                .keys
                .get(key)
                .map_or_else(|| "_".to_owned(), |value| format!("${value}")),
            Command::Del(key) => {
                let found = u64::from(self.keys.remove(key).is_some());
                self.writes += found;
                format!(":{found}")
            }
            Command::Incr(key) => {
                let value = self
                    .keys
                    .entry(key.clone())
                    .or_insert_with(|| "0".to_owned());
                match value
                    .parse::<i64>()
                    .ok()
                    .and_then(|number| number.checked_add(1))
                {
                    Some(number) => {
                        *value = number.to_string();
                        self.writes += 1;
                        format!(":{number}")
                    }
                    None => "-ERR not a number".to_owned(),
                }
            }
            Command::IncrShared => {
                self.writes += 1;
                self.shared_increments += 1;
                return Expected::Above(self.shared_seen);
            }
            Command::Append(key, tail) => {
                let value = self.keys.entry(key.clone()).or_default();
                value.push_str(tail);
                self.writes += 1;
                format!(":{}", value.len())
            }
            Command::Keys => format!(":{}", self.keys.len()),
            Command::WhoAmI => format!(
                "+name={} commands={} writes={} history={}",
                self.name,
                self.commands,
                self.writes,
                self.history.len()
            ),
            Command::History => self
                .history
                .iter()
                .fold(format!("*{}", self.history.len()), |list, line| {
                    list + "\n$" + line
                }),
        })
    }

    /// Compares a reply; the error is what was wanted.
    pub fn accept(&mut self, expected: &Expected, reply: &str) -> Result<(), String> {
        match expected {
            Expected::Reply(wanted) if wanted == reply => Ok(()),
            Expected::Reply(wanted) => Err(wanted.clone()),
            Expected::Above(low) => match reply
                .strip_prefix(':')
                .and_then(|number| number.parse().ok())
            {
                // Replies to pipelined increments are compared in order, each with the last.
                Some(number) if number > *low && number > self.shared_seen => {
                    self.shared_seen = number;
                    Ok(())
                }
                _ => Err(format!("a number above {}", self.shared_seen.max(*low))),
            },
        }
    }

    fn count(&mut self, line: &str) {
        self.commands += 1;
        if self.history.len() == HISTORY_ITEMS {
            self.history.pop_front();
        }
        self.history
            .push_back(line.chars().take(HISTORY_TEXT).collect());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reply(model: &mut Model, command: Command) -> String {
        match model.apply(&command) {
            Expected::Reply(text) => text,
            Expected::Above(low) => format!(">{low}"),
        }
    }

    #[test]
    fn commands_answer_as_the_protocol_says() {
        let mut model = Model::new("ann");
        let key = || "ann:k".to_owned();
        assert_eq!(model.log_in().0, "LOGIN ann");
        assert_eq!(reply(&mut model, Command::Get(key())), "_");
        assert_eq!(reply(&mut model, Command::Incr(key())), ":1");
        assert_eq!(reply(&mut model, Command::Append(key(), "x".into())), ":2");
        assert_eq!(reply(&mut model, Command::Incr(key())), "-ERR not a number");
        assert_eq!(reply(&mut model, Command::Keys), ":1");
        assert_eq!(reply(&mut model, Command::Del(key())), ":1");
        assert_eq!(reply(&mut model, Command::Del(key())), ":0");
        assert_eq!(
            reply(&mut model, Command::WhoAmI),
            "+name=ann commands=9 writes=3 history=9"
        );
        assert!(reply(&mut model, Command::History).starts_with("*10\n$LOGIN ann\n$GET ann:k\n"));
    }

    #[test]
    fn a_new_session_keeps_the_keys_and_forgets_the_counters() {
        let mut model = Model::new("ann");
        model.log_in();
        model.apply(&Command::Set("ann:k".into(), "v".into()));
        model.log_in();
        assert_eq!(
            reply(&mut model, Command::WhoAmI),
            "+name=ann commands=2 writes=0 history=2"
        );
        assert_eq!(reply(&mut model, Command::Get("ann:k".into())), "$v");
    }

    #[test]
    fn history_is_bounded_in_items_and_bytes() {
        let mut model = Model::new("ann");
        for _ in 0..40 {
            model.apply(&Command::Set("ann:k".into(), "v".repeat(100)));
        }
        let history = reply(&mut model, Command::History);
        assert!(history.starts_with("*32\n"));
        assert!(
            history
                .lines()
                .skip(1)
                .take(31)
                .all(|line| line.len() == HISTORY_TEXT + 1)
        );
    }

    #[test]
    fn the_shared_counter_only_grows() {
        let mut model = Model::new("ann");
        let first = model.apply(&Command::IncrShared);
        let second = model.apply(&Command::IncrShared);
        assert!(model.accept(&first, ":5").is_ok());
        assert!(model.accept(&second, ":5").is_err());
        assert!(model.accept(&second, ":6").is_ok());
        assert!(model.accept(&second, "+OK").is_err());
        assert_eq!(model.shared_increments(), 2);
    }
}
