//! Random histories: the checker against a simulated register, and against the brute force.

use std::cell::Cell;

use proptest::{
    collection::vec,
    prelude::*,
    test_runner::{Config, TestRunner},
};

use super::{
    brute,
    history::{Action, Fate, Operation},
    linearizable::check,
};
use crate::campaign::trial::FailureKind;

/// One operation of a simulated client, by which time it takes at each step.
#[derive(Clone, Debug)]
struct Step {
    client: usize,
    pause: u64,
    until_effect: u64,
    until_answer: u64,
    kind: Kind,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Read,
    Write,
    /// The client gives up; the write takes effect that long after it was sent, if at all.
    Unanswered(Option<u64>),
    Abandoned,
}

fn kind() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => Just(Kind::Read),
        4 => Just(Kind::Write),
        2 => proptest::option::of(0..20u64).prop_map(Kind::Unanswered),
        1 => Just(Kind::Abandoned),
    ]
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = (0..3usize, 0..4u64, 0..4u64, 0..4u64, kind());
    let step = step.prop_map(|(client, pause, until_effect, until_answer, kind)| Step {
        client,
        pause,
        until_effect,
        until_answer,
        kind,
    });
    vec(step, 0..8)
}

/// Plays the steps on an atomic register: each operation takes effect at one moment between its
/// begin and its end, so that the history is linearizable by construction.
fn simulate(steps: &[Step]) -> Vec<Operation> {
    let mut clocks = [0; 3];
    let mut effects = Vec::new();
    let mut operations = Vec::new();
    for (at, step) in steps.iter().enumerate() {
        let version = at as u64 + 1;
        let begin = clocks[step.client] + step.pause;
        let effect = begin + step.until_effect;
        let end = effect + step.until_answer;
        clocks[step.client] = end + 1;
        let write = |fate| Action::Write { version, fate };
        let (action, effect) = match step.kind {
            Kind::Read => (Action::Read { version: None }, Some(effect)),
            Kind::Write => (write(Fate::Acknowledged), Some(effect)),
            Kind::Unanswered(after) => (write(Fate::Unknown), after.map(|after| begin + after)),
            Kind::Abandoned => (write(Fate::Abandoned), None),
        };
        effects.extend(effect.map(|effect| (effect, at)));
        operations.push(Operation { action, begin, end });
    }
    effects.sort_unstable();
    let mut value = None;
    for (_, at) in effects {
        match &mut operations[at].action {
            Action::Write { version, .. } => value = Some(*version),
            Action::Read { version } => *version = value,
        }
    }
    operations
}

/// A change to one operation.
#[derive(Clone, Copy, Debug)]
enum Change {
    /// Another value is read: that of the operation with this number, or none.
    Value(Option<u64>),
    /// It all happens at another time.
    Times(u64, u64),
    /// The client knows something else of its write.
    Fate(Fate),
}

fn changes() -> impl Strategy<Value = Vec<(prop::sample::Index, Change)>> {
    let fates = [Fate::Acknowledged, Fate::Unknown, Fate::Abandoned];
    let change = prop_oneof![
        3 => proptest::option::of(1..9u64).prop_map(Change::Value),
        2 => (0..16u64, 0..6u64).prop_map(|(begin, takes)| Change::Times(begin, takes)),
        1 => prop::sample::select(fates.to_vec()).prop_map(Change::Fate),
    ];
    vec((any::<prop::sample::Index>(), change), 0..4)
}

fn mutate(operations: &mut [Operation], changes: &[(prop::sample::Index, Change)]) {
    for (index, change) in changes {
        if operations.is_empty() {
            return;
        }
        let operation = &mut operations[index.index(operations.len())];
        match (*change, &mut operation.action) {
            (Change::Value(value), Action::Read { version }) => *version = value,
            (Change::Fate(value), Action::Write { fate, .. }) => *fate = value,
            (Change::Times(begin, takes), _) => {
                operation.begin = begin;
                operation.end = begin + takes;
            }
            _ => {}
        }
    }
}

/// Whether it is a failure that needs no pair of zones to be told.
fn is_plain(kind: FailureKind) -> bool {
    kind != FailureKind::BrokenOrder
}

/// Whether a read alone shows that something is wrong, by the definitions of the failures: its
/// value was not there to be seen yet, or never was, or a newer one had been acknowledged.
fn has_plain(operations: &[Operation]) -> bool {
    let value = |operation: &Operation| match operation.action {
        Action::Write { version, fate } => (Some(version), Some(fate)),
        Action::Read { version } => (version, None),
    };
    let is_older = |version: Option<u64>, than: &Operation| {
        let of_it = |o: &&Operation| value(o).0 == version && o.end < than.begin;
        let counts = |o: &&Operation| matches!(value(o).1, None | Some(Fate::Acknowledged));
        version.is_none() || operations.iter().filter(of_it).any(|o| counts(&o))
    };
    operations.iter().any(|read| {
        let (version, None) = value(read) else {
            return false;
        };
        let is_its_write = |o: &&Operation| value(o).0 == version && value(o).1.is_some();
        let can_be_seen = match operations.iter().find(is_its_write) {
            Some(write) => value(write).1 != Some(Fate::Abandoned) && write.begin <= read.end,
            None => version.is_none(),
        };
        let is_missed = |write: &Operation| {
            let (other, fate) = value(write);
            let is_done = fate == Some(Fate::Acknowledged) && write.end < read.begin;
            other != version && is_done && is_older(version, write)
        };
        !can_be_seen || operations.iter().any(is_missed)
    })
}

/// A generator that is the same in each run, and tries `cases` histories.
fn runner(cases: u32) -> TestRunner {
    let config = Config {
        cases,
        failure_persistence: None,
        ..Config::default()
    };
    TestRunner::new_with_rng(config, TestRunner::deterministic().new_rng())
}

#[test]
fn every_history_of_an_atomic_register_is_linearizable() {
    let result = runner(4_000).run(&steps(), |steps| {
        let operations = simulate(&steps);
        prop_assert!(brute::is_linearizable(&operations), "{operations:?}");
        prop_assert_eq!(check("k", &operations), Ok(()));
        Ok(())
    });
    result.unwrap();
}

#[test]
fn the_verdict_is_that_of_the_brute_force() {
    let (good, bad) = (Cell::new(0), Cell::new(0));
    let result = runner(30_000).run(&(steps(), changes()), |(steps, changes)| {
        let mut operations = simulate(&steps);
        mutate(&mut operations, &changes);
        let expected = brute::is_linearizable(&operations);
        let verdict = check("k", &operations);
        prop_assert_eq!(verdict.is_ok(), expected, "{:?} {:?}", operations, verdict);
        if let Err(violation) = verdict {
            prop_assert_eq!(
                is_plain(violation.kind),
                has_plain(&operations),
                "{:?}",
                violation
            );
        }
        let counter = if expected { &good } else { &bad };
        counter.set(counter.get() + 1);
        Ok(())
    });
    result.unwrap();
    // Both verdicts must be common, or the comparison shows nothing.
    assert!(good.get() > 5_000 && bad.get() > 5_000, "{good:?} {bad:?}");
}
