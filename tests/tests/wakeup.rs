//! A fault between a wake-up and the first read is charged to the connection that the wake-up was about.

use std::{
    io::{ErrorKind, Read, Write},
    time::Duration,
};

use vmsrs_tests::{Monitored, free_port, guest, kvm_case, net};

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
