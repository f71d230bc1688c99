//! One server under the monitor, from its start until it is replaced by a fresh one, with its healthy clients.

use std::{
    io,
    path::Path,
    time::{Duration, Instant},
};

use tempfile::TempDir;

use super::{
    SHARED_KEYS,
    control::Control,
    exchange::{Answer, exchange},
    healthy::load::Load,
    plan::{Nature, Plan},
    target::{Attack, Keys, Target, shared_key},
    trial::{Control as ControlRun, Detection, Failure, FailureKind, Outcome, Trial},
};
use crate::{
    Event, Launch, Monitored, StartError, free_port,
    oracle::{self, Fate, Log, Recorder},
};

/// Healthy clients.
pub const CLIENTS: usize = 6;
/// What a healthy client waits for an answer at most: the pause of the slowest recovery, and the time slices before it.
pub const LATE: Duration = Duration::from_secs(2);
/// A struck request may have to run into its limits first.
const ATTACK_PATIENCE: Duration = Duration::from_secs(4);
/// Answers to every healthy client after each injection, and after one whose damage may still be there.
const AFTERWARDS: u64 = 2;
const TO_SETTLE: u64 = 12;
/// How long the monitor may take to write an event.
const EVENT_PATIENCE: Duration = Duration::from_secs(3);
const POLL: Duration = Duration::from_millis(2);

/// Limits of requests, so that endless ones end while healthy clients wait.
pub const LIMITS: [&str; 8] = [
    "--request-cpu=200ms",
    "--request-timeout=500ms",
    "--request-memory=192M",
    "--core=off",
    "--quarantine-limit=64M",
    "--storm-limit=3",
    "--shadow-limit=1G",
    "--restart=on",
];

/// The server, its clients, and what is known of them.
pub struct Generation {
    server: Monitored,
    control: Control,
    load: Load,
    attacks: Log,
    /// What struck requests have stored.
    keys: Keys,
    events_seen: usize,
    versions: u64,
    /// Its damage may not have been undone, or the server is not what it was.
    spent: bool,
    _sockets: TempDir,
}

impl Generation {
    /// Starts the server and its clients.
    pub fn start(target: &dyn Target, vmsrs: &Path) -> Result<Generation, StartError> {
        let failed = |source| StartError::Spawn {
            program: target.name().to_owned(),
            source,
        };
        let (server, control, sockets) = launch(target, vmsrs, &LIMITS)?;
        let recorder = Recorder::new((0..SHARED_KEYS).map(shared_key));
        let clients = (0..CLIENTS)
            .map(|ident| {
                target
                    .clients()
                    .healthy(server.address(), ident, LATE, &recorder)
            })
            .collect();
        let attacks = recorder.log();
        let load = Load::start(clients, recorder);
        if !load.wait(1, crate::monitored::PATIENCE) {
            let failures = load.take_failures();
            return Err(failed(io::Error::other(format!(
                "its clients are not served: {failures:?}"
            ))));
        }
        Ok(Generation {
            server,
            control,
            load,
            attacks,
            keys: Keys {
                present: Vec::new(),
                possible: (0..SHARED_KEYS).map(shared_key).collect(),
            },
            events_seen: 0,
            versions: 0,
            spent: false,
            _sockets: sockets,
        })
    }

    /// Whether it has to be replaced before the next trial.
    pub fn is_spent(&self) -> bool {
        self.spent
    }

    /// Requests of healthy clients that were answered.
    pub fn requests(&self) -> u64 {
        self.load.requests()
    }

    /// The request of a trial.
    pub fn attack(&mut self, target: &dyn Target, plan: &Plan) -> Attack {
        self.versions += 1;
        let mut random = plan.random.clone();
        let key = random.below(SHARED_KEYS as u64) as usize;
        target.attack(&mut random, &plan.tag, (key, self.versions))
    }

    /// Injects a fault and looks what comes of it.
    pub fn strike(&mut self, target: &dyn Target, plan: &Plan, attack: &Attack) -> Trial {
        let mut trial = Trial {
            number: plan.number,
            server: target.name().to_owned(),
            class: plan.class.name.to_owned(),
            spec: plan.spec.clone(),
            request: attack.description.clone(),
            injected: None,
            control: ControlRun::NotRun,
            activated: false,
            detected: None,
            outcome: None,
            reason: None,
            pause_us: None,
            failures: Vec::new(),
        };
        let begin = Instant::now();
        let id = match self.control.inject(&plan.spec) {
            Ok(id) => id,
            Err(error) => {
                self.unusable(&mut trial, &format!("inject: {error}"));
                return trial;
            }
        };
        let address = self.server.address().clone();
        let (answer, own) = exchange(target, &address, attack, ATTACK_PATIENCE)
            .unwrap_or_else(|_| (Answer::Nothing, String::new()));
        let all_served = self.load.wait(AFTERWARDS, LATE * 2);
        let counts = self.control.conclude(id);
        let is_struck = counts.as_ref().is_ok_and(|counts| counts.struck > 0);
        self.read_events(&mut trial, id, &own);
        if is_struck && trial.injected.is_none() {
            trial.injected = Some("not told".into());
        }
        if !all_served || counts.is_err() {
            self.unusable(&mut trial, "healthy clients are not served");
        }
        self.note_write(target, attack, &answer, &mut trial, begin);
        let undone = trial.detected.as_ref().is_some_and(|found| !found.latent)
            && trial.outcome == Some(Outcome::Recovered);
        let damages = plan.class.nature == Nature::Damage;
        self.spent |= trial.injected.is_some() && damages && !undone
            || trial
                .outcome
                .is_some_and(|outcome| outcome > Outcome::Recovered);
        if self.spent && self.is_alive() {
            self.load.wait(TO_SETTLE, LATE * 2);
            self.read_events(&mut trial, id, &own);
        }
        trial.failures.extend(self.load.take_failures());
        self.spent |= !trial.failures.is_empty();
        trial.activated |= trial.injected.is_some()
            && (answer != Answer::Right || trial.detected.is_some() || !trial.failures.is_empty());
        trial
    }

    fn is_alive(&mut self) -> bool {
        matches!(self.server.try_wait(), Ok(None))
    }

    /// The server has ended, or hangs.
    fn unusable(&mut self, trial: &mut Trial, what: &str) {
        self.spent = true;
        std::thread::sleep(POLL * 50);
        let failure = match self.server.try_wait() {
            Ok(None) => Failure {
                kind: FailureKind::ServerHung,
                detail: what.to_owned(),
            },
            Ok(Some(status)) => Failure {
                kind: FailureKind::ServerDied,
                detail: format!("{status}; {what}"),
            },
            Err(error) => Failure {
                kind: FailureKind::ServerDied,
                detail: error.to_string(),
            },
        };
        trial.failures.push(failure);
    }

    /// Reads what the monitor has told since the last time; `own` is the client of the struck request.
    fn read_events(&mut self, trial: &mut Trial, id: u64, own: &str) {
        let deadline = Instant::now() + EVENT_PATIENCE;
        let events = loop {
            let expected = self.control.faults();
            let is_alive = self.is_alive();
            let events = match self.server.events() {
                Ok(events) => events,
                Err(error) => {
                    trial.failures.push(Failure {
                        kind: FailureKind::Inconsistent,
                        detail: error.to_string(),
                    });
                    return;
                }
            };
            let told = events
                .iter()
                .filter(|event| outcome_of(event).is_some())
                .count() as u64;
            let is_complete = expected.is_ok_and(|expected| told >= expected);
            if is_complete || !is_alive || Instant::now() > deadline {
                break events;
            }
            std::thread::sleep(POLL);
        };
        let new = events.get(self.events_seen..).unwrap_or_default();
        for event in new {
            if event.event == "injected" && event.number("injection") == Some(id) {
                trial.injected = event.text("detail").map(str::to_owned);
            }
            let Some(outcome) = outcome_of(event) else {
                continue;
            };
            if trial.detected.is_none() {
                trial.detected = Some(Detection {
                    kind: event.text("kind").unwrap_or_default().to_owned(),
                    latent: event.text("peer") != Some(own),
                });
                trial.pause_us = event.number("pause_us");
            }
            if trial.outcome.is_none_or(|worst| outcome > worst) {
                trial.outcome = Some(outcome);
                trial.reason = event.text("reason").map(str::to_owned);
            }
        }
        self.events_seen = events.len();
    }

    /// What the struck request was to store is there or not, as its client was told.
    fn note_write(
        &mut self,
        target: &dyn Target,
        attack: &Attack,
        answer: &Answer,
        trial: &mut Trial,
        begin: Instant,
    ) {
        let is_undone = trial.outcome == Some(Outcome::Recovered)
            && trial.detected.as_ref().is_some_and(|found| !found.latent);
        let fate = match answer {
            Answer::Right => Fate::Acknowledged,
            Answer::Reset if is_undone => Fate::Abandoned,
            _ => Fate::Unknown,
        };
        if fate == Fate::Unknown {
            self.keys.possible.extend(attack.temporary.clone());
        }
        let Some(write) = &attack.write else {
            return;
        };
        if let Some((number, version)) = write.shared {
            self.attacks.write(number, version, fate, begin);
            return;
        }
        match fate {
            Fate::Acknowledged => self.keys.present.push(write.key.clone()),
            Fate::Abandoned => {}
            Fate::Unknown => self.keys.possible.push(write.key.clone()),
        }
        let Ok(found) = target
            .clients()
            .value(self.server.address(), &write.key, LATE)
        else {
            return;
        };
        let failure = match (fate, found) {
            (Fate::Acknowledged, Some(found)) if found != write.value => {
                let found = String::from_utf8_lossy(&found).into_owned();
                (FailureKind::WrongValue, format!("{}: {found:?}", write.key))
            }
            (Fate::Acknowledged, None) => (FailureKind::LostWrite, write.key.clone()),
            (Fate::Abandoned, Some(_)) => (FailureKind::ResurrectedWrite, write.key.clone()),
            _ => return,
        };
        trial.failures.push(Failure {
            kind: failure.0,
            detail: format!("the struck request's own {}", failure.1),
        });
    }

    /// Ends it after the last trial, with all checks, whose failures are that trial's.
    pub fn finish(mut self, target: &dyn Target, last: &mut Trial) -> u64 {
        let is_alive = self.is_alive();
        let hangs = last
            .failures
            .iter()
            .any(|f| f.kind == FailureKind::ServerHung);
        let finished = self.load.finish(self.attacks);
        if !is_alive || hangs {
            return finished.requests;
        }
        let mut keys = finished.keys;
        keys.present.append(&mut self.keys.present);
        keys.possible.append(&mut self.keys.possible);
        last.failures.extend(finished.failures);
        let violations = oracle::check_all(&finished.history).into_iter();
        last.failures.extend(violations.map(|violation| Failure {
            kind: violation.kind,
            detail: violation.detail,
        }));
        match target.check(self.server.address(), &keys, LATE) {
            Ok(failures) => last.failures.extend(failures),
            Err(error) => last.failures.push(Failure {
                // An answer that makes no sense is one, too.
                kind: match error.kind() {
                    io::ErrorKind::InvalidData | io::ErrorKind::Other => FailureKind::Inconsistent,
                    _ => FailureKind::NotChecked,
                },
                detail: format!("the server's own check: {error}"),
            }),
        }
        if let Ok(heap) = self.control.ask("check-heap")
            && heap["consistent"] == false
        {
            last.failures.push(Failure {
                kind: FailureKind::Inconsistent,
                detail: format!("heap: {}", heap["corruption"]),
            });
        }
        finished.requests
    }
}

/// Starts a server with a control socket, and connects to it.
pub fn launch(
    target: &dyn Target,
    vmsrs: &Path,
    options: &[&str],
) -> Result<(Monitored, Control, TempDir), StartError> {
    let spawn = |source| StartError::Spawn {
        program: target.name().to_owned(),
        source,
    };
    let sockets = tempfile::Builder::new()
        .prefix("vmsrs-")
        .tempdir()
        .map_err(spawn)?;
    let socket = sockets.path().join("control");
    let port = free_port().map_err(spawn)?;
    let server = Launch::native(target.command(port))
        .monitor(vmsrs)
        .options(["--control".as_ref(), socket.as_os_str()])
        .options(options)
        .start(port)?;
    let control = Control::connect(&socket, LATE * 2).map_err(spawn)?;
    Ok((server, control, sockets))
}

fn outcome_of(event: &Event) -> Option<Outcome> {
    match event.event.as_str() {
        "recovered" => Some(Outcome::Recovered),
        "degraded" => Some(Outcome::Degraded),
        "escalated" => Some(Outcome::Escalated),
        _ => None,
    }
}
