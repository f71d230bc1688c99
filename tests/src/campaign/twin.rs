//! The control run: the same request and the same injection, in a server whose faults take their course.

use std::{
    io,
    path::{Path, PathBuf},
    time::Duration,
};

use tempfile::TempDir;

use super::{
    control::Control,
    exchange::{Answer, exchange},
    generation::{LIMITS, launch},
    plan::{Nature, Plan},
    target::{Attack, Target},
    trial::Control as Result,
};
use crate::{Monitored, StartError, load::Random};

/// Whoever waits for longer takes the server for hung.
const PATIENCE: Duration = Duration::from_millis(300);
/// A server that crashes may write a report of its own first.
const LAST_WORDS: Duration = Duration::from_secs(10);
/// Requests after the struck one, in which damage may show.
const FOLLOWING: u64 = 24;
/// After one that was not answered: one for each worker thread.
const FOLLOWING_HANG: u64 = 4;
/// What a request that eats memory without end may eat.
const MEMORY: &str = "--data=1073741824";

/// The server without recovery; another one is started when it has ended or may be damaged.
pub struct Twin {
    vmsrs: PathBuf,
    running: Option<Running>,
}

struct Running {
    server: Monitored,
    control: Control,
    _sockets: TempDir,
}

impl Twin {
    /// None is started yet.
    pub fn new(vmsrs: &Path) -> Twin {
        Twin {
            vmsrs: vmsrs.to_path_buf(),
            running: None,
        }
    }

    /// Starts it, unless it runs.
    pub fn prepare(&mut self, target: &dyn Target) -> std::result::Result<(), StartError> {
        if self.running.is_none() {
            self.running = Some(Running::start(target, &self.vmsrs)?);
        }
        Ok(())
    }

    /// Injects the fault of `plan` into it.
    pub fn strike(
        &mut self,
        target: &dyn Target,
        plan: &Plan,
        attack: &Attack,
    ) -> std::result::Result<Result, StartError> {
        let mut running = match self.running.take() {
            Some(running) => running,
            None => Running::start(target, &self.vmsrs)?,
        };
        let result = running.strike(target, plan, attack);
        let is_whole = match result {
            Result::NotInjected => true,
            Result::Survived => plan.class.nature != Nature::Damage,
            _ => false,
        };
        self.running = is_whole.then_some(running);
        Ok(result)
    }
}

impl Running {
    fn start(target: &dyn Target, vmsrs: &Path) -> std::result::Result<Running, StartError> {
        let options = [&LIMITS[..], &["--recover=off"]].concat();
        let (server, control, sockets) = launch(target, vmsrs, &options)?;
        limit_memory(server.pid());
        Ok(Running {
            server,
            control,
            _sockets: sockets,
        })
    }

    fn strike(&mut self, target: &dyn Target, plan: &Plan, attack: &Attack) -> Result {
        let address = self.server.address().clone();
        let id = match self.control.inject(&plan.spec) {
            Ok(id) => id,
            Err(error) => return Result::Wrong(format!("inject: {error}")),
        };
        let answer = exchange(target, &address, attack, PATIENCE);
        let mut random = Random::new(plan.number);
        let following = match answer {
            Ok((Answer::Nothing, _)) => FOLLOWING_HANG,
            _ => FOLLOWING,
        };
        let mut wrong = None;
        for number in 0..following {
            let tag = format!("after{}-{number}", plan.number);
            let shared = (number as usize % 2, plan.number << 8 | number | 1 << 62);
            let next = target.attack(&mut random, &tag, shared);
            match exchange(target, &address, &next, PATIENCE) {
                Ok((Answer::Right, _)) => {}
                Ok((Answer::Nothing, _)) | Err(_) => return self.ended().unwrap_or(Result::Hung),
                Ok((other, _)) => {
                    wrong.get_or_insert(format!("{}: {other:?}", next.description));
                }
            }
        }
        if let Some(ended) = self.has_ended() {
            return ended;
        }
        let counts = self.control.conclude(id);
        if counts.is_ok_and(|counts| counts.struck == 0) {
            return Result::NotInjected;
        }
        match wrong {
            Some(what) => self.ended_soon().unwrap_or(Result::Wrong(what)),
            None => Result::Survived,
        }
    }

    fn has_ended(&mut self) -> Option<Result> {
        let status = self.server.try_wait().ok()??;
        Some(Result::Died(status.to_string()))
    }

    fn ended_soon(&mut self) -> Option<Result> {
        for _ in 0..20 {
            if let Some(ended) = self.has_ended() {
                return Some(ended);
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// How it has ended, or does after its last words.
    fn ended(&mut self) -> Option<Result> {
        let steps = LAST_WORDS.as_millis() / 20;
        for _ in 0..steps {
            if let Some(ended) = self.has_ended() {
                return Some(ended);
            }
            // Only one that crashes says that it does.
            if !self.crashes() {
                return self.ended_soon();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }

    fn crashes(&self) -> bool {
        let told = self.server.events_of("escalated");
        // Limits, which are told as well, do not end it.
        told.is_ok_and(|events| events.iter().any(|event| event.text("signal").is_some()))
    }
}

/// Bounds the memory of process `pid`, as the machine's would be in the end.
fn limit_memory(pid: u32) {
    let mut command = std::process::Command::new("prlimit");
    let done = command
        .args([MEMORY, "--pid", &pid.to_string()])
        .status()
        .and_then(|status| match status.success() {
            true => Ok(()),
            false => Err(io::Error::other(status.to_string())),
        });
    if let Err(error) = done {
        eprintln!("campaign: the control run's memory is not bounded: prlimit: {error}");
    }
}
