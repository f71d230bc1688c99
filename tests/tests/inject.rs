//! Injected faults: given at the start and at run time, the same again from the same seed, undone to the last byte;
//! and the control interface, which is not for the guest.

use std::{
    fs,
    io::Write,
    path::PathBuf,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use tempfile::TempDir;
use vmsrs_tests::{
    Event, Launch, Monitored,
    campaign::{control::Control, plan::CLASSES},
    free_port, kvm_case,
    load::Load,
    memcached,
    redis::{self, Client, Reply, encode},
    run,
};

const PATIENCE: Duration = Duration::from_secs(30);
const LIMITS: [&str; 3] = [
    "--request-cpu=200ms",
    "--request-timeout=400ms",
    "--request-memory=128M",
];

/// Redis with these options.
fn redis(options: &[&str]) -> Monitored {
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    launch.options(options).start(port).unwrap()
}

/// A socket for the control interface, in a directory of its own.
fn socket() -> (TempDir, PathBuf) {
    let dir = tempfile::Builder::new().prefix("vmsrs-").tempdir().unwrap();
    let path = dir.path().join("control");
    (dir, path)
}

/// The crash handler of Redis joins threads that never end if the fault was none of theirs.
#[test]
fn a_server_that_is_given_up_is_gone_within_two_seconds() {
    kvm_case("a_server_that_is_given_up_is_gone_within_two_seconds");
    let (_dir, socket) = socket();
    let port = free_port().unwrap();
    let mut command = redis::command(port);
    command.extend(["--appendonly", "yes"].map(str::to_owned));
    let launch = Launch::monitored(command).unwrap();
    let launch = launch.options(["--control", socket.to_str().unwrap()]);
    let mut server = launch.patience(PATIENCE).start(port).unwrap();
    let mut client = redis::Client::connect(port, PATIENCE).unwrap();
    assert!(client.call(&["SET", "a", "b"]).unwrap().is_ok());
    let everywhere = "abort:origin=internal,probability=1,times=5";
    assert_eq!(vmsrs_control(&socket, &["inject", everywhere]).code(), 0);
    let mut clients = Vec::new();
    // Work of the server itself goes before that of each client.
    for _ in 0..100 {
        if !server.events_of("escalated").unwrap().is_empty() {
            break;
        }
        let client = std::net::TcpStream::connect(("127.0.0.1", port));
        clients.extend(client.and_then(|mut c| c.write_all(b"PING\r\n").map(|()| c)));
        thread::sleep(Duration::from_millis(50));
    }
    let escalated = server.events_of("escalated").unwrap();
    assert_eq!(escalated.len(), 1, "{}", server.output_tail());
    let begun = Instant::now();
    let status = server.wait().unwrap().expect("it hangs");
    let took = begun.elapsed();
    assert!(
        took < Duration::from_secs(2),
        "{took:?}: {}",
        server.output_tail()
    );
    assert_eq!(
        status.code(),
        Some(128 + libc::SIGABRT),
        "{}",
        server.output_tail()
    );
}

fn vmsrs_control(socket: &std::path::Path, command: &[&str]) -> run::Ended {
    let mut all: Vec<&str> = vec!["control", socket.to_str().unwrap()];
    all.extend(command);
    run::to_end(&mut run::vmsrs(all).unwrap(), b"").unwrap()
}

fn connect(server: &Monitored) -> Client {
    Client::connect(server.address(), PATIENCE).unwrap()
}

fn is_reset(server: &Monitored, command: &[&str]) -> bool {
    connect(server).call(command).is_err()
}

/// The events of this kind, when there are so many.
fn events(server: &Monitored, kind: &str, count: usize) -> Vec<Event> {
    let events = server.await_events(kind, count).unwrap();
    assert_eq!(events.len(), count, "{:#?}", server.events());
    events
}

#[test]
fn the_nth_request_is_struck_and_no_other() {
    kvm_case("the_nth_request_is_struck_and_no_other");
    let mut server = redis(&["--inject", "abort:match=INCR,nth=3"]);
    let results: Vec<bool> = (0..5).map(|_| is_reset(&server, &["INCR", "n"])).collect();
    assert_eq!(results, [false, false, true, false, false]);
    assert_eq!(
        connect(&server).call(&["INCR", "n"]).unwrap(),
        Reply::Integer(5)
    );
    let injected = &events(&server, "injected", 1)[0];
    let recovered = &events(&server, "recovered", 1)[0];
    assert_eq!(injected.text("what"), Some("abort"));
    assert_eq!(injected.get("peer"), recovered.get("peer"));
    assert!(injected.time <= recovered.time);
    assert!(server.terminate().unwrap().success());
}

#[test]
fn a_time_strikes_whoever_is_at_work_then() {
    kvm_case("a_time_strikes_whoever_is_at_work_then");
    let server = redis(&["--inject", "rip=null:at=300ms"]);
    let load = Load::start::<redis::Healthy>(server.address(), 4, PATIENCE);
    events(&server, "recovered", 1);
    let outcome = load.finish();
    // One of them is the one.
    assert_eq!(outcome.problems.len(), 1, "{outcome:?}");
}

#[test]
fn a_probability_strikes_its_share() {
    kvm_case("a_probability_strikes_its_share");
    let server = redis(&["--inject", "rip=heap:match=INCR,probability=0.2,seed=5"]);
    let resets = (0..100)
        .filter(|_| is_reset(&server, &["INCR", "n"]))
        .count();
    assert!((8..=35).contains(&resets), "{resets}");
    let left = Reply::Integer(101 - resets as i64);
    let last = (0..50).find_map(|_| connect(&server).call(&["INCR", "n"]).ok());
    assert_eq!(last, Some(left));
}

/// What is chosen follows from the seed: addresses are the same in every run, and so are the requests.
#[test]
fn the_same_seed_strikes_the_same() {
    kvm_case("the_same_seed_strikes_the_same");
    let strike = |seed: u32| -> Vec<(Option<String>, Option<String>)> {
        let specs = ["pointer=bit", "return", "flip=written"]
            .map(|what| format!("--inject={what}:match=STRIKE-{what},pages=3,seed={seed}"));
        let specs: Vec<&str> = specs.iter().map(String::as_str).collect();
        let server = redis(&specs);
        for what in ["pointer=bit", "return", "flip=written"] {
            let key = format!("STRIKE-{what}");
            // Struck or not by what was done to it, it has been done.
            let _ = connect(&server).call(&["SET", &key, "value"]);
        }
        let injected = server.await_events("injected", 3).unwrap();
        let told = |event: &Event, name| event.text(name).map(str::to_owned);
        let all = injected.iter();
        all.map(|event| (told(event, "rip"), told(event, "detail")))
            .collect()
    };
    let first = strike(1);
    assert_eq!(first.len(), 3, "{first:?}");
    assert_eq!(strike(1), first);
    assert_ne!(strike(2), first);
}

/// Every class, in requests of two servers, with all memory compared after each that was abandoned. The damage that
/// shows only later is not looked at here: each server is struck once by it.
#[test]
fn what_an_injection_writes_is_undone_to_the_last_byte() {
    kvm_case("what_an_injection_writes_is_undone_to_the_last_byte");
    let mut undone = 0;
    for class in CLASSES {
        for threaded in [false, true] {
            let port = free_port().unwrap();
            let command = match threaded {
                true => memcached::command(port, 2),
                false => redis::command(port),
            };
            let spec = match class.name {
                "alloc" | "hold" => format!("{}:match=STRIKE-ME,seed=3,times=1", class.name),
                "syscall=any" => "syscall=EIO:match=STRIKE-ME,times=1".to_owned(),
                name => format!("{name}:match=STRIKE-ME,pages=4,seed=3,times=1"),
            };
            let launch = Launch::monitored(command).unwrap().options(LIMITS);
            let mut server = launch
                .options(["--audit", "--inject", &spec])
                .start(port)
                .unwrap();
            if threaded {
                let mut client = memcached::Client::connect(port, PATIENCE).unwrap();
                let _ = client.set("STRIKE-ME", b"value");
            } else {
                let mut client = connect(&server);
                let _ = client.send(&encode(&["SET", "STRIKE-ME", "value"]));
                let _ = client.reply();
            }
            // In a server that is damaged, or waits for what it never gets, nothing more is asked for.
            server.signal(libc::SIGTERM).unwrap();
            let _ = server.wait();
            let Ok(stats) = server.stats() else {
                continue;
            };
            let audit = &stats["audit"];
            assert_eq!(
                audit["mismatches"], 0,
                "{}, {threaded}: {audit}",
                class.name
            );
            undone += audit["checks"].as_u64().unwrap_or(0);
        }
    }
    assert!(undone >= 16, "only {undone} requests were undone");
}

#[test]
fn a_running_server_can_be_told_to_inject() {
    kvm_case("a_running_server_can_be_told_to_inject");
    let (_dir, socket) = socket();
    let mut server = redis(&["--control", socket.to_str().unwrap()]);
    let mode =
        std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&socket).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    assert!(!is_reset(&server, &["SET", "k", "v"]));
    let told = vmsrs_control(&socket, &["inject", "abort:match=STRIKE-ME,times=1"]);
    assert_eq!(told.code(), 0, "{told}");
    assert!(is_reset(&server, &["SET", "STRIKE-ME", "v"]));
    assert!(
        !is_reset(&server, &["SET", "STRIKE-ME", "v"]),
        "once was enough"
    );

    let mut control = Control::connect(&socket, PATIENCE).unwrap();
    let status = control.ask("injections").unwrap();
    assert_eq!(status[0]["struck"], 1, "{status}");
    assert_eq!(status[0]["spec"], "abort:match=STRIKE-ME,after=0,times=1");
    assert_eq!(control.ask("clear").unwrap()["cleared"], 1);
    assert_eq!(
        control.ask("injections").unwrap().as_array().map(Vec::len),
        Some(0)
    );
    assert_eq!(control.faults().unwrap(), 1);
    // Its allocator is not glibc's.
    let heap = control.ask("check-heap").unwrap_err().to_string();
    assert!(heap.contains("malloc"), "{heap}");
    for (command, says) in [
        (&["inject", "frobnicate:nth=1"][..], "is no fault"),
        (&["inject", "abort"], "which request"),
        (&["clear", "x"], "no number"),
        (&["frobnicate"], "no command"),
    ] {
        let told = vmsrs_control(&socket, command);
        assert_eq!(told.code(), 1, "{command:?}: {told}");
        assert!(told.err().contains(says), "{command:?}: {told}");
    }
    assert!(server.terminate().unwrap().success());
    assert!(!socket.exists());
    let told = vmsrs_control(&socket, &["stats"]);
    assert_eq!(told.code(), 125, "nobody is there any more: {told}");
}

#[test]
fn a_glibc_heap_can_be_checked_from_outside() {
    kvm_case("a_glibc_heap_can_be_checked_from_outside");
    let (_dir, socket) = socket();
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 2)).unwrap();
    let launch = launch.options(["--control", socket.to_str().unwrap()]);
    let _server = launch.start(port).unwrap();
    let mut client = memcached::Client::connect(port, PATIENCE).unwrap();
    client.set("k", b"v").unwrap();
    let mut control = Control::connect(&socket, PATIENCE).unwrap();
    let heap = control.ask("check-heap").unwrap();
    assert_eq!(heap["consistent"], true, "{heap}");
    assert!(heap["chunks"].as_u64() > Some(10), "{heap}");
    // A header is damaged in the next request, which does not notice.
    control
        .inject("heap:match=STRIKE-ME,pages=2,times=1")
        .unwrap();
    let deadline = Instant::now() + PATIENCE;
    let damaged = loop {
        let _ = client.set("STRIKE-ME", b"v");
        let heap = control.ask("check-heap").unwrap();
        if heap["consistent"] == false || Instant::now() > deadline {
            break heap;
        }
        thread::sleep(Duration::from_millis(10));
    };
    assert_eq!(damaged["consistent"], false, "{damaged}");
}

/// The guest is the monitor's own program here, which can speak to the socket.
#[test]
fn the_guest_cannot_control_its_monitor() {
    kvm_case("the_guest_cannot_control_its_monitor");
    let (_dir, socket) = socket();
    let path = socket.to_str().unwrap();
    let vmsrs = vmsrs_tests::paths::vmsrs().unwrap();
    let reports = tempfile::tempdir().unwrap();
    let guest = |program: &[&str]| {
        let mut command = Command::new(&vmsrs);
        command.args(["run", "--report-dir"]).arg(reports.path());
        command.args(["--control", path, "--"]).args(program);
        run::to_end(&mut command, b"").unwrap()
    };
    let own = vmsrs.to_str().unwrap();
    let child = format!("{own} control {path} stats; true");
    for program in [&[own, "control", path, "stats"][..], &["sh", "-c", &child]] {
        let ended = guest(program);
        assert!(ended.err().contains("not for the guest"), "{ended}");
        assert_eq!(ended.out(), "", "{ended}");
    }
}

#[test]
fn what_cannot_be_injected_is_refused_at_the_start() {
    kvm_case("what_cannot_be_injected_is_refused_at_the_start");
    let (_dir, socket) = socket();
    fs::write(&socket, "").unwrap();
    let socket = socket.to_str().unwrap();
    for (options, says) in [
        (&["--inject", "abort"][..], "which request"),
        (&["--inject", "pointer:nth=1"], "is no fault"),
        (
            &["--inject", "abort:nth=1", "--protect", "off"],
            "needs --protect=on",
        ),
        (&["--control", socket], "in use, or no socket"),
    ] {
        let mut command = run::vmsrs(["run"]).unwrap();
        command.args(options).args(["--", "true"]);
        let ended = run::to_end(&mut command, b"").unwrap();
        assert_eq!(ended.code(), 125, "{options:?}: {ended}");
        assert!(ended.err().contains(says), "{options:?}: {ended}");
    }
}

/// The control run of a campaign: the same injection ends the server.
#[test]
fn without_recovery_an_injected_fault_takes_its_course() {
    kvm_case("without_recovery_an_injected_fault_takes_its_course");
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 2)).unwrap();
    let options = ["--recover", "off", "--inject", "rip=null:match=STRIKE-ME"];
    let mut server = launch.options(options).start(port).unwrap();
    let mut client = memcached::Client::connect(port, PATIENCE).unwrap();
    client.set("k", b"v").unwrap();
    assert!(client.set("STRIKE-ME", b"v").is_err());
    assert_eq!(
        server.wait().unwrap().and_then(|status| status.code()),
        Some(139)
    );
    let escalated = &events(&server, "escalated", 1)[0];
    assert_eq!(escalated.text("reason"), Some("by --recover=off"));
}
