//! One injection and what came of it: a line of a campaign's `trials.jsonl`.

use serde::{Deserialize, Serialize};

/// An injected fault, from the specification to what every client saw.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Trial {
    /// Its number in the campaign, from 0: server, class, request and seed follow from it.
    pub number: u64,
    /// The server, such as `redis`.
    pub server: String,
    /// The fault class, such as `pointer=bit`.
    pub class: String,
    /// The injection as the monitor was told it.
    pub spec: String,
    /// The request that it was meant for, in words.
    pub request: String,
    /// What the monitor did to the guest; none if the request came by no place to do it at.
    pub injected: Option<String>,
    /// What the same injection did to a server without recovery.
    pub control: Control,
    /// Whether the fault had any effect that could be seen: on the request itself, on the monitor, on others,
    /// or in the control run.
    pub activated: bool,
    /// The first fault that the monitor caught during the trial.
    pub detected: Option<Detection>,
    /// The worst outcome that the monitor told of during the trial.
    pub outcome: Option<Outcome>,
    /// The monitor's reason for a lesser outcome.
    pub reason: Option<String>,
    /// How long the recovery took, in microseconds.
    pub pause_us: Option<u64>,
    /// What the oracle found wrong, none of it with the request that was struck.
    pub failures: Vec<Failure>,
}

/// What an injection did where nothing is recovered.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Control {
    /// There was no control run.
    NotRun,
    /// There, too, it found no place.
    NotInjected,
    /// The server went on, and answered as it should.
    Survived,
    /// The server went on, and answered wrongly.
    Wrong(String),
    /// The server ended; how.
    Died(String),
    /// The server did not answer any more.
    Hung,
}

/// A fault that the monitor caught.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Detection {
    /// Its kind, as in the monitor's events, such as `null-read`.
    pub kind: String,
    /// It was caught after the struck request had ended: in the work of others, or the server's own.
    pub latent: bool,
}

/// The monitor's own word for how a fault ended, best first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Outcome {
    /// Every guarantee was kept.
    Recovered,
    /// The server went on with less.
    Degraded,
    /// The process was restarted in place, or ended.
    Escalated,
}

/// Something that a healthy client, or the server's own check, saw and should not have seen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Which promise it breaks.
    pub kind: FailureKind,
    /// What was seen.
    pub detail: String,
}

/// The named failures.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FailureKind {
    /// The server process ended.
    ServerDied,
    /// The server did not answer any more.
    ServerHung,
    /// A healthy client's connection ended.
    LostConnection,
    /// A reply took longer than the limit.
    LateReply,
    /// A reply that no order of the requests explains.
    WrongValue,
    /// A value that had been overwritten before it was asked for.
    StaleValue,
    /// A write that had been acknowledged is not there.
    LostWrite,
    /// A write of an abandoned request is there.
    ResurrectedWrite,
    /// A session's requests took effect in another order than they were sent.
    BrokenOrder,
    /// The server's own check of its data, or the walk of its heap, failed.
    Inconsistent,
    /// That check could not be done, because the server did not answer.
    NotChecked,
}

impl FailureKind {
    /// Whether it is wrong data, as opposed to a service that was late or ended, which nobody can miss.
    pub fn is_corruption(self) -> bool {
        !matches!(
            self,
            Self::ServerDied
                | Self::ServerHung
                | Self::LostConnection
                | Self::LateReply
                | Self::NotChecked
        )
    }
}

impl Trial {
    /// Takes what came of the control run; a fault that shows there is active, whatever the monitor made of it.
    pub fn set_control(&mut self, control: Control) {
        let shows = !matches!(
            control,
            Control::NotRun | Control::NotInjected | Control::Survived
        );
        self.activated |= self.injected.is_some() && shows;
        self.control = control;
    }

    /// Without the monitor the fault would have ended the server, or stopped it for good.
    pub fn is_manifested(&self) -> bool {
        matches!(self.control, Control::Died(_) | Control::Hung)
    }

    /// Every healthy client saw what it should, and the server's own checks passed.
    pub fn is_correct(&self) -> bool {
        self.failures.is_empty()
    }

    /// Wrong data, and the monitor had not said that anything was amiss.
    pub fn is_silent_corruption(&self) -> bool {
        self.outcome
            .is_none_or(|outcome| outcome == Outcome::Recovered)
            && self
                .failures
                .iter()
                .any(|failure| failure.kind.is_corruption())
    }
}
