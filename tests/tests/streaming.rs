//! Answers in pieces, with waits between them: a request may take as long as its client takes what it sends.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(options: &[&str]) -> Monitored {
    let program = guest::program("streamer").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(options);
    launch.patience(PATIENCE).start(port).unwrap()
}

/// All that the server sends, until it closes or resets the connection, and when the first of it came.
fn ask(server: &Monitored, line: &str) -> (String, Duration) {
    let mut stream = net::connect(server.port(), PATIENCE).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    let (from, mut first) = (Instant::now(), Duration::MAX);
    let (mut all, mut bytes) = (String::new(), [0; 256]);
    while let Ok(n) = stream.read(&mut bytes) {
        if n == 0 {
            break;
        }
        first = first.min(from.elapsed());
        all.push_str(&String::from_utf8_lossy(&bytes[..n]));
    }
    (all, first)
}

#[test]
fn an_answer_may_take_longer_than_a_request() {
    kvm_case("an_answer_may_take_longer_than_a_request");
    let server = start(&["--request-timeout", "2s"]);
    // Each piece is well within the limit, all of them are far beyond it.
    let (all, first) = ask(&server, "P 25 200");
    assert_eq!(all, "piece\n".repeat(25));
    assert!(first < Duration::from_secs(4), "{first:?}");
    // One that sends nothing is ended all the same.
    let (all, _) = ask(&server, "P 1 60000");
    assert_eq!(all, "");
    let faults = server.await_events("recovered", 1).unwrap();
    assert_eq!(faults.len(), 1, "{faults:?}");
    assert_eq!(faults[0].text("kind"), Some("timeout"));
    assert_eq!(server.events_of("degraded").unwrap(), []);
}

#[test]
fn what_has_left_before_a_crash_has_left() {
    kvm_case("what_has_left_before_a_crash_has_left");
    let server = start(&[]);
    let (all, _) = ask(&server, "C 3 100");
    // The last piece was still held.
    assert_eq!(all, "piece\n".repeat(2));
    server.await_events("degraded", 1).unwrap();
    // Without waits nothing has left.
    let (all, _) = ask(&server, "C 3 0");
    assert_eq!(all, "");
    server.await_events("recovered", 1).unwrap();
}
