//! Faults that belong to no client: in background threads, timers, start-up, reload and shutdown. There is
//! nobody to reset. What was running is undone and run again, once; if it faults again, the ladder goes on to
//! what there is above that. At its end the fault takes its course, as it would without the monitor, and no
//! event says otherwise.

use std::{
    io::{Read, Write},
    net::TcpStream,
};

use vmsrs_tests::{
    Event, Launch, Monitored, free_port, guest, kvm_case, net, paths,
    run::{self, Ended},
    web::PATIENCE,
};

const SEGFAULT: i32 = 128 + libc::SIGSEGV;

fn start(when: &str) -> Monitored {
    let port = free_port().unwrap();
    let program = guest::program("lonely").unwrap();
    let args = [
        program.into_os_string(),
        port.to_string().into(),
        when.into(),
    ];
    // What becomes of such a fault when there is nothing to go back to.
    let launch = Launch::monitored(args).unwrap();
    launch.options(["--restart", "off"]).start(port).unwrap()
}

fn say(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).unwrap();
    let mut answer = [0; 2];
    client.read_exact(&mut answer).unwrap();
    assert_eq!(&answer, b"ok");
}

/// A client that the server has answered, so that its work is tracked.
fn client(server: &Monitored) -> TcpStream {
    let mut client = net::connect(server.port(), PATIENCE).unwrap();
    say(&mut client, "hello");
    client
}

/// The fault ended the server, after its work was run again once. `origin` is what it was charged to.
fn check_end(mut server: Monitored, origin: &str) {
    let status = server.wait().unwrap().expect("it goes on");
    assert_eq!(status.code(), Some(SEGFAULT), "{}", server.output_tail());
    let events = server.events().unwrap();
    let faults: Vec<&Event> = events.iter().filter(|e| e.get("fault").is_some()).collect();
    let names: Vec<&str> = faults.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(names, ["recovered", "escalated"], "{events:#?}");
    for (n, event) in faults.iter().enumerate() {
        assert_eq!(event.text("kind"), Some("null-write"));
        assert_eq!(event.text("origin"), Some(origin));
        assert_eq!(event.get("peer"), Some(&serde_json::Value::Null));
        assert_eq!(event.number("repeat"), Some(n as u64));
    }
    assert_eq!(server.stats().unwrap()["domains"]["rerun"], 1);
    assert_eq!(server.stats().unwrap()["domains"]["abandoned"], 0);
    let mut command = run::vmsrs(["report", "--report-dir"]).unwrap();
    let first = faults[0].text("report").unwrap();
    let text = run::to_end(command.arg(server.report_dir()).arg(first), b"").unwrap();
    assert!(text.out().contains("was undone and is run again"), "{text}");
}

#[test]
fn a_background_thread() {
    kvm_case("a_background_thread");
    let server = start("thread");
    let mut client = client(&server);
    say(&mut client, "go");
    check_end(server, "internal");
}

#[test]
fn a_timer() {
    kvm_case("a_timer");
    let server = start("timer");
    let mut client = client(&server);
    say(&mut client, "go");
    check_end(server, "timer");
}

#[test]
fn a_reload() {
    kvm_case("a_reload");
    for when in ["reload", "reload-loop"] {
        let mut server = start(when);
        let _client = client(&server);
        server.signal(libc::SIGHUP).unwrap();
        check_end(server, "internal");
    }
}

/// `nohup` and the like: the signal was ignored when the monitor was started, until the server wants to know of it.
#[test]
fn a_reload_where_its_signal_was_ignored() {
    kvm_case("a_reload_where_its_signal_was_ignored");
    let port = free_port().unwrap();
    let program = guest::program("lonely").unwrap();
    let ignoring = format!(
        "trap '' HUP; exec {} run --restart off -- {} {port} reload-loop",
        paths::vmsrs().unwrap().display(),
        program.display()
    );
    let mut server = Launch::native(["sh", "-c", &ignoring]).start(port).unwrap();
    let _client = client(&server);
    server.signal(libc::SIGHUP).unwrap();
    let status = server.wait().unwrap().expect("it goes on");
    assert_eq!(status.code(), Some(SEGFAULT), "{}", server.output_tail());
}

#[test]
fn a_reload_that_does_not_crash() {
    kvm_case("a_reload_that_does_not_crash");
    let mut server = start("never");
    let mut client = client(&server);
    for _ in 0..5 {
        server.signal(libc::SIGHUP).unwrap();
        say(&mut client, "hello");
    }
    assert_eq!(server.terminate().unwrap().code(), Some(0));
}

#[test]
fn a_shutdown() {
    kvm_case("a_shutdown");
    let mut server = start("shutdown");
    let _client = client(&server);
    server.signal(libc::SIGTERM).unwrap();
    check_end(server, "internal");
}

/// Nothing is tracked before the first request, and nobody would lose anything.
#[test]
fn a_start() {
    kvm_case("a_start");
    let dir = tempfile::tempdir().unwrap();
    for (n, when) in ["start", "ready"].into_iter().enumerate() {
        let events = dir.path().join(when);
        let program = guest::program("lonely").unwrap();
        let mut command = run::vmsrs(["run", "--events"]).unwrap();
        command
            .arg(&events)
            .arg("--report-dir")
            .arg(dir.path().join("reports"));
        command.arg("--").arg(program);
        command.arg(free_port().unwrap().to_string()).arg(when);
        let ended: Ended = run::to_end(&mut command, b"").unwrap();
        assert_eq!(ended.code(), SEGFAULT, "{ended}");
        let events = vmsrs_tests::event::read(&events).unwrap();
        let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
        let expected = ["started", "listening", "escalated", "exited"];
        let expected: Vec<&str> = expected
            .into_iter()
            .filter(|e| n == 1 || *e != "listening")
            .collect();
        assert_eq!(names, expected);
        let reason = events[names.len() - 2].text("reason").unwrap();
        assert!(reason.contains("not serving requests yet"), "{reason}");
    }
}
