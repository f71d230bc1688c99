//! `--verify-heap`: damage to the heap that nobody has noticed yet is charged to the request that did it.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use vmsrs_tests::{
    Event, Launch, Monitored, free_port, guest,
    heap::{Client, DemoUser, Healthy},
    kvm_case,
    load::{HealthyClient, Load},
    memcached, redis,
};

const PATIENCE: Duration = Duration::from_secs(20);
/// How long the healthy load of one server lasts.
const LOAD: Duration = Duration::from_secs(3);

fn heap_server(workers: u32, options: &[&str]) -> Monitored {
    let port = free_port().unwrap();
    let program = guest::server("heap-server").unwrap().into_os_string();
    let command = [program, port.to_string().into(), workers.to_string().into()];
    let launch = Launch::monitored(command).unwrap().options(options);
    launch.start(port).unwrap()
}

fn connect(server: &Monitored) -> Client {
    Client::connect(server.port(), PATIENCE).unwrap()
}

/// Faults so far; waits until there are `count` of them.
fn faults(server: &Monitored, count: usize) -> Vec<Event> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let events = server.events().unwrap();
        let is_fault = |event: &Event| event.get("kind").is_some();
        let faults: Vec<_> = events.into_iter().filter(is_fault).collect();
        if faults.len() >= count || Instant::now() > deadline {
            assert_eq!(faults.len(), count, "{faults:#?}\n{}", server.output_tail());
            return faults;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

fn is_reset(result: io::Result<String>) -> bool {
    matches!(result, Err(error) if error.kind() == io::ErrorKind::ConnectionReset)
}

/// Everything that an innocent client may do with what lies around the damage.
fn innocent(client: &mut Client, first: u32) {
    for slot in (first..first + 8).rev() {
        assert_eq!(client.ask(&format!("get {slot}")).unwrap(), "ok");
    }
    for slot in first..first + 8 {
        assert_eq!(client.ask(&format!("del {slot}")).unwrap(), "ok");
        assert_eq!(client.ask(&format!("set {slot} 200")).unwrap(), "ok");
    }
    assert_eq!(client.ask("churn 0 7").unwrap(), "ok");
}

fn set_up(client: &mut Client) {
    for slot in 0..8 {
        assert_eq!(client.ask(&format!("set {slot} 200")).unwrap(), "ok");
    }
}

/// Requests that damage the heap, each after others that do not.
fn attacks() -> Vec<(Vec<&'static str>, &'static str)> {
    let mut attacks = vec![
        (vec![], "nul 2"),
        (vec!["drop 3"], "stale 3 8"),
        (vec!["drop 3"], "stale 3 16"),
        (vec!["drop 3"], "twice 3 0"),
        // Too large for the thread's cache: the links of an unsorted chunk.
        (
            vec!["set 50 3000", "set 51 3000", "set 52 3000", "drop 51"],
            "stale 51 8",
        ),
    ];
    for len in ["1", "2", "8", "9", "16", "33", "64"] {
        let attack = format!("overflow 2 {len}");
        attacks.push((vec![], attack.leak()));
    }
    attacks
}

fn charged_to_its_own(workers: u32) {
    for (before, attack) in attacks() {
        let mut server = heap_server(workers, &["--verify-heap"]);
        let mut bystander = connect(&server);
        set_up(&mut bystander);
        let mut culprit = connect(&server);
        for request in before {
            assert_eq!(culprit.ask(request).unwrap(), "ok", "{attack}: {request}");
        }
        let peer = culprit.address().unwrap().to_string();
        let answer = culprit.ask(attack);
        assert!(
            is_reset(answer),
            "{attack} was answered\n{}",
            server.output_tail()
        );
        let fault = faults(&server, 1).remove(0);
        assert_eq!(fault.event, "recovered", "{attack}: {fault:?}");
        assert_eq!(
            fault.text("kind"),
            Some("heap-corruption"),
            "{attack}: {fault:?}"
        );
        assert_eq!(fault.text("signal"), Some("SIGABRT"), "{attack}");
        assert_eq!(fault.text("peer"), Some(&*peer), "{attack}");
        assert!(fault.text("address").is_some(), "{attack}: {fault:?}");
        let first = if attack.contains(" 3 ") { 4 } else { 0 };
        innocent(&mut bystander, first);
        innocent(&mut connect(&server), first);
        faults(&server, 1);
        server.terminate().unwrap();
        assert_eq!(
            server.stats().unwrap()["verify_heap"]["corruptions"],
            1,
            "{attack}"
        );
    }
}

#[test]
fn damage_is_charged_to_the_request_that_did_it() {
    kvm_case("damage_is_charged_to_the_request_that_did_it");
    charged_to_its_own(0);
}

#[test]
fn damage_is_charged_to_the_request_that_did_it_with_threads() {
    kvm_case("damage_is_charged_to_the_request_that_did_it_with_threads");
    charged_to_its_own(1);
}

/// What `--verify-heap` is for: without it, the request that did it is answered, and another one pays.
#[test]
fn without_it_the_innocent_one_trips() {
    kvm_case("without_it_the_innocent_one_trips");
    let server = heap_server(0, &[]);
    let mut bystander = connect(&server);
    set_up(&mut bystander);
    let mut culprit = connect(&server);
    assert_eq!(culprit.ask("overflow 2 64").unwrap(), "ok");
    let peer = bystander.address().unwrap().to_string();
    assert!(is_reset(bystander.ask("del 3")));
    let fault = faults(&server, 1).remove(0);
    assert_eq!(fault.text("kind"), Some("abort"));
    assert_eq!(fault.text("peer"), Some(&*peer));
    assert_eq!(culprit.ask("get 1").unwrap(), "ok");
}

#[test]
fn the_report_says_what_was_overwritten() {
    kvm_case("the_report_says_what_was_overwritten");
    let server = heap_server(0, &["--verify-heap"]);
    let mut bystander = connect(&server);
    set_up(&mut bystander);
    assert!(is_reset(connect(&server).ask("overflow 2 8")));
    let fault = faults(&server, 1).remove(0);
    let report = server.report_dir().join(fault.text("report").unwrap());
    let mut texts = std::fs::read_dir(report)
        .unwrap()
        .map(|entry| std::fs::read_to_string(entry.unwrap().path()).unwrap_or_default());
    let expected = "is 0x4141414141414141; before the request the word at";
    assert!(
        texts.any(|text| text.contains(expected)),
        "no report says: {expected}"
    );
}

/// Many culprits: every one is reset, nothing is left behind, nobody else notices.
#[test]
fn a_storm_of_overflows_under_load() {
    kvm_case("a_storm_of_overflows_under_load");
    let mut server = heap_server(4, &["--verify-heap"]);
    let mut bystander = connect(&server);
    set_up(&mut bystander);
    let load = Load::start::<Healthy>(server.port(), 6, PATIENCE);
    let storm = 60;
    for i in 0..storm {
        let len = 8 + i % 57;
        let answer = connect(&server).ask(&format!("overflow {} {len}", i % 7));
        assert!(is_reset(answer), "{i}\n{}", server.output_tail());
        assert_eq!(bystander.ask(&format!("get {}", i % 8)).unwrap(), "ok");
    }
    let outcome = load.finish();
    assert!(
        outcome.problems.is_empty(),
        "{outcome:#?}\n{}",
        server.output_tail()
    );
    let faults = faults(&server, storm);
    let is_expected =
        |fault: &Event| fault.event == "recovered" && fault.text("kind") == Some("heap-corruption");
    assert!(faults.iter().all(is_expected), "{faults:#?}");
    server.terminate().unwrap();
}

/// Thousands of requests that do nothing wrong: not one is suspected.
fn nobody_is_suspected<C: HealthyClient + 'static>(mut server: Monitored) {
    let load = Load::start::<C>(server.port(), 8, PATIENCE);
    thread::sleep(LOAD);
    let outcome = load.finish();
    assert!(
        outcome.problems.is_empty(),
        "{outcome:#?}\n{}",
        server.output_tail()
    );
    let done = outcome.requests;
    assert!(done > 1000, "{done} requests only");
    faults(&server, 0);
    let verification = server.events_of("heap-verification").unwrap();
    assert_eq!(verification[0].get("active"), Some(&Value::Bool(true)));
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    let counter = |name: &str| stats["verify_heap"][name].as_u64().unwrap();
    assert!(counter("checks") > done / 2, "{stats:#}");
    assert!(counter("chunks") > done / 2, "{stats:#}");
    assert_eq!(
        (counter("corruptions"), counter("inherited")),
        (0, 0),
        "{stats:#}"
    );
}

#[test]
fn memcached_is_not_suspected() {
    kvm_case("memcached_is_not_suspected");
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 4)).unwrap();
    let server = launch.options(["--verify-heap"]).start(port).unwrap();
    nobody_is_suspected::<memcached::Healthy>(server);
}

#[test]
fn the_demo_server_is_not_suspected() {
    kvm_case("the_demo_server_is_not_suspected");
    for workers in [0, 4] {
        let port = free_port().unwrap();
        let program = guest::server("demo-server").unwrap().into_os_string();
        let mut command = vec![program, "--port".into(), port.to_string().into()];
        if workers > 0 {
            command.extend(["-t".into(), workers.to_string().into()]);
        }
        let launch = Launch::monitored(command).unwrap();
        let server = launch.options(["--verify-heap"]).start(port).unwrap();
        nobody_is_suspected::<DemoUser>(server);
    }
}

#[test]
fn heavy_use_of_the_heap_is_not_suspected() {
    kvm_case("heavy_use_of_the_heap_is_not_suspected");
    for workers in [0, 4] {
        nobody_is_suspected::<Healthy>(heap_server(workers, &["--verify-heap"]));
    }
}

#[test]
fn another_allocator_is_told_and_left_alone() {
    kvm_case("another_allocator_is_told_and_left_alone");
    let port = free_port().unwrap();
    let port_text = port.to_string();
    let command = ["redis-server", "--port", &port_text, "--save", ""];
    let launch = Launch::monitored(command).unwrap();
    let mut server = launch.options(["--verify-heap"]).start(port).unwrap();
    let mut client = redis::Client::connect(port, PATIENCE).unwrap();
    for _ in 0..5 {
        assert!(client.call(&["SET", "k", "v"]).unwrap().is_ok());
    }
    let verification = server.events_of("heap-verification").unwrap();
    assert_eq!(verification.len(), 1, "{verification:?}");
    assert_eq!(verification[0].get("active"), Some(&Value::Bool(false)));
    let reason = verification[0].text("reason").unwrap();
    assert!(reason.contains("does not use"), "{reason}");
    assert!(server.output().contains("the heap is not verified"));
    server.terminate().unwrap();
    assert_eq!(server.stats().unwrap()["verify_heap"]["checks"], 0);
}
