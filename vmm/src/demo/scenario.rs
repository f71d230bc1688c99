//! The run under the monitor: most users work without a pause while two crash the server in every way.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use super::audit::{self, Trouble};
use super::client::Failure;
use super::crasher::{self, Crash, Style};
use super::event::{self, FaultEvent};
use super::progress::Progress;
use super::server::{Ending, Installation, Layout, Server};
use super::user::{Tally, User};
use super::watcher::Watcher;
use super::{CRASHING_USERS, DemoError, DemoOptions};
use crate::rng::Rng;

/// Names of the users; those beyond are numbered.
const CRASHING_NAMES: [&str; CRASHING_USERS] = ["mallory", "trudy"];
const HEALTHY_NAMES: [&str; 6] = ["ada", "ben", "cleo", "dora", "emil", "fay"];

/// What a user did, for the table.
#[derive(Debug, Clone)]
pub struct Summary {
    /// The user's name.
    pub name: String,
    /// Whether the user crashes the server.
    pub crashing: bool,
    /// What the user did.
    pub tally: Tally,
}

/// What came of the run.
#[derive(Debug)]
pub struct Survival {
    /// How the server was built from threads.
    pub layout: Layout,
    /// The names of the planted bugs.
    pub bugs: Vec<String>,
    /// Every crash that a user caused.
    pub crashes: Vec<Crash>,
    /// Every user.
    pub users: Vec<Summary>,
    /// The faults that the monitor reported.
    pub events: Vec<FaultEvent>,
    /// What ought not to have happened.
    pub troubles: Vec<Trouble>,
    /// How the server ended when it was told to.
    pub ending: Ending,
    /// The last that the server wrote to standard error.
    pub log_tail: String,
}

impl Survival {
    /// Whether nothing happened that ought not to.
    pub fn passed(&self) -> bool {
        self.troubles.is_empty()
    }
}

/// The run under the monitor, before it begins.
pub struct Scenario<'a> {
    options: &'a DemoOptions,
    installation: &'a Installation,
    layout: Layout,
}

/// What the users' threads share.
#[derive(Debug)]
struct Stage {
    /// The bug being set off.
    bug: AtomicUsize,
    /// The healthy users go home.
    over: AtomicBool,
}

/// A user and what the user noticed; a user who noticed something stops.
#[derive(Debug)]
struct Participant {
    user: User,
    crashing: bool,
    trouble: Option<Trouble>,
}

impl Participant {
    fn notice(&mut self, bug: Option<usize>, failure: &Failure) {
        let (who, what) = (self.user.name().to_owned(), failure.to_string());
        self.trouble.get_or_insert(Trouble {
            who,
            healthy: !self.crashing,
            bug,
            what,
        });
    }

    /// A healthy user's thread.
    fn work_until_over(&mut self, stage: &Stage) {
        while self.trouble.is_none() && !stage.over.load(Ordering::Relaxed) {
            if let Err(failure) = self.user.work() {
                self.notice(Some(stage.bug.load(Ordering::Relaxed)), &failure);
            }
            // A moment of thought: users who saturate the machine would measure its scheduler.
            thread::sleep(Duration::from_micros(500 + self.user.rng.below(1500)));
        }
    }
}

impl<'a> Scenario<'a> {
    /// A run with these options.
    pub fn new(options: &'a DemoOptions, installation: &'a Installation, layout: Layout) -> Self {
        Self {
            options,
            installation,
            layout,
        }
    }

    /// Carries the run out.
    pub fn run(self) -> Result<Survival, DemoError> {
        let mut server = Server::monitored(self.installation, self.layout)?;
        let begin = |source| DemoError::Begin {
            what: server.what().to_owned(),
            source,
        };
        let mut watcher = Watcher::connect(server.port()).map_err(begin)?;
        let bugs = watcher.list_bugs().map_err(begin)?;
        let (mut crashing, mut healthy) = self.connect_users(server.port()).map_err(begin)?;

        let stage = Stage {
            bug: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        };
        let mut crashes = Vec::new();
        thread::scope(|scope| {
            for participant in &mut healthy {
                scope.spawn(|| participant.work_until_over(&stage));
            }
            self.crash_in_every_way(&bugs, &stage, &mut watcher, &mut crashing, &mut crashes);
            stage.over.store(true, Ordering::Relaxed);
        });

        let mut participants = healthy;
        participants.append(&mut crashing);
        for participant in participants
            .iter_mut()
            .filter(|participant| participant.trouble.is_none())
        {
            if let Err(failure) = participant.user.verify() {
                participant.notice(None, &failure);
            }
        }
        if watcher.troubles.is_empty() && participants.iter().all(|user| user.trouble.is_none()) {
            watcher.verify_totals(
                participants
                    .iter()
                    .map(|participant| &participant.user.model),
            );
        }
        let ending = server.stop();
        if ending != Ending::Status(0) {
            watcher.object(
                None,
                format!("SIGTERM ended the server with {ending}, not exit status 0"),
            );
        }
        let events = event::read(&server.events_file()).unwrap_or_else(|error| {
            watcher.object(
                None,
                format!("the monitor's events cannot be read: {error}"),
            );
            Vec::new()
        });
        let mut troubles = watcher.troubles;
        troubles.extend(
            participants
                .iter()
                .filter_map(|participant| participant.trouble.clone()),
        );
        troubles.extend(audit::disagreements(&crashes, &events));
        let users = participants
            .iter()
            .map(|Participant { user, crashing, .. }| Summary {
                name: user.name().to_owned(),
                crashing: *crashing,
                tally: user.tally,
            })
            .collect();
        let log_tail = server.log_tail();
        Ok(Survival {
            layout: self.layout,
            bugs,
            crashes,
            users,
            events,
            troubles,
            ending,
            log_tail,
        })
    }

    fn connect_users(&self, port: u16) -> Result<(Vec<Participant>, Vec<Participant>), Failure> {
        let count = usize::from(self.options.users).saturating_sub(CRASHING_USERS);
        let names = (0..count).map(|i| match HEALTHY_NAMES.get(i) {
            Some(name) => (*name).to_owned(),
            None => format!("user{}", i + 1),
        });
        let seed = self.options.seed;
        let connect = |(stream, name): (u64, String), crashing| {
            let user = User::connect(port, &name, Rng::new(seed, stream))?;
            Ok(Participant {
                user,
                crashing,
                trouble: None,
            })
        };
        let crashing = (1000..)
            .zip(CRASHING_NAMES.map(str::to_owned))
            .map(|user| connect(user, true));
        let healthy = (0..).zip(names).map(|user| connect(user, false));
        Ok((
            crashing.collect::<Result<_, Failure>>()?,
            healthy.collect::<Result<_, Failure>>()?,
        ))
    }

    fn crash_in_every_way(
        &self,
        bugs: &[String],
        stage: &Stage,
        watcher: &mut Watcher,
        crashing: &mut [Participant],
        crashes: &mut Vec<Crash>,
    ) {
        let progress = Progress::new();
        let rounds = self.options.rounds;
        for round in 1..=rounds {
            for (bug, name) in bugs.iter().enumerate() {
                progress.show(&format!(
                    "{}: round {round}/{rounds}, {name}, {} crashes, {} others hit",
                    self.layout,
                    crashes.len(),
                    watcher.troubles.len()
                ));
                stage.bug.store(bug, Ordering::Relaxed);
                for style in [Style::Alone, Style::BehindWrites] {
                    let lost = crash_together(crashing, (bug, name), style, crashes);
                    watcher.check(bug);
                    if lost || !watcher.troubles.is_empty() {
                        return; // what follows would only repeat the first trouble
                    }
                }
            }
        }
    }
}

/// All crashing users crash the server at the same time. True: it serves them no more.
fn crash_together(
    crashing: &mut [Participant],
    bug: (usize, &str),
    style: Style,
    crashes: &mut Vec<Crash>,
) -> bool {
    let found = Mutex::new(Vec::new());
    let lost = AtomicBool::new(false);
    thread::scope(|scope| {
        for participant in &mut *crashing {
            scope.spawn(|| {
                let user = &mut participant.user;
                let result = crasher::crash(user, bug, style).and_then(|crash| {
                    found
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .push(crash);
                    crasher::check_aftermath(user)
                });
                if let Err(failure) = result {
                    lost.fetch_or(failure.is_loss_of_service(), Ordering::Relaxed);
                    participant.notice(Some(bug.0), &failure);
                }
            });
        }
    });
    crashes.append(&mut found.into_inner().unwrap_or_else(PoisonError::into_inner));
    lost.into_inner()
}
