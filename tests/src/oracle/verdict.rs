//! What an inexplicable history is called, and how it is put in words.

use super::{moment::Moment, zone::Cluster};
use crate::campaign::trial::FailureKind;

/// Why no order of the operations on a key explains what the clients saw.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// Which promise it breaks.
    pub kind: FailureKind,
    /// The key, the versions, and the times.
    pub detail: String,
}

impl Violation {
    pub(super) fn new(kind: FailureKind, key: &str, what: &str) -> Self {
        let detail = format!("key {key}: {what}");
        Self { kind, detail }
    }
}

/// Names the conflict of `first` and `second`, or a plainer one if `clusters` have it: the read of
/// a value that had been overwritten says more than two zones do.
pub(super) fn of_conflict(
    key: &str,
    clusters: &[Cluster],
    (first, second): (&Cluster, &Cluster),
) -> Violation {
    if let Some(stale) = Stale::find(clusters) {
        return stale.violation(key, clusters);
    }
    let half = |one: &Cluster, other: &Cluster| {
        let (one_name, other_name) = (name(one.version), name(other.version));
        let (finish, start) = (one.finish, other.start);
        format!(
            "{one_name} was done or seen by {finish}, before a request that has to do with {other_name} at {start}"
        )
    };
    let what = format!("{}; but {}", half(first, second), half(second, first));
    Violation::new(FailureKind::BrokenOrder, key, &what)
}

/// A value that was read although a newer one had been acknowledged before the read began.
struct Stale<'a> {
    /// The last read of the older value.
    read: (Moment, Moment),
    older: &'a Cluster,
    newer: &'a Cluster,
}

impl<'a> Stale<'a> {
    /// The one whose last read is the earliest, with the newest of the writes that it missed.
    fn find(clusters: &'a [Cluster]) -> Option<Self> {
        let mut writes: Vec<_> = clusters.iter().collect();
        writes.sort_by_key(|cluster| cluster.write.0);
        // From each write on, the earliest end of a write that begins no earlier.
        let mut ends: Vec<_> = writes.iter().map(|cluster| cluster.write.1).collect();
        for at in (1..ends.len()).rev() {
            ends[at - 1] = ends[at - 1].min(ends[at]);
        }
        let misses_one = |older: &&Cluster| {
            let after = writes.partition_point(|newer| newer.write.0 <= older.finish);
            ends.get(after).is_some_and(|end| *end < older.start)
        };
        let older = clusters.iter().filter(misses_one);
        let older = older.min_by_key(|cluster| cluster.start)?;
        let missed = |newer: &&Cluster| older.finish < newer.write.0 && newer.write.1 < older.start;
        let newer = clusters.iter().filter(missed);
        let newer = newer.max_by_key(|cluster| cluster.write.1)?;
        let read = older.reads.iter().max_by_key(|(begin, _)| *begin)?;
        Some(Self {
            read: *read,
            older,
            newer,
        })
    }

    /// Whether a read after the stale one saw the newer value, or one that may have replaced it by
    /// then. What was only sent after the stale read had ended shows nothing: it would be seen
    /// whether the newer value was still there or not.
    fn is_seen_again(&self, clusters: &[Cluster]) -> bool {
        let end = self.read.1;
        let may_follow =
            |cluster: &&Cluster| cluster.finish >= self.newer.write.0 && cluster.write.0 <= end;
        let mut later = clusters.iter().filter(may_follow);
        later.any(|cluster| cluster.reads.iter().any(|(begin, _)| *begin > end))
    }

    fn violation(&self, key: &str, clusters: &[Cluster]) -> Violation {
        let (kind, and) = match self.is_seen_again(clusters) {
            true => (FailureKind::StaleValue, "and it was seen again later"),
            false => (FailureKind::LostWrite, "and it was not seen any more"),
        };
        let what = format!(
            "a read from {} to {} saw {}, but {} had been written from {} to {} and acknowledged, {and}",
            self.read.0,
            self.read.1,
            name(self.older.version),
            name(self.newer.version),
            self.newer.write.0,
            self.newer.write.1,
        );
        Violation::new(kind, key, &what)
    }
}

/// A value in words.
pub(super) fn name(version: Option<u64>) -> String {
    version.map_or("no value".to_owned(), |version| {
        format!("version {version}")
    })
}
