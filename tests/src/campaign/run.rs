//! A campaign against one server: trial after trial, until as many faults were injected as were asked for.

use std::{
    fs::{self, File, OpenOptions},
    io::{self, BufRead, BufReader, Write},
    path::{Path, PathBuf},
    thread,
};

use indicatif::{ProgressBar, ProgressStyle};

use super::{
    control_runs::{ControlRuns, Unfinished},
    generation::Generation,
    plan::{Class, Plan},
    target::Target,
    trial::{Outcome, Trial},
};
use crate::{StartError, interrupt};

/// Trials with one server at most, so that what its end checks belongs to few of them.
const PER_GENERATION: usize = 40;
/// Trials in a row in which nothing was injected, after which a campaign ends: something is wrong with it.
const IDLE_MAX: u64 = 2000;

/// What is to be done.
#[derive(Clone, Debug)]
pub struct Campaign {
    /// Faults to inject.
    pub injections: u64,
    /// All choices follow from it.
    pub seed: u64,
    /// Whether each injection is done to a server without recovery too.
    pub control: bool,
    /// Only these classes, if any are named.
    pub classes: Vec<String>,
    /// The monitor.
    pub vmsrs: PathBuf,
}

/// Why a campaign does not go on.
#[derive(Debug, thiserror::Error)]
pub enum CampaignError {
    /// A server does not start.
    #[error(transparent)]
    Start(#[from] StartError),
    /// The file of trials cannot be read or written.
    #[error("{path}")]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Somebody does not want it to go on. What is done is in the file.
    #[error("interrupted; the same command goes on from here")]
    Interrupted,
    /// There is nothing to inject.
    #[error("nothing was injected in {IDLE_MAX} trials in a row; the last was `{0}`")]
    Idle(String),
    /// A class that does not exist, or has nothing to hit in this server.
    #[error("none of the classes {0:?} is one for this server")]
    Classes(Vec<String>),
}

/// The trials of a campaign, in a file with one for each line.
#[derive(Debug)]
pub struct Trials {
    path: PathBuf,
    file: File,
    /// All so far.
    pub all: Vec<Trial>,
}

impl Trials {
    /// Opens the file at `path`, or makes it. A last line that is not whole, of a campaign that was interrupted, is
    /// dropped.
    pub fn open(path: &Path) -> Result<Trials, CampaignError> {
        let at = |source| CampaignError::File {
            path: path.to_path_buf(),
            source,
        };
        let open = |append: bool| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).append(append).create(true);
            options.truncate(false).open(path).map_err(at)
        };
        let mut reader = BufReader::new(open(false)?);
        let (mut all, mut whole, mut line) = (Vec::new(), 0, String::new());
        loop {
            line.clear();
            let n = reader.read_line(&mut line).map_err(at)? as u64;
            if n == 0 || !line.ends_with('\n') {
                break;
            }
            all.push(serde_json::from_str(&line).map_err(|error| at(error.into()))?);
            whole += n;
        }
        reader.into_inner().set_len(whole).map_err(at)?;
        Ok(Trials {
            path: path.to_path_buf(),
            file: open(true)?,
            all,
        })
    }

    fn add(&mut self, trial: Trial) -> Result<(), CampaignError> {
        let mut line = serde_json::to_string(&trial).unwrap_or_default();
        line.push('\n');
        self.file
            .write_all(line.as_bytes())
            .map_err(|source| CampaignError::File {
                path: self.path.clone(),
                source,
            })?;
        self.all.push(trial);
        Ok(())
    }

    /// How many trials there are of `server`, and injections.
    pub fn of(&self, server: &str) -> (u64, u64) {
        let trials = self.all.iter().filter(|trial| trial.server == server);
        let injected = trials
            .clone()
            .filter(|trial| trial.injected.is_some())
            .count();
        (trials.count() as u64, injected as u64)
    }
}

impl Campaign {
    /// Goes on with the campaign against `target` where `trials` end. Returns the requests of healthy clients.
    pub fn run(&self, target: &dyn Target, trials: &mut Trials) -> Result<u64, CampaignError> {
        let classes = self.classes_for(target)?;
        let (number, injected) = trials.of(target.name());
        thread::scope(|scope| {
            let controls = self
                .control
                .then(|| ControlRuns::start(scope, target, &self.vmsrs));
            let progress = Progress {
                number,
                injected,
                idle: 0,
                requests: 0,
                bar: progress_bar(target.name(), self.injections, injected),
                tally: Tally::default(),
                trials,
            };
            self.generations(target, &classes, controls.as_ref(), progress)
        })
    }

    fn generations(
        &self,
        target: &dyn Target,
        classes: &[Class],
        controls: Option<&ControlRuns>,
        mut progress: Progress<'_>,
    ) -> Result<u64, CampaignError> {
        let mut unfinished = Unfinished::default();
        while progress.injected < self.injections && !interrupt::requested() {
            let mut generation = Generation::start(target, &self.vmsrs)?;
            let mut done = 0;
            while done < PER_GENERATION
                && !generation.is_spent()
                && progress.injected < self.injections
                && !interrupt::requested()
            {
                let plan = Plan::new(self.seed, progress.number, classes, target.symbols());
                let attack = generation.attack(target, &plan);
                let control =
                    controls.map(|controls| controls.strike(plan.clone(), attack.clone()));
                let trial = generation.strike(target, &plan, &attack);
                progress.count(&trial)?;
                unfinished.push(trial, control);
                done += 1;
            }
            if done > 0
                && let Some(last) = unfinished.last_mut()
            {
                progress.requests += generation.finish(target, last);
            }
            while let Some(trial) = unfinished.pop(false)? {
                progress.add(trial)?;
            }
        }
        while let Some(trial) = unfinished.pop(true)? {
            progress.add(trial)?;
        }
        interrupt::check().map_err(|_| CampaignError::Interrupted)?;
        progress.bar.finish();
        Ok(progress.requests)
    }

    fn classes_for(&self, target: &dyn Target) -> Result<Vec<Class>, CampaignError> {
        let mut classes = target.classes();
        let wanted = |class: &Class| self.classes.iter().any(|name| name == class.name);
        classes.retain(|class| self.classes.is_empty() || wanted(class));
        match classes.is_empty() {
            true => Err(CampaignError::Classes(self.classes.clone())),
            false => Ok(classes),
        }
    }
}

/// How far a campaign against one server has come.
struct Progress<'a> {
    /// Of the next trial.
    number: u64,
    injected: u64,
    /// Trials in a row in which nothing was injected.
    idle: u64,
    /// Of healthy clients.
    requests: u64,
    bar: ProgressBar,
    tally: Tally,
    trials: &'a mut Trials,
}

impl Progress<'_> {
    /// Counts a trial, whose control run may not be done.
    fn count(&mut self, trial: &Trial) -> Result<(), CampaignError> {
        self.number += 1;
        match trial.injected.is_some() {
            true => (self.injected, self.idle) = (self.injected + 1, 0),
            false => self.idle += 1,
        }
        self.bar.set_position(self.injected);
        match self.idle > IDLE_MAX {
            true => Err(CampaignError::Idle(trial.spec.clone())),
            false => Ok(()),
        }
    }

    /// Keeps a trial that is done.
    fn add(&mut self, trial: Trial) -> Result<(), CampaignError> {
        self.tally.count(&trial);
        self.bar.set_message(self.tally.to_string());
        self.trials.add(trial)
    }
}

/// What the progress bar tells.
#[derive(Default)]
struct Tally {
    recovered: u64,
    degraded: u64,
    escalated: u64,
    silent: u64,
    incorrect: u64,
}

impl Tally {
    fn count(&mut self, trial: &Trial) {
        match trial.outcome {
            Some(Outcome::Recovered) => self.recovered += 1,
            Some(Outcome::Degraded) => self.degraded += 1,
            Some(Outcome::Escalated) => self.escalated += 1,
            None => {}
        }
        self.silent += u64::from(trial.is_silent_corruption());
        self.incorrect += u64::from(!trial.is_correct());
    }
}

impl std::fmt::Display for Tally {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} recovered, {} degraded, {} escalated, {} incorrect, {} silent",
            self.recovered, self.degraded, self.escalated, self.incorrect, self.silent
        )
    }
}

fn progress_bar(server: &str, injections: u64, done: u64) -> ProgressBar {
    let bar = ProgressBar::new(injections).with_prefix(server.to_owned());
    let style = "{prefix:10} {bar:30} {pos}/{len} injected, {elapsed} (eta {eta})  {msg}";
    if let Ok(style) = ProgressStyle::with_template(style) {
        bar.set_style(style);
    }
    bar.set_position(done);
    bar.reset_eta();
    bar
}

/// Replaces a file by `content`.
pub fn write(path: &Path, content: &str) -> Result<(), CampaignError> {
    fs::write(path, content).map_err(|source| CampaignError::File {
        path: path.to_path_buf(),
        source,
    })
}
