//! The ladder, rung by rung: what becomes of faults that a lesser rung does not help with.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Event, Launch, Monitored, free_port, guest, kvm_case, ladder::Client, memcached, net, redis,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// The ladder server under the monitor.
fn start(options: &[&str]) -> Monitored {
    let program = guest::server("ladder-server").unwrap();
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(options);
    launch.patience(PATIENCE).start(port).unwrap()
}

fn connect(server: &Monitored) -> Client {
    Client::connect(server.port(), PATIENCE).unwrap()
}

/// Waits for `count` events of a kind.
fn await_events(server: &Monitored, kind: &str, count: usize) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = server.events_of(kind).unwrap();
        if events.len() >= count {
            return events;
        }
        assert!(
            Instant::now() < deadline,
            "{} of {count} {kind}: {:#?}\n{}",
            events.len(),
            server.events().unwrap(),
            server.output_tail()
        );
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// The rungs of all fault events, in order.
fn rungs(server: &Monitored) -> Vec<String> {
    let events = server.events().unwrap();
    let rungs = events.iter().filter_map(|event| event.text("rung"));
    rungs.map(str::to_owned).collect()
}

/// Makes the background thread crash once and waits until every client has lost its connection.
fn restart(server: &Monitored, mut clients: Vec<Client>) {
    let mut culprit = connect(server);
    // The answer may be overtaken by the restart.
    culprit.send("tick").unwrap();
    clients.push(culprit);
    for mut client in clients {
        assert_eq!(client.end(), Some(ErrorKind::ConnectionReset));
    }
}

#[test]
fn a_crash_of_a_request_is_abandoned() {
    kvm_case("a_crash_of_a_request_is_abandoned");
    let mut server = start(&[]);
    let mut other = connect(&server);
    assert_eq!(other.ask("count").unwrap(), "1");
    let mut culprit = connect(&server);
    culprit.send("crash").unwrap();
    assert_eq!(culprit.end(), Some(ErrorKind::ConnectionReset));
    assert_eq!(other.ask("count").unwrap(), "2");
    server.terminate().unwrap();
    assert_eq!(rungs(&server), ["abandon"]);
    assert_eq!(server.events_of("recovered").unwrap().len(), 1);
    assert_eq!(server.stats().unwrap()["ladder"]["abandon"], 1);
}

#[test]
fn a_background_fault_restarts_the_server_as_it_was() {
    kvm_case("a_background_fault_restarts_the_server_as_it_was");
    let mut server = start(&[]);
    let mut client = connect(&server);
    assert_eq!(client.ask("check").unwrap(), "ok");
    let state = client.ask("state").unwrap();
    assert!(state.contains("count=0"), "{state}");
    assert_eq!(client.ask("change").unwrap(), "changed");
    assert_ne!(client.ask("state").unwrap(), state);

    let idle = connect(&server);
    restart(&server, vec![client, idle]);
    let restarted = await_events(&server, "restarted", 1).remove(0);
    println!("{:?}", restarted.members);
    // Two seen by the test, one that waited for it to listen may still have been open.
    assert!(restarted.number("connections_reset") >= Some(2));
    assert!(restarted.number("pages_restored") > Some(0));
    assert_eq!(restarted.number("threads_ended"), Some(1));
    assert_eq!(restarted.text("signal"), Some("SIGSEGV"));
    assert_eq!(restarted.text("origin"), Some("timer"));

    let mut client = connect(&server);
    assert_eq!(client.ask("check").unwrap(), "ok");
    // Same process, same listening socket, same descriptors, count of the start.
    assert_eq!(client.ask("state").unwrap(), state);
    assert_eq!(client.ask("count").unwrap(), "1");
    server.terminate().unwrap();
    assert_eq!(rungs(&server), ["rerun", "restart"]);
    let escalated = server.events_of("escalated").unwrap();
    let reason = escalated[0].text("reason").unwrap();
    assert!(reason.contains("restarted in place"), "{reason}");
    let stats = server.stats().unwrap();
    assert_eq!(
        (
            &stats["ladder"]["restart"],
            &stats["restart"]["pause_us"]["count"]
        ),
        (&1.into(), &1.into())
    );
}

#[test]
fn clients_that_connect_during_restarts_are_served() {
    kvm_case("clients_that_connect_during_restarts_are_served");
    const RESTARTS: usize = 10;
    let mut server = start(&["--storm-limit", "1000"]);
    let port = server.port();
    let done = AtomicBool::new(false);
    let served = AtomicUsize::new(0);
    let reset = std::thread::scope(|scope| {
        let visitor = scope.spawn(|| {
            let mut reset = 0;
            while !done.load(Ordering::Relaxed) {
                // Whatever happens, nobody is refused or left waiting.
                let mut client = Client::connect(port, PATIENCE).unwrap();
                match client.ask("state") {
                    Ok(state) => {
                        assert!(state.starts_with("count="), "{state}");
                        served.fetch_add(1, Ordering::Relaxed);
                    }
                    Err(error) if error.kind() == ErrorKind::ConnectionReset => reset += 1,
                    Err(error) => panic!("{error}"),
                }
            }
            reset
        });
        for i in 1..=RESTARTS {
            restart(&server, Vec::new());
            await_events(&server, "restarted", i);
            // Where exits are slow a visit takes as long as a restart.
            let enough = served.load(Ordering::Relaxed) + 2;
            let deadline = Instant::now() + PATIENCE;
            while served.load(Ordering::Relaxed) < enough && !visitor.is_finished() {
                assert!(Instant::now() < deadline, "nobody is served");
                std::thread::sleep(Duration::from_millis(1));
            }
        }
        done.store(true, Ordering::Relaxed);
        visitor.join().unwrap()
    });
    println!("{served:?} served, {reset} reset in {RESTARTS} restarts");
    assert!(served.into_inner() >= 2 * RESTARTS);
    assert_eq!(connect(&server).ask("check").unwrap(), "ok");
    server.terminate().unwrap();
}

/// What the process, guest and monitor together, holds of the kernel's.
fn holdings(pid: u32) -> (usize, usize, usize) {
    let count = |what: &str| fs::read_dir(format!("/proc/{pid}/{what}")).unwrap().count();
    let maps = fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    (count("fd"), count("task"), maps.lines().count())
}

/// Holdings once threads that are about to end have ended.
fn settled(pid: u32) -> (usize, usize, usize) {
    let mut last = holdings(pid);
    for _ in 0..200 {
        std::thread::sleep(Duration::from_millis(20));
        let now = holdings(pid);
        if now == last {
            break;
        }
        last = now;
    }
    last
}

#[test]
fn fifty_restarts_leak_nothing() {
    kvm_case("fifty_restarts_leak_nothing");
    const RESTARTS: usize = 50;
    let mut server = start(&["--storm-limit", "1000"]);
    let mut first = None;
    for i in 1..=RESTARTS {
        let mut client = connect(&server);
        assert_eq!(client.ask("check").unwrap(), "ok", "restart {i}");
        assert_eq!(client.ask("change").unwrap(), "changed");
        restart(&server, vec![client]);
        await_events(&server, "restarted", i);
        if i == 10 {
            first = Some(settled(server.pid()));
        }
    }
    let (before, mut after) = (first.unwrap(), settled(server.pid()));
    // A connection may take some seconds to end, in a thread for that.
    let deadline = Instant::now() + PATIENCE;
    while (before.0, before.1) != (after.0, after.1) && Instant::now() < deadline {
        after = settled(server.pid());
    }
    println!("descriptors, threads, mappings: {before:?} then {after:?}");
    assert_eq!((before.0, before.1), (after.0, after.1));
    assert!(
        after.2 <= before.2 + 10,
        "mappings: {before:?} then {after:?}"
    );
    assert_eq!(connect(&server).ask("check").unwrap(), "ok");
    let mut pauses: Vec<u64> = server
        .events_of("restarted")
        .unwrap()
        .iter()
        .filter_map(|event| event.number("pause_us"))
        .collect();
    pauses.sort_unstable();
    println!(
        "pause: median {} us, longest {} us",
        pauses[pauses.len() / 2],
        pauses[pauses.len() - 1]
    );
    server.terminate().unwrap();
}

#[test]
fn poisoned_state_climbs_to_the_restart() {
    kvm_case("poisoned_state_climbs_to_the_restart");
    let mut server = start(&[]);
    let mut first = connect(&server);
    let mut second = connect(&server);
    assert_eq!(first.ask("count").unwrap(), "1");
    assert_eq!(second.ask("poison").unwrap(), "ok");
    // Its disconnect path trips, again and again.
    drop(first);
    assert_eq!(second.end(), Some(ErrorKind::ConnectionReset));
    await_events(&server, "restarted", 1);
    let mut client = connect(&server);
    assert_eq!(client.ask("count").unwrap(), "1");
    assert_eq!(client.ask("check").unwrap(), "ok");
    server.terminate().unwrap();
    assert_eq!(
        rungs(&server),
        ["abandon", "rerun", "reset-delivered", "restart"]
    );
}

#[test]
fn a_storm_of_restarts_ends_the_server_by_the_signal() {
    kvm_case("a_storm_of_restarts_ends_the_server_by_the_signal");
    let mut server = start(&["--storm-limit", "2"]);
    // Not in the server's memory: a restart does not help.
    fs::write(server.cwd().join("bomb"), "").unwrap();
    let status = server.wait().unwrap().expect("it has ended");
    assert_eq!(status.code(), Some(128 + libc::SIGSEGV));
    assert_eq!(
        rungs(&server),
        ["rerun", "restart", "rerun", "restart", "rerun", "give-up"]
    );
    let last = server.events_of("escalated").unwrap().pop().unwrap();
    assert_eq!(
        last.text("reason"),
        Some("it was restarted 2 times in one minute")
    );
    assert!(last.text("report").is_some());
    assert_eq!(server.stats().unwrap()["ladder"]["give_up"], 1);
}

/// The reason for which `server` ends when its background thread crashes.
fn gives_up(mut server: Monitored) -> String {
    connect(&server).send("tick").unwrap();
    let status = server.wait().unwrap().expect("it has ended");
    assert_eq!(
        status.code(),
        Some(128 + libc::SIGSEGV),
        "{}",
        server.output_tail()
    );
    assert_eq!(rungs(&server), ["rerun", "give-up"]);
    let escalated = server.events_of("escalated").unwrap().pop().unwrap();
    escalated.text("reason").unwrap().to_owned()
}

#[test]
fn without_a_restart_it_ends_by_the_signal_and_says_why() {
    kvm_case("without_a_restart_it_ends_by_the_signal_and_says_why");
    let reason = gives_up(start(&["--restart", "off"]));
    assert!(reason.ends_with("--restart=off"), "{reason}");

    let server = start(&["--image-limit", "4096"]);
    assert_eq!(connect(&server).ask("change").unwrap(), "changed");
    let reason = gives_up(server);
    assert!(reason.contains("--image-limit"), "{reason}");

    let server = start(&[]);
    assert_eq!(connect(&server).ask("exit-thread").unwrap(), "ok");
    let before = holdings(server.pid()).1;
    let deadline = Instant::now() + PATIENCE;
    while holdings(server.pid()).1 == before && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(10));
    }
    let reason = gives_up(server);
    assert!(reason.contains("has ended since"), "{reason}");
}

#[test]
fn a_fault_before_it_serves_takes_its_course() {
    kvm_case("a_fault_before_it_serves_takes_its_course");
    let dir = tempfile::tempdir().unwrap();
    let program = guest::server("ladder-server").unwrap();
    let events = dir.path().join("events");
    let status = std::process::Command::new(vmsrs_tests::paths::vmsrs().unwrap())
        .args(["run", "--report-dir"])
        .arg(dir.path().join("reports"))
        .arg("--events")
        .arg(&events)
        .arg("--")
        .arg(program)
        .args(["1", "crash-at-start"])
        .status()
        .unwrap();
    assert_eq!(status.code(), Some(128 + libc::SIGSEGV));
    let events = vmsrs_tests::event::read(&events).unwrap();
    let fault = events
        .iter()
        .find(|event| event.event == "escalated")
        .unwrap();
    assert_eq!(fault.text("rung"), Some("give-up"));
    assert_eq!(
        fault.text("reason"),
        Some("the server was not serving requests yet")
    );
}

#[test]
fn a_crashing_worker_is_ended_and_its_master_makes_another() {
    kvm_case("a_crashing_worker_is_ended_and_its_master_makes_another");
    const WORKERS: usize = 3;
    let port = free_port().unwrap();
    let program = guest::program("prefork").unwrap();
    let command = [
        program.to_str().unwrap(),
        &port.to_string(),
        &WORKERS.to_string(),
    ]
    .map(str::to_owned);
    // The end of the ladder.
    let launch = Launch::monitored(command).unwrap();
    let mut server = launch.options(["--recover", "off"]).start(port).unwrap();
    let connect = || net::connect(port, PATIENCE).unwrap();
    let ask = |stream: &mut std::net::TcpStream| {
        stream.write_all(b"who\n").unwrap();
        let mut reply = [0; 64];
        let n = stream.read(&mut reply).unwrap();
        String::from_utf8_lossy(&reply[..n]).trim().to_owned()
    };
    let mut others = [connect(), connect()];
    let before: Vec<String> = others.iter_mut().map(ask).collect();
    for _ in 0..3 {
        let mut culprit = connect();
        let victim = ask(&mut culprit);
        assert!(!before.contains(&victim));
        culprit.write_all(b"crash").unwrap();
        // The kernel closes the connection of a dead worker.
        assert!(matches!(culprit.read(&mut [0; 16]), Ok(0) | Err(_)));
        let after: Vec<String> = others.iter_mut().map(ask).collect();
        assert_eq!(after, before);
        let died = format!("worker {victim} died of {}", libc::SIGSEGV);
        let deadline = Instant::now() + PATIENCE;
        while !server.output().contains(&died) {
            assert!(Instant::now() < deadline, "{}", server.output_tail());
            std::thread::sleep(Duration::from_millis(10));
        }
    }
    assert_ne!(ask(&mut connect()), "");
    assert_eq!(server.try_wait().unwrap(), None);
}

#[test]
fn redis_is_restarted_in_place() {
    kvm_case("redis_is_restarted_in_place");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let launch = launch.options(["--inject", "rip:match=strike-me,origin=timer,times=2"]);
    let mut server = launch.start(port).unwrap();
    let connect = || redis::Client::connect(port, PATIENCE).unwrap();
    let mut client = connect();
    for i in 0..2000 {
        let key = format!("key{i}");
        assert!(
            client
                .call(&["SET", &key, &"v".repeat(100)])
                .unwrap()
                .is_ok()
        );
    }
    assert!(client.call(&["SET", "mark", "strike-me"]).unwrap().is_ok());
    let error = client.reply().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let restarted = await_events(&server, "restarted", 1).remove(0);
    println!("redis: {:?}", restarted.members);
    let mut client = connect();
    assert_eq!(client.call(&["DBSIZE"]).unwrap(), redis::Reply::Integer(0));
    for i in 0..2000 {
        let key = format!("key{i}");
        assert!(client.call(&["SET", &key, "w"]).unwrap().is_ok());
        assert_eq!(
            client.call(&["GET", &key]).unwrap(),
            redis::Reply::Bulk(b"w".to_vec())
        );
    }
    // A thread of its own frees this.
    assert!(client.call(&["FLUSHALL", "ASYNC"]).unwrap().is_ok());
    assert_eq!(client.call(&["DBSIZE"]).unwrap(), redis::Reply::Integer(0));
    let status = server.terminate().unwrap();
    assert_eq!(status.code(), Some(0), "{}", server.output_tail());
    assert_eq!(rungs(&server), ["rerun", "restart"]);
}

#[test]
fn redis_that_has_written_its_files_is_not_restarted_in_memory_alone() {
    kvm_case("redis_that_has_written_its_files_is_not_restarted_in_memory_alone");
    let port = free_port().unwrap();
    let mut command = redis::command(port);
    command.extend(["--appendonly", "yes"].map(str::to_owned));
    let launch = Launch::monitored(command).unwrap();
    let launch = launch.options(["--inject", "rip:match=strike-me,origin=timer,times=2"]);
    let mut server = launch.start(port).unwrap();
    let mut client = redis::Client::connect(port, PATIENCE).unwrap();
    assert!(client.call(&["SET", "mark", "strike-me"]).unwrap().is_ok());
    server.wait().unwrap().expect("it has ended");
    let escalated = server.events_of("escalated").unwrap().pop().unwrap();
    let reason = escalated.text("reason").unwrap();
    assert!(reason.contains("written files"), "{reason}");
    assert_eq!(server.events_of("restarted").unwrap(), []);
}

#[test]
fn memcached_is_restarted_in_place() {
    kvm_case("memcached_is_restarted_in_place");
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 4)).unwrap();
    let launch = launch.options(["--inject", "rip:match=strike-me,origin=timer,times=2"]);
    let mut server = launch.start(port).unwrap();
    let connect = || memcached::Client::connect(port, PATIENCE).unwrap();
    let mut clients: Vec<_> = (0..8).map(|_| connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        client.set(&format!("key{i}"), b"value").unwrap();
    }
    clients[0].set("mark", b"strike-me").unwrap();
    let restarted = await_events(&server, "restarted", 1).remove(0);
    println!("memcached: {:?}", restarted.members);
    for client in &mut clients {
        assert!(client.get("key1").is_err());
    }
    let mut clients: Vec<_> = (0..8).map(|_| connect()).collect();
    for (i, client) in clients.iter_mut().enumerate() {
        let key = format!("key{i}");
        assert_eq!(client.get(&key).unwrap(), None);
        client.set(&key, b"again").unwrap();
        assert_eq!(client.get(&key).unwrap().as_deref(), Some(&b"again"[..]));
    }
    let status = server.terminate().unwrap();
    assert_eq!(status.code(), Some(0), "{}", server.output_tail());
    assert_eq!(rungs(&server), ["rerun", "restart"]);
}
