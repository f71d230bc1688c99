//! Debian's `redis-server`, unmodified, under the monitor: clients crash it with `DEBUG` while
//! others work, in the configurations that change how it does its input and output.

use std::{
    collections::BTreeMap,
    fs,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Event, Launch, Monitored, free_port, kvm_case,
    load::Load,
    net::{self, Address},
    redis::{self, Client, CrashScenario, Healthy, Reply, encode},
};

const PATIENCE: Duration = Duration::from_secs(10);

/// A Redis under the monitor with more options.
fn start(options: &[&str]) -> Monitored {
    let port = free_port().unwrap();
    let mut command = redis::command(port);
    command.extend(options.iter().map(|&option| option.to_owned()));
    Monitored::start(port, command).unwrap_or_else(|error| panic!("{error}"))
}

/// All keys with their values; every value is a string.
fn dump(address: &Address) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut client = Client::connect(address, PATIENCE).unwrap();
    let Reply::Array(keys) = client.call(&["KEYS", "*"]).unwrap() else {
        panic!("KEYS returns an array");
    };
    let value = |key: Reply| match key {
        Reply::Bulk(key) => match client.call(&[b"GET".as_slice(), &key]).unwrap() {
            Reply::Bulk(value) => (key, value),
            other => panic!("GET {}: {other:?}", String::from_utf8_lossy(&key)),
        },
        other => panic!("a key: {other:?}"),
    };
    keys.into_iter().map(value).collect()
}

/// The dump of a native Redis that loads the append-only file in `dir`.
fn native_dump(dir: &Path) -> BTreeMap<Vec<u8>, Vec<u8>> {
    dump(native(dir).address())
}

/// A native Redis that has loaded the append-only file in `dir`.
fn native(dir: &Path) -> Monitored {
    let port = free_port().unwrap();
    let mut command = redis::command(port);
    command.extend(append_only(dir));
    let server = Launch::native(command).start(port).unwrap();
    // It answers -LOADING until it has read everything.
    let begin = Instant::now();
    let mut client = Client::connect(port, PATIENCE).unwrap();
    while matches!(client.call(&["DBSIZE"]).unwrap(), Reply::Error(_)) {
        assert!(begin.elapsed() < PATIENCE, "{}", server.output_tail());
        thread::sleep(Duration::from_millis(20));
    }
    server
}

fn append_only(dir: &Path) -> [String; 6] {
    let dir = dir.to_str().unwrap();
    [
        "--appendonly",
        "yes",
        "--appendfsync",
        "always",
        "--dir",
        dir,
    ]
    .map(str::to_owned)
}

/// Sends `DEBUG fault`, which must reset this connection.
fn crash(address: &Address, fault: &str) {
    crash_within(address, fault, PATIENCE);
}

fn crash_within(address: &Address, fault: &str, patience: Duration) {
    let mut client = Client::connect(address, patience).unwrap();
    client.send(&encode(&["DEBUG", fault])).unwrap();
    match client.reply() {
        Err(error) if net::is_reset(address, &error) => {}
        other => panic!("DEBUG {fault}: {other:?}"),
    }
}

fn assert_good(scenario: &CrashScenario, server: Monitored) {
    let outcome = scenario.run(server);
    println!("{outcome}");
    assert!(outcome.is_good(), "{outcome}");
}

#[test]
fn others_do_not_notice_crashes() {
    kvm_case("others_do_not_notice_crashes");
    assert_good(&CrashScenario::default(), start(&[]));
}

#[test]
fn others_do_not_notice_crashes_over_a_unix_socket() {
    kvm_case("others_do_not_notice_crashes_over_a_unix_socket");
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("redis.sock");
    let mut command = redis::command(0);
    command.extend([
        "--unixsocket".to_owned(),
        socket.to_str().unwrap().to_owned(),
    ]);
    let launch = Launch::monitored(command).unwrap();
    let server = launch.start_at(Address::Unix(socket)).unwrap();
    let duration = Duration::from_secs(3);
    assert_good(
        &CrashScenario {
            duration,
            ..Default::default()
        },
        server,
    );
}

#[test]
fn others_do_not_notice_crashes_with_io_threads() {
    kvm_case("others_do_not_notice_crashes_with_io_threads");
    let server = start(&["--io-threads", "4"]);
    let duration = Duration::from_secs(3);
    assert_good(
        &CrashScenario {
            duration,
            ..Default::default()
        },
        server,
    );
}

/// The threads read and parse, the main thread executes all that they have read, after a read of its own.
#[test]
fn others_do_not_notice_crashes_where_io_threads_read() {
    kvm_case("others_do_not_notice_crashes_where_io_threads_read");
    let mut server = start(&["--io-threads", "4", "--io-threads-do-reads", "yes"]);
    // The main thread spins while the others read, so each batch takes it a time slice or more.
    let patience = Duration::from_secs(30);
    let load = Load::start::<Healthy>(server.address(), 12, patience);
    thread::sleep(Duration::from_secs(3));
    for _ in 0..3 {
        crash_within(server.address(), "SEGFAULT", patience);
    }
    let outcome = load.finish();
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert!(outcome.requests > 0);
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let events = server.events().unwrap();
    let faults: Vec<&Event> = events.iter().filter(|e| e.get("fault").is_some()).collect();
    assert!(faults.len() >= 3, "{faults:#?}");
    for fault in faults {
        assert_eq!(fault.event, "recovered", "{fault:#?}");
        assert!(fault.text("peer").is_some(), "{fault:#?}");
    }
}

#[test]
fn the_append_only_file_has_what_the_clients_know() {
    kvm_case("the_append_only_file_has_what_the_clients_know");
    let dir = tempfile::tempdir().unwrap();
    let options = append_only(dir.path());
    let mut server = start(&options.each_ref().map(String::as_str));
    let scenario = CrashScenario {
        duration: Duration::from_secs(3),
        ..Default::default()
    };
    let mut outcome = scenario.attack(&server);
    assert!(outcome.is_good(), "{outcome}\n{}", server.output_tail());
    // The clients have checked all of it against their models.
    let known = dump(server.address());
    assert!(known.len() > 100, "{} keys", known.len());
    scenario.finish(&mut server, &mut outcome);
    assert!(outcome.is_good(), "{outcome}");
    assert_same(&native_dump(dir.path()), &known);
}

#[test]
fn acknowledged_writes_survive_a_kill_and_abandoned_ones_do_not() {
    kvm_case("acknowledged_writes_survive_a_kill_and_abandoned_ones_do_not");
    let dir = tempfile::tempdir().unwrap();
    let options = append_only(dir.path());
    let mut server = start(&options.each_ref().map(String::as_str));
    let address = server.address().clone();
    let mut known = BTreeMap::new();
    let mut client = Client::connect(&address, PATIENCE).unwrap();
    for i in 0..200 {
        let (key, value) = (format!("key{i}"), format!("value{i}"));
        assert!(client.call(&["SET", &key, &value]).unwrap().is_ok());
        known.insert(key.into_bytes(), value.into_bytes());
        if i % 20 == 0 {
            let fault = ["SEGFAULT", "PANIC", "ASSERT"][i / 20 % 3];
            let mut crasher = Client::connect(&address, PATIENCE).unwrap();
            let both = [
                encode(&["SET", "abandoned", "1"]),
                encode(&["DEBUG", fault]),
            ];
            crasher.send(&both.concat()).unwrap();
            assert!(crasher.reply().is_err());
        }
    }
    server.kill();
    assert_same(&native_dump(dir.path()), &known);
}

/// What one client has written, as it was acknowledged. A list shows what is there twice.
#[derive(Default)]
struct Writer {
    list: Vec<Vec<u8>>,
    counter: i64,
    last: String,
}

impl Writer {
    fn work(&mut self, name: &str, address: &Address, stop: &AtomicBool) {
        let mut client = Client::connect(address, PATIENCE).unwrap();
        let (list, counter, last) = (
            format!("{name}:list"),
            format!("{name}:n"),
            format!("{name}:last"),
        );
        while !stop.load(Ordering::Relaxed) {
            let item = format!("{name}-{}", self.list.len());
            // In one packet, so that several of them are one request.
            let commands = [
                encode(&["RPUSH", &list, &item]),
                encode(&["INCR", &counter]),
                encode(&["MULTI"]),
                encode(&["SET", &last, &item]),
                encode(&["INCRBY", &counter, "10"]),
                encode(&["EXEC"]),
            ];
            client.send(&commands.concat()).unwrap();
            self.list.push(item.clone().into_bytes());
            self.counter += 11;
            self.last = item;
            let replies: Vec<Reply> = commands.iter().map(|_| client.reply().unwrap()).collect();
            assert_eq!(replies[0], Reply::Integer(self.list.len() as i64));
            assert_eq!(replies[1], Reply::Integer(self.counter - 10));
            let done = [Reply::Simple("OK".into()), Reply::Integer(self.counter)];
            assert_eq!(replies[5], Reply::Array(done.to_vec()));
        }
    }

    fn assert_known(&self, name: &str, client: &mut Client) {
        let bulk = |text: &[u8]| Reply::Bulk(text.to_vec());
        let list = client
            .call(&["LRANGE", &format!("{name}:list"), "0", "-1"])
            .unwrap();
        let items = self.list.iter().map(|item| bulk(item)).collect();
        assert_eq!(list, Reply::Array(items), "{name}");
        let counter = client.call(&["GET", &format!("{name}:n")]).unwrap();
        assert_eq!(counter, bulk(self.counter.to_string().as_bytes()), "{name}");
        let last = client.call(&["GET", &format!("{name}:last")]).unwrap();
        assert_eq!(last, bulk(self.last.as_bytes()), "{name}");
    }
}

/// Crashes the server in a way that `number` chooses, behind writes that must not be there afterwards.
fn crash_behind_writes(address: &Address, number: usize) {
    let fault = ["SEGFAULT", "PANIC", "ASSERT"][number % 3];
    let debug = encode(&["DEBUG", fault]);
    let spoils = [
        encode(&["SET", "spoilt", "1"]),
        encode(&["RPUSH", "w0:list", "spoilt"]),
        encode(&["INCR", "w1:n"]),
    ]
    .concat();
    let bytes = match number / 3 % 3 {
        0 => debug,
        1 => [spoils, debug].concat(),
        _ => [encode(&["MULTI"]), spoils, debug, encode(&["EXEC"])].concat(),
    };
    let mut client = Client::connect(address, PATIENCE).unwrap();
    client.send(&bytes).unwrap();
    match client.reply() {
        Err(error) if net::is_reset(address, &error) => {}
        other => panic!("{fault} {number}: {other:?}"),
    }
}

#[test]
fn the_append_only_file_survives_a_storm_of_crashes_and_a_rewrite() {
    kvm_case("the_append_only_file_survives_a_storm_of_crashes_and_a_rewrite");
    const WRITERS: usize = 3;
    let dir = tempfile::tempdir().unwrap();
    let options = append_only(dir.path());
    let mut server = start(&options.each_ref().map(String::as_str));
    let address = server.address().clone();
    let stop = AtomicBool::new(false);
    let mut writers: [Writer; WRITERS] = Default::default();
    thread::scope(|scope| {
        for (i, writer) in writers.iter_mut().enumerate() {
            let (address, stop) = (&address, &stop);
            scope.spawn(move || writer.work(&format!("w{i}"), address, stop));
        }
        let stopped = StopOnDrop(&stop);
        let mut operator = Client::connect(&address, PATIENCE).unwrap();
        for number in 0..36 {
            crash_behind_writes(&address, number);
            if number % 12 == 6 {
                let reply = operator.call(&["BGREWRITEAOF"]).unwrap();
                assert!(matches!(reply, Reply::Simple(_)), "{reply:?}");
            }
            thread::sleep(Duration::from_millis(20));
        }
        drop(stopped);
    });
    let writes: usize = writers.iter().map(|writer| writer.list.len()).sum();
    println!("{writes} times six acknowledged commands");
    assert!(writes > 10 * WRITERS);
    let events = server.events().unwrap();
    let recovered = events.iter().filter(|e| e.event == "recovered").count();
    assert_eq!(recovered, 36, "{}", server.output_tail());
    server.kill();
    let native = native(dir.path());
    let mut client = Client::connect(native.address(), PATIENCE).unwrap();
    for (i, writer) in writers.iter().enumerate() {
        writer.assert_known(&format!("w{i}"), &mut client);
    }
    let keys = client.call(&["DBSIZE"]).unwrap();
    assert_eq!(keys, Reply::Integer(3 * WRITERS as i64));
}

/// Ends the writers, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

fn assert_same(found: &BTreeMap<Vec<u8>, Vec<u8>>, known: &BTreeMap<Vec<u8>, Vec<u8>>) {
    let text = |key: &Vec<u8>| String::from_utf8_lossy(key).into_owned();
    let lost: Vec<_> = known
        .keys()
        .filter(|key| !found.contains_key(*key))
        .map(text)
        .collect();
    let extra: Vec<_> = found
        .keys()
        .filter(|key| !known.contains_key(*key))
        .map(text)
        .collect();
    let differs = |key: &&Vec<u8>| found.get(*key).is_some_and(|value| value != &known[*key]);
    let wrong: Vec<_> = known.keys().filter(differs).map(text).collect();
    assert!(
        lost.is_empty() && extra.is_empty() && wrong.is_empty(),
        "of {} keys, {} are lost ({:.5?}), {} are wrong ({:.5?}); {} should not be there ({:.5?})",
        known.len(),
        lost.len(),
        lost.first(),
        wrong.len(),
        wrong.first(),
        extra.len(),
        extra.first(),
    );
}

#[test]
fn values_written_before_a_crash_are_there_after_it() {
    kvm_case("values_written_before_a_crash_are_there_after_it");
    let server = start(&[]);
    let mut client = Client::connect(server.address(), PATIENCE).unwrap();
    let large = vec![b'x'; 1 << 20];
    assert!(
        client
            .call(&[b"SET".as_slice(), b"large", &large])
            .unwrap()
            .is_ok()
    );
    let pushed = client.call(&["RPUSH", "list", "a", "b", "c"]).unwrap();
    assert_eq!(pushed, Reply::Integer(3));
    for fault in ["SEGFAULT", "PANIC", "ASSERT", "OOM"] {
        crash(server.address(), fault);
        let bulk = |text: &str| Reply::Bulk(text.as_bytes().to_vec());
        let list = client.call(&["LRANGE", "list", "0", "-1"]).unwrap();
        assert_eq!(
            list,
            Reply::Array(["a", "b", "c"].map(bulk).to_vec()),
            "after {fault}"
        );
        let length = client.call(&["STRLEN", "large"]).unwrap();
        assert_eq!(length, Reply::Integer(1 << 20), "after {fault}");
    }
    assert_eq!(client.call(&["GET", "large"]).unwrap(), Reply::Bulk(large));
}

#[test]
fn a_transaction_that_another_client_has_begun_goes_on() {
    kvm_case("a_transaction_that_another_client_has_begun_goes_on");
    let server = start(&[]);
    let mut client = Client::connect(server.address(), PATIENCE).unwrap();
    assert!(client.call(&["WATCH", "w"]).unwrap().is_ok());
    assert!(client.call(&["MULTI"]).unwrap().is_ok());
    assert_eq!(
        client.call(&["SET", "t", "1"]).unwrap(),
        Reply::Simple("QUEUED".into())
    );
    // What the crashed request did to the watched key never happened.
    let mut crasher = Client::connect(server.address(), PATIENCE).unwrap();
    let both = [encode(&["SET", "w", "1"]), encode(&["DEBUG", "SEGFAULT"])];
    crasher.send(&both.concat()).unwrap();
    assert!(crasher.reply().is_err());
    assert_eq!(
        client.call(&["INCR", "t"]).unwrap(),
        Reply::Simple("QUEUED".into())
    );
    let done = Reply::Array(vec![Reply::Simple("OK".into()), Reply::Integer(2)]);
    assert_eq!(client.call(&["EXEC"]).unwrap(), done);
}

#[test]
fn debug_commands_that_do_not_crash_work() {
    kvm_case("debug_commands_that_do_not_crash_work");
    let mut server = start(&[]);
    let mut client = Client::connect(server.address(), PATIENCE).unwrap();
    for seconds in [0.2, 1.0] {
        let begin = Instant::now();
        let reply = client
            .call(&["DEBUG", "SLEEP", &seconds.to_string()])
            .unwrap();
        assert!(reply.is_ok(), "{reply:?}");
        let took = begin.elapsed().as_secs_f64();
        assert!(took >= seconds && took < seconds + 2.0, "{took} s");
    }
    assert!(client.call(&["SET", "k", "v"]).unwrap().is_ok());
    match client.call(&["DEBUG", "OBJECT", "k"]).unwrap() {
        Reply::Simple(text) => assert!(text.contains("encoding:embstr"), "{text}"),
        other => panic!("{other:?}"),
    }
    assert!(matches!(
        client.call(&["DEBUG", "NOSUCH"]).unwrap(),
        Reply::Error(_)
    ));
    assert_eq!(
        server.terminate().unwrap().code(),
        Some(0),
        "{}",
        server.output_tail()
    );
    let names: Vec<String> = server
        .events()
        .unwrap()
        .into_iter()
        .map(|e| e.event)
        .collect();
    assert_eq!(names, ["started", "listening", "exited"]);
}

#[test]
fn subscribers_get_what_completed_requests_publish() {
    kvm_case("subscribers_get_what_completed_requests_publish");
    let server = start(&[]);
    let mut subscriber = Client::connect(server.address(), PATIENCE).unwrap();
    subscriber.call(&["SUBSCRIBE", "news"]).unwrap();
    let mut publisher = Client::connect(server.address(), PATIENCE).unwrap();
    for i in 0..10 {
        // Published and abandoned: nobody may hear of it.
        let mut crasher = Client::connect(server.address(), PATIENCE).unwrap();
        let both = [
            encode(&["PUBLISH", "news", "never"]),
            encode(&["DEBUG", "SEGFAULT"]),
        ];
        crasher.send(&both.concat()).unwrap();
        assert!(crasher.reply().is_err());
        let text = format!("message {i}");
        assert_eq!(
            publisher.call(&["PUBLISH", "news", &text]).unwrap(),
            Reply::Integer(1)
        );
        let parts = ["message", "news", &text].map(|part| Reply::Bulk(part.into()));
        assert_eq!(subscriber.reply().unwrap(), Reply::Array(parts.to_vec()));
    }
}

#[test]
fn the_log_file_is_written_as_natively() {
    kvm_case("the_log_file_is_written_as_natively");
    let dir = tempfile::tempdir().unwrap();
    let log = dir.path().join("redis.log");
    let mut server = start(&["--logfile", log.to_str().unwrap()]);
    for fault in ["SEGFAULT", "PANIC", "ASSERT"] {
        crash(server.address(), fault);
    }
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let text = fs::read_to_string(&log).unwrap();
    assert!(text.contains("Ready to accept connections"), "{text}");
    assert!(text.contains("bye bye"), "{text}");
    assert!(
        !text.contains("BUG REPORT"),
        "an abandoned request has written: {text}"
    );
}
