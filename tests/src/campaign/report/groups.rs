//! The trials that went wrong, put together by what went wrong.

use std::collections::BTreeMap;

use crate::campaign::trial::{Outcome, Trial};

/// No list is longer; what is left out is counted.
const MOST_GROUPS: usize = 40;

/// Longer texts of a server or the monitor are cut.
const MOST_CHARACTERS: usize = 240;

/// Trials of one server and class that went wrong for the same reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Group {
    /// The server.
    pub server: String,
    /// The fault class.
    pub class: String,
    /// What became of the fault, and why.
    pub reason: String,
    /// How many there are.
    pub count: usize,
    /// The first of them: its number, what was injected, and what was seen.
    pub example: String,
}

/// The largest groups.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// At most 40, the largest first.
    pub groups: Vec<Group>,
    /// How many groups were left out.
    pub more_groups: usize,
    /// How many trials those have.
    pub more_trials: usize,
}

impl Groups {
    /// The trials with silent corruption.
    pub fn silent(trials: &[Trial]) -> Self {
        let injected = trials.iter().filter(|trial| trial.injected.is_some());
        Self::new(injected.filter(|trial| trial.is_silent_corruption()))
    }

    /// The manifested trials that were not recovered, or where somebody saw something wrong. One
    /// with silent corruption is in both lists.
    pub fn not_survived(trials: &[Trial]) -> Self {
        let injected = trials.iter().filter(|trial| trial.injected.is_some());
        Self::new(injected.filter(|trial| trial.is_manifested() && !is_survived(trial)))
    }

    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.groups.is_empty()
    }

    /// What was left out, in words.
    pub fn rest(&self) -> Option<String> {
        let (groups, trials) = (self.more_groups, self.more_trials);
        (groups > 0).then(|| format!("{groups} more groups with {trials} trials are left out."))
    }

    fn new<'a>(trials: impl Iterator<Item = &'a Trial>) -> Self {
        let mut by_reason: BTreeMap<_, Vec<&Trial>> = BTreeMap::new();
        for trial in trials {
            let key = (trial.server.as_str(), trial.class.as_str(), reason(trial));
            by_reason.entry(key).or_default().push(trial);
        }
        let groups = by_reason.into_iter();
        let groups = groups.filter_map(|((server, class, reason), trials)| {
            Some(Group {
                server: server.to_owned(),
                class: class.to_owned(),
                reason,
                count: trials.len(),
                example: example(trials.first()?),
            })
        });
        let mut groups: Vec<_> = groups.collect();
        groups.sort_by_key(|group| std::cmp::Reverse(group.count));
        let rest = groups.split_off(groups.len().min(MOST_GROUPS));
        Self {
            groups,
            more_groups: rest.len(),
            more_trials: rest.iter().map(|group| group.count).sum(),
        }
    }
}

fn is_survived(trial: &Trial) -> bool {
    let is_recovered = trial.outcome == Some(Outcome::Recovered);
    trial.detected.is_some() && is_recovered && trial.is_correct()
}

/// What became of a fault: the monitor's word and reason, and the names of the failures.
fn reason(trial: &Trial) -> String {
    let outcome = match (trial.outcome, &trial.detected) {
        (Some(Outcome::Recovered), _) => "recovered",
        (Some(Outcome::Degraded), _) => "degraded",
        (Some(Outcome::Escalated), _) => "escalated",
        (None, Some(_)) => "caught, no outcome",
        (None, None) => "not caught",
    };
    let mut text = outcome.to_owned();
    if let Some(reason) = &trial.reason {
        text += &format!(" ({})", cut(reason));
    }
    let mut kinds: Vec<_> = trial.failures.iter().map(|failure| failure.kind).collect();
    kinds.sort_unstable();
    kinds.dedup();
    let names: Vec<_> = kinds.iter().map(|kind| format!("{kind:?}")).collect();
    if !names.is_empty() {
        text += &format!(": {}", names.join(", "));
    }
    text
}

fn example(trial: &Trial) -> String {
    let injected = trial.injected.as_deref().unwrap_or("nothing");
    let mut text = format!("trial {}: {}", trial.number, cut(injected));
    if let Some(failure) = trial.failures.first() {
        text += &format!("; {}", cut(&failure.detail));
    }
    text
}

fn cut(text: &str) -> String {
    match text.char_indices().nth(MOST_CHARACTERS) {
        Some((end, _)) => format!("{}…", &text[..end]),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::campaign::sample::{self, trial};

    #[test]
    fn trials_that_went_wrong_are_grouped_by_reason() {
        let mut trials = sample::trials();
        trials.extend(sample::trials().into_iter().nth(6));
        let groups = Groups::not_survived(&trials);
        let counts = groups.groups.iter();
        let counts: Vec<_> = counts.map(|g| (g.reason.as_str(), g.count)).collect();
        assert_eq!(
            counts,
            [
                ("degraded (lock held by another thread): LostWrite", 2),
                ("recovered: StaleValue", 1),
                ("caught, no outcome: ServerHung", 1),
                ("escalated (no <safe> point | found): ServerDied", 1),
                ("not caught", 1),
            ]
        );
        assert_eq!(
            groups.groups[0].example,
            "trial 6: bit 5 of rax; key k8: version 9"
        );
        assert_eq!(groups.rest(), None);
    }

    #[test]
    fn silent_corruption_is_listed_whether_the_fault_manifested_or_not() {
        let groups = Groups::silent(&sample::trials()).groups;
        let names: Vec<_> = groups.iter().map(|g| (&*g.server, &*g.reason)).collect();
        let expected = [
            ("nginx", "not caught: WrongValue"),
            ("redis", "recovered: StaleValue"),
        ];
        assert_eq!(names, expected);
    }

    #[test]
    fn a_list_has_an_end_and_tells_what_is_left_out() {
        let lost = |number| Trial {
            outcome: Some(Outcome::Degraded),
            reason: Some(format!("reason {}", number % 43)),
            ..trial("redis", "pointer=bit")
        };
        let trials: Vec<_> = (0..84).map(lost).collect();
        let groups = Groups::not_survived(&trials);
        assert_eq!(groups.groups.len(), 40);
        assert_eq!((groups.more_groups, groups.more_trials), (3, 4));
        assert!(groups.rest().is_some());
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        let text = "ä".repeat(300);
        assert_eq!(cut(&text).chars().count(), 241);
        assert_eq!(cut("ä"), "ä");
    }
}
