//! When there is no room for shadow pages: what the running domain has written can no longer be undone, and
//! the episode is told (`docs/decisions/0016`).

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_agentless::{GuestRange, PageNumber};
use recovery::event::Event;
use recovery::tracker::FirstWrite;

use super::State;
use super::domain::Early;
use super::thread::Thread;
use crate::host;

/// Pages of which it is remembered how they were: in them locks are found that the domain holds.
const PAGES_KEPT: usize = 1024;

/// Why a fault of such a domain is not recovered from.
const REASON: &str =
    "there was no room for its shadow pages: what it wrote until then stays, except for its stack";

/// What the machine is taken to have where nothing is known of it.
const FALLBACK: u64 = 4 << 30;

/// A quarter of the machine's memory, or of the limit of the cgroup if that is lower.
pub fn default_shadow_limit() -> u64 {
    let limits = [host::physical_memory(), cgroup_limit()];
    limits.into_iter().flatten().min().unwrap_or(FALLBACK) / 4
}

/// The lowest limit of the cgroups (version 2) that the monitor is in.
fn cgroup_limit() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let own = Path::new("/sys/fs/cgroup").join(path);
    own.ancestors()
        .take_while(|dir| dir.starts_with("/sys/fs/cgroup"))
        .filter_map(|dir| fs::read_to_string(dir.join("memory.max")).ok())
        .filter_map(|limit| limit.trim().parse().ok())
        .min()
}

impl Thread {
    /// The guest is about to write a trapped page. False if the page cannot be read.
    pub(super) fn first_write(&mut self, state: &mut State, page: PageNumber) -> bool {
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        let mut outcome = tracker.first_write(&mut memory, page);
        if outcome == FirstWrite::NoRoom {
            self.commit_for_room(state);
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            outcome = match tracker.first_write(&mut memory, page) {
                FirstWrite::NoRoom => tracker.first_write_anyway(&mut memory, page),
                outcome => outcome,
            };
        }
        outcome == FirstWrite::Taken
    }

    /// The host is about to write `range`, which is mapped, on behalf of the guest.
    pub(super) fn host_write(&mut self, state: &mut State, range: GuestRange) {
        let mut range = range;
        loop {
            let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
            let done = tracker.host_write(&mut memory, range);
            self.process.stats.pages.host_written.add(done.activated);
            let Some(page) = done.stopped else {
                return;
            };
            self.commit_for_room(state);
            // Progress, even if there is still no room.
            if !self.first_write(state, page) {
                return;
            }
            let next = page.address().0.max(range.start());
            range = GuestRange::from_bounds(next, range.end());
        }
    }

    /// Makes room for shadow pages: what the running domain has written so far becomes its base, as if others
    /// had built on it. It goes on, and nothing that it has to say leaves before its end; but if it faults,
    /// only what comes after this is undone, and its own stack.
    fn commit_for_room(&mut self, state: &mut State) {
        let process = Arc::clone(&self.process);
        if !process.degraded.swap(true, Ordering::Relaxed) {
            process.reporter.emit(Event::ProtectionDegraded {
                reason: "the shadow pages of the running request have reached their limit".into(),
                shadow_bytes: state.tracker.shadow_bytes(),
                limit: state.tracker.shadow_limit(),
            });
        }
        self.count_written(state);
        // Between two domains there is nothing to commit, and little to write.
        let Some(domain) = &state.domain else {
            return;
        };
        // What it does to files may fail, and would have to be told to the guest.
        if !domain.is_request() && !domain.has_deferred() {
            let _ = self.commit_early(state, Early::ShadowLimit);
            return;
        }
        process.stats.domains.early_committed.shadow_limit.inc();
        self.commit_written(state, REASON);
    }

    /// What the running domain has written becomes the base of everybody, because of `why`; it goes on. Its stack is
    /// kept, so that it can still be abandoned, and so are some pages in which locks are found that it holds.
    pub(super) fn commit_written(&mut self, state: &mut State, why: &'static str) {
        let process = Arc::clone(&self.process);
        let Some(mut domain) = state.domain.take() else {
            return;
        };
        let own: Vec<GuestRange> = [domain.checkpoint.registers.rsp, domain.checkpoint.bases.0]
            .iter()
            .filter_map(|address| Some(state.space.vmas().find(*address)?.range))
            .collect();
        let is_own = |page: PageNumber| own.iter().any(|range| range.contains(page.address().0));
        let mut written = std::mem::take(&mut domain.pages);
        let (tracker, mut memory) = state.tracking(&process, &mut self.vcpu);
        let mut kept = 0;
        tracker.suspend(&mut memory, usize::MAX, |page, base, content| {
            kept += 1;
            if kept <= PAGES_KEPT || is_own(page) {
                written.leave(page, base, content);
            }
        });
        state.note_heap();
        domain.pages = written;
        domain.journal.mark();
        domain.audit = None;
        domain.cramped = Some(why);
        state.domain = Some(domain);
    }

    /// A domain has been committed; `whole` says that it could have been undone.
    pub(super) fn note_room(&mut self, state: &State, whole: bool) {
        let process = &self.process;
        process.stats.shadow_evicted.raise(state.tracker.evicted());
        let over = process.degraded.load(Ordering::Relaxed);
        if over && whole && self.continues.is_none() && state.tracker.has_room() {
            process.degraded.store(false, Ordering::Relaxed);
            process.reporter.emit(Event::ProtectionRestored {
                shadow_bytes: state.tracker.shadow_bytes(),
                limit: state.tracker.shadow_limit(),
            });
        }
    }
}
