//! Recording what clients asked for and were told.
//!
//! Each client thread keeps a [`Log`] of its own and takes no lock while it works; the logs are
//! merged into a [`History`] when the threads have ended.

use std::{sync::Arc, time::Instant};

/// A request that a client made, and when.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Operation {
    /// What was asked for, and what came of it.
    pub action: Action,
    /// When it was sent: nanoseconds since the recorder was made.
    pub begin: u64,
    /// When its answer was there, or the client gave up.
    pub end: u64,
}

/// What an operation did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stored a value that no other write to the key stores.
    Write {
        /// The value.
        version: u64,
        /// What is known of it.
        fate: Fate,
    },
    /// Was answered with a value.
    Read {
        /// The value; none if the key was absent.
        version: Option<u64>,
    },
}

/// What a client knows of its write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The server said that it is done.
    Acknowledged,
    /// The connection ended, or the wait: it takes effect at some time after it was sent, or never.
    Unknown,
    /// The monitor said that the request was undone: it must never be seen.
    Abandoned,
}

/// Makes the logs of a run, which share a clock and the names of the keys.
#[derive(Clone, Debug)]
pub struct Recorder {
    keys: Arc<[String]>,
    start: Instant,
}

/// What one client did. A read without an answer says nothing, and is not recorded.
#[derive(Debug)]
pub struct Log {
    start: Instant,
    operations: Vec<(usize, Operation)>,
}

/// What all clients did, key by key.
#[derive(Debug)]
pub struct History {
    keys: Vec<(String, Vec<Operation>)>,
}

impl Recorder {
    /// Starts the clock. All `keys` are absent; one that is not needs a write of its first value,
    /// acknowledged before anything else is asked for.
    pub fn new(keys: impl IntoIterator<Item = String>) -> Self {
        Self {
            keys: keys.into_iter().collect(),
            start: Instant::now(),
        }
    }

    /// An empty log for one client.
    pub fn log(&self) -> Log {
        Log {
            start: self.start,
            operations: Vec::new(),
        }
    }

    /// Merges the logs of all clients. What was recorded for a key that has no name is an error of
    /// the caller, and panics.
    pub fn merge(&self, logs: impl IntoIterator<Item = Log>) -> History {
        let names = self.keys.iter().cloned();
        let mut keys: Vec<_> = names.map(|name| (name, Vec::new())).collect();
        for (key, operation) in logs.into_iter().flat_map(|log| log.operations) {
            keys[key].1.push(operation);
        }
        History { keys }
    }
}

impl Log {
    /// Records a write to the key number `key`, sent at `begin` and answered, or given up, by now.
    pub fn write(&mut self, key: usize, version: u64, fate: Fate, begin: Instant) {
        self.push(key, Action::Write { version, fate }, begin);
    }

    /// Records a read of the key number `key`, sent at `begin` and answered by now.
    pub fn read(&mut self, key: usize, version: Option<u64>, begin: Instant) {
        self.push(key, Action::Read { version }, begin);
    }

    fn push(&mut self, key: usize, action: Action, begin: Instant) {
        let end = nanoseconds(self.start, Instant::now());
        let begin = nanoseconds(self.start, begin);
        let operation = Operation { action, begin, end };
        self.operations.push((key, operation));
    }
}

impl History {
    /// The keys, each with its operations in no particular order.
    pub fn keys(&self) -> impl Iterator<Item = (&str, &[Operation])> {
        let keys = self.keys.iter();
        keys.map(|(name, operations)| (name.as_str(), operations.as_slice()))
    }

    /// Notes that the monitor undid the write of `version`, which the client could not know. An
    /// acknowledged write stays acknowledged: the client was told so first.
    pub fn abandon(&mut self, key: usize, version: u64) {
        let operations = self.keys.get_mut(key).map(|(_, operations)| operations);
        for operation in operations.into_iter().flatten() {
            if let Action::Write { version: of, fate } = &mut operation.action
                && (*of, *fate) == (version, Fate::Unknown)
            {
                *fate = Fate::Abandoned;
            }
        }
    }
}

fn nanoseconds(start: Instant, at: Instant) -> u64 {
    let since = at.saturating_duration_since(start);
    u64::try_from(since.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logs_of_threads_are_merged_by_key() {
        let recorder = Recorder::new(["a".to_owned(), "b".to_owned()]);
        let work = |client: u64| {
            let mut log = recorder.log();
            let begin = Instant::now();
            log.write(1, client, Fate::Unknown, begin);
            log.read(0, None, begin);
            log
        };
        let logs: Vec<_> = std::thread::scope(|scope| {
            let threads = [scope.spawn(|| work(1)), scope.spawn(|| work(2))];
            threads.map(|thread| thread.join().unwrap()).into()
        });
        let mut history = recorder.merge(logs);
        history.abandon(1, 2);
        let keys: Vec<_> = history.keys().collect();
        let actions = |at: usize| keys[at].1.iter().map(|o| o.action).collect::<Vec<_>>();
        assert_eq!((keys[0].0, keys[1].0), ("a", "b"));
        assert_eq!(actions(0), [Action::Read { version: None }; 2]);
        let write = |version, fate| Action::Write { version, fate };
        assert_eq!(
            actions(1),
            [write(1, Fate::Unknown), write(2, Fate::Abandoned)]
        );
        assert!(keys[1].1.iter().all(|o| o.begin <= o.end && o.end > 0));
    }

    #[test]
    fn what_was_acknowledged_cannot_be_abandoned() {
        let recorder = Recorder::new(["a".to_owned()]);
        let mut log = recorder.log();
        log.write(0, 7, Fate::Acknowledged, Instant::now());
        let mut history = recorder.merge([log]);
        history.abandon(0, 7);
        let (_, operations) = history.keys().next().unwrap();
        let fate = Fate::Acknowledged;
        assert_eq!(operations[0].action, Action::Write { version: 7, fate });
    }
}
