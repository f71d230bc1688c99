//! The guest process: what its threads share, and who may touch it when.

pub mod audit;
mod breakpoint;
pub mod budget;
mod cleaner;
pub mod control;
mod decode;
pub mod domain;
pub mod effects;
mod ending;
pub mod error_reply;
pub mod fault;
pub mod fault_signals;
pub mod files;
mod flusher;
mod handled;
pub mod handoff;
pub mod heap;
pub mod host_signals;
pub mod image;
pub mod inherited;
mod last_chance;
pub mod limits;
mod offenders;
mod overflow;
pub mod quarantine;
pub mod recover;
pub mod reporter;
pub mod rerun;
pub mod restart;
pub mod restore;
pub mod shared;
pub mod signals;
mod step;
pub mod strike;
mod suspend;
pub mod thread;
mod touch;
mod tracked;
mod turn;
pub mod watchdog;
mod withdraw;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::{CString, OsString};
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use guest_agentless::seccomp::Filters;
use parking_lot::FairMutex;
use recovery::Tracker;
use recovery::ladder::Ladder;
use recovery::learn::SharedOffenders;
use recovery::stats::Stats;

use crate::host::handles::{self, Messages};
use crate::inject::Injector;
use crate::kvm::{EntryPath, Vcpu, Vm};
use crate::memory::common::Common;
use crate::memory::{AddressSpace, LockedPages, OwnLimits};
use crate::sys::vfork;
use control::ThreadControl;
use domain::Domain;
use files::Files;
use handoff::Handoffs;
use inherited::Inherited;
use reporter::Reporter;
use signals::Dispositions;
pub use turn::Turn;

/// How a guest process is run.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Recover from faults.
    pub protect: bool,
    /// Compare all writable memory with a full copy after each abandon.
    pub audit: bool,
    /// A child that the guest has forked: its end is told by its wait status, and it is not restarted.
    pub is_child: bool,
    /// Where the counters are written at the end; absolute.
    pub stats: Option<std::path::PathBuf>,
    /// Pages of a write set that are restored at once; a larger one is hidden.
    pub restore_at_once: usize,
    /// What a client's request may use.
    pub limits: limits::Limits,
    /// CPU time that it may use while others wait, before it is suspended.
    pub request_slice: std::time::Duration,
    /// What clients are told when their request is abandoned.
    pub error_reply: Option<error_reply::ErrorReply>,
    /// Bytes of memory that the core of a fault may hold; 0: there are no cores.
    pub core_limit: usize,
    /// Bytes of output that a domain may hold back before it is committed early.
    pub hold_limit: usize,
    /// Restart the process in place when nothing lesser helps.
    pub restart: image::RestartMode,
    /// Bytes that the image of the process may take; none: a quarter of the machine's memory.
    pub image_limit: Option<u64>,
    /// The socket of the control interface; absolute.
    pub control: Option<std::path::PathBuf>,
    /// Faults take their course, as without the monitor: for comparison.
    pub give_up: bool,
    /// The options of `vmsrs run` that were given, with absolute paths.
    pub given: Vec<OsString>,
}

impl Options {
    /// The monitor's own command line to run the program `path` with `args` in place of this one.
    pub fn own_arguments(
        &self,
        inherited: &Inherited,
        path: &Path,
        args: Vec<CString>,
    ) -> Vec<CString> {
        let own = ["vmsrs".into(), "run".into()]
            .into_iter()
            .chain(self.given.iter().cloned());
        let inherited = format!("--inherited={inherited}").into();
        let file = [inherited, "--exec".into(), path.into(), "--".into()];
        let own = own
            .chain(file)
            .filter_map(|arg: OsString| CString::new(arg.into_vec()).ok());
        // A program without any argument still gets its name.
        let missing = args.is_empty().then(CString::default);
        own.chain(args).chain(missing).collect()
    }
}

/// What belongs to the holder of the run token.
pub struct State {
    /// Mappings and page tables.
    pub space: AddressSpace,
    /// Write set and shadow pages.
    pub tracker: Tracker,
    /// What is known of the guest's descriptors.
    pub files: Files,
    /// The turns at the memory that other processes share, if any do.
    pub shared: Option<shared::SharedMemory>,
    /// The running domain; none while the process is not tracked yet, and between two domains.
    pub domain: Option<Domain>,
    /// The suspended domains, by thread.
    pub suspended: BTreeMap<i32, Domain>,
    /// Futexes that threads have waited for, other than those of mutexes; bounded.
    pub wait_words: BTreeSet<u64>,
    /// Addresses of what may be locks that vanished requests hold for reading, and how often they do.
    pub left_reads: Vec<(u64, u32)>,
    /// Signal dispositions.
    pub dispositions: Dispositions,
    /// The guest has been asked to end: a signal for that has reached its handler.
    pub is_stopping: bool,
    /// What this process owes the parent that waits for it (`vfork`).
    pub debt: Option<vfork::Debt>,
    /// The threads' filters of system calls, where they have some.
    pub filters: BTreeMap<i32, Filters>,
    /// Which recovery strategy comes next.
    pub ladder: Ladder,
    /// Whose bytes led to what.
    pub handoffs: Handoffs,
    /// The image of the process, to restart it from.
    pub restart: image::RestartState,
    /// The inputs that have crashed the server, where they are to be refused.
    pub offenders: Option<SharedOffenders>,
    /// Limits of resources that are the guest's and not the host's.
    pub own_limits: OwnLimits,
    /// What is known of the heap, if it is verified.
    pub heap: Option<Box<heap::HeapWatch>>,
    /// What the guest has locked in memory.
    pub locked: LockedPages,
    /// Where the functions are that somebody has asked for, by name.
    pub functions: BTreeMap<String, Vec<u64>>,
    /// Where the running request is to be struck.
    pub strike_points: strike::StrikePoints,
}

/// A guest process.
pub struct Process {
    /// The machine.
    pub vm: Vm,
    /// How this KVM enters the guest.
    pub entry_path: EntryPath,
    /// How it is run.
    pub options: Options,
    /// What all processes of the server share.
    pub common: &'static Common,
    /// The counters among it.
    pub stats: &'static Stats,
    /// Events and fault reports.
    pub reporter: Reporter,
    /// The program as the user named it, for reports.
    pub program: String,
    /// Path of the program file, as `/proc/self/exe` shows it.
    pub executable: String,
    /// The auxiliary vector that it began with.
    pub auxv: Vec<(u64, u64)>,
    /// A page of `/proc/self/mem` of the monitor: reaches guest memory whatever its protection.
    pub own_memory: std::fs::File,
    /// What the pages of that memory are, where faults are recovered from.
    pub own_page_map: Option<std::fs::File>,
    /// Faults to inject, where that can be asked for.
    pub injector: Option<Arc<Injector>>,
    /// Finds requests that run for too long.
    pub watchdog: watchdog::Watchdog,
    /// Finds out who keeps shared memory for too long.
    pub hold_watch: shared::HoldWatch,
    state: FairMutex<State>,
    /// TID of the holder of the run token, or 0.
    holder: AtomicI32,
    threads: Mutex<BTreeMap<i32, &'static ThreadControl>>,
    idle_vcpus: Mutex<Vec<Vcpu>>,
    ending: AtomicBool,
    /// The process was given up, and its end is bounded. See [`last_chance`].
    given_up: AtomicBool,
    /// Whether a thread sends output that waits.
    flushing: AtomicBool,
    /// Whether there was no room for the shadow pages of a request, and no request has done well since.
    degraded: AtomicBool,
    /// Whether a thread restores what waits.
    cleaning: AtomicBool,
    /// Whether threads need not say any more where they would go on from.
    pub serving: AtomicBool,
}

/// What a [`Process`] is made from.
pub struct Parts {
    /// See [`Process::vm`].
    pub vm: Vm,
    /// See [`Process::entry_path`].
    pub entry_path: EntryPath,
    /// See [`Process::options`].
    pub options: Options,
    /// See [`Process::common`].
    pub common: &'static Common,
    /// See [`Process::reporter`].
    pub reporter: Reporter,
    /// See [`Process::program`].
    pub program: String,
    /// See [`Process::executable`].
    pub executable: String,
    /// See [`Process::auxv`].
    pub auxv: Vec<(u64, u64)>,
    /// See [`Process::own_memory`].
    pub own_memory: std::fs::File,
    /// See [`Process::own_page_map`].
    pub own_page_map: Option<std::fs::File>,
    /// See [`Process::injector`].
    pub injector: Option<Arc<Injector>>,
    /// The state at the first instruction.
    pub state: State,
}

impl Process {
    /// A process that is about to run its first instruction.
    pub fn new(parts: Parts) -> Process {
        Process {
            vm: parts.vm,
            entry_path: parts.entry_path,
            options: parts.options,
            common: parts.common,
            stats: &parts.common.stats,
            reporter: parts.reporter,
            program: parts.program,
            executable: parts.executable,
            auxv: parts.auxv,
            own_memory: parts.own_memory,
            own_page_map: parts.own_page_map,
            injector: parts.injector,
            watchdog: watchdog::Watchdog::default(),
            hold_watch: shared::HoldWatch::default(),
            state: FairMutex::new(parts.state),
            holder: AtomicI32::new(0),
            threads: Mutex::new(BTreeMap::new()),
            idle_vcpus: Mutex::new(Vec::new()),
            ending: AtomicBool::new(false),
            given_up: AtomicBool::new(false),
            flushing: AtomicBool::new(false),
            degraded: AtomicBool::new(false),
            cleaning: AtomicBool::new(false),
            serving: AtomicBool::new(false),
        }
    }

    /// The guest threads by ID.
    pub fn threads(&self) -> MutexGuard<'_, BTreeMap<i32, &'static ThreadControl>> {
        self.threads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A vCPU for a new guest thread.
    pub fn take_vcpu(&self) -> Result<Vcpu, crate::kvm::KvmError> {
        let idle = self
            .idle_vcpus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .pop();
        match idle {
            Some(vcpu) => Ok(vcpu),
            None => {
                let mut vcpu = self.vm.create_vcpu()?;
                vcpu.set_entry_path(self.entry_path);
                Ok(vcpu)
            }
        }
    }

    /// Takes back the vCPU of a thread that has ended. vCPUs cannot be destroyed, so they are used again.
    pub fn give_vcpu(&self, vcpu: Vcpu) {
        self.idle_vcpus
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(vcpu);
    }

    /// True for the one caller that gets to end the process.
    pub fn begin_ending(&self) -> bool {
        !self.ending.swap(true, Ordering::AcqRel)
    }

    /// The process ends: writes the counters where the user asked for them. Children leave that to the first process of the
    /// server, for as long as there is one.
    pub fn write_stats(&self) {
        let first_has_ended = &self.common.first_has_ended;
        match self.options.is_child {
            true if !first_has_ended.load(Ordering::Acquire) => return,
            true => {}
            false => first_has_ended.store(true, Ordering::Release),
        }
        let Some(path) = &self.options.stats else {
            return;
        };
        let name = |number| guest_agentless::syscall::lookup(number).map(|row| row.name);
        let written = self.stats.write(path, name).or_else(|error| {
            // The process may have become another user since the file was opened, or have another root directory.
            let opened = handles::stats()?;
            opened.map_or(Err(error), |file| self.stats.write_over(&file, name))
        });
        if let Err(error) = written {
            let path = path.display();
            match self.options.is_child {
                // It may have become another user.
                true => log::debug!("cannot write {path}: {error}"),
                false => drop(writeln!(Messages, "vmsrs: cannot write {path}: {error}")),
            }
        }
    }

    /// Makes the thread that holds the run token leave the guest for a moment.
    pub fn kick_holder(&self) {
        let holder = self.holder.load(Ordering::Acquire);
        if let Some(control) = self.threads().get(&holder) {
            control.kick();
        }
    }

    fn ask_holder_to_yield(&self) {
        let holder = self.holder.load(Ordering::Acquire);
        if let Some(control) = self.threads().get(&holder) {
            control.yield_requested.store(true, Ordering::Release);
            control.kick();
        }
    }
}
