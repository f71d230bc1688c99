//! The event log: an append-only file that several monitors may share, and that may be renamed while they run.

use std::fs::{File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, ThreadId};
use std::time::SystemTime;

use serde::Serialize;

use super::{Event, value::rfc3339};

/// Writes events, one line each.
///
/// The file is opened with `O_APPEND` and a line is one `write`, so lines of several threads, and of the
/// processes that share the log after a fork, do not mix. Failures never reach the guest: they are counted,
/// and the first one is logged.
pub struct EventLog {
    file: Option<File>,
    sender: Sender,
    reopen: Option<Box<Reopen>>,
    /// The file that has taken the place of `file`, and the thread that has opened it: other threads may have
    /// other tables of descriptors.
    reopened: Mutex<Option<(ThreadId, File)>>,
    failures: AtomicU64,
    /// The last write was short (disk full): the next line starts on a new one, so that only one is lost.
    torn: AtomicBool,
}

/// Whose events they are. The process ID is taken when an event is written.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Sender {
    /// The program file.
    pub program: String,
    /// What all processes of one server have in common, and no other server has.
    pub instance: String,
}

/// Opens the file anew if another one, or none, has its name by now.
pub type Reopen = dyn Fn(&File) -> Option<File> + Send + Sync;

/// One line of the log.
#[derive(Serialize)]
struct Line<'a> {
    time: String,
    pid: u32,
    #[serde(flatten)]
    sender: &'a Sender,
    #[serde(flatten)]
    event: &'a Event,
}

impl EventLog {
    /// Opens `path` for appending, and creates it if it does not exist.
    pub fn open(path: &Path) -> io::Result<Self> {
        Self::append_options().open(path).map(Self::new)
    }

    /// How a file for events is to be opened.
    pub fn append_options() -> OpenOptions {
        let mut options = OpenOptions::new();
        options.append(true).create(true);
        options
    }

    /// A log that writes to `file`, which is open for appending.
    pub fn new(file: File) -> Self {
        Self {
            file: Some(file),
            ..Self::disabled()
        }
    }

    /// A log that writes nothing.
    pub fn disabled() -> Self {
        Self {
            file: None,
            sender: Sender::default(),
            reopen: None,
            reopened: Mutex::default(),
            failures: AtomicU64::new(0),
            torn: AtomicBool::new(false),
        }
    }

    /// The same log with events of `sender`.
    pub fn of(self, sender: Sender) -> Self {
        Self { sender, ..self }
    }

    /// Whose events it writes.
    pub fn sender(&self) -> &Sender {
        &self.sender
    }

    /// The same log, which asks `reopen` before every line.
    pub fn reopened_by(self, reopen: Box<Reopen>) -> Self {
        Self {
            reopen: Some(reopen),
            ..self
        }
    }

    /// Writes `event` with the current time.
    pub fn emit(&self, event: &Event) {
        let Some(first) = &self.file else { return };
        let mut reopened = self.reopened.lock().unwrap_or_else(PoisonError::into_inner);
        let own = thread::current().id();
        if let Some((_, file)) = reopened.take_if(|(owner, _)| *owner != own) {
            // The number means another file here.
            std::mem::forget(file);
        }
        let current = reopened.as_ref().map_or(first, |(_, file)| file);
        if let Some(file) = self.reopen.as_ref().and_then(|reopen| reopen(current)) {
            *reopened = Some((own, file));
        }
        let file = reopened.as_ref().map_or(first, |(_, file)| file);
        if let Err(error) = self.append(file, event)
            && self.failures.fetch_add(1, Ordering::Relaxed) == 0
        {
            log::warn!("cannot write to the event log, events are lost: {error}");
        }
    }

    /// How many events could not be written.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }

    fn append(&self, mut file: &File, event: &Event) -> io::Result<()> {
        let mut line = Vec::with_capacity(512);
        let torn = self.torn.load(Ordering::Relaxed);
        if torn {
            line.push(b'\n');
        }
        serde_json::to_writer(
            &mut line,
            &Line {
                time: rfc3339(SystemTime::now()),
                pid: std::process::id(),
                sender: &self.sender,
                event,
            },
        )?;
        line.push(b'\n');
        loop {
            match file.write(&line) {
                Ok(written) if written == line.len() => {
                    if torn {
                        self.torn.store(false, Ordering::Relaxed);
                    }
                    return Ok(());
                }
                Ok(written) => {
                    if written > 0 {
                        self.torn.store(true, Ordering::Relaxed);
                    }
                    return Err(io::Error::new(
                        ErrorKind::WriteZero,
                        "only part of a line was written",
                    ));
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

impl std::fmt::Debug for EventLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut f = f.debug_struct("EventLog");
        f.field("file", &self.file).field("sender", &self.sender);
        f.finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::Ordering;

    fn event(i: usize) -> Event {
        Event::Listening {
            address: format!("127.0.0.1:{i}"),
        }
    }

    #[test]
    fn lines_of_many_threads_and_logs_stay_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        let logs = [
            EventLog::open(&path).unwrap(),
            EventLog::open(&path).unwrap(),
        ];
        std::thread::scope(|scope| {
            for log in &logs {
                for _ in 0..2 {
                    scope.spawn(move || (0..200).for_each(|i| log.emit(&event(i))));
                }
            }
        });
        let text = std::fs::read_to_string(&path).unwrap();
        assert_eq!(text.lines().count(), 800);
        for line in text.lines() {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["event"], "listening");
            let time = value["time"].as_str().unwrap();
            assert!(
                humantime::parse_rfc3339(time).is_ok() && time.len() == 27,
                "{time}"
            );
            assert!(line.starts_with("{\"time\":"), "{line}");
        }
        assert_eq!(logs[0].failures() + logs[1].failures(), 0);
    }

    #[test]
    fn appends_to_what_is_there() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        for i in 0..2 {
            EventLog::open(&path).unwrap().emit(&event(i));
        }
        assert_eq!(std::fs::read_to_string(&path).unwrap().lines().count(), 2);
    }

    #[test]
    fn failures_are_counted_and_do_not_panic() {
        let log = EventLog::open(Path::new("/dev/full")).unwrap();
        (0..3).for_each(|i| log.emit(&event(i)));
        assert_eq!(log.failures(), 3);
    }

    #[test]
    fn a_line_after_a_torn_one_starts_afresh() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        std::fs::write(&path, "{\"ev").unwrap();
        let log = EventLog::open(&path).unwrap();
        log.torn.store(true, Ordering::Relaxed);
        log.emit(&event(1));
        log.emit(&event(2));
        let text = std::fs::read_to_string(&path).unwrap();
        let whole = text
            .lines()
            .filter(|l| serde_json::from_str::<serde_json::Value>(l).is_ok());
        assert_eq!(whole.count(), 2);
        assert_eq!(text.lines().count(), 3);
    }

    /// What a host does, by the path.
    fn reopen(path: &Path) -> Box<Reopen> {
        use std::os::unix::fs::MetadataExt;
        let path = path.to_owned();
        Box::new(move |file| {
            let id = |m: std::fs::Metadata| (m.dev(), m.ino());
            let current = file.metadata().map(id).ok()?;
            let named = std::fs::metadata(&path).map(id).ok();
            let open = || EventLog::append_options().open(&path).ok();
            (named != Some(current)).then(open)?
        })
    }

    #[test]
    fn a_renamed_file_is_opened_anew_by_every_thread() {
        let dir = tempfile::tempdir().unwrap();
        let (path, old) = (dir.path().join("events"), dir.path().join("events.1"));
        let log = EventLog::open(&path).unwrap().reopened_by(reopen(&path));
        log.emit(&event(1));
        std::fs::rename(&path, &old).unwrap();
        log.emit(&event(2));
        std::thread::scope(|scope| scope.spawn(|| log.emit(&event(3))).join().unwrap());
        log.emit(&event(4));
        let lines = |path| std::fs::read_to_string(path).unwrap().lines().count();
        assert_eq!((lines(&old), lines(&path)), (1, 3));
    }

    #[test]
    fn a_line_says_whose_event_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("events");
        for instance in ["a", "b"] {
            let sender = Sender {
                program: "/bin/server".into(),
                instance: instance.into(),
            };
            EventLog::open(&path).unwrap().of(sender).emit(&event(1));
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (line, instance) in text.lines().zip(["a", "b"]) {
            let value: serde_json::Value = serde_json::from_str(line).unwrap();
            assert_eq!(value["instance"], instance);
            assert_eq!(value["program"], "/bin/server");
            assert_eq!(value["pid"], std::process::id());
        }
    }

    #[test]
    fn disabled_and_unopenable() {
        EventLog::disabled().emit(&event(1));
        assert!(EventLog::open(Path::new("/nonexistent/events")).is_err());
    }
}
