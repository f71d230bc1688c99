//! From trials to counts: how far each injected fault came, and what became of it.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    rate::Rate,
    trial::{FailureKind, Outcome, Trial},
};

/// What came of a set of trials. From `trials` to `correct`, each count is a part of the one it
/// names.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Funnel {
    /// All of them.
    pub trials: u64,
    /// The monitor put the fault in. All further counts are of these.
    pub injected: u64,
    /// The fault had an effect that could be seen.
    pub activated: u64,
    /// Without the monitor, the server would have ended or stopped.
    pub manifested: u64,
    /// Of the manifested: the monitor caught something.
    pub detected: u64,
    /// Of the detected: every guarantee was kept, says the monitor.
    pub recovered: u64,
    /// Of the recovered: and no healthy client saw anything wrong.
    pub correct: u64,
    /// Of the detected: the server went on with less.
    pub degraded: u64,
    /// Of the detected: the process was restarted in place, or ended.
    pub escalated: u64,
    /// Of the detected: the monitor told of no outcome.
    pub untold: u64,
    /// Of the detected: caught only after the struck request had ended.
    pub latent: u64,
    /// Of the manifested: the monitor caught nothing.
    pub undetected: u64,
    /// Of the injected: wrong data, and the monitor had not said that anything was amiss.
    pub silent: u64,
    /// Of the injected: the server ended, or did not answer any more.
    pub dead: u64,
    /// Recovered and correct, of the detected that are not latent: the survival rate.
    pub survival: Rate,
    /// Recovered and correct, of all detected.
    pub survival_with_latent: Rate,
    /// How long the recoveries took.
    pub pause: Pause,
}

/// The times of recoveries, of all injected trials that had one.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pause {
    /// How many there were.
    pub count: u64,
    /// Half of them took no longer, in microseconds.
    pub median_us: Option<u64>,
    /// 99 of 100 took no longer, in microseconds.
    pub p99_us: Option<u64>,
}

/// The counts of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ServerFunnel {
    /// Its name.
    pub server: String,
    /// All its trials.
    pub total: Funnel,
    /// Its trials of each fault class.
    pub classes: Vec<ClassFunnel>,
}

/// The counts of one fault class of one server.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClassFunnel {
    /// The class.
    pub class: String,
    /// Its trials.
    pub funnel: Funnel,
}

impl Funnel {
    /// Counts `trials`.
    pub fn new<'a>(trials: impl IntoIterator<Item = &'a Trial>) -> Self {
        let trials: Vec<_> = trials.into_iter().collect();
        let of = |set: &[&'a Trial], test: &dyn Fn(&Trial) -> bool| -> Vec<&'a Trial> {
            set.iter().copied().filter(|trial| test(trial)).collect()
        };
        let injected = of(&trials, &|trial| trial.injected.is_some());
        let manifested = of(&injected, &Trial::is_manifested);
        let detected = of(&manifested, &|trial| trial.detected.is_some());
        let with = |outcome| of(&detected, &|trial| trial.outcome == outcome);
        let recovered = with(Some(Outcome::Recovered));
        let correct = of(&recovered, &Trial::is_correct);
        let latent = of(&detected, &is_latent);
        let correct_at_once = count(&correct) - count(&of(&correct, &is_latent));
        Self {
            trials: count(&trials),
            injected: count(&injected),
            activated: count(&of(&injected, &|trial| trial.activated)),
            manifested: count(&manifested),
            detected: count(&detected),
            recovered: count(&recovered),
            correct: count(&correct),
            degraded: count(&with(Some(Outcome::Degraded))),
            escalated: count(&with(Some(Outcome::Escalated))),
            untold: count(&with(None)),
            latent: count(&latent),
            undetected: count(&manifested) - count(&detected),
            silent: count(&of(&injected, &Trial::is_silent_corruption)),
            dead: count(&of(&injected, &is_dead)),
            survival: Rate::new(correct_at_once, count(&detected) - count(&latent)),
            survival_with_latent: Rate::new(count(&correct), count(&detected)),
            pause: Pause::new(injected.iter().filter_map(|trial| trial.pause_us)),
        }
    }
}

impl Pause {
    fn new(times: impl Iterator<Item = u64>) -> Self {
        let mut times: Vec<_> = times.collect();
        times.sort_unstable();
        // The nearest rank: the smallest time that so many of a hundred do not exceed.
        let percentile = |percent: usize| {
            let rank = (times.len() * percent).div_ceil(100);
            times.get(rank.saturating_sub(1)).copied()
        };
        Self {
            count: times.len() as u64,
            median_us: percentile(50),
            p99_us: percentile(99),
        }
    }
}

/// The counts of each server, in the order of their names.
pub fn by_server(trials: &[Trial]) -> Vec<ServerFunnel> {
    let servers = group(trials, |trial| &trial.server).into_iter();
    let servers = servers.map(|(server, trials)| {
        let total = Funnel::new(trials.iter().copied());
        let classes = group(trials, |trial| &trial.class).into_iter();
        let classes = classes.map(|(class, trials)| ClassFunnel {
            class: class.to_owned(),
            funnel: Funnel::new(trials),
        });
        ServerFunnel {
            server: server.to_owned(),
            total,
            classes: classes.collect(),
        }
    });
    servers.collect()
}

fn group<'a>(
    trials: impl IntoIterator<Item = &'a Trial>,
    name: impl Fn(&'a Trial) -> &'a str,
) -> BTreeMap<&'a str, Vec<&'a Trial>> {
    let mut groups: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for trial in trials {
        groups.entry(name(trial)).or_default().push(trial);
    }
    groups
}

fn count(trials: &[&Trial]) -> u64 {
    trials.len() as u64
}

fn is_latent(trial: &Trial) -> bool {
    trial.detected.as_ref().is_some_and(|found| found.latent)
}

fn is_dead(trial: &Trial) -> bool {
    let is_end = |kind| matches!(kind, FailureKind::ServerDied | FailureKind::ServerHung);
    trial.failures.iter().any(|failure| is_end(failure.kind))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::sample::{self, trial};

    #[test]
    fn every_trial_is_counted_where_it_belongs() {
        let total = Funnel::new(&sample::trials());
        let expected = Funnel {
            trials: 12,
            injected: 11,
            activated: 10,
            manifested: 8,
            detected: 7,
            recovered: 4,
            correct: 3,
            degraded: 1,
            escalated: 1,
            untold: 1,
            latent: 1,
            undetected: 1,
            silent: 2,
            dead: 2,
            survival: Rate::new(2, 6),
            survival_with_latent: Rate::new(3, 7),
            pause: Pause {
                count: 4,
                median_us: Some(200),
                p99_us: Some(4000),
            },
        };
        assert_eq!(total, expected);
    }

    #[test]
    fn servers_and_classes_are_counted_apart() {
        let servers = by_server(&sample::trials());
        let name = |server: &ServerFunnel| {
            let classes = server.classes.iter();
            let classes = classes.map(|class| (class.class.clone(), class.funnel.trials));
            (
                server.server.clone(),
                server.total.trials,
                classes.collect(),
            )
        };
        let names: Vec<(_, _, Vec<_>)> = servers.iter().map(name).collect();
        let class = |name: &str, trials| (name.to_owned(), trials);
        let expected = [
            ("nginx".to_owned(), 2, vec![class("stack|<b>", 2)]),
            (
                "redis".to_owned(),
                10,
                vec![class("pointer=bit", 6), class("pointer=null", 4)],
            ),
        ];
        assert_eq!(names, expected);
        assert_eq!(servers[1].total.survival, Rate::new(2, 6));
        assert_eq!(servers[0].total.survival.share, None);
    }

    #[test]
    fn what_was_not_injected_counts_nowhere_else() {
        let not_injected = Trial {
            injected: None,
            ..trial("redis", "pointer=bit")
        };
        let funnel = Funnel::new([&not_injected]);
        assert_eq!((funnel.trials, funnel.injected), (1, 0));
        assert_eq!((funnel.manifested, funnel.correct), (0, 0));
        assert_eq!(funnel.pause, Pause::default());
    }

    #[test]
    fn percentiles_are_times_that_occurred() {
        let pause = Pause::new(1..=200);
        assert_eq!((pause.median_us, pause.p99_us), (Some(100), Some(198)));
        assert_eq!(Pause::new([7].into_iter()).p99_us, Some(7));
        assert_eq!(Pause::new([].into_iter()), Pause::default());
    }
}
