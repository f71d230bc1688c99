//! Fault reports: what an operator needs to know about one fault, afterwards.
//!
//! [`FaultReport`] is the data, [`text`](FaultReport::to_text) its readable form, and [`ReportStore`] the
//! directory that keeps the newest ones. Much of a report comes from the guest or its clients, so everything
//! in it is bounded, and the text form escapes control characters.

mod core;
mod excerpt;
mod function;
mod id;
mod notice;
mod retention;
mod store;
mod tally;
mod text;

use std::time::SystemTime;

use serde::{Deserialize, Serialize};

pub use self::core::{CORE_NAME, Core};
pub use self::excerpt::{EXCERPT_LIMIT, Excerpt};
pub(crate) use self::function::of as program_frame;
pub use self::id::ReportId;
pub use self::notice::{NOT_SERVING, Notice};
pub use self::store::{
    DEFAULT_AGE, DEFAULT_BYTES, DEFAULT_KEEP, LoadError, OpenError, ReportArchive, ReportStore,
    SaveError, default_dir,
};
pub use self::tally::Tally;
use crate::event::{Event, Fault, FaultKind, Hex, Outcome, rfc3339, signal_name};
use crate::origin::Origin;
use crate::repeat::FaultId;

/// Entries that a list of a saved report has at most.
const LIST_LIMIT: usize = 256;

/// Bytes that a string of a saved report has at most.
const STRING_LIMIT: usize = 1024;

/// One fault.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct FaultReport {
    /// The identifier, and the name of the report's directory.
    pub id: ReportId,
    /// When the fault happened (RFC 3339, UTC).
    pub time: String,
    /// The process that faulted.
    pub pid: u32,
    /// The program that it runs.
    pub program: String,
    /// How it ended.
    pub outcome: Outcome,
    /// Why it did not end as recovered, if so.
    pub reason: Option<String>,
    /// The signal's name, such as `SIGSEGV`; none if the fault raises none.
    pub signal: Option<String>,
    /// What went wrong.
    pub kind: FaultKind,
    /// The address of the faulting access, if there was one.
    pub address: Option<Hex>,
    /// What more is known of what went wrong.
    #[serde(default)]
    pub detail: Option<String>,
    /// The guest thread (TID).
    pub thread: i32,
    /// Its name.
    pub thread_name: String,
    /// The faulting instruction.
    pub rip: Hex,
    /// `function+0x12` at `rip`, if it has a symbol.
    pub symbol: Option<String>,
    /// The innermost function of the program itself: below libc's `abort`, `memcpy` and their like.
    #[serde(default)]
    pub function: Option<String>,
    /// Its source file, where there is debug information.
    #[serde(default)]
    pub file: Option<String>,
    /// The line in it.
    #[serde(default)]
    pub line: Option<u32>,
    /// The registers at the fault, in the order in which they are to be shown.
    pub registers: Vec<Register>,
    /// The call stack at the fault, innermost first.
    pub stack: Vec<Frame>,
    /// What was done about it: the rung of the ladder.
    #[serde(default)]
    pub rung: String,
    /// What the domain was charged to, such as `stream:7`.
    pub origin: String,
    /// Whose request it was.
    pub peer: Option<String>,
    /// What the request had received.
    pub input: Excerpt,
    /// Pages in the write set.
    pub pages_written: u64,
    /// Pages given back their committed content.
    pub pages_restored: u64,
    /// The write set by mapping.
    pub written: Vec<WrittenMapping>,
    /// Actions that were undone or forgotten, in the order in which that happened.
    pub undone: Vec<String>,
    /// Output that was held and never sent.
    pub dropped_output: Excerpt,
    /// What the request did that stays done.
    pub kept: Vec<String>,
    /// How long the faulting thread stood still, in microseconds.
    pub pause_us: u64,
    /// What that time was spent on.
    pub pause: Vec<PausePart>,
    /// What is the same for all faults of one bug, see [`crate::repeat`].
    #[serde(default)]
    pub fault: String,
    /// How often the same fault had happened before.
    #[serde(default)]
    pub repeat: u64,
    /// Whether the client was sent the configured error reply.
    #[serde(default)]
    pub replied: bool,
    /// The core beside the report, if there is one.
    #[serde(default)]
    pub core: Option<Core>,
    /// Why there is none, although there was to be one.
    #[serde(default)]
    pub core_missing: Option<String>,
    /// The later faults that have no report of their own; the store keeps this beside the report.
    #[serde(default, skip_deserializing)]
    pub more: Option<Tally>,
}

/// A register.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Register {
    /// Its name, such as `rax`.
    pub name: String,
    /// Its value.
    pub value: Hex,
}

/// A frame of the call stack.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Frame {
    /// The instruction pointer, or the return address.
    pub address: Hex,
    /// The file mapped there.
    pub module: Option<String>,
    /// The function.
    pub symbol: Option<String>,
    /// `address` relative to the function, or to the module if the function is not known.
    pub offset: Hex,
    /// The source file.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
}

/// The part of a write set that lies in one mapping.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct WrittenMapping {
    /// The mapped file, `[heap]`, `[stack]` or `[anonymous]`.
    pub mapping: String,
    /// Pages written.
    pub pages: u64,
    /// Bytes of them whose value had changed.
    pub bytes_changed: u64,
}

/// One part of the recovery pause.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PausePart {
    /// What was done, such as `restore`.
    pub step: String,
    /// How long it took, in microseconds.
    pub us: u64,
}

impl FaultReport {
    /// A report with a new identifier, and nothing yet in its optional parts.
    pub fn new(
        time: SystemTime,
        outcome: Outcome,
        signal: Option<i32>,
        kind: FaultKind,
        thread: i32,
        rip: u64,
        origin: Origin,
    ) -> Self {
        Self {
            id: ReportId::new(time),
            time: rfc3339(time),
            pid: std::process::id(),
            program: String::new(),
            outcome,
            reason: None,
            signal: signal.map(signal_name),
            kind,
            address: None,
            detail: None,
            thread,
            thread_name: String::new(),
            rip: Hex(rip),
            symbol: None,
            function: None,
            file: None,
            line: None,
            registers: Vec::new(),
            stack: Vec::new(),
            rung: String::new(),
            origin: origin.to_string(),
            peer: None,
            input: Excerpt::default(),
            pages_written: 0,
            pages_restored: 0,
            written: Vec::new(),
            undone: Vec::new(),
            dropped_output: Excerpt::default(),
            kept: Vec::new(),
            pause_us: 0,
            pause: Vec::new(),
            fault: String::new(),
            repeat: 0,
            replied: false,
            core: None,
            core_missing: None,
            more: None,
        }
    }

    /// What makes it the same fault as others.
    pub fn identify(&self) -> FaultId {
        FaultId::new(self.kind, self.rip.0, &self.stack)
    }

    /// Sets the call stack, and what follows from it.
    pub fn with_stack(self, stack: Vec<Frame>) -> Self {
        let frame = function::of(&stack);
        Self {
            function: frame.and_then(function::name),
            file: frame.and_then(|frame| frame.file.clone()),
            line: frame.and_then(|frame| frame.line),
            stack,
            ..self
        }
    }

    /// The place that a reader looks for: `set_value (server.c:120)`.
    pub fn place(&self) -> String {
        let name = self.function.as_ref().or(self.symbol.as_ref());
        let name = name.cloned().unwrap_or_else(|| self.rip.to_string());
        let Some(file) = &self.file else { return name };
        let file = file.rsplit('/').next().unwrap_or(file);
        match self.line {
            Some(line) => format!("{name} ({file}:{line})"),
            None => format!("{name} ({file})"),
        }
    }

    /// How many faults this report stands for.
    pub fn count(&self) -> u64 {
        self.more
            .as_ref()
            .map_or(1, |tally| tally.count.saturating_add(1))
    }

    /// The event for this fault, with the report to refer to if there is one.
    pub fn to_event(&self, report: Option<&ReportId>) -> Event {
        let fault = Fault {
            signal: self.signal.clone(),
            kind: self.kind,
            address: self.address,
            thread: self.thread,
            rip: self.rip,
            symbol: self.symbol.clone(),
            function: self.function.clone(),
            file: self.file.clone(),
            line: self.line,
            rung: self.rung.clone(),
            origin: self.origin.clone(),
            peer: self.peer.clone(),
            pages_written: self.pages_written,
            pages_restored: self.pages_restored,
            pause_us: self.pause_us,
            report: report.map(ReportId::to_string),
            fault: self.fault.clone(),
            repeat: self.repeat,
            replied: self.replied,
        };
        Event::fault(self.outcome, fault, self.reason.clone())
    }

    /// When the fault happened, unless the time does not parse.
    pub fn when(&self) -> Option<SystemTime> {
        humantime::parse_rfc3339(&self.time).ok()
    }

    /// The report as text for people.
    pub fn to_text(&self) -> String {
        text::render(self)
    }

    /// A copy in which every list and string keeps to its limit.
    fn bounded(&self) -> Self {
        let mut report = self.clone();
        let r = &mut report;
        r.registers.truncate(LIST_LIMIT);
        r.stack.truncate(LIST_LIMIT);
        r.written.truncate(LIST_LIMIT);
        r.pause.truncate(LIST_LIMIT);
        bound_list(&mut r.undone);
        bound_list(&mut r.kept);
        let own = [
            &mut r.program,
            &mut r.thread_name,
            &mut r.origin,
            &mut r.rung,
            &mut r.time,
            &mut r.fault,
        ];
        let optional = [
            &mut r.reason,
            &mut r.symbol,
            &mut r.function,
            &mut r.file,
            &mut r.peer,
            &mut r.signal,
            &mut r.core_missing,
        ];
        let frames = r
            .stack
            .iter_mut()
            .flat_map(|f| [&mut f.module, &mut f.symbol, &mut f.file]);
        own.into_iter()
            .chain(optional.into_iter().chain(frames).flatten())
            .chain(r.registers.iter_mut().map(|register| &mut register.name))
            .chain(r.written.iter_mut().map(|written| &mut written.mapping))
            .chain(r.pause.iter_mut().map(|part| &mut part.step))
            .chain(r.undone.iter_mut().chain(&mut r.kept))
            .for_each(bound_string);
        report
    }
}

fn bound_list(list: &mut Vec<String>) {
    if list.len() > LIST_LIMIT {
        let more = list.len() - LIST_LIMIT;
        list.truncate(LIST_LIMIT);
        list.push(format!("... and {more} more"));
    }
}

fn bound_string(string: &mut String) {
    let limit = STRING_LIMIT.min(string.len());
    let end = (0..=limit).rev().find(|i| string.is_char_boundary(*i));
    string.truncate(end.unwrap_or(0));
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::UNIX_EPOCH;

    /// A report with something in every part.
    pub(super) fn sample(time: SystemTime) -> FaultReport {
        let frame = Frame {
            address: Hex(0x40_1234),
            module: Some("/usr/bin/server".into()),
            symbol: Some("set_value".into()),
            offset: Hex(0x14),
            file: Some("server.c".into()),
            line: Some(120),
        };
        let outer = Frame {
            symbol: None,
            file: None,
            line: None,
            ..frame.clone()
        };
        FaultReport {
            program: "/usr/bin/server".into(),
            address: Some(Hex(0x18)),
            thread_name: "worker-2".into(),
            symbol: Some("set_value+0x14".into()),
            registers: vec![Register {
                name: "rax".into(),
                value: Hex(1),
            }],
            peer: Some("127.0.0.1:4242".into()),
            input: Excerpt::new(b"SET a \x1b[31m\r\n"),
            pages_written: 3,
            pages_restored: 3,
            written: vec![WrittenMapping {
                mapping: "[heap]".into(),
                pages: 3,
                bytes_changed: 40,
            }],
            undone: vec!["open -> 9 closed".into()],
            dropped_output: Excerpt::new(b"+OK\r\n"),
            pause_us: 84,
            pause: vec![PausePart {
                step: "restore".into(),
                us: 50,
            }],
            ..FaultReport::new(
                time,
                Outcome::Recovered,
                Some(11),
                FaultKind::NullWrite,
                17,
                0x40_1234,
                Origin::Stream(7),
            )
        }
        .with_stack(vec![frame, outer])
    }

    #[test]
    fn json_round_trip() {
        let report = sample(UNIX_EPOCH);
        let json = serde_json::to_string(&report).unwrap();
        assert_eq!(serde_json::from_str::<FaultReport>(&json).unwrap(), report);
    }

    #[test]
    fn the_event_repeats_the_report() {
        let mut report = sample(UNIX_EPOCH);
        let event = serde_json::to_value(report.to_event(Some(&report.id))).unwrap();
        assert_eq!(event["event"], "recovered");
        assert_eq!(event["address"], "0x18");
        let place = (&event["function"], &event["file"], &event["line"]);
        assert_eq!(
            place,
            (&"set_value".into(), &"server.c".into(), &120.into())
        );
        assert_eq!(event["report"], report.id.to_string());
        report.outcome = Outcome::Escalated;
        report.reason = Some("storm".into());
        let event = serde_json::to_value(report.to_event(None)).unwrap();
        assert_eq!(
            (&event["reason"], &event["report"]),
            (&"storm".into(), &serde_json::Value::Null)
        );
    }

    #[test]
    fn bounded_limits_every_list_and_string() {
        let mut report = sample(UNIX_EPOCH);
        let long = "\u{e9}".repeat(STRING_LIMIT);
        report.undone = vec![long.clone(); LIST_LIMIT + 5];
        report.stack = vec![
            Frame {
                symbol: Some(long.clone()),
                ..report.stack[0].clone()
            };
            10_000
        ];
        report.peer = Some(long);
        let bounded = report.bounded();
        assert_eq!(bounded.stack.len(), LIST_LIMIT);
        assert_eq!(bounded.undone.last().unwrap(), "... and 5 more");
        assert!(bounded.undone[0].len() <= STRING_LIMIT);
        assert!(serde_json::to_vec(&bounded).unwrap().len() < 1 << 20);
        assert_eq!(sample(UNIX_EPOCH).bounded().stack.len(), 2);
    }

    #[test]
    fn time_is_readable_by_programs() {
        assert_eq!(sample(UNIX_EPOCH).when(), Some(UNIX_EPOCH));
    }
}
