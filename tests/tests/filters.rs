//! A server that filters its own system calls: a request that makes a forbidden one is undone, and nobody else notices.

use std::time::Duration;

use vmsrs_tests::{Launch, free_port, guest, kvm_case, net, talk};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn a_forbidden_call_is_a_fault_of_its_request() {
    kvm_case("a_forbidden_call_is_a_fault_of_its_request");
    let port = free_port().unwrap();
    let program = guest::program("filtered").unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let mut server = Launch::monitored(command).unwrap().start(port).unwrap();
    let mut client = net::connect(port, PATIENCE).unwrap();
    for command in ["kill", "trap", "kill"] {
        talk::crash(port, command, PATIENCE);
    }
    // Of those that were undone, nothing is left.
    assert_eq!(talk::ask(&mut client, "fail"), "ok 1");
    assert_eq!(talk::ask(&mut client, "hello"), "ok 2");
    let faults = server.await_events("recovered", 3).unwrap();
    assert_eq!(faults.len(), 3, "{}", server.output_tail());
    for fault in faults {
        assert_eq!(fault.text("kind"), Some("forbidden-call"), "{fault:?}");
        assert_eq!(fault.text("signal"), Some("SIGSYS"), "{fault:?}");
    }
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
}
