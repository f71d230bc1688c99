//! The control runs of a campaign, beside it: the next trial does not wait for them, and they are most of the work.

use std::{
    collections::VecDeque,
    path::Path,
    sync::{
        Arc, Mutex, PoisonError,
        mpsc::{self, Receiver, Sender, SyncSender, TryRecvError},
    },
    thread::Scope,
};

use super::{
    plan::Plan,
    target::{Attack, Target},
    trial::{Control, Trial},
    twin::Twin,
};
use crate::StartError;

/// Servers without recovery.
const TWINS: usize = 2;
/// Control runs that wait for one of them at most.
const WAITING: usize = 16;

type Outcome = Result<Control, StartError>;

struct Job {
    plan: Plan,
    attack: Attack,
    done: Sender<Outcome>,
}

/// Does control runs in threads of its own, which end when it is dropped.
pub struct ControlRuns {
    jobs: SyncSender<Job>,
}

impl ControlRuns {
    /// Starts the threads.
    pub fn start<'scope>(
        scope: &'scope Scope<'scope, '_>,
        target: &'scope dyn Target,
        vmsrs: &'scope Path,
    ) -> ControlRuns {
        let (jobs, waiting) = mpsc::sync_channel(WAITING);
        let waiting = Arc::new(Mutex::new(waiting));
        for _ in 0..TWINS {
            let waiting = Arc::clone(&waiting);
            scope.spawn(move || {
                let mut twin = Twin::new(vmsrs);
                while let Some(Job { plan, attack, done }) = next(&waiting) {
                    // A campaign that has failed does not want to know any more.
                    let _ = done.send(twin.strike(target, &plan, &attack));
                    // If it cannot be started, the next strike says so.
                    let _ = twin.prepare(target);
                }
            });
        }
        ControlRuns { jobs }
    }

    /// Does the control run of `plan` when there is a server for it; waits for that while too many others do.
    pub fn strike(&self, plan: Plan, attack: Attack) -> Receiver<Outcome> {
        let (done, outcome) = mpsc::channel();
        // Without a thread to do it, `done` goes at once, which is told like a thread that has panicked.
        let _ = self.jobs.send(Job { plan, attack, done });
        outcome
    }
}

fn next(waiting: &Mutex<Receiver<Job>>) -> Option<Job> {
    let waiting = waiting.lock().unwrap_or_else(PoisonError::into_inner);
    waiting.recv().ok()
}

/// Trials that may still wait for their control runs, in their order.
#[derive(Default)]
pub struct Unfinished(VecDeque<(Trial, Option<Receiver<Outcome>>)>);

impl Unfinished {
    /// Takes a trial with the control run that was asked for, if one was.
    pub fn push(&mut self, trial: Trial, control: Option<Receiver<Outcome>>) {
        self.0.push_back((trial, control));
    }

    /// The last trial.
    pub fn last_mut(&mut self) -> Option<&mut Trial> {
        self.0.back_mut().map(|(trial, _)| trial)
    }

    /// The next trial, if its control run is done; with `wait`, once it is.
    pub fn pop(&mut self, wait: bool) -> Result<Option<Trial>, StartError> {
        let Some((_, control)) = self.0.front() else {
            return Ok(None);
        };
        let outcome = match control {
            None => Ok(Control::NotRun),
            Some(control) if wait => control.recv().unwrap_or_else(|_| Ok(panicked())),
            Some(control) => match control.try_recv() {
                Ok(outcome) => outcome,
                Err(TryRecvError::Empty) => return Ok(None),
                Err(TryRecvError::Disconnected) => Ok(panicked()),
            },
        }?;
        Ok(self.0.pop_front().map(|(mut trial, _)| {
            trial.set_control(outcome);
            trial
        }))
    }
}

fn panicked() -> Control {
    Control::Wrong("the harness panicked".into())
}
