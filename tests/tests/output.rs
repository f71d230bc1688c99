//! Output of a request is held until it has ended: peers get all of it, in order, in the pieces in which it was
//! sent, however slowly they read; or nothing.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    time::Duration,
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(options: &[&str]) -> Monitored {
    let program = guest::program("sender").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(options);
    launch.patience(PATIENCE).start(port).unwrap()
}

fn request(server: &Monitored, line: &str) -> TcpStream {
    let mut stream = net::connect(server.port(), PATIENCE).unwrap();
    stream.write_all(line.as_bytes()).unwrap();
    stream
}

fn ask(server: &Monitored, line: &str) -> String {
    let mut reply = String::new();
    let mut stream = BufReader::new(request(server, line));
    stream.read_line(&mut reply).unwrap();
    reply
}

/// All that the peer sends, with its first wrong byte.
fn read_all(mut stream: TcpStream) -> (usize, Option<usize>, Option<std::io::ErrorKind>) {
    let mut bytes = vec![0; 64 << 10];
    let (mut at, mut wrong) = (0, None);
    loop {
        match stream.read(&mut bytes) {
            Ok(0) => return (at, wrong, None),
            Ok(n) => {
                for byte in &bytes[..n] {
                    if usize::from(*byte) != at % 251 {
                        wrong = wrong.or(Some(at));
                    }
                    at += 1;
                }
            }
            Err(error) => return (at, wrong, Some(error.kind())),
        }
    }
}

#[test]
fn a_slow_reader_gets_everything_and_nobody_waits_for_it() {
    kvm_case("a_slow_reader_gets_everything_and_nobody_waits_for_it");
    let server = start(&[]);
    for (line, len) in [
        ("big 3000000", 3_000_000),
        ("shut 3000000", 3_000_000),
        ("edge 9000000", 9_000_000),
    ] {
        let slow = request(&server, line);
        for _ in 0..5 {
            assert_eq!(ask(&server, "ping"), "pong\n");
        }
        assert_eq!(read_all(slow), (len, None, None), "{line}");
    }
    assert_eq!(ask(&server, "ping"), "pong\n");
}

#[test]
fn output_of_a_crashing_request_is_never_seen() {
    kvm_case("output_of_a_crashing_request_is_never_seen");
    let reset = Some(std::io::ErrorKind::ConnectionReset);
    let mut server = start(&[]);
    for len in [1000, 1_000_000] {
        let crashed = request(&server, &format!("crash {len}"));
        assert_eq!(read_all(crashed), (0, None, reset));
    }
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["abandoned"], 2);
    assert_eq!(stats["held"]["bytes_dropped"], 1_001_000);
}

#[test]
fn past_the_hold_limit_output_leaves_and_the_events_say_so() {
    kvm_case("past_the_hold_limit_output_leaves_and_the_events_say_so");
    let mut server = start(&["--hold-limit", "100K"]);
    let crashed = request(&server, "crash 90000");
    assert_eq!(read_all(crashed).0, 0);
    assert_eq!(
        read_all(request(&server, "big 1000000")),
        (1_000_000, None, None)
    );
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(server.events_of("recovered").unwrap().len(), 1);
    let early = stats["domains"]["early_committed"]["held_limit"].as_u64();
    assert!(early >= Some(1), "{}", stats["domains"]);
}

#[test]
fn records_stay_records_and_files_come_before_replies() {
    kvm_case("records_stay_records_and_files_come_before_replies");
    let server = start(&[]);
    assert_eq!(ask(&server, "records"), "sent\n");
    assert_eq!(ask(&server, "record"), "one\n");
    assert_eq!(ask(&server, "record"), "three\n");
    for i in 0..20 {
        let line = format!("late {i:05};");
        assert_eq!(ask(&server, &line), "late\n");
        let log = fs::read_to_string(server.cwd().join("log")).unwrap();
        assert!(log.ends_with(&line), "the reply came first: {log}");
    }
}
