//! Clusters of operations, and the zones of time that they claim.
//!
//! A cluster is a write with all reads that saw it. In any order that explains the history it is
//! one run of neighbours, so cluster A comes before B if anything of A ended before something of B
//! began: `A.finish < B.start`. If each of two clusters comes before the other, no order exists;
//! and if no two clusters do that, one does. That is what the rules for zones come to. Operations
//! that touch (one ends in the nanosecond in which another begins) count as concurrent.

use super::{
    history::{Action, Fate, Operation},
    moment::Moment,
};

/// A write and the reads that saw it.
#[derive(Clone, Debug)]
pub(super) struct Cluster {
    /// The value; none for the absence before the first write.
    pub version: Option<u64>,
    /// What is known of the write.
    pub fate: Fate,
    /// When the write began and ended.
    pub write: (Moment, Moment),
    /// When each of the reads did.
    pub reads: Vec<(Moment, Moment)>,
    /// The earliest end of any of them.
    pub finish: Moment,
    /// The latest begin of any of them.
    pub start: Moment,
}

impl Cluster {
    /// The absence of the key, as if it had been written before everything.
    pub fn absent() -> Self {
        Self::new(None, Fate::Acknowledged, (Moment::Start, Moment::Start))
    }

    /// The cluster of `operation` without its reads; none if it is no write.
    pub fn of_write(operation: &Operation) -> Option<Self> {
        let Action::Write { version, fate } = operation.action else {
            return None;
        };
        let end = match fate {
            Fate::Acknowledged => Moment::At(operation.end),
            // It may take effect long after the client gave up, or never: without a read, it claims
            // nothing that could be in conflict with anything.
            Fate::Unknown | Fate::Abandoned => Moment::Never,
        };
        let write = (Moment::At(operation.begin), end);
        Some(Self::new(Some(version), fate, write))
    }

    fn new(version: Option<u64>, fate: Fate, write: (Moment, Moment)) -> Self {
        Self {
            version,
            fate,
            write,
            reads: Vec::new(),
            finish: write.1,
            start: write.0,
        }
    }

    /// Adds a read.
    pub fn add(&mut self, begin: Moment, end: Moment) {
        self.reads.push((begin, end));
        self.finish = self.finish.min(end);
        self.start = self.start.max(begin);
    }

    /// Whether the register must hold this value all the time from `finish` to `start`. Otherwise
    /// a single moment between `start` and `finish` is enough.
    fn is_forward(&self) -> bool {
        self.finish < self.start
    }
}

/// Two clusters of which each must come before the other, if there are such.
pub(super) fn conflict(clusters: &[Cluster]) -> Option<(&Cluster, &Cluster)> {
    let (mut forward, backward): (Vec<_>, Vec<_>) =
        clusters.iter().partition(|cluster| cluster.is_forward());
    forward.sort_by_key(|cluster| cluster.finish);
    overlap(&forward).or_else(|| enclosed(&forward, &backward))
}

/// Two forward zones that overlap. They are sorted, so if any do, then neighbours do.
fn overlap<'a>(forward: &[&'a Cluster]) -> Option<(&'a Cluster, &'a Cluster)> {
    let neighbours = forward.windows(2).map(|pair| (pair[0], pair[1]));
    neighbours
        .into_iter()
        .find(|(first, second)| second.finish < first.start)
}

/// A backward zone within one of the forward zones, which are sorted and do not overlap.
fn enclosed<'a>(
    forward: &[&'a Cluster],
    backward: &[&'a Cluster],
) -> Option<(&'a Cluster, &'a Cluster)> {
    backward.iter().find_map(|inner| {
        let after = forward.partition_point(|outer| outer.finish < inner.start);
        let outer = forward[..after].last()?;
        (inner.finish < outer.start).then_some((*outer, *inner))
    })
}
