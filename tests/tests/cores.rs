//! The core of a fault report: `gdb` opens it and shows what the request that crashed had in memory, while the
//! server goes on with what it had before.

use std::{
    fs::{self, File},
    net::TcpStream,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    time::Duration,
};

use vmsrs_tests::{
    Event, Launch, Monitored, free_port, gdb,
    guest::{self, Linkage},
    kvm_case,
    load::Load,
    net, redis, run, talk,
};

const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;

struct Server {
    server: Monitored,
    client: TcpStream,
    program: PathBuf,
    crashes: usize,
}

impl Server {
    fn start(linkage: Linkage, options: &[&str]) -> Server {
        Server::start_by(linkage, |launch| launch.options(options))
    }

    fn start_by(linkage: Linkage, how: impl FnOnce(Launch) -> Launch) -> Server {
        let port = free_port().unwrap();
        let program = guest::linked("core_server", linkage).unwrap();
        let command = [
            program.clone().into_os_string(),
            port.to_string().into(),
            "2".into(),
        ];
        let launch = how(Launch::monitored(command).unwrap());
        let server = launch.patience(PATIENCE).start(port).unwrap();
        let client = net::connect(port, PATIENCE).unwrap();
        Server {
            server,
            client,
            program,
            crashes: 0,
        }
    }

    fn ask(&mut self, command: &str) -> String {
        talk::ask(&mut self.client, command)
    }

    /// A request that crashes, and its event.
    fn crash(&mut self, command: &str) -> Event {
        talk::crash(self.server.port(), command, PATIENCE);
        self.crashes += 1;
        let mut events = self.server.await_events("recovered", self.crashes).unwrap();
        assert_eq!(events.len(), self.crashes, "{}", self.server.output_tail());
        events.pop().unwrap()
    }
}

fn redis_server(port: u16) -> Monitored {
    let launch = Launch::monitored(redis::command(port)).unwrap();
    launch.patience(PATIENCE).start(port).unwrap()
}

/// What `vmsrs report` prints of the fault in `event`.
fn report(server: &Monitored, event: &Event) -> String {
    let mut command = run::vmsrs(["report", "--report-dir"]).unwrap();
    let id = event.text("report").expect("a report");
    let printed = run::to_end(command.arg(server.report_dir()).arg(id), b"").unwrap();
    assert_eq!(printed.code(), 0, "{printed}");
    printed.out()
}

/// The core that a report names.
fn core_in(report: &str) -> PathBuf {
    let command = gdb::command(report);
    PathBuf::from(command.unwrap_or_else(|| panic!("{report}")).1)
}

/// What `gdb` prints: all of `parts`, in this order.
fn assert_shows(program: &Path, core: &Path, commands: &[&str], parts: &[&str]) {
    let shown = gdb::ask(program, core, commands).unwrap();
    let out = shown.out();
    let mut rest = out.as_str();
    for part in parts {
        let at = rest.find(part);
        let at = at.unwrap_or_else(|| panic!("no {part:?} in what is left of {shown}"));
        rest = &rest[at + part.len()..];
    }
}

#[test]
fn a_core_shows_the_crash_and_what_the_request_had_written() {
    kvm_case("a_core_shows_the_crash_and_what_the_request_had_written");
    for linkage in [Linkage::Dynamic, Linkage::Static] {
        let mut server = Server::start(linkage, &[]);
        assert_eq!(server.ask("set 5\n"), "ok");
        let event = server.crash("crash 42\n");
        // What the request has written is not there any more ...
        assert_eq!(server.ask("get\n"), "5 5 2");

        // ... but in the core, which the report's own command opens.
        let report = report(&server.server, &event);
        let (program, core) = gdb::command(&report).unwrap_or_else(|| panic!("{report}"));
        assert_eq!(
            Path::new(&program),
            fs::canonicalize(&server.program).unwrap()
        );
        let core = Path::new(&core);
        let commands = [
            "bt",
            "print stored",
            "print *list",
            "print list->next->number",
            "print never_written",
            "print greeting",
            "print $_siginfo.si_signo",
            "thread apply all -ascending bt",
        ];
        let parts = [
            "Program terminated with signal SIGSEGV",
            "#0 ",
            "the_culprit (",
            "#1 ",
            "its_caller (",
            "#2 ",
            "serve (fd=",
            "#3 ",
            "main (",
            "= 42",
            "number = 42, name = \"item-42\"",
            "= 5",
            "= 0",
            "\"hello\"",
            "= 11",
            "the_culprit (",
            "idle_function (",
            "idle (argument=",
            "idle_function (",
            "idle (argument=",
        ];
        assert_shows(Path::new(&program), core, &commands, &parts);
        if linkage == Linkage::Dynamic {
            let commands = ["print per_thread", "info sharedlibrary"];
            assert_shows(Path::new(&program), core, &commands, &["= 42", "libc.so.6"]);
        }

        // It may hold secrets.
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!((mode(core), mode(core.parent().unwrap())), (0o600, 0o700));
        assert!(fs::metadata(core).unwrap().len() < MIB);
        server.server.terminate().unwrap();
    }
}

#[test]
fn thread_local_variables_are_found_wherever_the_loader_has_its_tables() {
    kvm_case("thread_local_variables_are_found_wherever_the_loader_has_its_tables");
    // The longer the search path, the more of its memory the loader has used before it makes them.
    for directories in [1, 4, 5, 6, 7, 32] {
        let path: Vec<String> = (0..directories)
            .map(|i| format!("/no/such/directory/{i}"))
            .collect();
        let path = path.join(":");
        let mut server = Server::start_by(Linkage::Dynamic, |launch| {
            launch.env("LD_LIBRARY_PATH", &path)
        });
        let event = server.crash("crash 42\n");
        let core = core_in(&report(&server.server, &event));
        assert_shows(&server.program, &core, &["print per_thread"], &["= 42"]);
    }
}

#[test]
fn an_abort_is_followed_through_the_libraries() {
    kvm_case("an_abort_is_followed_through_the_libraries");
    let mut server = Server::start(Linkage::Dynamic, &[]);
    let event = server.crash("abort 7\n");
    let core = core_in(&report(&server.server, &event));
    let parts = [
        "SIGABRT",
        "abort",
        "the_culprit (",
        "its_caller (",
        "main (",
    ];
    assert_shows(&server.program, &core, &["bt"], &parts);
    assert_eq!(server.ask("get\n"), "1 1 1");

    // A server of Debian's, with many libraries and its memory elsewhere.
    let port = free_port().unwrap();
    let server = redis_server(port);
    let mut client = redis::Client::connect(net::Address::Tcp(port), PATIENCE).unwrap();
    assert!(client.call(&["DEBUG", "SEGFAULT"]).is_err());
    let events = server.await_events("recovered", 1).unwrap();
    let report = report(&server, &events[0]);
    let (program, core) = gdb::command(&report).unwrap_or_else(|| panic!("{report}"));
    let parts = ["debugCommand", "call", "processCommand", "aeMain", "main"];
    assert_shows(Path::new(&program), Path::new(&core), &["bt"], &parts);
}

#[test]
fn a_request_that_wrote_much_has_a_small_core() {
    kvm_case("a_request_that_wrote_much_has_a_small_core");
    let mut server = Server::start(Linkage::Dynamic, &[]);
    let event = server.crash("big 200 9\n");
    assert!(event.number("pages_written") > Some(50_000), "{event:?}");
    let text = report(&server.server, &event);
    assert!(
        text.contains(" pages that the request had written are in it"),
        "{text}"
    );
    let core = core_in(&text);
    let size = fs::metadata(&core).unwrap().len();
    assert!((3 * MIB..10 * MIB).contains(&size), "{size}");
    let parts = ["the_culprit (", "its_caller (", "= 9"];
    assert_shows(&server.program, &core, &["bt", "print stored"], &parts);
    assert_eq!(server.ask("get\n"), "1 1 1");
    // To copy all of it would take 50 ms at the very least. Others use the machine as well, so the best counts.
    let again = [8, 7].map(|n| server.crash(&format!("big 200 {n}\n")));
    let pauses = [&event, &again[0], &again[1]].map(|event| event.number("pause_us").unwrap());
    assert!(pauses.iter().any(|pause| *pause < 50_000), "{pauses:?}");

    // With another limit it is another size.
    let mut server = Server::start(Linkage::Dynamic, &["--core-limit", "32M"]);
    let event = server.crash("big 64 9\n");
    let core = core_in(&report(&server.server, &event));
    let size = fs::metadata(core).unwrap().len();
    assert!((31 * MIB..37 * MIB).contains(&size), "{size}");
}

#[test]
fn cores_can_be_turned_off() {
    kvm_case("cores_can_be_turned_off");
    let mut server = Server::start(Linkage::Dynamic, &["--core", "off"]);
    let event = server.crash("crash 3\n");
    let text = report(&server.server, &event);
    assert!(!text.contains("Core "), "{text}");
    let dir = server.server.report_dir();
    let dir = dir.join(event.text("report").unwrap());
    assert!(dir.join("report.json").is_file() && !dir.join("core").exists());
}

#[test]
fn a_bug_has_as_many_cores_as_reports() {
    kvm_case("a_bug_has_as_many_cores_as_reports");
    let mut server = Server::start(Linkage::Dynamic, &[]);
    for _ in 0..30 {
        server.crash("crash 3\n");
    }
    let reports = fs::read_dir(server.server.report_dir()).unwrap();
    let cores: Vec<bool> = reports
        .map(|entry| entry.unwrap().path().join("core").is_file())
        .collect();
    assert_eq!(cores, [true; 3]);
    // Another bug has its own.
    let event = server.crash("abort 3\n");
    core_in(&report(&server.server, &event));
}

/// Writes of the server, which these faults share with it, to `limit` bytes of any file.
fn limit_file_size(server: &Monitored, limit: u64) {
    let limit = libc::rlimit {
        rlim_cur: limit,
        rlim_max: libc::RLIM_INFINITY,
    };
    // SAFETY: the limit is read, and nothing is written.
    let result = unsafe {
        libc::prlimit(
            server.pid() as i32,
            libc::RLIMIT_FSIZE,
            &limit,
            std::ptr::null_mut(),
        )
    };
    assert_eq!(result, 0);
}

#[test]
fn where_a_core_cannot_be_written_nobody_loses_anything() {
    kvm_case("where_a_core_cannot_be_written_nobody_loses_anything");
    let port = free_port().unwrap();
    let mut server = redis_server(port);
    let address = net::Address::Tcp(port);
    let load = Load::start::<redis::Healthy>(&address, 3, PATIENCE);
    let crash = || {
        let mut client = redis::Client::connect(address.clone(), PATIENCE).unwrap();
        assert!(client.call(&["DEBUG", "SEGFAULT"]).is_err());
    };
    // As on a full disk: the report has room, the core has not.
    limit_file_size(&server, 128 << 10);
    crash();
    let events = server.await_events("recovered", 1).unwrap();
    let text = report(&server, &events[0]);
    assert!(text.contains("\nCore      none: "), "{text}");
    let dir = server.report_dir();
    assert!(
        !dir.join(events[0].text("report").unwrap())
            .join("core")
            .exists()
    );
    limit_file_size(&server, libc::RLIM_INFINITY);

    // No directory any more, and none can be made.
    fs::remove_dir_all(&dir).unwrap();
    File::create(&dir).unwrap();
    crash();
    let events = server.await_events("recovered", 2).unwrap();
    assert_eq!(events.len(), 2);
    assert_eq!(events[1].text("report"), None);

    // And when there is one again, there are cores again.
    fs::remove_file(&dir).unwrap();
    fs::create_dir(&dir).unwrap();
    crash();
    let events = server.await_events("recovered", 3).unwrap();
    core_in(&report(&server, &events[2]));
    let outcome = load.finish();
    assert!(outcome.problems.is_empty(), "{outcome:#?}");
    assert!(outcome.requests > 0);
    server.terminate().unwrap();
}
