//! Writes to files are put off until their request has ended; the server must not see the difference, and
//! what cannot be written is told by the call that should have written it.
//!
//! The guest, `tests/programs/durable.c`, runs under the monitor and natively; the same requests get the
//! same replies and leave the same files.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    time::Duration,
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(monitored: bool) -> Monitored {
    let program = guest::program("durable").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = match monitored {
        true => Launch::monitored(command).unwrap().options(["--audit"]),
        false => Launch::native(command),
    };
    launch.patience(PATIENCE).start(port).unwrap()
}

fn connect(server: &Monitored) -> BufReader<TcpStream> {
    BufReader::new(net::connect(server.port(), PATIENCE).unwrap())
}

/// The reply to a request; an error is the connection's end.
fn ask(client: &mut BufReader<TcpStream>, line: &str) -> io::Result<String> {
    client.get_mut().write_all(line.as_bytes())?;
    let mut reply = String::new();
    client.read_line(&mut reply)?;
    Ok(reply)
}

/// The files of the server.
fn files(server: &Monitored) -> Vec<Vec<u8>> {
    ["log", "data", "limited", "own", "appended", "sparse"]
        .map(|name| fs::read(server.cwd().join(name)).unwrap())
        .to_vec()
}

/// The replies to `requests`, each of which is also made by a client that makes the server crash at its end
/// if that is survived.
fn replies(server: &Monitored, requests: &[&str], crashes: bool) -> Vec<String> {
    let mut client = connect(server);
    let mut replies = Vec::new();
    for request in requests {
        if crashes {
            let before = files(server);
            let crashed = ask(&mut connect(server), &format!("{request} crash"));
            assert!(crashed.is_err(), "{request}: {crashed:?}");
            assert!(files(server) == before, "{request} has left something");
        }
        replies.push(ask(&mut client, request).unwrap());
    }
    replies
}

/// Requests whose results can be told before they are real, or that settle their own writes.
const FORETOLD: [&str; 6] = ["back one", "pipe", "count", "back two", "pipe", "count"];
/// Requests in which a write fails that looked as if it could be done.
const REFUSED: [&str; 5] = [
    "refused one",
    "sync two",
    "refused three",
    "back",
    "refused",
];

#[test]
fn a_write_that_fails_at_commit_is_told_by_its_own_call() {
    kvm_case("a_write_that_fails_at_commit_is_told_by_its_own_call");
    let native = start(false);
    let mut server = start(true);
    let expected = replies(&native, &REFUSED, false);
    println!("{expected:?}");
    assert!(expected[0].contains("error 1 served 1"), "{expected:?}");
    assert_eq!(replies(&server, &REFUSED, false), expected);
    assert!(files(&server) == files(&native), "the files differ");
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["rerun"], 4, "{}", stats["domains"]);
    assert_eq!(stats["domains"]["abandoned"], 0);
    assert_eq!(stats["deferred"]["failed"], 4);
    assert_eq!(stats["audit"]["mismatches"], 0);
}

#[test]
fn what_a_server_sees_of_its_own_writes_is_as_natively() {
    kvm_case("what_a_server_sees_of_its_own_writes_is_as_natively");
    let native = start(false);
    let mut server = start(true);
    let expected = replies(&native, &FORETOLD, false);
    println!("{expected:?}");
    assert_eq!(replies(&server, &FORETOLD, false), expected);
    assert!(files(&server) == files(&native), "the files differ");
    server.terminate().unwrap();
    assert_eq!(server.stats().unwrap()["domains"]["rerun"], 0);
}

/// Requests that look at what they have written in every way that can be foretold.
const OWN: [&str; 6] = ["own", "append", "hole", "own", "append", "hole"];

#[test]
fn a_request_that_looks_at_its_own_writes_can_still_be_undone() {
    kvm_case("a_request_that_looks_at_its_own_writes_can_still_be_undone");
    let native = start(false);
    let mut server = start(true);
    let expected = replies(&native, &OWN, false);
    println!("{expected:#?}");
    assert!(!expected.concat().contains("differs"), "{expected:#?}");
    assert_eq!(replies(&server, &OWN, true), expected);
    assert!(files(&server) == files(&native), "the files differ");
    // These two look at what is not foretold.
    let cut = replies(&native, &["cut", "own"], false);
    let events = server.events().unwrap();
    let others = events.iter().filter(|event| event.event == "degraded");
    assert_eq!(
        others.collect::<Vec<_>>(),
        Vec::<&vmsrs_tests::Event>::new()
    );
    assert_eq!(replies(&server, &["cut", "own"], false), cut);
    assert!(files(&server) == files(&native), "the files differ");
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["abandoned"], OWN.len());
    assert_eq!(stats["domains"]["rerun"], 0);
    assert_eq!(stats["audit"]["mismatches"], 0);
    // Those of "cut": for ftruncate and for SEEK_DATA.
    let external = &stats["domains"]["early_committed"]["external"];
    assert_eq!(external, 2, "{}", stats["domains"]);
}

#[test]
fn the_limit_on_the_size_of_files_holds() {
    kvm_case("the_limit_on_the_size_of_files_holds");
    let requests = ["limited", "limit now", "limited", "limited"];
    let native = start(false);
    let server = start(true);
    let expected = replies(&native, &requests, false);
    println!("{expected:?}");
    assert!(expected[3].contains("error 27"), "{expected:?}");
    assert_eq!(replies(&server, &requests, false), expected);
    assert!(files(&server) == files(&native), "the files differ");
}

#[test]
fn writes_of_a_crashing_request_are_never_seen() {
    kvm_case("writes_of_a_crashing_request_are_never_seen");
    let server = start(true);
    let begin = files(&server);
    for _ in 0..5 {
        let crashed = ask(&mut connect(&server), "refused crash");
        assert!(crashed.is_err(), "{crashed:?}");
    }
    assert!(files(&server) == begin, "something is left");
    let replies = replies(&server, &["refused"], true);
    assert_eq!(replies, ["refused 7 4 error 1 served 1\n"]);
}
