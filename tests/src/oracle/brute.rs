//! The slow way to judge a history: try every order (Wing and Gong, 1993). It knows nothing of
//! clusters or zones, so that it can judge the fast way.

use std::collections::HashSet;

use super::history::{Action, Fate, Operation};

/// Whether some order of the operations explains the reads.
pub(super) fn is_linearizable(operations: &[Operation]) -> bool {
    // An abandoned write never takes effect.
    let abandoned = |operation: &&Operation| fate(operation) == Some(Fate::Abandoned);
    let operations: Vec<_> = operations.iter().filter(|o| !abandoned(o)).collect();
    let mut seen = HashSet::new();
    search(&operations, 0, None, &mut seen)
}

fn fate(operation: &Operation) -> Option<Fate> {
    match operation.action {
        Action::Write { fate, .. } => Some(fate),
        Action::Read { .. } => None,
    }
}

/// Whether the operations that are not in the set `done` can go on from the state `value`.
fn search(
    operations: &[&Operation],
    done: u32,
    value: Option<u64>,
    seen: &mut HashSet<(u32, Option<u64>)>,
) -> bool {
    if !seen.insert((done, value)) {
        return false;
    }
    let is_left = |at: &usize| done & (1 << at) == 0;
    let left = || (0..operations.len()).filter(is_left);
    let is_unknown = |at: usize| fate(operations[at]) == Some(Fate::Unknown);
    if left().all(is_unknown) {
        return true; // They need not take effect at all.
    }
    // Nothing may come after an operation that ended before it began. An unknown write has no end.
    let ends = left().filter(|at| !is_unknown(*at));
    let first_end = ends.map(|at| operations[at].end).min();
    left().any(|at| {
        let operation = operations[at];
        let can_be_next = first_end.is_none_or(|end| operation.begin <= end);
        let next = match operation.action {
            Action::Write { version, .. } => Some(Some(version)),
            Action::Read { version } => (version == value).then_some(value),
        };
        can_be_next && next.is_some_and(|next| search(operations, done | 1 << at, next, seen))
    })
}

#[test]
fn it_knows_the_textbook_cases() {
    let op = |action, begin, end| Operation { action, begin, end };
    let write = |version, fate, begin, end| op(Action::Write { version, fate }, begin, end);
    let read = |version, begin, end| op(Action::Read { version }, begin, end);
    let (known, unknown) = (Fate::Acknowledged, Fate::Unknown);
    let first = write(1, known, 0, 1);
    assert!(is_linearizable(&[first, read(Some(1), 2, 3)]));
    assert!(!is_linearizable(&[first, read(None, 2, 3)]));
    assert!(is_linearizable(&[first, read(None, 1, 3)]));
    let lost = write(2, unknown, 0, 1);
    assert!(is_linearizable(&[
        first,
        lost,
        read(Some(1), 2, 3),
        read(Some(2), 4, 5)
    ]));
    assert!(!is_linearizable(&[
        lost,
        read(Some(2), 2, 3),
        read(None, 4, 5)
    ]));
    let undone = write(3, Fate::Abandoned, 0, 1);
    assert!(is_linearizable(&[undone, read(None, 2, 3)]));
    assert!(!is_linearizable(&[undone, read(Some(3), 2, 3)]));
}
