//! Events: what the monitor tells the outside world while it runs, one JSON object per line.
//!
//! Every line has `time`, `pid`, `program`, `instance` (the same for all processes of a server) and `event`; the other members depend on the event and are stable: new ones may be
//! added, none is renamed. A member that does not apply is `null`, so that a consumer can rely on its presence.

mod kind;
mod log;
mod value;

use serde::{Deserialize, Serialize};

pub use self::kind::{Access, FaultKind, signal_name};
pub use self::log::{EventLog, Reopen, Sender};
pub use self::value::{Hex, rfc3339};

/// How a fault ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every guarantee of the contract was kept.
    Recovered,
    /// The server goes on, but a guarantee was not kept; the reason says which.
    Degraded,
    /// The fault could not be contained; the reason says why.
    Escalated,
}

impl Outcome {
    /// The name used in events and reports.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Recovered => "recovered",
            Self::Degraded => "degraded",
            Self::Escalated => "escalated",
        }
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.pad(self.as_str())
    }
}

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// The guest is about to run its first instruction.
    Started {
        /// Its arguments, without the program's own name.
        args: Vec<String>,
        /// Whether faults are recovered.
        protect: bool,
        /// How this KVM enters and leaves the guest.
        entry_path: String,
    },
    /// The guest listens on a socket.
    Listening {
        /// `127.0.0.1:6379`, `[::1]:6379`, or the path of a Unix socket.
        address: String,
    },
    /// Whether the heap is verified, with `--verify-heap`, once that is known: when the first request ends.
    HeapVerification {
        /// The guest's allocator is known.
        active: bool,
        /// Why the heap is not verified.
        reason: Option<String>,
    },
    /// A fault was recovered from.
    Recovered(Fault),
    /// A fault was recovered from, but not every guarantee could be kept.
    Degraded {
        /// The fault.
        #[serde(flatten)]
        fault: Fault,
        /// Which guarantee, and why.
        reason: String,
    },
    /// A fault could not be recovered from.
    Escalated {
        /// The fault.
        #[serde(flatten)]
        fault: Fault,
        /// Why.
        reason: String,
    },
    /// There is no room for the shadow pages of a request: what it had done so far can no longer be undone.
    /// Told once, until [`Event::ProtectionRestored`].
    ProtectionDegraded {
        /// Why.
        reason: String,
        /// Bytes of shadow pages.
        shadow_bytes: u64,
        /// What they may be.
        limit: u64,
    },
    /// Requests can be undone as a whole again.
    ProtectionRestored {
        /// Bytes of shadow pages.
        shadow_bytes: u64,
        /// What they may be.
        limit: u64,
    },
    /// The process was given back the state that it had when it began to serve. What has happened since is
    /// lost; the fault has an event of its own.
    Restarted {
        /// Why.
        reason: String,
        /// As in the event of the fault.
        signal: Option<String>,
        /// What went wrong.
        kind: FaultKind,
        /// The guest thread that faulted (TID).
        thread: i32,
        /// The faulting instruction.
        rip: Hex,
        /// What its domain was charged to.
        origin: String,
        /// The time of the image (RFC 3339): what was written to memory since then is lost.
        lost_since: String,
        /// How long the process stood still, in microseconds.
        pause_us: u64,
        /// Pages given back their content.
        pages_restored: u64,
        /// Connections reset.
        connections_reset: u64,
        /// Other descriptors closed.
        descriptors_closed: u64,
        /// Threads ended.
        threads_ended: u64,
    },
    /// A fault was injected, on demand (`--inject`).
    Injected(Injected),
    /// A client sent again what has crashed the server before, and was refused.
    Refused(Refused),
    /// The guest ended.
    Exited {
        /// Its exit status, unless a signal ended it.
        status: Option<i32>,
        /// The name of the signal that ended it.
        signal: Option<String>,
    },
}

impl Event {
    /// The event for a fault with that outcome. `reason` is for the outcomes that owe one.
    pub fn fault(outcome: Outcome, fault: Fault, reason: Option<String>) -> Self {
        let reason = reason.unwrap_or_default();
        match outcome {
            Outcome::Recovered => Self::Recovered(fault),
            Outcome::Degraded => Self::Degraded { fault, reason },
            Outcome::Escalated => Self::Escalated { fault, reason },
        }
    }
}

/// The members that every fault event has.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Fault {
    /// The name of the signal that ends the server without the monitor, such as `SIGSEGV`; none for the kinds
    /// `exit`, `timeout` and `memory`, which raise none.
    pub signal: Option<String>,
    /// What went wrong.
    pub kind: FaultKind,
    /// The address of the faulting access, if there was one.
    pub address: Option<Hex>,
    /// The guest thread (TID).
    pub thread: i32,
    /// The faulting instruction.
    pub rip: Hex,
    /// `function+0x12` at `rip`, if it has a symbol.
    pub symbol: Option<String>,
    /// The innermost function of the program itself: below libc's `abort`, `memcpy` and their like.
    pub function: Option<String>,
    /// Its source file, where there is debug information.
    pub file: Option<String>,
    /// The line in it.
    pub line: Option<u32>,
    /// What was done about it: the rung of the ladder (see [`crate::ladder::Rung::name`]).
    pub rung: String,
    /// What the domain was charged to, such as `stream:7`.
    pub origin: String,
    /// Whose request it was: `127.0.0.1:4242`, or the path of a Unix socket.
    pub peer: Option<String>,
    /// Pages in the write set of the domain.
    pub pages_written: u64,
    /// Pages given back their committed content.
    pub pages_restored: u64,
    /// How long the faulting thread stood still, in microseconds.
    pub pause_us: u64,
    /// The identifier of the report, if one could be written; of the first one if this fault only repeats it.
    pub report: Option<String>,
    /// What is the same for all faults of one bug, see [`crate::repeat`].
    pub fault: String,
    /// How often the same fault has happened before.
    pub repeat: u64,
    /// Whether the client was sent the configured error reply before its connection ended.
    pub replied: bool,
}

/// The members of the event for injected faults.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Injected {
    /// The number of the injection.
    pub injection: u64,
    /// What was done, as in the specification.
    pub what: String,
    /// To which register, address or call, and how.
    pub detail: String,
    /// The guest thread (TID).
    pub thread: i32,
    /// Where it was.
    pub rip: Hex,
    /// What its domain was charged to.
    pub origin: String,
    /// Whose request it was.
    pub peer: Option<String>,
    /// System calls that the domain had made.
    pub calls: u64,
}

/// The members of the event for refused inputs; it is written at most once a second for each input.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Refused {
    /// Who sent the last of them.
    pub peer: Option<String>,
    /// How many bytes it has.
    pub input_bytes: u64,
    /// How often it was refused since the last event about it.
    pub count: u64,
    /// How often it has crashed the server.
    pub crashes: u32,
    /// What went wrong then.
    pub kind: FaultKind,
    /// The faulting instruction then.
    pub rip: Hex,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn fault() -> Fault {
        Fault {
            signal: Some("SIGSEGV".into()),
            kind: FaultKind::NullWrite,
            address: Some(Hex(0)),
            thread: 12,
            rip: Hex(0x40_1000),
            symbol: Some("crash+0x4".into()),
            function: Some("crash".into()),
            file: Some("server.c".into()),
            line: None,
            rung: "abandon".into(),
            origin: "stream:7".into(),
            peer: None,
            pages_written: 3,
            pages_restored: 3,
            pause_us: 84,
            report: Some("r".into()),
            fault: "f".into(),
            repeat: 2,
            replied: false,
        }
    }

    fn value(event: Event) -> Value {
        serde_json::to_value(event).unwrap()
    }

    #[test]
    fn a_fault_has_all_its_members_even_when_null() {
        assert_eq!(
            value(Event::fault(Outcome::Recovered, fault(), None)),
            json!({
                "event": "recovered", "signal": "SIGSEGV", "kind": "null-write", "address": "0x0",
                "thread": 12, "rip": "0x401000", "symbol": "crash+0x4",
                "function": "crash", "file": "server.c", "line": null, "rung": "abandon",
                "origin": "stream:7", "peer": null,
                "pages_written": 3, "pages_restored": 3, "pause_us": 84, "report": "r",
                "fault": "f", "repeat": 2, "replied": false,
            })
        );
    }

    #[test]
    fn lesser_outcomes_carry_a_reason() {
        let reason = Some("page shared".to_owned());
        let degraded = value(Event::fault(Outcome::Degraded, fault(), reason.clone()));
        assert_eq!(degraded["event"], "degraded");
        assert_eq!(degraded["reason"], "page shared");
        assert_eq!(degraded["rip"], "0x401000");
        let escalated = value(Event::fault(Outcome::Escalated, fault(), reason));
        assert_eq!(escalated["event"], "escalated");
    }

    #[test]
    fn refused_inputs() {
        let refused = Event::Refused(Refused {
            peer: None,
            input_bytes: 18,
            count: 3,
            crashes: 2,
            kind: FaultKind::NullRead,
            rip: Hex(0x10),
        });
        assert_eq!(
            value(refused),
            json!({
                "event": "refused", "peer": null, "input_bytes": 18, "count": 3, "crashes": 2,
                "kind": "null-read", "rip": "0x10",
            })
        );
    }

    #[test]
    fn life_cycle_events() {
        let exited = Event::Exited {
            status: None,
            signal: Some("SIGTERM".into()),
        };
        assert_eq!(
            value(exited),
            json!({"event": "exited", "status": null, "signal": "SIGTERM"})
        );
        let listening = Event::Listening {
            address: "127.0.0.1:6379".into(),
        };
        assert_eq!(
            value(listening),
            json!({"event": "listening", "address": "127.0.0.1:6379"})
        );
        let started = Event::Started {
            args: vec![],
            protect: true,
            entry_path: "stays at CPL 3".into(),
        };
        assert_eq!(value(started)["protect"], true);
    }

    #[test]
    fn the_outcome_is_written_the_same_everywhere() {
        for outcome in [Outcome::Recovered, Outcome::Degraded, Outcome::Escalated] {
            assert_eq!(serde_json::to_value(outcome).unwrap(), outcome.to_string());
        }
    }
}
