//! Every kind of fault, committed in a request of a server with one thread and with several: the culprit's
//! connection is reset, nobody else notices, the event says what bare Linux would have done, and the server is
//! what it was before.

use std::{
    io::{Read, Write},
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Event, Launch, Monitored,
    audit::difference,
    faults::{Client, Healthy, Program, expected},
    free_port, guest, kvm_case,
    load::Load,
    net, paths, web,
};

const PATIENCE: Duration = Duration::from_secs(30);
/// What is no fault to an emulated processor: it checks no alignment, and masks floating-point exceptions.
const OF_REAL_PROCESSORS: [&str; 2] = ["alignment", "vector-exception"];
const HEALTHY: usize = 3;

fn program() -> Program {
    Program::build().unwrap_or_else(|error| panic!("{error}"))
}

fn start(program: &Program, workers: u32, options: &[&str]) -> Monitored {
    let port = free_port().unwrap();
    Launch::monitored(program.serve(port, workers))
        .unwrap()
        .options(options)
        // Lines of the monitor move the offset of the file that standard error is, which the server tells.
        .env("VMSRS_LOG", "off")
        .patience(PATIENCE)
        .start(port)
        .unwrap()
}

/// Everything that has been said of faults, in order.
fn faults(server: &Monitored) -> Vec<Event> {
    let all = server.events().unwrap();
    all.into_iter()
        .filter(|e| ["recovered", "degraded", "escalated"].contains(&e.event.as_str()))
        .collect()
}

/// The fault number `number`, once its event has been written.
fn fault(server: &Monitored, number: usize) -> Event {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(event) = faults(server).into_iter().nth(number) {
            return event;
        }
        assert!(
            Instant::now() < deadline,
            "no event; {}",
            server.output_tail()
        );
        thread::sleep(Duration::from_millis(5));
    }
}

/// Connections that look at each of the server's threads, and what they saw.
struct Watchers {
    clients: Vec<Client>,
    /// Where `syscall` does not leave ring 3, data segment selectors cannot be set from outside. They mean
    /// nothing to 64-bit code; the bases of FS and GS are looked at everywhere.
    selectors: bool,
}

impl Watchers {
    fn new(server: &Monitored, workers: u32) -> Watchers {
        let connect = |_| Client::connect(server.port(), PATIENCE).unwrap();
        let started = &server.events_of("started").unwrap()[0];
        Watchers {
            clients: (0..workers.max(1)).map(connect).collect(),
            selectors: started.text("entry_path") == Some("ring0"),
        }
    }

    fn states(&mut self) -> String {
        let states: String = self
            .clients
            .iter_mut()
            .map(|c| c.state().unwrap())
            .collect();
        let keep = |line: &&str| self.selectors || !line.starts_with("selectors ");
        states
            .lines()
            .filter(keep)
            .map(|line| format!("{line}\n"))
            .collect()
    }

    /// Waits until the states are `before`: the server closes a connection after its reset has arrived.
    fn see(&mut self, before: &str, what: &str) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let Some(difference) = difference(before, &self.states()) else {
                return;
            };
            assert!(Instant::now() < deadline, "{what} has left:\n{difference}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

/// Ends the load and the server, and checks both.
fn finish(mut server: Monitored, load: Load, requests: u64) {
    let outcome = load.finish();
    assert!(
        outcome.problems.is_empty(),
        "{outcome:#?}\n{}",
        server.output_tail()
    );
    assert!(outcome.requests >= requests, "{outcome:?}");
    server.terminate().unwrap();
}

/// The faults that no limit needs to end, as far as this processor has them.
fn faults_of_their_own(program: &Program) -> Vec<String> {
    let is_here = |name: &String| {
        !OF_REAL_PROCESSORS.contains(&name.as_str())
            || program.native_signal(name, false).unwrap().is_some()
    };
    let mut names = program.faults().unwrap();
    names.retain(|name| expected(name).is_some() && is_here(name));
    names
}

fn every_fault(workers: u32) {
    let program = program();
    let names = faults_of_their_own(&program);
    assert!(names.len() > 120, "{names:?}");
    // Most are the same to a thread whichever it is: some of each table.
    let names = names.iter().step_by(if workers > 0 { 3 } else { 1 });
    let native = |name: &str| program.native_signal(name, workers > 0).unwrap();

    let server = start(&program, workers, &[]);
    let mut watchers = Watchers::new(&server, workers);
    let load = Load::start::<Healthy>(server.address(), HEALTHY, PATIENCE);
    while watchers.states().matches("fd ").count() < HEALTHY {
        thread::sleep(Duration::from_millis(10));
    }
    thread::sleep(Duration::from_millis(200));
    let before = watchers.states();
    for (number, name) in names.enumerate() {
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        let answer = culprit
            .until_reset(&format!("commit {name}"))
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.output_tail()));
        assert_eq!(answer, "", "{name}: a part of the answer has left");
        let event = fault(&server, number);
        assert_eq!(event.event, "recovered", "{name}: {event:?}");
        let expected = expected(name).unwrap();
        if !expected.kind.is_empty() {
            assert_eq!(event.text("kind"), Some(expected.kind), "{name}: {event:?}");
        }
        if expected.native_signal {
            let native = native(name).map(recovery_name);
            assert_eq!(event.text("signal"), native, "{name}: {event:?}");
        }
        watchers.see(&before, name);
    }
    drop(watchers);
    finish(server, load, 200);
}

#[test]
fn every_fault_leaves_every_byte_as_it_was() {
    kvm_case("every_fault_leaves_every_byte_as_it_was");
    let program = program();
    let mut server = start(&program, 0, &["--audit"]);
    let mut count = 0;
    for name in faults_of_their_own(&program) {
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        culprit.until_reset(&format!("commit {name}")).unwrap();
        count += 1;
    }
    server.terminate().unwrap();
    let audit = &server.stats().unwrap()["audit"];
    assert_eq!(audit["checks"], count, "{audit}");
    assert_eq!(audit["mismatches"], 0, "{}", server.output_tail());
}

/// The name that events use for a signal.
fn recovery_name(signal: i32) -> &'static str {
    match signal {
        libc::SIGSEGV => "SIGSEGV",
        libc::SIGBUS => "SIGBUS",
        libc::SIGFPE => "SIGFPE",
        libc::SIGILL => "SIGILL",
        libc::SIGTRAP => "SIGTRAP",
        libc::SIGABRT => "SIGABRT",
        libc::SIGSYS => "SIGSYS",
        libc::SIGTERM => "SIGTERM",
        libc::SIGKILL => "SIGKILL",
        libc::SIGUSR1 => "SIGUSR1",
        _ => "?",
    }
}

#[test]
fn every_fault_of_a_server_with_one_thread() {
    kvm_case("every_fault_of_a_server_with_one_thread");
    every_fault(0);
}

#[test]
fn every_fault_of_a_server_with_worker_threads() {
    kvm_case("every_fault_of_a_server_with_worker_threads");
    every_fault(2);
}

/// Faults that only a limit ends, all of one kind, while other clients work.
fn limited(workers: u32, options: &[&str], names: &[&str], kind: &str, healthy: usize) {
    let program = program();
    let server = start(&program, workers, options);
    let mut watchers = Watchers::new(&server, workers);
    let load = Load::start::<Healthy>(server.address(), healthy, PATIENCE);
    // Until the healthy clients have connected.
    thread::sleep(Duration::from_millis(300));
    let before = watchers.states();
    for (number, name) in names.iter().enumerate() {
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        let answer = culprit
            .until_reset(name)
            .unwrap_or_else(|error| panic!("{name}: {error}\n{}", server.output_tail()));
        assert_eq!(answer, "", "{name}");
        let event = fault(&server, number);
        assert_eq!(event.event, "recovered", "{name}: {event:?}");
        assert_eq!(event.text("kind"), Some(kind), "{name}: {event:?}");
        assert!(
            event.get("signal").is_some_and(serde_json::Value::is_null),
            "{event:?}"
        );
        watchers.see(&before, name);
    }
    drop(watchers);
    finish(server, load, 5 * healthy as u64);
}

// Less than the time after which a request that computes is suspended, so that all of it is undone.
const CPU: [&str; 2] = ["--request-cpu", "100ms"];
const SPINNING: [&str; 3] = ["commit spin", "commit spin-calls", "commit spin-yield"];

#[test]
fn requests_that_compute_for_ever_with_one_thread() {
    kvm_case("requests_that_compute_for_ever_with_one_thread");
    limited(0, &CPU, &SPINNING, "timeout", HEALTHY);
}

#[test]
fn requests_that_compute_for_ever_with_worker_threads() {
    kvm_case("requests_that_compute_for_ever_with_worker_threads");
    limited(2, &CPU, &SPINNING, "timeout", HEALTHY);
}

const MEMORY: [&str; 4] = ["--request-memory", "48M", "--request-cpu", "off"];
const EATING: [&str; 5] = [
    "commit eat-heap",
    "commit eat-brk",
    "commit eat-mappings",
    "commit eat-unmapped",
    "commit eat-populated",
];

#[test]
fn requests_that_eat_memory_with_one_thread() {
    kvm_case("requests_that_eat_memory_with_one_thread");
    limited(0, &MEMORY, &EATING, "memory", HEALTHY);
}

/// Resident memory of the server, in MiB.
fn resident(server: &Monitored) -> u64 {
    server.resident_kib().unwrap() >> 10
}

#[test]
fn memory_that_a_request_has_eaten_goes_back_to_the_host() {
    kvm_case("memory_that_a_request_has_eaten_goes_back_to_the_host");
    let program = program();
    let options = ["--request-memory", "256M", "--request-cpu", "off"];
    for workers in [0, 1] {
        let server = start(&program, workers, &options);
        let mut watcher = Client::connect(server.port(), PATIENCE).unwrap();
        watcher.ask("add 1").unwrap();
        let before = resident(&server);
        for (number, name) in ["eat-heap", "eat-unmapped"].iter().enumerate() {
            let culprit = Client::connect(server.port(), PATIENCE).unwrap();
            culprit.until_reset(&format!("commit {name}")).unwrap();
            let event = fault(&server, number);
            assert_eq!(event.text("kind"), Some("memory"), "{event:?}");
            assert!(event.number("pages_written") > Some(60_000), "{event:?}");
            watcher.ask("add 1").unwrap();
            // The cleaner does it while nobody else wants to run.
            let deadline = Instant::now() + PATIENCE;
            while resident(&server) >= before + 64 && Instant::now() < deadline {
                thread::sleep(Duration::from_millis(20));
            }
            let after = resident(&server);
            assert!(
                after < before + 64,
                "{name}: {before} MiB before, {after} MiB after"
            );
        }
    }
}

#[test]
fn requests_that_wait_for_ever() {
    kvm_case("requests_that_wait_for_ever");
    // What a request has said is not kept back while it sleeps, nor, where there are threads, while it waits for them.
    let alone = ["hang sleep", "commit wait-futex", "commit lock-twice"];
    let among_others = ["hang sleep", "hang wait-futex", "hang lock-twice"];
    for (workers, names) in [(0, alone), (2, among_others)] {
        limited(
            workers,
            &["--request-timeout", "400ms"],
            &names,
            "timeout",
            0,
        );
    }
}

/// Requests that are suspended, while others use the same memory. Whether all of it can be undone depends on what
/// the others do; that they are ended does not.
#[test]
fn suspended_requests_are_ended() {
    kvm_case("suspended_requests_are_ended");
    let program = program();
    let options = ["--request-timeout", "700ms", "--request-cpu", "400ms"];
    let server = start(&program, 2, &options);
    let load = Load::start::<Healthy>(server.address(), HEALTHY, PATIENCE);
    for (number, name) in ["sleep", "spin"].into_iter().enumerate() {
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        culprit.until_reset(&format!("hang {name}")).unwrap();
        let event = fault(&server, number);
        assert_eq!(event.text("kind"), Some("timeout"), "{name}: {event:?}");
        assert_ne!(event.event, "escalated", "{name}: {event:?}");
    }
    finish(server, load, 20);
}

/// What was committed in its middle goes on there when it is undone, and would for ever.
#[test]
fn an_endless_request_that_cannot_be_undone_is_no_hang() {
    kvm_case("an_endless_request_that_cannot_be_undone_is_no_hang");
    let program = program();
    for workers in [0, 2] {
        let options = ["--request-cpu", "100ms", "--restart", "always"];
        let server = start(&program, workers, &options);
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        culprit.until_reset("hang spin-after-connect").unwrap();
        server.await_events("restarted", 1).unwrap();
        let events = server.events().unwrap();
        let told = |event: &&Event| matches!(event.event.as_str(), "degraded" | "escalated");
        let told: Vec<&str> = events
            .iter()
            .filter(told)
            .map(|e| e.event.as_str())
            .collect();
        assert_eq!(told.first(), Some(&"degraded"), "{events:#?}");
        assert_eq!(told.last(), Some(&"escalated"), "{events:#?}");
        let mut client = Client::connect(server.port(), PATIENCE).unwrap();
        client.ask("add 1").unwrap();
    }
}

/// A request that eats memory while others work has written too much to be watched when it is suspended.
#[test]
fn a_suspended_request_that_eats_memory_is_ended() {
    kvm_case("a_suspended_request_that_eats_memory_is_ended");
    let program = program();
    let options = ["--request-memory", "512M", "--request-cpu", "off"];
    let server = start(&program, 2, &options);
    let load = Load::start::<Healthy>(server.address(), HEALTHY, PATIENCE);
    for (number, name) in ["eat-mappings", "eat-heap"].into_iter().enumerate() {
        let culprit = Client::connect(server.port(), PATIENCE).unwrap();
        culprit.until_reset(&format!("hang {name}")).unwrap();
        let event = fault(&server, number);
        assert_eq!(event.text("kind"), Some("memory"), "{name}: {event:?}");
        assert_ne!(event.event, "escalated", "{name}: {event:?}");
    }
    finish(server, load, 20);
}

#[test]
fn without_limits_a_request_may_take_its_time() {
    kvm_case("without_limits_a_request_may_take_its_time");
    let program = program();
    let options = [
        "--request-timeout",
        "off",
        "--request-cpu=off",
        "--request-memory=off",
    ];
    let mut server = start(&program, 0, &options);
    let mut culprit = Client::connect(server.port(), Duration::from_secs(2)).unwrap();
    assert!(culprit.ask("hang spin").is_err());
    assert_eq!(faults(&server), []);
    server.kill();
}

#[test]
fn exit_is_permitted_on_demand() {
    kvm_case("exit_is_permitted_on_demand");
    let program = program();
    let mut server = start(&program, 0, &["--allow-exit"]);
    let mut culprit = Client::connect(server.port(), PATIENCE).unwrap();
    assert!(culprit.ask("commit exit-with-handlers").is_err());
    assert_eq!(server.wait().unwrap().unwrap().code(), Some(6));
    assert!(server.output().contains("goodbye"), "{}", server.output());
    assert_eq!(faults(&server), []);
}

#[test]
fn an_exit_that_cannot_be_undone_keeps_its_status() {
    kvm_case("an_exit_that_cannot_be_undone_keeps_its_status");
    let program = program();
    let mut server = start(&program, 0, &[]);
    let mut culprit = Client::connect(server.port(), PATIENCE).unwrap();
    assert!(culprit.ask("hang exit-after-unlink").is_err());
    assert_eq!(server.wait().unwrap().unwrap().code(), Some(9));
    // What came after the unlink is undone once, and the client reset; then it takes its course.
    let faults = faults(&server);
    assert_eq!(faults[0].event, "degraded", "{faults:?}");
    assert_eq!(faults[0].text("kind"), Some("exit"), "{faults:?}");
    let exited = server.events_of("exited").unwrap();
    assert_eq!(exited[0].number("status"), Some(9), "{exited:?}");
}

const FOR_CRASH_HANDLERS: [&str; 7] = [
    "null-write",
    "divide",
    "ud2",
    "int3",
    "alignment",
    "assert",
    "raise-segv",
];

/// It does not run, or what it does is undone; told is the fault that it was called for, one of `names`.
fn nobody_notices_a_crash_handler(what_it_does: &str, names: &[&str]) {
    let program = program();
    let port = free_port().unwrap();
    let mut command = program.serve(port, 1);
    command.push(what_it_does.into());
    let server = Launch::monitored(command).unwrap().start(port).unwrap();
    for (number, &name) in names.iter().enumerate() {
        let culprit = Client::connect(port, PATIENCE).unwrap();
        culprit.until_reset(&format!("commit {name}")).unwrap();
        let event = fault(&server, number);
        assert_eq!(event.event, "recovered", "{name}: {event:?}");
        let kind = expected(name).map(|expected| expected.kind);
        assert_eq!(event.text("kind"), kind, "{name}: {event:?}");
        let signal = program.native_signal(name, true).unwrap();
        assert_eq!(event.text("signal"), signal.map(recovery_name), "{event:?}");
    }
    assert!(
        !server.output().contains("crash handler"),
        "{}",
        server.output()
    );
}

#[test]
fn a_crash_handler_that_exits_is_undone() {
    kvm_case("a_crash_handler_that_exits_is_undone");
    nobody_notices_a_crash_handler("exits", &FOR_CRASH_HANDLERS);
}

#[test]
fn a_crash_handler_that_aborts_is_undone() {
    kvm_case("a_crash_handler_that_aborts_is_undone");
    nobody_notices_a_crash_handler("aborts", &FOR_CRASH_HANDLERS);
}

#[test]
fn a_crash_handler_that_waits_is_undone() {
    kvm_case("a_crash_handler_that_waits_is_undone");
    nobody_notices_a_crash_handler("waits", &FOR_CRASH_HANDLERS);
}

#[test]
fn a_crash_handler_that_does_what_cannot_be_undone_does_not_get_there() {
    kvm_case("a_crash_handler_that_does_what_cannot_be_undone_does_not_get_there");
    nobody_notices_a_crash_handler("unlinks", &FOR_CRASH_HANDLERS);
}

#[test]
fn a_handler_that_only_returns_is_in_vain() {
    kvm_case("a_handler_that_only_returns_is_in_vain");
    nobody_notices_a_crash_handler("returns", &["null-write", "divide", "ud2", "alignment"]);
}

#[test]
fn a_crash_handler_that_faults_is_undone() {
    kvm_case("a_crash_handler_that_faults_is_undone");
    nobody_notices_a_crash_handler("faults", &FOR_CRASH_HANDLERS);
}

#[test]
fn a_request_may_handle_its_own_faults() {
    kvm_case("a_request_may_handle_its_own_faults");
    let program = guest::program("own_faults").unwrap();
    let program = program.display().to_string();
    let port = free_port().unwrap();
    let command = [program.clone(), port.to_string()];
    let ask = || -> std::io::Result<String> {
        let mut stream = net::connect_to(&port.into(), PATIENCE)?;
        stream.write_all(b"?")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        Ok(answer)
    };
    let native = Launch::native(&command).start(port).unwrap();
    let wanted = ask().unwrap();
    assert_eq!(wanted.lines().count(), 8, "{wanted}");
    drop(native);

    let server = Launch::monitored(&command).unwrap().start(port).unwrap();
    for _ in 0..3 {
        assert_eq!(ask().unwrap(), wanted);
    }
    assert_eq!(faults(&server), [], "{}", server.output_tail());
}

/// Go's runtime stops its other threads before it exits: that must not be seen.
#[test]
fn a_request_whose_runtime_gives_up_on_a_fault_is_undone() {
    kvm_case("a_request_whose_runtime_gives_up_on_a_fault_is_undone");
    const FALLS: usize = 20;
    let program = guest::go_server("go-server").unwrap();
    let port = free_port().unwrap();
    let command = [
        program.display().to_string(),
        port.to_string(),
        "/proc/self/comm".into(),
    ];
    let server = Launch::monitored(command).unwrap().start(port).unwrap();
    for number in 0..FALLS {
        web::must_reset(&server, "GET /fall HTTP/1.0\r\n\r\n");
        let answer = web::send(&server, "GET /page.txt HTTP/1.0\r\n\r\n").unwrap();
        assert!(answer.contains("X-Stumbled: runtime error"), "{answer}");
        let event = fault(&server, number);
        assert_eq!(event.event, "recovered", "{event:?}");
        assert_eq!(event.text("kind"), Some("null-read"), "{event:?}");
        assert_eq!(event.text("signal"), Some("SIGSEGV"), "{event:?}");
    }
}

#[test]
fn a_bad_pointer_in_a_system_call_is_an_error_and_no_fault() {
    kvm_case("a_bad_pointer_in_a_system_call_is_an_error_and_no_fault");
    let program = program();
    let native = program.run(&["--pointers"]).unwrap();
    let native = String::from_utf8(native.stdout).unwrap();
    assert!(native.lines().count() > 400, "{native}");
    let reports = tempfile::tempdir().unwrap();
    let monitored = Command::new(paths::vmsrs().unwrap())
        .args(["run", "--report-dir"])
        .arg(reports.path())
        .args([
            "--".as_ref(),
            program.path().as_os_str(),
            "--pointers".as_ref(),
        ])
        .output()
        .unwrap();
    let monitored = String::from_utf8(monitored.stdout).unwrap();
    assert_eq!(difference(&native, &monitored), None);

    let server = start(&program, 1, &[]);
    let mut client = Client::connect(server.port(), PATIENCE).unwrap();
    assert_eq!(client.ask("pointers").unwrap(), "done");
    assert_eq!(faults(&server), []);
}
