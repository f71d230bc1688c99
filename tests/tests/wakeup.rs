//! A fault between a wake-up and the first read is charged to the connection that the wake-up was about, and a
//! fault in a request to its connection, whatever earlier requests were woken for.

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::Duration,
};

use vmsrs_tests::{Event, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(10);

fn the_delivered_connection_is_reset(how: &str) {
    let port = free_port().unwrap();
    let program = guest::program("wakeup").unwrap();
    let command = [program.to_str().unwrap(), &port.to_string(), how].map(str::to_owned);
    let mut server = Monitored::start(port, command).unwrap();
    let connect = || net::connect(port, PATIENCE).unwrap();
    let (mut healthy, mut culprit) = (connect(), connect());
    let mut ask = |text: &str| {
        healthy.write_all(text.as_bytes()).unwrap();
        let mut reply = [0; 3];
        healthy.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"ok\n");
    };
    ask("hello");
    culprit.write_all(b"arm").unwrap();
    culprit.read_exact(&mut [0; 3]).unwrap();
    culprit.write_all(b"again").unwrap();
    let error = culprit.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    ask("still there?");
    assert_eq!(server.try_wait().unwrap(), None, "{}", server.output_tail());
    // Events are written by a thread of their own; all of them are there at the end.
    let status = server.terminate().unwrap();
    assert_eq!(status.code(), Some(128 + libc::SIGTERM));
    let peer = culprit.local_addr().unwrap().to_string();
    let recovered = server.events_of("recovered").unwrap();
    assert!(
        recovered
            .iter()
            .any(|event| event.text("peer") == Some(&peer)),
        "{recovered:#?}"
    );
}

#[test]
fn after_epoll_wait() {
    kvm_case("after_epoll_wait");
    the_delivered_connection_is_reset("epoll");
}

#[test]
fn after_poll() {
    kvm_case("after_poll");
    the_delivered_connection_is_reset("poll");
}

#[test]
fn after_select() {
    kvm_case("after_select");
    the_delivered_connection_is_reset("select");
}

/// A request that has looked at an event in the same turn of the loop does not make the event one of the loop.
#[test]
fn an_event_that_another_request_has_looked_at() {
    kvm_case("an_event_that_another_request_has_looked_at");
    for how in ["epoll", "poll", "select"] {
        let port = free_port().unwrap();
        let program = guest::program("wakeup").unwrap();
        let command = [program.to_str().unwrap(), &port.to_string(), how].map(str::to_owned);
        let mut server = Monitored::start(port, command).unwrap();
        let connect = || net::connect(port, PATIENCE).unwrap();
        let mut clients = [connect(), connect(), connect()];
        // Descriptors in this order, and served in this order.
        let mut reply = [0; 3];
        for client in &mut clients {
            client.write_all(b"hello").unwrap();
            client.read_exact(&mut reply).unwrap();
        }
        let [looker, taker, slow] = &mut clients;
        slow.write_all(b"slow").unwrap();
        // While it is served, both others come.
        thread::sleep(Duration::from_millis(100));
        looker.write_all(b"look").unwrap();
        taker.write_all(b"take").unwrap();
        for client in [slow, looker] {
            client.read_exact(&mut reply).unwrap();
            assert_eq!(&reply, b"ok\n");
        }
        let error = taker.read(&mut reply).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{how}");
        server.terminate().unwrap();
        let events = server.events().unwrap();
        let faults: Vec<&Event> = events.iter().filter(|e| e.get("fault").is_some()).collect();
        assert_eq!(faults.len(), 1, "{how}: {faults:#?}");
        assert_eq!(faults[0].text("rung"), Some("abandon"), "{how}");
        let peer = taker.local_addr().unwrap().to_string();
        assert_eq!(faults[0].text("peer"), Some(&*peer), "{how}");
    }
}
