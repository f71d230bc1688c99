//! Keeps the report directory from growing: only the newest reports stay, up to a number, a size and an age.
//!
//! Removing happens every few saves, so that one save costs little on average and the work of any save is
//! bounded. Nothing is remembered between scans but a count: several processes may share the directory,
//! and a child that was forked in the middle of anything goes on correctly.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use super::{ReportArchive, ReportId};

/// Reports that one scan removes at most.
const REMOVALS_LIMIT: usize = 512;

/// Saves between two scans at most; well below [`REMOVALS_LIMIT`], so that removing keeps up with saving.
const PERIOD_LIMIT: usize = 256;

/// When to remove what.
#[derive(Debug)]
pub(super) struct Retention {
    keep: usize,
    /// Bytes that all reports may take.
    bytes: u64,
    /// How old a report may become.
    age: Duration,
    /// Saves since the last scan.
    saves: AtomicU64,
    /// Bytes that they took.
    saved: AtomicU64,
    /// The process that counted them.
    pid: AtomicU32,
}

/// The same limits; nothing was saved yet.
impl Clone for Retention {
    fn clone(&self) -> Self {
        Self::new(self.keep).with_limits(self.bytes, self.age)
    }
}

impl Retention {
    /// Keeps the newest `keep` reports, and at least one.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep: keep.max(1),
            bytes: u64::MAX,
            age: Duration::MAX,
            saves: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            pid: AtomicU32::new(0),
        }
    }

    /// Likewise, with limits on all reports together and on the age of each.
    pub(super) fn with_limits(self, bytes: u64, age: Duration) -> Self {
        Self { bytes, age, ..self }
    }

    /// How many reports are saved from one scan to the next: how far the directory may exceed the limit, for
    /// each process that saves to it.
    pub(super) fn period(&self) -> usize {
        (self.keep / 16).clamp(1, PERIOD_LIMIT)
    }

    /// `id` was saved. A process scans after its first save, so short-lived children do not add up.
    pub(super) fn saved(&self, archive: &ReportArchive, id: &ReportId) {
        let pid = std::process::id();
        let first = self.pid.swap(pid, Ordering::Relaxed) != pid;
        let saves = self.saves.fetch_add(1, Ordering::Relaxed) + 1;
        // With cores, few reports are much.
        let bytes = self.size(archive, id);
        let saved = self.saved.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if first || saves >= self.period() as u64 || saved > self.bytes / 16 {
            self.saves.store(0, Ordering::Relaxed);
            self.saved.store(0, Ordering::Relaxed);
            self.remove_oldest(archive, id);
        }
    }

    /// Bytes of the report, if they matter.
    fn size(&self, archive: &ReportArchive, id: &ReportId) -> u64 {
        match self.bytes {
            u64::MAX => 0,
            _ => size(&archive.path(id)),
        }
    }

    /// Removes what is too much, but never `newest`, even if the clock was set back.
    fn remove_oldest(&self, archive: &ReportArchive, newest: &ReportId) {
        self.remove(archive, Some(newest), SystemTime::now());
    }

    /// Removes what is too much or too old at the time `now`. What is in excess of the removals of one scan
    /// is left for the next.
    pub(super) fn remove(
        &self,
        archive: &ReportArchive,
        newest: Option<&ReportId>,
        now: SystemTime,
    ) {
        let mut ids = match archive.entries() {
            Ok(ids) => ids,
            Err(error) => {
                log::debug!("cannot list old reports: {error}");
                return;
            }
        };
        ids.sort_unstable_by(|a, b| b.cmp(a));
        let oldest = now.checked_sub(self.age).map(ReportId::earliest);
        // The newest one has its place, wherever it is in the order.
        let mut kept = usize::from(newest.is_some());
        let mut bytes = newest.map_or(0, |id| self.size(archive, id));
        let mut excess = Vec::new();
        for id in ids.iter().filter(|id| newest != Some(id)) {
            bytes = bytes.saturating_add(self.size(archive, id));
            let too_old = oldest.as_ref().is_some_and(|oldest| id < oldest);
            let too_much = kept >= self.keep || bytes > self.bytes;
            match too_old || too_much {
                true => excess.push(id),
                false => kept += 1,
            }
        }
        for id in excess.into_iter().rev().take(REMOVALS_LIMIT) {
            // Another process may be removing the same one.
            if let Err(error) = fs::remove_dir_all(archive.path(id)) {
                log::debug!("cannot remove the old report {id}: {error}");
            }
        }
    }
}

/// Bytes of the files in a report's directory.
fn size(path: &Path) -> u64 {
    let files = fs::read_dir(path).into_iter().flatten().flatten();
    files
        .filter_map(|file| file.metadata().ok())
        .map(|metadata| metadata.len())
        .sum()
}
