//! `vmsrs run`: builds the machine, loads the program, runs it.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::error::Error;
use std::ffi::OsString;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, ValueEnum};
use guest_agentless::seccomp::Filters;
use guest_agentless::{PAGE_SIZE, Signal, SignalSet};
use recovery::Tracker;
use recovery::event::{Event, EventLog, Sender};
use recovery::ladder::{DEFAULT_RESTART_LIMIT, DEFAULT_STORM_LIMIT, Ladder};
use recovery::learn::SharedOffenders;
use recovery::report::{DEFAULT_BYTES, ReportStore, default_dir};

use super::chain;
use super::limit::{ByteLimit, TimeLimit};
use crate::clock::{ClockPage, GuestClock, VDSO_IMAGE};
use crate::control;
use crate::host::{handles, show_program};
use crate::inject::{Injector, Routines, Spec, with_routines};
use crate::kvm::{self, EntryPath, Vm};
use crate::loader::{self, Program};
use crate::memory::{
    AddressSpace, LockedPages, OwnLimits, common, enough_descriptors, keep_descriptor_limits,
    reserved_fd, window,
};
use crate::process::budget::default_shadow_limit;
use crate::process::error_reply::ErrorReply;
use crate::process::fault_signals;
use crate::process::files::Files;
use crate::process::host_signals::{self, inherited_ignored};
use crate::process::image::RestartMode;
use crate::process::inherited::Inherited;
use crate::process::limits::{DEFAULT_CPU, DEFAULT_TIMEOUT, Limits};
use crate::process::reporter::Reporter;
use crate::process::restore::AT_ONCE;
use crate::process::signals::{Action, Dispositions};
use crate::process::thread::{Thread, request_slice};
use crate::process::{Options, Parts, Process, State, strike};
use crate::sys::end::MONITOR_FAILED;
use crate::sys::seccomp;

/// How long `--learn` remembers an input.
const DEFAULT_LEARN_FOR: Duration = Duration::from_secs(3600);

/// The options of `vmsrs run`.
#[derive(Args)]
pub struct RunArgs {
    /// Append one JSON object per line for every event to FILE
    #[arg(long, value_name = "FILE")]
    events: Option<PathBuf>,
    /// Write the counters of all processes as one JSON object to FILE at exit
    #[arg(long, value_name = "FILE")]
    stats: Option<PathBuf>,
    /// Keep fault reports in DIR [default: $XDG_STATE_HOME/vmsrs/reports]
    #[arg(long, value_name = "DIR")]
    report_dir: Option<PathBuf>,
    /// Keep at most BYTES of fault reports, like `64M`; the oldest go first
    #[arg(long, value_name = "BYTES|off", default_value_t = ByteLimit(Some(DEFAULT_BYTES)))]
    quarantine_limit: ByteLimit,
    /// Keep fault reports for DURATION, like `12h` or `90d`
    #[arg(long, value_name = "DURATION|off", default_value = "90d")]
    quarantine_age: TimeLimit,
    /// Keep an ELF core with each fault report: registers, stack, and the memory that the request had written.
    /// Cores hold what clients have sent, and whatever else is in memory
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        hide_possible_values = true
    )]
    core: Switch,
    /// Bytes of memory that a core may hold; they are copied while the server waits
    #[arg(long, value_name = "BYTES|off", default_value = "4M")]
    core_limit: ByteLimit,
    /// Recover from crashing requests; `off` runs under KVM without recovery, for comparison
    #[arg(
        long,
        value_name = "on|off",
        default_value = "on",
        hide_possible_values = true
    )]
    protect: Switch,
    /// Memory for shadow pages, like `512M` [default: a quarter of the machine's, or of the cgroup's limit]
    #[arg(long, value_name = "BYTES|off")]
    shadow_limit: Option<ByteLimit>,
    /// End a client's request that takes longer than DURATION (`10`, `500ms`, `2m`), as if it had crashed;
    /// waiting for more work does not count
    #[arg(long, value_name = "DURATION|off", default_value_t = TimeLimit(Some(DEFAULT_TIMEOUT)))]
    request_timeout: TimeLimit,
    /// End a client's request that uses more CPU time than DURATION
    #[arg(long, value_name = "DURATION|off", default_value_t = TimeLimit(Some(DEFAULT_CPU)))]
    request_cpu: TimeLimit,
    /// End a client's request that writes more memory than BYTES (`64M`, `2G`) [default: a quarter of the
    /// machine's memory]
    #[arg(long, value_name = "BYTES|off")]
    request_memory: Option<ByteLimit>,
    /// Let a client's request end the server with `exit`; without this, it counts as a crash
    #[arg(long)]
    allow_exit: bool,
    /// Check the glibc heap that a request has written before its effects become real: a silent overflow is
    /// charged to the request that made it. Says so in the events, and does nothing, for other allocators
    #[arg(long)]
    verify_heap: bool,
    /// Bytes of output that a request may hold back, such as 512K or 16M; past it, it can no longer be undone
    #[arg(long, value_name = "BYTES", default_value = "4M")]
    hold_limit: ByteLimit,
    /// Restart the server in place when nothing lesser helps: from an image taken when it began to serve,
    /// with its listening sockets kept open. `on`: unless it has written files since, which it would then
    /// contradict; `always`: even then
    #[arg(
        long,
        value_name = "on|off|always",
        default_value = "on",
        hide_possible_values = true
    )]
    restart: RestartMode,
    /// Restarts in place in one minute after which the server is given up
    #[arg(long, value_name = "N", default_value_t = DEFAULT_RESTART_LIMIT)]
    storm_limit: u32,
    /// Bytes that the image for restarts may take [default: a quarter of the machine's memory]
    #[arg(long, value_name = "BYTES")]
    image_limit: Option<ByteLimit>,
    /// Send clients whose request is abandoned a proper error before their connection ends, instead of a
    /// reset: that of a protocol, or the bytes in FILE. Not for connections with TLS
    #[arg(long, value_name = "http|resp|memcached|FILE")]
    error_reply: Option<OsString>,
    /// Refuse an input that has crashed the server twice, before it reaches the server
    #[arg(long)]
    learn: bool,
    /// Forget such an input after this time without a crash
    #[arg(
        long,
        value_name = "DURATION|off",
        default_value_t = TimeLimit(Some(DEFAULT_LEARN_FOR)),
        requires = "learn"
    )]
    learn_for: TimeLimit,
    /// Compare all of the guest's writable memory with a copy after each recovery (slow; for testing)
    #[arg(long, hide = true)]
    audit: bool,
    /// Restore up to PAGES pages of a crashed request at once; more are restored when they are touched
    #[arg(long, value_name = "PAGES", default_value_t = AT_ONCE, hide = true)]
    restore_at_once: usize,
    /// Inject faults, to see them recovered: `abort:nth=100` or `rip=null:match=TEXT,after=2`; may be given
    /// several times. docs/fault-injection.md has all of it
    #[arg(long, value_name = "SPEC")]
    inject: Vec<Spec>,
    /// Listen on the Unix socket PATH for `vmsrs control`
    #[arg(long, value_name = "PATH")]
    control: Option<PathBuf>,
    /// With `off`, faults take their course as without the monitor: to compare with, when faults are injected
    #[arg(
        long,
        value_enum,
        value_name = "on|off",
        default_value = "on",
        hide_possible_values = true
    )]
    recover: Switch,
    /// The program file, where it is not the first argument (for the guest's own exec)
    #[arg(long, value_name = "FILE", hide = true)]
    exec: Option<PathBuf>,
    /// What that has from the monitor before its own
    #[arg(long, value_name = "NUMBERS", hide = true)]
    inherited: Option<Inherited>,
    /// The program and its arguments
    #[arg(required = true, trailing_var_arg = true, value_name = "PROGRAM")]
    command: Vec<OsString>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Switch {
    On,
    Off,
}

impl RunArgs {
    /// Whether a file cannot be opened because the guest has become another user before it executed this program: it
    /// does without.
    fn is_of_another_user(&self, error: &io::Error) -> bool {
        self.exec.is_some() && error.kind() == io::ErrorKind::PermissionDenied
    }

    /// The filters of system calls that the program before this one has left, by thread.
    fn inherited_filters(&self) -> io::Result<BTreeMap<i32, Filters>> {
        let file = self.inherited.as_ref().map_or(-1, |given| given.filters);
        if file < 0 {
            return Ok(BTreeMap::new());
        }
        let filters = seccomp::read_filters(file)?;
        Ok(BTreeMap::from([(std::process::id() as i32, filters)]))
    }

    /// The options as they were given, with absolute paths, for a program that takes this one's place.
    fn given(&self) -> std::io::Result<Vec<OsString>> {
        let mut given: Vec<OsString> = Vec::new();
        // The environment of the next program may name another place.
        let report_dir = self.report_dir.clone().or_else(default_dir);
        for (name, path) in [
            ("--events", &self.events),
            ("--stats", &self.stats),
            ("--report-dir", &report_dir),
            ("--control", &self.control),
        ] {
            if let Some(path) = path {
                given.push(name.into());
                given.push(std::path::absolute(path)?.into());
            }
        }
        given.push(format!("--quarantine-limit={}", self.quarantine_limit).into());
        given.push(format!("--quarantine-age={}", self.quarantine_age).into());
        if let Some(limit) = self.shadow_limit {
            given.push(format!("--shadow-limit={limit}").into());
        }
        given.push(format!("--hold-limit={}", self.hold_limit).into());
        given.push(format!("--core-limit={}", self.core_limit).into());
        if self.core == Switch::Off {
            given.push("--core=off".into());
        }
        if self.protect == Switch::Off {
            given.push("--protect=off".into());
        }
        for (name, limit) in [
            ("--request-timeout", self.request_timeout),
            ("--request-cpu", self.request_cpu),
        ] {
            given.push(format!("{name}={limit}").into());
        }
        if let Some(limit) = self.request_memory {
            given.push(format!("--request-memory={limit}").into());
        }
        if self.allow_exit {
            given.push("--allow-exit".into());
        }
        if self.verify_heap {
            given.push("--verify-heap".into());
        }
        if self.restart != RestartMode::On {
            given.push(format!("--restart={}", self.restart.name()).into());
        }
        if self.storm_limit != DEFAULT_RESTART_LIMIT {
            given.push(format!("--storm-limit={}", self.storm_limit).into());
        }
        if let Some(limit) = self.image_limit {
            given.push(format!("--image-limit={limit}").into());
        }
        if self.audit {
            given.push("--audit".into());
        }
        if let Some(reply) = &self.error_reply {
            given.push("--error-reply".into());
            given.push(match reply.to_str() {
                Some("http" | "resp" | "memcached") => reply.clone(),
                _ => std::path::absolute(reply)?.into(),
            });
        }
        if self.learn {
            given.push("--learn".into());
            given.push(format!("--learn-for={}", self.learn_for).into());
        }
        if self.restore_at_once != AT_ONCE {
            given.push(format!("--restore-at-once={}", self.restore_at_once).into());
        }
        for injection in &self.inject {
            given.push(format!("--inject={injection}").into());
        }
        if self.recover == Switch::Off {
            given.push("--recover=off".into());
        }
        Ok(given)
    }
}

impl RunArgs {
    fn limits(&self) -> Limits {
        Limits {
            timeout: self.request_timeout.0,
            cpu: self.request_cpu.0,
            memory: match self.request_memory {
                Some(limit) => limit.0,
                None => Limits::default_memory(),
            },
            allow_exit: self.allow_exit,
        }
    }
}
type AnyError = Box<dyn Error + Send + Sync>;

/// Runs the program; returns only if it could not be started.
pub fn run(arguments: RunArgs) -> ExitCode {
    let error = match start(arguments) {
        Ok(thread) => {
            thread.run(|_| ());
            // The first thread has ended; others go on, and one of them ends the process.
            loop {
                std::thread::park();
            }
        }
        Err(error) => error,
    };
    let status = match error.downcast_ref::<loader::LoadError>() {
        Some(error) => i32::from(error.exit_status()),
        None => MONITOR_FAILED,
    };
    let _ = writeln!(handles::Messages, "vmsrs: {}", chain(error.as_ref()));
    ExitCode::from(status as u8)
}

fn start(arguments: RunArgs) -> Result<Thread, AnyError> {
    let own_limits = match &arguments.inherited {
        Some(inherited) => {
            keep_descriptor_limits(inherited.limits.descriptors);
            handles::adopt(inherited.handles)?;
            inherited.limits
        }
        None => OwnLimits::from_host(),
    };
    enough_descriptors()?;
    let filters = arguments.inherited_filters()?;
    handles::open_all();
    let clock_page = ClockPage::create()?;
    let protect = arguments.protect == Switch::On;
    let name = arguments.command.first().ok_or("no program is given")?;
    let path = match &arguments.exec {
        Some(path) => path.clone(),
        None => loader::find_program(name, std::env::var_os("PATH").as_deref())?,
    };
    let given = arguments.given()?;
    let core_limit = match arguments.core {
        Switch::On if protect => arguments.core_limit.0.unwrap_or(u64::MAX) as usize,
        _ => 0,
    };
    let limits = arguments.limits();
    let events = open_events(&arguments)?;
    let stats_path = arguments
        .stats
        .as_deref()
        .map(std::path::absolute)
        .transpose()?;
    if let Some(path) = &stats_path {
        // Now, and not when the server has run for a month.
        match File::options().append(true).create(true).open(path) {
            Ok(file) => handles::set_stats(&file)?,
            // It was handed on.
            Err(error) if arguments.is_of_another_user(&error) => {}
            Err(error) => {
                let path = path.display();
                return Err(format!("cannot write the stats file {path}: {error}").into());
            }
        }
    }
    let error_reply = arguments
        .error_reply
        .as_deref()
        .map(ErrorReply::from_argument)
        .transpose()?;
    if !protect && !arguments.inject.is_empty() {
        return Err(
            "--inject needs --protect=on; with --recover=off faults take their course".into(),
        );
    }
    let injections = arguments.inject.len() as u64;
    let control = match &arguments.control {
        Some(path) => Some(control::listen(path).map_err(|e| {
            format!(
                "cannot listen on the control socket {}: {e}",
                path.display()
            )
        })?),
        None => None,
    };
    let store = match protect {
        true => open_reports(&arguments)?.map(|store| {
            store.with_limits(
                arguments.quarantine_limit.0.unwrap_or(u64::MAX),
                arguments.quarantine_age.0.unwrap_or(Duration::MAX),
            )
        }),
        false => None,
    };

    crate::host::fix_mmap_threshold();
    let dispositions = inherited_dispositions();
    fault_signals::install_handler()?;
    window::reserve().map_err(|e| format!("cannot reserve the guest's address space: {e}"))?;
    let vm = Vm::create(protect)?;
    let mut space = AddressSpace::new(&vm)?;
    let mut vcpu = vm.create_vcpu()?;
    let common = common::open(arguments.inherited.is_some())?;
    let probe = match common.probe.get() {
        Some(known) => {
            vcpu.set_entry_path(known.path);
            *known
        }
        None => {
            let found = kvm::probe(&mut vcpu)?;
            *common.probe.get_or_init(|| found)
        }
    };
    let clock = GuestClock::start(clock_page, probe.tsc_is_host)?;
    let environment = raw_environment();
    let program = Program {
        path: &path,
        args: &arguments.command,
        environment: &environment,
    };
    let injects = protect && (!arguments.inject.is_empty() || arguments.control.is_some());
    let vdso = match injects {
        true => Cow::Owned(with_routines(VDSO_IMAGE)),
        false => Cow::Borrowed(VDSO_IMAGE),
    };
    let loaded = loader::load(&mut space, &program, clock.as_fd(), &vdso)?;
    if let Err(error) = show_program(&loaded.shown) {
        // A kernel without CONFIG_CHECKPOINT_RESTORE.
        log::debug!("`ps` shows the monitor's arguments: {error}");
    }
    // The keeper of the clock page runs for as long as the monitor does.
    std::mem::forget(clock);

    let events = events.of(Sender {
        program: path.display().to_string(),
        instance: common.instance(),
    });
    let core_pages = core_limit / PAGE_SIZE as usize;
    let reporter = Reporter::new(events, store, core_pages, &common.news);
    reporter.emit(Event::Started {
        args: arguments.command[1..]
            .iter()
            .map(|a| a.to_string_lossy().into_owned())
            .collect(),
        protect,
        entry_path: match probe.path {
            EntryPath::Ring3 => "ring3".into(),
            EntryPath::Ring0 => "ring0".into(),
        },
    });
    if arguments.inherited.is_none() {
        common.stats.processes.inc();
    }
    let own_memory = handles::open_own_memory()?;
    let own_page_map = protect.then(handles::open_own_page_map).transpose()?;
    let mut tracker = Tracker::new();
    tracker.set_shadow_limit(match arguments.shadow_limit {
        Some(limit) => limit.0.unwrap_or(u64::MAX),
        None => default_shadow_limit(),
    });
    let process = Process::new(Parts {
        vm,
        entry_path: probe.path,
        options: Options {
            protect,
            hold_limit: arguments
                .hold_limit
                .0
                .map_or(usize::MAX, |bytes| bytes as usize),
            is_child: arguments.inherited.as_ref().is_some_and(|i| i.is_child),
            request_slice: request_slice(probe.exit_cost, limits.cpu),
            core_limit,
            audit: arguments.audit,
            restore_at_once: arguments.restore_at_once,
            stats: stats_path,
            limits,
            restart: arguments.restart,
            image_limit: arguments
                .image_limit
                .map(|limit| limit.0.unwrap_or(u64::MAX)),
            error_reply,
            control: arguments
                .control
                .as_deref()
                .map(std::path::absolute)
                .transpose()?,
            give_up: arguments.recover == Switch::Off,
            given,
        },
        common,
        reporter,
        program: path.display().to_string(),
        executable: loaded.executable.display().to_string(),
        auxv: loaded.shown.auxv,
        own_memory,
        own_page_map,
        injector: injects.then(|| {
            let vdso = loaded.vdso;
            let routines = Routines::behind(vdso, VDSO_IMAGE);
            Arc::new(Injector::new(routines, arguments.inject))
        }),
        state: State {
            space,
            tracker,
            shared: None,
            files: Files::default(),
            domain: None,
            suspended: Default::default(),
            wait_words: Default::default(),
            left_reads: Vec::new(),
            dispositions,
            handoffs: Default::default(),
            debt: None,
            is_stopping: false,
            filters,
            ladder: Ladder::new(DEFAULT_STORM_LIMIT, arguments.storm_limit),
            restart: Default::default(),
            offenders: arguments
                .learn
                .then(|| SharedOffenders::new(arguments.learn_for.0)),
            own_limits,
            heap: (protect && arguments.verify_heap).then(Box::default),
            locked: LockedPages::default(),
            functions: Default::default(),
            strike_points: Default::default(),
        },
    });
    host_signals::install_handlers()?;
    let inherited_mask = host_signals::close(SignalSet::EMPTY);
    let blocked = match &arguments.inherited {
        Some(inherited) => inherited.blocked,
        None => inherited_mask,
    };
    // SAFETY: the name is NUL-terminated.
    unsafe { libc::prctl(libc::PR_SET_NAME, loaded.name.as_ptr()) };
    let registers = vcpu.registers();
    registers.rip = loaded.entry;
    registers.rsp = loaded.shown.stack_pointer;
    let process = Arc::new(process);
    for id in 1..=injections {
        strike::await_time(&process, id)?;
    }
    if let Some(listener) = control {
        control::serve(&process, listener)?;
    }
    let mut thread = Thread::new(process, vcpu, blocked);
    thread.mark_loaded(&loaded.written);
    crate::host::close_standard_again();
    Ok(thread)
}

/// `K=V` strings, as they were given.
fn raw_environment() -> Vec<OsString> {
    std::env::vars_os()
        .map(|(mut key, value)| {
            key.push("=");
            key.push(value);
            key
        })
        .collect()
}

/// The file of events: that which the monitor before this one has handed on, or else the one that is asked for.
fn open_events(arguments: &RunArgs) -> Result<EventLog, AnyError> {
    let Some(path) = &arguments.events else {
        return Ok(EventLog::disabled());
    };
    let log = |file| EventLog::new(file).reopened_by(Box::new(handles::reopen_events));
    handles::name_events(path);
    if let Some(file) = handles::events()? {
        return Ok(log(file));
    }
    let opened = EventLog::append_options()
        .open(path)
        .and_then(|file| reserved_fd(file.into()))
        .map(File::from);
    let file = opened
        .map_err(|error| format!("cannot open the events file {}: {error}", path.display()))?;
    handles::set_events(&file, path)?;
    Ok(log(file))
}

/// The store of fault reports. A program that the guest executes may be another user's, with the same environment:
/// where it cannot keep reports, it keeps them in the directory that was made for it, or runs without.
fn open_reports(arguments: &RunArgs) -> Result<Option<ReportStore>, AnyError> {
    match ReportStore::open(arguments.report_dir.clone()) {
        Ok(store) => Ok(Some(store)),
        Err(error) if arguments.exec.is_some() => {
            let made = handles::reports().map(|dir| ReportStore::open(Some(dir)));
            match made {
                Some(Ok(store)) => Ok(Some(store)),
                _ => {
                    log::warn!("no fault reports: {}", chain(&error));
                    Ok(None)
                }
            }
        }
        Err(error) => {
            Err(format!("{}; name another one with --report-dir DIR", chain(&error)).into())
        }
    }
}

/// Ignored signals stay ignored through exec. SIGPIPE is ignored by the monitor itself, not by its parent.
fn inherited_dispositions() -> Dispositions {
    let mut dispositions = Dispositions::default();
    for signal in (1..=64).filter_map(Signal::new) {
        if signal != Signal::SIGPIPE && inherited_ignored(signal) {
            let ignore = Action {
                handler: libc::SIG_IGN as u64,
                ..Action::default()
            };
            dispositions.set(signal, ignore);
        }
    }
    dispositions
}

/// For `vmsrs check`: really enters the guest once.
pub fn probe() -> Result<String, String> {
    let probe = || -> Result<String, AnyError> {
        fault_signals::install_handler()?;
        window::reserve().map_err(io::Error::other)?;
        let vm = Vm::create(true)?;
        let _space = AddressSpace::new(&vm)?;
        let mut vcpu = vm.create_vcpu()?;
        let probe = kvm::probe(&mut vcpu)?;
        let path = match probe.path {
            EntryPath::Ring3 => "`syscall` stays in ring 3 (PVM)",
            EntryPath::Ring0 => "`syscall` enters ring 0 (VMX, SVM)",
        };
        let clocks = if probe.tsc_is_host {
            "clocks need no exit"
        } else {
            "clocks need exits"
        };
        Ok(format!("{path}; {clocks}"))
    };
    probe().map_err(|error| chain(error.as_ref()))
}
