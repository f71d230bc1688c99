//! Whether one order of the operations on a key explains what every client saw.
//!
//! After Gibbons and Korach, "Testing shared memories" (SIAM Journal on Computing, 1997): where
//! every read names the write that it saw, the question takes O(n log n).

use std::collections::HashMap;

use super::{
    history::{Action, Fate, History, Operation},
    moment::Moment,
    verdict::{self, Violation, name},
    zone::{self, Cluster},
};
use crate::campaign::trial::FailureKind;

/// Checks every key of `history`; at most one violation for each.
pub fn check_all(history: &History) -> Vec<Violation> {
    let keys = history.keys();
    keys.filter_map(|(key, operations)| check(key, operations).err())
        .collect()
}

/// Checks the operations on the key named `key`, which is absent at first. A version that is
/// written twice is an error of the caller, and panics: the reads of it could not be told apart.
pub fn check(key: &str, operations: &[Operation]) -> Result<(), Violation> {
    let clusters = clusters(key, operations)?;
    match zone::conflict(&clusters) {
        Some(pair) => Err(verdict::of_conflict(key, &clusters, pair)),
        None => Ok(()),
    }
}

/// The writes with their reads, if every read saw a write that can have come before it.
fn clusters(key: &str, operations: &[Operation]) -> Result<Vec<Cluster>, Violation> {
    let mut clusters = vec![Cluster::absent()];
    clusters.extend(operations.iter().filter_map(Cluster::of_write));
    let mut of_version = HashMap::new();
    for (at, cluster) in clusters.iter().enumerate() {
        let twice = of_version.insert(cluster.version, at).is_some();
        assert!(
            !twice,
            "key {key}: {} is written twice",
            name(cluster.version)
        );
    }
    for operation in operations {
        let Action::Read { version } = operation.action else {
            continue;
        };
        let (begin, end) = (Moment::At(operation.begin), Moment::At(operation.end));
        let violation = |kind, why: &str| {
            let what = format!("a read from {begin} to {end} saw {}, {why}", name(version));
            Err(Violation::new(kind, key, &what))
        };
        let Some(at) = of_version.get(&version) else {
            return violation(FailureKind::WrongValue, "which nobody ever wrote");
        };
        let cluster = &mut clusters[*at];
        let sent = cluster.write.0;
        if cluster.fate == Fate::Abandoned {
            let why = format!("whose write, sent at {sent}, had been abandoned");
            return violation(FailureKind::ResurrectedWrite, &why);
        }
        if end < sent {
            let why = format!("which was sent only at {sent}");
            return violation(FailureKind::WrongValue, &why);
        }
        cluster.add(begin, end);
    }
    Ok(clusters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use FailureKind::{BrokenOrder, LostWrite, ResurrectedWrite, StaleValue, WrongValue};

    fn write(version: u64, fate: Fate, begin: u64, end: u64) -> Operation {
        let action = Action::Write { version, fate };
        Operation { action, begin, end }
    }

    fn done(version: u64, begin: u64, end: u64) -> Operation {
        write(version, Fate::Acknowledged, begin, end)
    }

    fn read(version: u64, begin: u64, end: u64) -> Operation {
        let version = (version != 0).then_some(version);
        let action = Action::Read { version };
        Operation { action, begin, end }
    }

    fn kind(operations: &[Operation]) -> Option<FailureKind> {
        check("k", operations).err().map(|violation| violation.kind)
    }

    #[test]
    fn concurrent_operations_may_take_effect_in_any_order() {
        assert_eq!(kind(&[]), None);
        let overlapping = [done(1, 0, 9), done(2, 0, 9), read(2, 10, 11)];
        assert_eq!(kind(&overlapping), None);
        // The read touches the write that it does not see.
        let touching = [done(1, 0, 1), done(2, 2, 3), read(1, 3, 4), read(2, 5, 6)];
        assert_eq!(kind(&touching), None);
    }

    #[test]
    fn a_value_that_nobody_wrote_is_wrong() {
        assert_eq!(kind(&[done(1, 0, 1), read(2, 2, 3)]), Some(WrongValue));
        assert_eq!(kind(&[read(1, 0, 1), done(1, 2, 3)]), Some(WrongValue));
    }

    #[test]
    fn a_value_that_is_seen_too_late_is_stale() {
        let history = [done(1, 0, 1), done(2, 2, 3), read(1, 4, 5)];
        let with = |more: &[Operation]| kind(&[&history[..], more].concat());
        assert_eq!(with(&[read(2, 6, 7)]), Some(StaleValue));
        // A write that may have replaced it by then is as good.
        assert_eq!(with(&[done(3, 4, 6), read(3, 7, 8)]), Some(StaleValue));
        let absent = [done(1, 0, 1), read(0, 2, 3), read(1, 4, 5)];
        assert_eq!(kind(&absent), Some(StaleValue));
    }

    #[test]
    fn an_acknowledged_write_that_is_not_seen_any_more_is_lost() {
        assert_eq!(kind(&[done(1, 0, 1), read(0, 2, 3)]), Some(LostWrite));
        let rolled_back = [done(1, 0, 1), done(2, 2, 3), read(2, 4, 5), read(1, 6, 7)];
        assert_eq!(kind(&rolled_back), Some(LostWrite));
        // What is written afterwards does not bring it back.
        let overwritten = [&rolled_back[..], &[done(3, 8, 9), read(3, 10, 11)]].concat();
        assert_eq!(kind(&overwritten), Some(LostWrite));
        // Nor does another value that is older.
        let writes = [done(1, 0, 1), done(2, 2, 3), done(3, 4, 5)];
        let further_back = [&writes[..], &[read(1, 6, 7), read(2, 8, 9)]].concat();
        assert_eq!(kind(&further_back), Some(LostWrite));
        // The first of the two is told.
        let detail = check("k", &further_back).unwrap_err().detail;
        assert!(detail.contains("saw version 1, but version 3 "), "{detail}");
    }

    #[test]
    fn an_abandoned_write_must_not_be_seen() {
        let write = write(1, Fate::Abandoned, 0, 1);
        assert_eq!(kind(&[write, read(0, 2, 3)]), None);
        assert_eq!(kind(&[write, read(1, 2, 3)]), Some(ResurrectedWrite));
    }

    #[test]
    fn an_unknown_write_may_be_seen_late_or_never() {
        let write = write(1, Fate::Unknown, 0, 1);
        assert_eq!(kind(&[write, read(0, 2, 3)]), None);
        let late = [
            write,
            read(0, 2, 3),
            done(2, 4, 5),
            read(2, 6, 7),
            read(1, 8, 9),
        ];
        assert_eq!(kind(&late), None);
        // But once it was seen it is there.
        let gone = [write, read(1, 2, 3), read(0, 4, 5)];
        assert_eq!(kind(&gone), Some(BrokenOrder));
    }

    #[test]
    fn reads_that_disagree_about_the_order_of_writes_break_it() {
        let writes = [done(1, 0, 1), done(2, 0, 1)];
        let reads = [read(1, 2, 3), read(2, 4, 5), read(1, 6, 7)];
        let history = [&writes[..], &reads].concat();
        assert_eq!(kind(&history), Some(BrokenOrder));
        // Seen by one client while it is written, and not by another one later.
        let back = [done(1, 0, 1), done(2, 2, 9), read(2, 3, 4), read(1, 5, 6)];
        assert_eq!(kind(&back), Some(BrokenOrder));
    }

    #[test]
    fn a_violation_tells_key_versions_and_times() {
        let ms = 1_000_000;
        let history = [
            done(1, 0, ms),
            done(2, 2 * ms, 3 * ms),
            read(1, 4 * ms, 5_500_000),
        ];
        assert_eq!(
            check("user:7", &history).unwrap_err().detail,
            "key user:7: a read from 4.000 ms to 5.500 ms saw version 1, but version 2 had been \
             written from 2.000 ms to 3.000 ms and acknowledged, and it was not seen any more"
        );
        let back = [
            done(1, 0, 1),
            done(2, 2 * ms, 9 * ms),
            read(2, 3 * ms, 4 * ms),
            read(1, 5 * ms, 6 * ms),
        ];
        let detail = check("k", &back).unwrap_err().detail;
        for part in ["version 1", "version 2", "5.000 ms", "4.000 ms"] {
            assert!(detail.contains(part), "{detail}");
        }
    }

    #[test]
    #[should_panic(expected = "version 1 is written twice")]
    fn a_version_is_written_once() {
        let _ = check("k", &[done(1, 0, 1), done(1, 2, 3)]);
    }
}
