//! Poisoned state: a request that completed has left something on which every later reader trips. Each reader
//! is reset, nobody else notices, and the monitor says that it is one bug.

use vmsrs_tests::{
    Monitored, free_port, kvm_case,
    load::Load,
    memcached, redis,
    run::{self, Ended},
    web::{self, Client, must_reset, request},
};

/// Readers that trip.
const READERS: usize = 200;

fn report(server: &Monitored, args: &[&str]) -> Ended {
    let mut command = run::vmsrs(["report", "--report-dir"]).unwrap();
    run::to_end(command.arg(server.report_dir()).args(args), b"").unwrap()
}

#[test]
fn a_thousand_faults_of_one_bug_look_like_one() {
    kvm_case("a_thousand_faults_of_one_bug_look_like_one");
    let mut server = web::start(&[]);
    let mut other = Client::connect(&server).unwrap();
    assert_eq!(other.get("/item").unwrap(), "item 42");
    assert_eq!(other.get("/poison").unwrap(), "hello");
    for _ in 0..READERS {
        must_reset(&server, &request("/item"));
        assert_eq!(other.get("/hello").unwrap(), "hello");
    }
    // Another bug in between is another bug.
    must_reset(&server, &request("/crash"));
    // What was poisoned can be mended, by a request like any other.
    assert_eq!(other.get("/mend").unwrap(), "hello");
    assert_eq!(other.get("/item").unwrap(), "item 42");
    server.terminate().unwrap();

    let recovered = server.events_of("recovered").unwrap();
    assert_eq!(recovered.len(), READERS + 1);
    let (last, readers) = recovered.split_last().unwrap();
    for (n, event) in readers.iter().enumerate() {
        assert_eq!(event.number("repeat"), Some(n as u64), "{event:?}");
        assert_eq!(event.text("fault"), readers[0].text("fault"));
        assert!(event.text("report").is_some(), "{event:?}");
    }
    assert_eq!(last.number("repeat"), Some(0));
    assert_ne!(last.text("fault"), readers[0].text("fault"));

    // A few reports in full; the others are counted in the first.
    let all = report(&server, &["--all"]);
    assert_eq!(all.out().lines().count(), 1 + 3 + 1, "{all}");
    let list = report(&server, &[]);
    let lines: Vec<Vec<String>> = list
        .out()
        .lines()
        .map(|line| line.split_whitespace().map(str::to_owned).collect())
        .collect();
    assert_eq!(lines.len(), 3, "{list}");
    assert_eq!(lines[0][2], "COUNT");
    assert_eq!(
        (lines[1][2].as_str(), &lines[2][2]),
        ("1", &READERS.to_string())
    );
    let first = report(&server, &[readers[0].text("report").unwrap()]);
    let again = format!("Again     {} times more", READERS - 3);
    assert!(first.out().contains(&again), "{first}");
}

/// `RESTORE` of a hash as one listpack, whose first element claims to be longer than all of it.
fn restore_broken_hash(key: &str) -> Vec<u8> {
    let elements = [&[0xf0][..], &u32::MAX.to_le_bytes()[..], b"x\x07", &[0xff]].concat();
    let total = elements.len() as u32 + 6;
    let listpack = [&total.to_le_bytes()[..], &2u16.to_le_bytes(), &elements].concat();
    // Type 16, a string with its length, RDB version 10, and a checksum that is not looked at.
    let length = [listpack.len() as u8];
    let dump = [&[16][..], &length, &listpack, &10u16.to_le_bytes(), &[0; 8]].concat();
    let arguments: [&[u8]; 4] = [b"RESTORE", key.as_bytes(), b"0", &dump];
    let mut command = b"*4\r\n".to_vec();
    for argument in arguments {
        command.extend(format!("${}\r\n", argument.len()).bytes());
        command.extend_from_slice(argument);
        command.extend_from_slice(b"\r\n");
    }
    command
}

#[test]
fn a_key_of_redis_that_nobody_can_read() {
    kvm_case("a_key_of_redis_that_nobody_can_read");
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    let load = Load::start::<redis::Healthy>(server.address(), 8, web::PATIENCE);
    let mut client = redis::Client::connect(port, web::PATIENCE).unwrap();
    for setting in [
        &["CONFIG", "SET", "sanitize-dump-payload", "no"][..],
        &["DEBUG", "SET-SKIP-CHECKSUM-VALIDATION", "1"],
    ] {
        assert!(client.call(setting).unwrap().is_ok());
    }
    client.send(&restore_broken_hash("poisoned")).unwrap();
    assert!(
        client.reply().unwrap().is_ok(),
        "the request that poisons completes"
    );
    for _ in 0..30 {
        let mut reader = redis::Client::connect(port, web::PATIENCE).unwrap();
        reader
            .send(&redis::encode(&["HGET", "poisoned", "field"]))
            .unwrap();
        assert!(reader.reply().is_err());
    }
    // Whoever removes the key mends the server.
    assert!(client.call(&["SET", "poisoned", "fine"]).unwrap().is_ok());
    let mended = client.call(&["GET", "poisoned"]).unwrap();
    assert_eq!(mended, redis::Reply::Bulk("fine".into()));
    let outcome = load.finish();
    assert!(outcome.problems.is_empty(), "{outcome:#?}");
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let recovered = server.events_of("recovered").unwrap();
    assert_eq!(recovered.len(), 30);
    for (n, event) in recovered.iter().enumerate() {
        assert_eq!(event.number("repeat"), Some(n as u64), "{event:?}");
    }
    let list = report(&server, &[]);
    assert_eq!(list.out().lines().count(), 2, "{list}");
}

#[test]
fn in_a_server_with_threads_it_is_the_same_bug_on_each() {
    kvm_case("in_a_server_with_threads_it_is_the_same_bug_on_each");
    let port = free_port().unwrap();
    let launch = vmsrs_tests::Launch::monitored(memcached::command(port, 4)).unwrap();
    let launch = launch.options(["--inject", "rip:match=STRIKE-ME,after=0"]);
    let mut server = launch.start(port).unwrap();
    for _ in 0..20 {
        let bytes = "set k 0 0 9\r\nSTRIKE-ME\r\n";
        must_reset(&server, bytes);
    }
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let recovered = server.events_of("recovered").unwrap();
    let faults: std::collections::BTreeSet<_> = recovered
        .iter()
        .map(|event| event.text("fault").unwrap())
        .collect();
    let threads: std::collections::BTreeSet<_> = recovered
        .iter()
        .map(|event| event.number("thread").unwrap())
        .collect();
    assert_eq!((recovered.len(), faults.len()), (20, 1), "{recovered:#?}");
    assert!(threads.len() > 1, "{threads:?}");
}
