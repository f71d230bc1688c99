//! Keeps the report directory from growing: only the newest reports stay.
//!
//! Removing happens every few saves, so that one save costs little on average and the work of any save is
//! bounded. Nothing is remembered between scans but a count: several processes may share the directory,
//! and a child that was forked in the middle of anything goes on correctly.

use std::fs;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use super::{ReportArchive, ReportId};

/// Reports that one scan removes at most.
const REMOVALS_LIMIT: usize = 512;

/// Saves between two scans at most; well below [`REMOVALS_LIMIT`], so that removing keeps up with saving.
const PERIOD_LIMIT: usize = 256;

/// When to remove what.
#[derive(Debug)]
pub(super) struct Retention {
    keep: usize,
    /// Saves since the last scan.
    saves: AtomicU64,
    /// The process that counted them.
    pid: AtomicU32,
}

impl Retention {
    /// Keeps the newest `keep` reports, and at least one.
    pub(super) fn new(keep: usize) -> Self {
        Self {
            keep: keep.max(1),
            saves: AtomicU64::new(0),
            pid: AtomicU32::new(0),
        }
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
        if first || saves >= self.period() as u64 {
            self.saves.store(0, Ordering::Relaxed);
            self.remove_oldest(archive, id);
        }
    }

    /// Removes what is too much, but never `newest`, even if the clock was set back.
    fn remove_oldest(&self, archive: &ReportArchive, newest: &ReportId) {
        let mut ids = match archive.entries() {
            Ok(ids) => ids,
            Err(error) => {
                log::debug!("cannot list old reports: {error}");
                return;
            }
        };
        let excess = ids.len().saturating_sub(self.keep).min(REMOVALS_LIMIT);
        ids.retain(|id| id != newest);
        ids.sort_unstable();
        for id in ids.iter().take(excess) {
            // Another process may be removing the same one.
            if let Err(error) = fs::remove_dir_all(archive.path(id)) {
                log::debug!("cannot remove the old report {id}: {error}");
            }
        }
    }
}
