//! Servers with several processes: each recovers from its own faults, and what they share is left as if the abandoned
//! request had never written it.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net, servers, talk};

const PATIENCE: Duration = Duration::from_secs(20);
const CRASHES: usize = 600;

fn start(more: &[&str]) -> Monitored {
    let port = free_port().unwrap();
    let program = guest::program("workers").unwrap();
    let mut args = vec![program.into_os_string(), port.to_string().into()];
    args.extend(more.iter().map(Into::into));
    Launch::monitored(args).unwrap().start(port).unwrap()
}

/// The sum, the two counters of pairs, and the lock.
fn tell(port: u16) -> [u64; 4] {
    let mut client = net::connect(port, PATIENCE).unwrap();
    let text = talk::ask(&mut client, "tell");
    let numbers: Vec<u64> = text.split(' ').map(|n| n.parse().unwrap()).collect();
    numbers.try_into().unwrap()
}

/// How often there was each outcome.
fn outcomes(server: &Monitored) -> BTreeMap<String, usize> {
    let mut counts = BTreeMap::new();
    for event in server.events().unwrap() {
        if matches!(event.event.as_str(), "recovered" | "degraded" | "escalated") {
            *counts.entry(event.event).or_default() += 1;
        }
    }
    counts
}

#[test]
fn a_worker_undoes_what_it_wrote_to_shared_memory() {
    kvm_case("a_worker_undoes_what_it_wrote_to_shared_memory");
    let mut server = start(&[]);
    let mut client = net::connect(server.port(), PATIENCE).unwrap();
    for n in 1..=5 {
        for crash in ["sum", "lock"] {
            talk::crash(server.port(), crash, PATIENCE);
        }
        assert_eq!(talk::ask(&mut client, "add"), "ok");
        assert_eq!(talk::ask(&mut client, "pair"), "ok");
        assert_eq!(tell(server.port()), [n, n, n, 0]);
    }
    let recovered = server.await_events("recovered", 10).unwrap();
    assert_eq!(recovered.len(), 10, "{:?}", outcomes(&server));
    let main = server.pid().to_string();
    let of_worker =
        |event: &vmsrs_tests::Event| event.number("thread").unwrap().to_string() != main;
    assert!(recovered.iter().all(of_worker));
    assert!(recovered.iter().all(|event| event.text("report").is_some()));
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
    let stats = server.stats().unwrap();
    assert_eq!(stats["processes"], 4);
    assert_eq!(stats["domains"]["abandoned"], 10);
    assert_eq!(stats["ladder"]["abandon"], 10);
}

#[test]
fn what_one_worker_learns_all_of_them_refuse() {
    kvm_case("what_one_worker_learns_all_of_them_refuse");
    let port = free_port().unwrap();
    let program = guest::program("workers").unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(["--learn"]);
    let mut server = launch.start(port).unwrap();
    for _ in 0..16 {
        talk::crash(port, "sum", PATIENCE);
    }
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
    // A crash on another worker may overtake what it would have learned.
    let crashes: usize = outcomes(&server).values().sum();
    assert!((2..=4).contains(&crashes), "{:?}", outcomes(&server));
    let refused = server.stats().unwrap()["offenders"]["refused"].as_u64();
    assert!(refused >= Some(12), "{refused:?}");
}

#[test]
fn workers_that_crash_while_others_write_the_same_words() {
    kvm_case("workers_that_crash_while_others_write_the_same_words");
    crash_while_others_write(start(&[]));
}

#[test]
fn executed_workers_that_crash_while_others_write_the_same_words() {
    kvm_case("executed_workers_that_crash_while_others_write_the_same_words");
    crash_while_others_write(start(&["counters"]));
}

fn crash_while_others_write(mut server: Monitored) {
    let port = server.port();
    let (sums, pairs) = (AtomicU64::new(0), AtomicU64::new(0));
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                let mut client = net::connect(port, PATIENCE).unwrap();
                while !stop.load(Ordering::Relaxed) {
                    for (command, count) in [("add", &sums), ("pair", &pairs)] {
                        assert_eq!(talk::ask(&mut client, command), "ok");
                        count.fetch_add(1, Ordering::Relaxed);
                    }
                }
            });
        }
        for n in 0..CRASHES {
            talk::crash(port, ["sum", "lock"][n % 2], PATIENCE);
        }
        stop.store(true, Ordering::Relaxed);
    });
    let (sums, pairs) = (sums.into_inner(), pairs.into_inner());
    assert_eq!(tell(port), [sums, pairs, pairs, 0]);
    // Each worker writes its events in the background.
    server.await_events("recovered", CRASHES).unwrap();
    let counts = outcomes(&server);
    let context = format!("{counts:?}, {sums} sums, {pairs} pairs");
    assert_eq!(
        counts,
        BTreeMap::from([("recovered".into(), CRASHES)]),
        "{context}"
    );
    println!("{context}");
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
}

/// A request that computes for long does not keep what others share from them, and what they do meanwhile can be undone.
#[test]
fn a_request_that_computes_for_long_lets_others_go_on() {
    kvm_case("a_request_that_computes_for_long_lets_others_go_on");
    let mut server = start(&[]);
    let connect = || net::connect(server.port(), PATIENCE).unwrap();
    let mut busy = connect();
    let worker = talk::ask(&mut busy, "who");
    let others = std::iter::repeat_with(connect).take(100);
    let mut others = others.filter_map(|mut client| {
        let other = talk::ask(&mut client, "who") != worker;
        other.then_some(client)
    });
    let (mut other, mut crashing) = (others.next().unwrap(), None);
    let who = talk::ask(&mut other, "who");
    while crashing.is_none() {
        let mut client = others.next().unwrap();
        crashing = (talk::ask(&mut client, "who") == who).then_some(client);
    }
    let mut crashing = crashing.unwrap();
    busy.write_all(b"busy").unwrap();
    thread::sleep(Duration::from_millis(50));
    let begun = Instant::now();
    for _ in 0..100 {
        assert_eq!(talk::ask(&mut other, "try"), "ok");
    }
    // It computes for half a second.
    assert!(
        begun.elapsed() < Duration::from_millis(400),
        "{:?}",
        begun.elapsed()
    );
    crashing.write_all(b"sum").unwrap();
    assert!(crashing.read(&mut [0; 8]).is_err());
    assert_eq!(busy.read(&mut [0; 8]).unwrap(), 3);
    assert_eq!(tell(server.port())[0], 1);
    let recovered = server.await_events("recovered", 1).unwrap();
    assert_eq!(recovered.len(), 1, "{:?}", outcomes(&server));
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
}

/// Natively PostgreSQL disconnects everybody and recovers from its log when a backend crashes.
#[test]
fn a_backend_of_postgresql_crashes_alone() {
    kvm_case("a_backend_of_postgresql_crashes_alone");
    let port = free_port().unwrap();
    let database = (servers::recipe("postgresql").set_up)(port).unwrap();
    let launch = Launch::monitored(&database.command).unwrap();
    let launch = launch.options(["--inject", "abort:match=crash-this"]);
    let mut server = launch.patience(PATIENCE).start(port).unwrap();
    let begin = Instant::now();
    while (database.visit)(port, "first").is_err() {
        assert!(begin.elapsed() < PATIENCE, "{}", server.output_tail());
        thread::sleep(Duration::from_millis(50));
    }
    // While its own processes begin, and while backends end, they use what queries write.
    thread::sleep(Duration::from_secs(2));
    for n in 0..10 {
        thread::sleep(Duration::from_millis(100));
        assert!((database.visit)(port, "crash-this").is_err());
        (database.visit)(port, &format!("after-{n}")).unwrap();
    }
    server.await_events("recovered", 10).unwrap();
    let counts = outcomes(&server);
    assert_eq!(counts.get("recovered"), Some(&10), "{counts:?}");
    server.signal(database.stop).unwrap();
    assert!(
        server
            .wait()
            .unwrap()
            .is_some_and(|status| status.success())
    );
    // It has become another user since the file was opened, who may not replace it.
    let stats = server.stats().unwrap();
    assert_eq!(stats["ladder"]["abandon"], 10);
}
