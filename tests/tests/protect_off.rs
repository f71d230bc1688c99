//! `--protect off`: the server runs in the virtual machine and dies of a fault as natively.

use std::{thread, time::Duration};

use vmsrs_tests::{
    Launch, free_port, kvm_case,
    load::Load,
    redis::{self, Client, Healthy},
};

const PATIENCE: Duration = Duration::from_secs(10);

#[test]
fn redis_works_and_a_fault_kills_it() {
    kvm_case("redis_works_and_a_fault_kills_it");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let mut server = launch.options(["--protect", "off"]).start(port).unwrap();
    let load = Load::start::<Healthy>(port, 20, PATIENCE);
    thread::sleep(Duration::from_secs(1));
    let outcome = load.finish();
    assert!(
        outcome.problems.is_empty() && outcome.requests > 0,
        "{outcome:?}"
    );

    let mut client = Client::connect(port, PATIENCE).unwrap();
    let reply = client.call(&["DEBUG", "SEGFAULT"]);
    assert!(reply.is_err(), "{reply:?}");
    let status = server.wait().unwrap().expect("the server dies");
    assert_eq!(
        status.code(),
        Some(128 + libc::SIGSEGV),
        "{}",
        server.output_tail()
    );
    // Its own handler of the signal ran first, as natively.
    assert!(
        server.output().contains("REDIS BUG REPORT START"),
        "{}",
        server.output_tail()
    );

    let events = server.events().unwrap();
    let names: Vec<&str> = events.iter().map(|event| event.event.as_str()).collect();
    assert_eq!(names, ["started", "listening", "exited"]);
    assert_eq!(events[2].text("signal"), Some("SIGSEGV"));
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["abandoned"], 0);
    assert_eq!(stats["pages"]["tracked"], 0);
    assert!(stats["exits"]["syscall"].as_u64() > Some(outcome.requests));
}

#[test]
fn sigterm_ends_it_well() {
    kvm_case("sigterm_ends_it_well");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let mut server = launch.options(["--protect", "off"]).start(port).unwrap();
    assert_eq!(
        server.terminate().unwrap().code(),
        Some(0),
        "{}",
        server.output_tail()
    );
}
