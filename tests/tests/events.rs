//! What the monitor tells of a run: events, counters, fault reports, and `vmsrs report`.

use std::{
    fs,
    io::{Read, Write},
    net::SocketAddr,
    path::Path,
    time::Duration,
};

use serde_json::Value;
use vmsrs_tests::{
    Event, Monitored, free_port, kvm_case, net,
    redis::{self, Client, encode},
    run::{self, Ended},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// The members that every fault event has.
const FAULT_MEMBERS: [&str; 17] = [
    "signal",
    "kind",
    "thread",
    "rip",
    "symbol",
    "origin",
    "peer",
    "pages_written",
    "pages_restored",
    "pause_us",
    "report",
    "function",
    "file",
    "line",
    "program",
    "pid",
    "instance",
];

/// A Redis that was crashed twice and has ended, and whose requests they were.
fn crashed_twice() -> (Monitored, [SocketAddr; 2]) {
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    let mut client = Client::connect(port, PATIENCE).unwrap();
    for i in 0..100 {
        assert!(
            client
                .call(&["SET", &format!("k{i}"), "v"])
                .unwrap()
                .is_ok()
        );
    }
    let peers = ["SEGFAULT", "ASSERT"].map(|fault| {
        let mut stream = net::connect(port, PATIENCE).unwrap();
        stream.write_all(&encode(&["DEBUG", fault])).unwrap();
        let peer = stream.local_addr().unwrap();
        let error = stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
        peer
    });
    assert_eq!(
        server.terminate().unwrap().code(),
        Some(0),
        "{}",
        server.output_tail()
    );
    (server, peers)
}

fn report(dir: &Path, args: &[&str]) -> Ended {
    let mut command = run::vmsrs(["report", "--report-dir"]).unwrap();
    run::to_end(command.arg(dir).args(args), b"").unwrap()
}

/// `2025-01-31T23:59:59.123456Z`, with any number of decimals.
fn is_rfc3339(time: &str) -> bool {
    let shape: String = time
        .chars()
        .map(|c| if c.is_ascii_digit() { '0' } else { c })
        .collect();
    shape
        .strip_suffix('Z')
        .and_then(|shape| shape.strip_prefix("0000-00-00T00:00:00"))
        .is_some_and(|rest| rest.is_empty() || rest.trim_end_matches('0') == ".")
}

#[test]
fn events_tell_the_life_of_the_server() {
    kvm_case("events_tell_the_life_of_the_server");
    let (server, peers) = crashed_twice();
    let events = server.events().unwrap();
    let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(
        names,
        ["started", "listening", "recovered", "recovered", "exited"]
    );
    assert!(
        events.iter().all(|event| is_rfc3339(&event.time)),
        "{events:?}"
    );
    assert!(events.is_sorted_by_key(|event| &event.time), "{events:?}");

    assert_eq!(events[0].number("pid"), Some(server.pid().into()));
    let program = events[0].text("program");
    assert!(program.is_some_and(|program| program.ends_with("/redis-server")));
    let address = format!("127.0.0.1:{}", server.port());
    assert_eq!(events[1].text("address"), Some(address.as_str()));
    assert_eq!(events[4].number("status"), Some(0));

    let signals = [("SIGSEGV", "debugCommand"), ("SIGABRT", "")];
    for ((event, peer), (signal, symbol)) in events[2..4].iter().zip(peers).zip(signals) {
        check_fault(event);
        assert_eq!(event.text("peer"), Some(peer.to_string().as_str()));
        assert_eq!(event.text("signal"), Some(signal), "{event:?}");
        assert!(
            event.text("symbol").unwrap_or_default().starts_with(symbol),
            "{event:?}"
        );
        // Not libc's, where a failed assertion ends.
        let function = event.text("function").unwrap_or_default();
        assert!(
            !function.is_empty() && !function.contains("libc"),
            "{event:?}"
        );
        let directory = server.report_dir().join(event.text("report").unwrap());
        assert!(directory.is_dir(), "{}", directory.display());
    }
}

fn check_fault(event: &Event) {
    for member in FAULT_MEMBERS {
        assert!(event.get(member).is_some(), "no {member}: {event:?}");
    }
    assert!(
        event
            .text("origin")
            .is_some_and(|origin| origin.starts_with("stream:")),
        "{event:?}"
    );
    assert!(
        event.text("rip").is_some_and(|rip| rip.starts_with("0x")),
        "{event:?}"
    );
    assert!(event.number("thread") > Some(0), "{event:?}");
    assert!(event.number("pause_us") > Some(0), "{event:?}");
    let pages = |name| event.number(name).unwrap();
    assert!(pages("pages_restored") > 0, "{event:?}");
    assert!(
        pages("pages_written") >= pages("pages_restored"),
        "{event:?}"
    );
}

#[test]
fn counters_are_written_at_the_end() {
    kvm_case("counters_are_written_at_the_end");
    let (server, _) = crashed_twice();
    let stats = server.stats().unwrap();
    let number = |path: &str| {
        let value = stats.pointer(path).and_then(Value::as_u64);
        value.unwrap_or_else(|| panic!("no number {path} in {stats:#}"))
    };
    assert_eq!(number("/pid"), u64::from(server.pid()));
    assert!(number("/exits/syscall") > 200);
    assert!(number("/exits/page_fault") > 0);
    for call in ["read", "epoll_wait", "openat", "mmap"] {
        assert!(number(&format!("/syscalls/{call}")) > 0, "{call}");
    }
    let by_name = stats["syscalls"].as_object().unwrap();
    let calls: u64 = by_name.values().filter_map(Value::as_u64).sum();
    assert_eq!(calls, number("/exits/syscall"));
    // Each SET is a domain of its own: the client waits for every reply.
    assert!(number("/domains/committed") >= 100);
    assert_eq!(number("/domains/abandoned"), 2);
    assert!(number("/pages/tracked") > 0);
    assert!(number("/pages/restored") > 0);
    assert_eq!(number("/recovery_pause_us/count"), 2);
    let pause = |which| number(&format!("/recovery_pause_us/{which}"));
    assert!(pause("min") <= pause("median") && pause("median") <= pause("max"));
    assert!(number("/startup_us") > 0 && number("/startup_us") < number("/uptime_us"));
}

#[test]
fn each_fault_has_a_report() {
    kvm_case("each_fault_has_a_report");
    let (server, peers) = crashed_twice();
    let dir = server.report_dir();
    let ids: Vec<String> = server
        .events_of("recovered")
        .unwrap()
        .iter()
        .map(|event| event.text("report").unwrap().to_owned())
        .collect();
    let mut found: Vec<String> = fs::read_dir(&dir)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    found.sort();
    assert_eq!(found, ids, "one directory per fault");

    let list = report(&dir, &[]);
    assert_eq!((list.code(), list.out().lines().count()), (0, 3), "{list}");
    assert!(ids.iter().all(|id| list.out().contains(id)), "{list}");

    let last = report(&dir, &["last"]);
    assert_eq!(last.code(), 0, "{last}");
    for part in [ids[1].as_str(), "SIGABRT", &peers[1].to_string(), "ASSERT"] {
        assert!(last.out().contains(part), "no {part} in {last}");
    }
    let json = report(&dir, &[&ids[0], "--json"]);
    let json: Value = serde_json::from_slice(&json.stdout).unwrap();
    assert_eq!(
        (&json["signal"], &json["outcome"]),
        (&"SIGSEGV".into(), &"recovered".into())
    );
}

#[test]
fn a_wrong_report_identifier_names_those_there_are() {
    kvm_case("a_wrong_report_identifier_names_those_there_are");
    let (server, _) = crashed_twice();
    let recovered = server.events_of("recovered").unwrap();
    let wrong = report(&server.report_dir(), &["2"]);
    assert_eq!((wrong.code(), wrong.out().as_str()), (1, ""), "{wrong}");
    assert!(
        wrong.err().contains(recovered[1].text("report").unwrap()),
        "{wrong}"
    );
}

#[test]
fn times_are_recognised() {
    for time in ["2025-01-31T23:59:59Z", "2025-01-31T23:59:59.5Z"] {
        assert!(is_rfc3339(time), "{time}");
    }
    for time in ["2025-01-31 23:59:59Z", "2025-01-31T23:59:59", "1738367999"] {
        assert!(!is_rfc3339(time), "{time}");
    }
}
