//! Debian's multi-threaded `memcached`, unmodified, under the monitor. It has no command that
//! crashes it: the monitor corrupts the instruction pointer of a chosen request (`--inject`).

use std::{
    io::{ErrorKind, Read, Write},
    path::PathBuf,
    thread,
    time::Duration,
};

use vmsrs_tests::{
    Launch, Monitored, free_port, kvm_case,
    load::Load,
    memcached::{self, Client, Healthy},
    net::{self, Address},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A request whose input contains this is struck.
const MARK: &str = "STRIKE-ME";

/// How a memcached is started: under the monitor, and requests with [`MARK`] are struck at their
/// system call number `after` since their input arrived.
fn struck(port: u16, after: u64) -> Launch {
    let inject = format!("rip:match={MARK},after={after}");
    Launch::monitored(memcached::command(port, 4))
        .unwrap()
        .options(["--inject", &inject])
}

/// Stores the mark, which must reset this connection without an answer.
fn strike(address: &Address, key: &str) {
    let mut stream = net::connect_to(address, PATIENCE).unwrap();
    let request = format!("set {key} 0 0 {}\r\n{MARK}\r\n", MARK.len());
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = [0; 64];
    match stream.read(&mut answer) {
        Err(error) if net::is_reset(address, &error) => {}
        Ok(0) if matches!(address, Address::Unix(_)) => {}
        Ok(n) => panic!("answered {:?}", String::from_utf8_lossy(&answer[..n])),
        Err(error) => panic!("not reset: {error}"),
    }
}

/// Strikes the server again and again while healthy clients work, ends it, and checks the end.
fn crash_under_load(mut server: Monitored, strikes: usize) {
    let address = server.address().clone();
    let load = Load::start::<Healthy>(&address, 20, PATIENCE);
    let mut watcher = Client::connect(&address, PATIENCE).unwrap();
    watcher.set("before", b"stays").unwrap();
    for i in 0..strikes {
        let key = format!("struck{i}");
        strike(&address, &key);
        assert_eq!(
            watcher.get(&key).unwrap(),
            None,
            "the struck request left a value"
        );
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(
        watcher.get("before").unwrap().as_deref(),
        Some(&b"stays"[..])
    );
    let outcome = load.finish();
    assert!(
        outcome.problems.is_empty(),
        "{outcome:#?}\n{}",
        server.output_tail()
    );
    assert!(outcome.requests > 1000, "{outcome:?}");
    assert_eq!(
        server.terminate().unwrap().code(),
        Some(0),
        "{}",
        server.output_tail()
    );
    let count = |event: &str| server.events_of(event).unwrap().len();
    assert_eq!(
        (count("recovered"), count("degraded"), count("escalated")),
        (strikes, 0, 0)
    );
}

#[test]
fn others_do_not_notice_crashes_before_the_reply_is_queued() {
    kvm_case("others_do_not_notice_crashes_before_the_reply_is_queued");
    let port = free_port().unwrap();
    crash_under_load(struck(port, 0).start(port).unwrap(), 50);
}

#[test]
fn others_do_not_notice_crashes_after_the_reply_is_queued() {
    kvm_case("others_do_not_notice_crashes_after_the_reply_is_queued");
    let port = free_port().unwrap();
    crash_under_load(struck(port, 1).start(port).unwrap(), 50);
}

#[test]
fn others_do_not_notice_crashes_over_a_unix_socket() {
    kvm_case("others_do_not_notice_crashes_over_a_unix_socket");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("memcached.sock");
    let path = socket.to_str().unwrap();
    let command = ["memcached", "-s", path, "-t", "4", "-u", "root"];
    let inject = format!("rip:match={MARK},after=1");
    let launch = Launch::monitored(command)
        .unwrap()
        .options(["--inject", &inject]);
    crash_under_load(launch.start_at(Address::Unix(socket)).unwrap(), 20);
}

#[test]
fn it_becomes_another_user_as_natively() {
    kvm_case("it_becomes_another_user_as_natively");
    for user in ["nobody", "root"] {
        let port = free_port().unwrap();
        let mut command = memcached::command(port, 4);
        *command.last_mut().unwrap() = user.to_owned();
        let mut server = Monitored::start(port, command).unwrap();
        let mut client = Client::connect(port, PATIENCE).unwrap();
        client.set("k", b"v").unwrap();
        assert_eq!(client.get("k").unwrap().as_deref(), Some(&b"v"[..]));
        let uid: u32 = owner_of(server.pid());
        assert_eq!(uid == 0, user == "root", "{user}: uid {uid}");
        assert_eq!(
            server.terminate().unwrap().code(),
            Some(0),
            "{}",
            server.output_tail()
        );
    }
}

/// The effective user of a process.
fn owner_of(pid: u32) -> u32 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:"))
        .unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

/// The counters that must be the same whether requests were struck or never sent.
const COUNTERS: [&str; 16] = [
    "curr_connections",
    "cmd_get",
    "cmd_set",
    "cmd_touch",
    "get_hits",
    "get_misses",
    "delete_hits",
    "delete_misses",
    "incr_hits",
    "bytes_read",
    "bytes_written",
    "bytes",
    "curr_items",
    "total_items",
    "evictions",
    "threads",
];

/// The counters of a server after a fixed sequence of requests; `between` runs after every tenth.
fn counters(server: &Monitored, between: impl Fn(usize)) -> Vec<(&'static str, String)> {
    let mut client = Client::connect(server.address(), PATIENCE).unwrap();
    for i in 0..100 {
        let key = format!("k{i}");
        client.set(&key, &b"value".repeat(i)).unwrap();
        assert!(client.get(&key).unwrap().is_some());
        assert_eq!(client.get("missing").unwrap(), None);
        if i % 3 == 0 {
            assert!(client.delete(&key).unwrap());
        }
        if i % 10 == 0 {
            between(i);
        }
    }
    // The server closes what clients have closed, and what was reset, in its own time.
    thread::sleep(Duration::from_millis(300));
    let stats = client.stats().unwrap();
    COUNTERS
        .map(|name| (name, stats.get(name).cloned().unwrap_or_default()))
        .to_vec()
}

#[test]
fn the_counters_know_nothing_of_crashed_requests() {
    kvm_case("the_counters_know_nothing_of_crashed_requests");
    let port = free_port().unwrap();
    let native = Launch::native(memcached::command(port, 4))
        .start(port)
        .unwrap();
    // Natively the same connections come, and go without a request.
    let expected = counters(&native, |_| drop(net::connect(port, PATIENCE).unwrap()));
    drop(native);
    for after in [0, 1] {
        let port = free_port().unwrap();
        let server = struck(port, after).start(port).unwrap();
        let found = counters(&server, |i| strike(&port.into(), &format!("struck{i}")));
        assert_eq!(found, expected, "struck at call {after}");
    }
}

const LARGE: usize = 900 << 10;

/// Deterministic bytes that differ from value to value.
fn large(seed: usize) -> Vec<u8> {
    (0..LARGE)
        .map(|i| ((i * 31 + i / 251 + seed * 17) % 256) as u8)
        .collect()
}

#[test]
fn large_values_reach_a_slow_reader_whole() {
    kvm_case("large_values_reach_a_slow_reader_whole");
    let port = free_port().unwrap();
    let _server = struck(port, 1).start(port).unwrap();
    let load = Load::start::<Healthy>(port, 4, PATIENCE);
    let mut writer = Client::connect(port, PATIENCE).unwrap();
    for seed in 0..3 {
        writer.set(&format!("large{seed}"), &large(seed)).unwrap();
    }
    // 18 answers, 16 MiB, far more than the socket's buffers take.
    let order: Vec<usize> = (0..18).map(|i| i % 3).collect();
    let mut reader = net::connect(port, PATIENCE).unwrap();
    let requests: String = order
        .iter()
        .map(|seed| format!("get large{seed}\r\n"))
        .collect();
    reader.write_all(requests.as_bytes()).unwrap();
    let mut expected = Vec::new();
    for seed in &order {
        expected.extend_from_slice(format!("VALUE large{seed} 0 {LARGE}\r\n").as_bytes());
        expected.extend_from_slice(&large(*seed));
        expected.extend_from_slice(b"\r\nEND\r\n");
    }
    let mut found = vec![0; expected.len()];
    for (i, part) in found.chunks_mut(256 << 10).enumerate() {
        thread::sleep(Duration::from_millis(10));
        reader
            .read_exact(part)
            .unwrap_or_else(|error| panic!("after {i} parts: {error}"));
        if i % 8 == 0 {
            strike(&port.into(), "struck");
        }
    }
    let differs = found.iter().zip(&expected).position(|(a, b)| a != b);
    assert_eq!(differs, None, "the first wrong byte");
    let outcome = load.finish();
    assert!(outcome.problems.is_empty(), "{outcome:#?}");
}

#[test]
fn large_values_pipelined_by_a_slow_writer_are_stored_whole() {
    kvm_case("large_values_pipelined_by_a_slow_writer_are_stored_whole");
    let port = free_port().unwrap();
    let _server = struck(port, 1).start(port).unwrap();
    let mut stream = net::connect(port, PATIENCE).unwrap();
    let mut requests = Vec::new();
    for seed in 0..4 {
        requests.extend_from_slice(format!("set large{seed} 0 0 {LARGE}\r\n").as_bytes());
        requests.extend_from_slice(&large(seed));
        requests.extend_from_slice(b"\r\n");
    }
    for part in requests.chunks(100_000) {
        stream.write_all(part).unwrap();
        strike(&port.into(), "struck");
    }
    let mut answers = [0; 4 * "STORED\r\n".len()];
    stream.read_exact(&mut answers).unwrap();
    assert_eq!(&answers, "STORED\r\n".repeat(4).as_bytes());
    let mut client = Client::connect(port, PATIENCE).unwrap();
    for seed in 0..4 {
        let value = client.get(&format!("large{seed}")).unwrap();
        assert!(value == Some(large(seed)), "large{seed} differs");
    }
}

#[test]
fn a_struck_large_value_is_not_stored() {
    kvm_case("a_struck_large_value_is_not_stored");
    let port = free_port().unwrap();
    let server = struck(port, 0).start(port).unwrap();
    let mut client = Client::connect(port, PATIENCE).unwrap();
    client.set("large", &large(1)).unwrap();
    for _ in 0..10 {
        let mut stream = net::connect(port, PATIENCE).unwrap();
        let header = format!("set large 0 0 {LARGE}\r\n");
        let value = &large(2)[..LARGE - MARK.len()];
        stream
            .write_all(&[header.as_bytes(), value].concat())
            .unwrap();
        // What completes the request arrives alone, when the rest has been read.
        thread::sleep(Duration::from_millis(100));
        stream.write_all(format!("{MARK}\r\n").as_bytes()).unwrap();
        match stream.read(&mut [0; 16]) {
            Err(error) if error.kind() == ErrorKind::ConnectionReset => {}
            other => panic!("{other:?}"),
        }
        assert!(
            client.get("large").unwrap() == Some(large(1)),
            "the old value is gone"
        );
    }
    assert_eq!(server.await_events("recovered", 10).unwrap().len(), 10);
}

#[test]
fn it_listens_where_it_is_told() {
    kvm_case("it_listens_where_it_is_told");
    let port = free_port().unwrap();
    let server = struck(port, 0).start(port).unwrap();
    let addresses: Vec<Option<String>> = server
        .await_events("listening", 1)
        .unwrap()
        .iter()
        .map(|event| event.text("address").map(str::to_owned))
        .collect();
    assert_eq!(addresses, [Some(format!("127.0.0.1:{port}"))]);
    let dir: PathBuf = server.report_dir();
    assert!(dir.is_dir(), "{}", dir.display());
}
