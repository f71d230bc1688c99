//! Counters of a server: cheap enough for every exit, written as one JSON object at the end.
//!
//! They hold no pointers, so that all processes of the server can count in the same memory. All counters are relaxed atomics: each is exact, but a snapshot taken while the guest runs may show one
//! counter a step ahead of another. Call sites name the counter, `stats.pages.tracked.inc()`.
//!
//! The layout of [`Stats::to_json`] is stable: members may be added, none is renamed. Times are in
//! microseconds.
//!
//! | member | content |
//! |---|---|
//! | `pid`, `start_time`, `uptime_us` | the first process, since when (RFC 3339), for how long |
//! | `processes` | how many processes the server has had: that one, and those that it and others have forked |
//! | `startup_us` | from start until the guest first listened; `null` if it never did |
//! | `exits` | vCPU exits by reason: `syscall`, `page_fault`, `other_exception`, `kick`, `dirty_ring_full`, `other` |
//! | `syscalls` | system calls by name; those without a name as `syscall_N`, numbers past the table as `out_of_range` |
//! | `unsupported` | likewise, calls answered with ENOSYS |
//! | `domains` | `committed`, `abandoned`, `rerun`, `suspended`; `early_committed` by reason |
//! | `ladder` | faults by rung: `rerun`, `abandon`, `handoff`, `reset_delivered`, `restart`, `give_up` |
//! | `restart` | `pause_us` of restarts in place as `recovery_pause_us`; `image_bytes_peak`, the most that the image took |
//! | `pages` | see [`PageCounters`] |
//! | `held` | `bytes_sent`, `bytes_dropped` |
//! | `deferred` | `done`, `forgotten` |
//! | `recovery_pause_us` | `count`, `min`, `median`, `max`; the last three `null` when `count` is 0 |
//! | `restoration` | `postponed`, `waiting`, `waiting_peak`, `on_touch`, `by_cleaner`, `given_back`, `lost`: see [`RestorationCounters`] |
//! | `shadow_bytes_peak` | the most memory that shadow pages ever took |
//! | `shadow_evicted` | shadow pages that were evicted to stay within the limit |
//! | `run_token_waits` | how often a thread had to wait for the run token |
//! | `shared_memory` | see [`SharedMemoryCounters`] |
//! | `handoff` | see [`HandoffCounters`] |
//! | `verify_heap` | see [`HeapCounters`] |
//! | `offenders` | with `--learn`: inputs `refused` |
//! | `error_replies` | clients that were sent the configured error reply |
//! | `audit` | `checks` of the write set against a full copy, and `mismatches` found |

mod counter;
mod histogram;

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime};

use serde_json::{Value, json};

pub use self::counter::{CallCounters, Counter, Level, Peak};
pub use self::histogram::{Histogram, Summary};
use crate::event::rfc3339;
use crate::ladder::Rung;

counter::counters! {
    /// The shared-memory token of a server with several processes.
    SharedMemoryCounters {
        /// Domains that took it.
        taken,
        /// Of these, those that waited for another process.
        waited,
        /// Domains that committed early to give it back: they waited, or others had waited for them.
        cut,
    }
}

counter::counters! {
    /// vCPU exits by reason.
    ExitCounters {
        /// A system call.
        syscall,
        /// A page fault of the guest.
        page_fault,
        /// Any other exception of the guest.
        other_exception,
        /// Another thread made the vCPU leave the guest.
        kick,
        /// The dirty ring had to be harvested.
        dirty_ring_full,
        /// Anything else.
        other,
    }
}

counter::counters! {
    /// Domains that were committed before they ended, by reason.
    EarlyCommitCounters {
        /// A call with effects outside the monitor's reach came next.
        external,
        /// Held output reached its limit.
        held_limit,
        /// It waited for a lock, or longer than its time slice, and others had to run.
        suspended,
        /// There was no room for its shadow pages.
        shadow_limit,
        /// Other processes had to see what it had written to shared memory.
        shared_memory,
    }
}

counter::counters! {
    /// Faults, by the rung of the ladder that was taken.
    LadderCounters {
        /// Undone and run again.
        rerun,
        /// Undone, and the origin completed with an error.
        abandon,
        /// Undone, and run again without the call that faulted.
        handoff,
        /// Undone, and the connections of the wake-up reset.
        reset_delivered,
        /// The process was restarted in place.
        restart,
        /// The process ended.
        give_up,
    }
}

impl LadderCounters {
    /// Counts a rung.
    pub fn count(&self, rung: Rung) {
        match rung {
            Rung::Rerun => self.rerun.inc(),
            Rung::Abandon => self.abandon.inc(),
            Rung::Handoff => self.handoff.inc(),
            Rung::ResetDelivered => self.reset_delivered.inc(),
            Rung::Restart => self.restart.inc(),
            Rung::GiveUp(_) => self.give_up.inc(),
        }
    }
}

counter::counters! {
    /// Pages, by what was done to them.
    PageCounters {
        /// First-write traps taken.
        tracked,
        /// Reported as written by KVM's dirty tracking.
        dirty_harvested,
        /// Marked as written by the monitor or the host kernel on the guest's behalf.
        host_written,
        /// Compared with their shadow page at a commit.
        compared,
        /// Found changed at a commit, and copied to their shadow page.
        copied,
        /// Given back their committed content after an abandon.
        restored,
        /// Of a file, and found different from it although nobody may write them, after a fault: put back.
        damaged,
        /// Write-protected again.
        reprotected,
    }
}

counter::counters! {
    /// Output held until the commit.
    HeldCounters {
        /// Sent at a commit.
        bytes_sent,
        /// Dropped at an abandon.
        bytes_dropped,
    }
}

counter::counters! {
    /// Actions deferred until the commit.
    DeferredCounters {
        /// Done at a commit.
        done,
        /// Forgotten at an abandon.
        forgotten,
        /// Failed at a commit, after the guest was told that they had succeeded.
        failed,
    }
}

counter::counters! {
    /// Work that one thread hands to another.
    HandoffCounters {
        /// Words recorded as written by a request.
        words,
        /// Calls watched in reruns.
        watched,
        /// Calls skipped.
        skipped,
    }
}

counter::counters! {
    /// Self-checks of the write set: guest memory against a full copy.
    AuditCounters {
        /// Checks made.
        checks,
        /// Checks that found a page whose write was not tracked.
        mismatches,
    }
}

/// Large write sets that are restored bit by bit.
#[derive(Debug, Default)]
pub struct RestorationCounters {
    /// Abandoned requests whose write set was hidden instead of restored at once.
    pub postponed: Counter,
    /// Pages that wait now, and the most that ever did.
    pub waiting: Level,
    /// Pages restored because somebody touched their region.
    pub on_touch: Counter,
    /// Pages restored by the cleaner.
    pub by_cleaner: Counter,
    /// Pages whose memory was given back to the host, among both.
    pub given_back: Counter,
    /// Pages that could not be restored.
    pub lost: Counter,
}

counter::counters! {
    /// Inputs that have crashed the server before.
    OffenderCounters {
        /// Refused before they reached it.
        refused,
    }
}

counter::counters! {
    /// Checks of the heap before a commit (`--verify-heap`).
    HeapCounters {
        /// Checks made.
        checks,
        /// Changed pages of heaps that were checked.
        pages,
        /// Chunks looked at.
        chunks,
        /// What the checks took, in microseconds.
        time_us,
        /// Requests abandoned because the heap was corrupt after them.
        corruptions,
        /// Parts of the heap that were found to have been corrupt before, and are left out since.
        inherited,
        /// Times that an arena was left out because a thread stood in the middle of malloc.
        locked,
    }
}

/// Request domains by outcome.
#[derive(Debug, Default)]
pub struct DomainCounters {
    /// Ended well.
    pub committed: Counter,
    /// Faulted and were undone.
    pub abandoned: Counter,
    /// Faulted, were undone and run again.
    pub rerun: Counter,
    /// Suspended in the middle, because they waited or had used up their time slice.
    pub suspended: Counter,
    /// Committed before they ended.
    pub early_committed: EarlyCommitCounters,
}

/// The counters of a server.
#[derive(Debug)]
pub struct Stats {
    /// Processes.
    pub processes: Counter,
    /// vCPU exits.
    pub exits: ExitCounters,
    /// System calls made.
    pub syscalls: CallCounters,
    /// System calls answered with ENOSYS.
    pub unsupported: CallCounters,
    /// Request domains.
    pub domains: DomainCounters,
    /// Faults by rung.
    pub ladder: LadderCounters,
    /// How long the process stood still for restarts in place, in microseconds.
    pub restart_pause_us: Histogram,
    /// Memory taken by the image of the process, in bytes.
    pub image_bytes: Peak,
    /// Pages.
    pub pages: PageCounters,
    /// Large write sets.
    pub restoration: RestorationCounters,
    /// Held output.
    pub held: HeldCounters,
    /// Deferred actions.
    pub deferred: DeferredCounters,
    /// How long faulting threads stood still, in microseconds.
    pub recovery_pause_us: Histogram,
    /// Memory taken by shadow pages, in bytes.
    pub shadow_bytes: Peak,
    /// Shadow pages that were evicted: the pages are trapped again.
    pub shadow_evicted: Peak,
    /// Times a thread had to wait for the run token.
    pub run_token_waits: Counter,
    /// Turns at the memory that processes share.
    pub shared_memory: SharedMemoryCounters,
    /// Hand-offs between threads.
    pub handoff: HandoffCounters,
    /// Checks of the heap.
    pub verify_heap: HeapCounters,
    /// Self-checks.
    pub audit: AuditCounters,
    /// Inputs that have crashed the server before.
    pub offenders: OffenderCounters,
    /// Clients that were sent the configured error reply.
    pub error_replies: Counter,
    pid: u32,
    start: Instant,
    start_time: SystemTime,
    /// In microseconds; zero until it is known.
    startup: AtomicU64,
}

impl Default for Stats {
    fn default() -> Self {
        Self::new()
    }
}

impl Stats {
    /// All zero, started now by this process.
    pub fn new() -> Self {
        Self {
            processes: Counter::default(),
            exits: ExitCounters::default(),
            syscalls: CallCounters::default(),
            unsupported: CallCounters::default(),
            domains: DomainCounters::default(),
            ladder: LadderCounters::default(),
            restart_pause_us: Histogram::default(),
            image_bytes: Peak::default(),
            pages: PageCounters::default(),
            restoration: RestorationCounters::default(),
            held: HeldCounters::default(),
            deferred: DeferredCounters::default(),
            recovery_pause_us: Histogram::default(),
            shadow_bytes: Peak::default(),
            shadow_evicted: Peak::default(),
            run_token_waits: Counter::default(),
            shared_memory: SharedMemoryCounters::default(),
            handoff: HandoffCounters::default(),
            verify_heap: HeapCounters::default(),
            audit: AuditCounters::default(),
            offenders: OffenderCounters::default(),
            error_replies: Counter::default(),
            pid: std::process::id(),
            start: Instant::now(),
            start_time: SystemTime::now(),
            startup: AtomicU64::new(0),
        }
    }

    /// The guest listens on a socket; the first time is the end of the start-up.
    pub fn listening(&self) {
        let elapsed = micros(self.start.elapsed()).max(1);
        let relaxed = Ordering::Relaxed;
        let _ = self.startup.compare_exchange(0, elapsed, relaxed, relaxed);
    }

    /// Everything as one JSON object. `name` gives the name of a system call by its number.
    pub fn to_json(&self, name: impl Fn(u64) -> Option<&'static str>) -> Value {
        let startup = Some(self.startup.load(Ordering::Relaxed)).filter(|time| *time != 0);
        json!({
            "pid": self.pid,
            "processes": self.processes.get(),
            "start_time": rfc3339(self.start_time),
            "uptime_us": micros(self.start.elapsed()),
            "startup_us": startup,
            "exits": self.exits.to_json(),
            "syscalls": self.syscalls.to_json(&name),
            "unsupported": self.unsupported.to_json(&name),
            "domains": {
                "committed": self.domains.committed.get(),
                "abandoned": self.domains.abandoned.get(),
                "rerun": self.domains.rerun.get(),
                "suspended": self.domains.suspended.get(),
                "early_committed": self.domains.early_committed.to_json(),
            },
            "ladder": self.ladder.to_json(),
            "restart": {
                "pause_us": summary(&self.restart_pause_us),
                "image_bytes_peak": self.image_bytes.get(),
            },
            "pages": self.pages.to_json(),
            "restoration": {
                "postponed": self.restoration.postponed.get(),
                "waiting": self.restoration.waiting.get(),
                "waiting_peak": self.restoration.waiting.peak(),
                "on_touch": self.restoration.on_touch.get(),
                "by_cleaner": self.restoration.by_cleaner.get(),
                "given_back": self.restoration.given_back.get(),
                "lost": self.restoration.lost.get(),
            },
            "held": self.held.to_json(),
            "deferred": self.deferred.to_json(),
            "recovery_pause_us": summary(&self.recovery_pause_us),
            "shadow_bytes_peak": self.shadow_bytes.get(),
            "shadow_evicted": self.shadow_evicted.get(),
            "run_token_waits": self.run_token_waits.get(),
            "shared_memory": self.shared_memory.to_json(),
            "handoff": self.handoff.to_json(),
            "verify_heap": self.verify_heap.to_json(),
            "audit": self.audit.to_json(),
            "offenders": self.offenders.to_json(),
            "error_replies": self.error_replies.get(),
        })
    }

    /// Writes [`Self::to_json`] to `path` so that a reader sees the old content or the new, never a part.
    ///
    /// What is not a regular file (a pipe, `/dev/stderr`) is written to as it is. `path` must be absolute if
    /// the guest may have changed the working directory.
    pub fn write(&self, path: &Path, name: impl Fn(u64) -> Option<&'static str>) -> io::Result<()> {
        let text = self.to_text(name)?;
        let target = match fs::metadata(path) {
            Ok(meta) if !meta.is_file() => {
                return fs::OpenOptions::new()
                    .append(true)
                    .open(path)
                    .and_then(|mut file| io::Write::write_all(&mut file, &text));
            }
            // Through a symbolic link: replace what it points to, not the link.
            Ok(_) => fs::canonicalize(path)?,
            Err(_) => path.to_owned(),
        };
        let mut temporary = target.clone().into_os_string();
        temporary.push(format!(".{}.tmp", std::process::id()));
        fs::write(&temporary, &text)
            .and_then(|()| fs::rename(&temporary, &target))
            .inspect_err(|_| {
                // Nothing more can be done about the temporary file than to try.
                let _ = fs::remove_file(&temporary);
            })
    }

    /// Writes the same over what `file` holds, for who may not replace it. A reader may see a part.
    pub fn write_over(
        &self,
        file: &File,
        name: impl Fn(u64) -> Option<&'static str>,
    ) -> io::Result<()> {
        let text = self.to_text(name)?;
        file.set_len(0)?;
        file.write_all_at(&text, 0)
    }

    fn to_text(&self, name: impl Fn(u64) -> Option<&'static str>) -> io::Result<Vec<u8>> {
        let mut text = serde_json::to_vec_pretty(&self.to_json(name))?;
        text.push(b'\n');
        Ok(text)
    }
}

fn summary(histogram: &Histogram) -> Value {
    let times = histogram.summary();
    json!({
        "count": times.map_or(0, |p| p.count),
        "min": times.map(|p| p.min),
        "median": times.map(|p| p.median),
        "max": times.map(|p| p.max),
    })
}

/// `duration` in whole microseconds, as events, reports and statistics write it.
pub fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(number: u64) -> Option<&'static str> {
        ["read", "write"]
            .get(usize::try_from(number).ok()?)
            .copied()
    }

    #[test]
    fn the_documented_layout() {
        let stats = Stats::new();
        stats.exits.page_fault.inc();
        stats.syscalls.inc(1);
        stats.unsupported.inc(300);
        stats.domains.early_committed.held_limit.inc();
        stats.pages.tracked.add(5);
        stats.ladder.count(Rung::ResetDelivered);
        stats.restart_pause_us.record(900);
        stats.recovery_pause_us.record(84);
        stats.shadow_bytes.raise(8192);
        stats.listening();
        let json = stats.to_json(name);
        let keys: Vec<_> = json
            .as_object()
            .unwrap()
            .keys()
            .map(String::as_str)
            .collect();
        let expected = [
            "audit",
            "deferred",
            "domains",
            "error_replies",
            "exits",
            "handoff",
            "held",
            "ladder",
            "offenders",
            "pages",
            "pid",
            "processes",
            "recovery_pause_us",
            "restart",
            "restoration",
            "run_token_waits",
            "shadow_bytes_peak",
            "shadow_evicted",
            "shared_memory",
            "start_time",
            "startup_us",
            "syscalls",
            "unsupported",
            "uptime_us",
            "verify_heap",
        ];
        assert_eq!(keys, expected);
        assert_eq!(json["exits"]["page_fault"], 1);
        assert_eq!(json["syscalls"], json!({"write": 1}));
        assert_eq!(json["unsupported"], json!({"syscall_300": 1}));
        assert_eq!(json["domains"]["early_committed"]["held_limit"], 1);
        assert_eq!(json["pages"]["tracked"], 5);
        assert_eq!(json["ladder"]["reset_delivered"], 1);
        assert_eq!(json["restart"]["pause_us"]["max"], 900);
        let pause = json!({"count": 1, "min": 84, "median": 84, "max": 84});
        assert_eq!(json["recovery_pause_us"], pause);
        assert_eq!(json["shadow_bytes_peak"], 8192);
        assert!(json["startup_us"].is_u64());
    }

    #[test]
    fn nothing_happened() {
        let json = Stats::new().to_json(name);
        assert_eq!(json["startup_us"], Value::Null);
        let pause = json!({"count": 0, "min": null, "median": null, "max": null});
        assert_eq!(json["recovery_pause_us"], pause);
    }

    #[test]
    fn the_start_up_ends_once() {
        let stats = Stats::new();
        stats.listening();
        let first = stats.to_json(name)["startup_us"].clone();
        std::thread::sleep(Duration::from_millis(2));
        stats.listening();
        assert_eq!(stats.to_json(name)["startup_us"], first);
    }

    #[test]
    fn write_replaces_files_and_leaves_nothing_behind() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("stats.json");
        let link = dir.path().join("link");
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let stats = Stats::new();
        stats.write(&path, name).unwrap();
        stats.exits.kick.inc();
        stats.write(&link, name).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["exits"]["kick"], 1);
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2);

        let file = File::options().append(true).open(&path).unwrap();
        stats.exits.kick.inc();
        stats.write_over(&file, name).unwrap();
        let json: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(json["exits"]["kick"], 2);
    }

    #[test]
    fn write_does_not_replace_devices() {
        use std::os::unix::fs::FileTypeExt;
        let full = Path::new("/dev/full");
        assert!(Stats::new().write(full, name).is_err());
        assert!(fs::metadata(full).unwrap().file_type().is_char_device());
        assert!(
            Stats::new()
                .write(Path::new("/nonexistent/stats"), name)
                .is_err()
        );
    }
}
