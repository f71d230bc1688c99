//! Servers in which one thread reads and others execute: `tests/guest/pool-server`, whose queue is of every
//! common kind. A task that crashes costs the client that sent it its connection; every other task of the queue
//! is executed once.

use std::{
    io::{BufRead, BufReader, ErrorKind, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use vmsrs_tests::{Event, Launch, Monitored, free_port, guest, kvm_case};

const PATIENCE: Duration = Duration::from_secs(30);
const WORKERS: &str = "4";
const CLIENTS: u64 = 8;
const CRASHES: usize = 60;

/// Ways to crash a worker, as in `tasks.c`.
const KINDS: [&str; 5] = ["null", "abort", "locked", "late", "jump"];

fn start(queue: &str, replies: &str) -> (Monitored, u16) {
    let port = free_port().unwrap();
    let command = [
        guest::server("pool-server").unwrap().to_str().unwrap(),
        &port.to_string(),
        WORKERS,
        queue,
        replies,
    ]
    .map(str::to_owned);
    let launch = Launch::monitored(command).unwrap().patience(PATIENCE);
    (launch.start(port).unwrap(), port)
}

fn connect(port: u16) -> TcpStream {
    let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// Adds to an entry of its own, up to four requests at a time, until told to stop. Every sequence number
/// comes back once, and the values are those of exactly these additions.
fn healthy(port: u16, key: u64, stop: &AtomicBool) -> u64 {
    let mut stream = connect(port);
    let mut answers = BufReader::new(stream.try_clone().unwrap());
    let mut sequence = 0;
    while !stop.load(Ordering::Relaxed) {
        let count = 1 + sequence % 4;
        let expected: Vec<u64> = (sequence + 1..=sequence + count).collect();
        let requests = expected.iter().map(|n| format!("add {n} {key} 1\n"));
        stream
            .write_all(requests.collect::<String>().as_bytes())
            .unwrap();
        let mut pairs: Vec<(u64, u64)> = Vec::new();
        for _ in 0..count {
            let mut line = String::new();
            answers.read_line(&mut line).unwrap();
            let (number, value) = line.trim().split_once(' ').expect("an answer");
            pairs.push((number.parse().unwrap(), value.parse().unwrap()));
        }
        let (mut numbers, mut values): (Vec<_>, Vec<_>) = pairs.into_iter().unzip();
        numbers.sort_unstable();
        values.sort_unstable();
        assert_eq!(numbers, expected, "lost or repeated");
        assert_eq!(values, expected, "lost or repeated");
        sequence += count;
    }
    sequence
}

/// Sends a request that crashes; the connection must be reset. Returns its own address.
fn crash(port: u16, request: &str) -> String {
    let mut stream = connect(port);
    let address = stream.local_addr().unwrap().to_string();
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 64];
    match stream.read(&mut answer) {
        Err(error) if error.kind() == ErrorKind::ConnectionReset => address,
        other => panic!("{request:?} was not reset: {other:?}"),
    }
}

fn is_consistent(port: u16) -> bool {
    let mut stream = connect(port);
    stream.write_all(b"check 1\n").unwrap();
    let mut line = String::new();
    BufReader::new(stream).read_line(&mut line).unwrap();
    line == "1 consistent\n"
}

/// Crashes tasks in every way among healthy clients, and checks who noticed.
fn crash_among_healthy(queue: &str, replies: &str, requests: impl Fn(usize) -> String) {
    let (mut server, port) = start(queue, replies);
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<JoinHandle<u64>> = (0..CLIENTS)
        .map(|key| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || healthy(port, key, &stop))
        })
        .collect();
    let mut culprits: Vec<String> = (0..CRASHES).map(|i| crash(port, &requests(i))).collect();
    stop.store(true, Ordering::Relaxed);
    for client in clients {
        assert!(client.join().expect("a healthy client noticed") > 0);
    }
    assert!(is_consistent(port));
    server.terminate().unwrap();
    let recovered = server.events_of("recovered").unwrap();
    let mut charged: Vec<String> = Vec::new();
    for event in &recovered {
        let origin = event.text("origin").unwrap();
        assert!(origin.starts_with("handoff:"), "{event:?}");
        charged.push(event.text("peer").unwrap().to_owned());
    }
    charged.sort();
    culprits.sort();
    assert_eq!(charged, culprits);
    for event in ["degraded", "escalated"] {
        assert_eq!(server.events_of(event).unwrap(), []);
    }
}

fn every_kind(i: usize) -> String {
    format!("{} 1 200 5\n", KINDS[i % KINDS.len()])
}

#[test]
fn tasks_of_a_queue_with_a_condition_variable() {
    kvm_case("tasks_of_a_queue_with_a_condition_variable");
    crash_among_healthy("condvar", "worker", every_kind);
    crash_among_healthy("condvar", "io", every_kind);
}

#[test]
fn tasks_that_are_taken_all_at_once() {
    kvm_case("tasks_that_are_taken_all_at_once");
    crash_among_healthy("batch", "worker", every_kind);
    crash_among_healthy("batch", "io", every_kind);
}

#[test]
fn tasks_that_an_eventfd_announces() {
    kvm_case("tasks_that_an_eventfd_announces");
    crash_among_healthy("eventfd", "worker", every_kind);
    crash_among_healthy("eventfd", "io", every_kind);
}

#[test]
fn tasks_that_come_through_a_pipe() {
    kvm_case("tasks_that_come_through_a_pipe");
    crash_among_healthy("pipe", "worker", every_kind);
    crash_among_healthy("pipe", "io", every_kind);
}

#[test]
fn tasks_that_a_semaphore_announces() {
    kvm_case("tasks_that_a_semaphore_announces");
    crash_among_healthy("semaphore", "worker", every_kind);
    crash_among_healthy("semaphore", "io", every_kind);
}

#[test]
fn a_crash_of_the_reading_thread_over_a_finished_task() {
    kvm_case("a_crash_of_the_reading_thread_over_a_finished_task");
    crash_among_healthy("condvar", "io", |_| "finish 1 200 0\n".to_owned());
}

#[test]
fn several_crashing_tasks_of_one_client() {
    kvm_case("several_crashing_tasks_of_one_client");
    let (mut server, port) = start("condvar", "worker");
    for i in 0..20 {
        crash(port, &"null 1 200 5\n".repeat(1 + i % 5));
    }
    assert!(is_consistent(port));
    server.terminate().unwrap();
    assert!(server.events_of("recovered").unwrap().len() >= 20);
    assert_eq!(server.events_of("escalated").unwrap(), []);
}

/// Workers that read and answer themselves: a request ends with its answer, not with the worker's next task.
#[test]
fn a_worker_that_waits_for_its_next_task_has_answered() {
    kvm_case("a_worker_that_waits_for_its_next_task_has_answered");
    for idle in ["condvar", "semaphore", "timed", "futex"] {
        let port = free_port().unwrap();
        let program = guest::program("worker_pool").unwrap();
        let command = [program.to_str().unwrap(), &port.to_string(), "3", idle].map(str::to_owned);
        let launch = Launch::monitored(command).unwrap().patience(PATIENCE);
        let mut server = launch.start(port).unwrap();
        let mut culprits = Vec::new();
        for round in 0..4 {
            for request in ["ask", "notify"] {
                let mut answer = String::new();
                let mut stream = connect(port);
                stream.write_all(request.as_bytes()).unwrap();
                let read = stream.read_to_string(&mut answer);
                assert_eq!(
                    (read.ok(), &*answer),
                    (Some(2), "ok"),
                    "{idle}: {request} {round}"
                );
            }
            culprits.push(crash(port, "crash"));
        }
        server.terminate().unwrap();
        let events = server.events().unwrap();
        let faults: Vec<&Event> = events.iter().filter(|e| e.get("fault").is_some()).collect();
        let charged: Vec<&str> = faults.iter().filter_map(|e| e.text("peer")).collect();
        assert_eq!(charged, culprits, "{idle}: {faults:#?}");
        assert!(
            faults.iter().all(|e| e.event == "recovered"),
            "{idle}: {faults:#?}"
        );
    }
}
