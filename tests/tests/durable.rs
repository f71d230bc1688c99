//! Writes to files are put off until their request has ended; the server must not see the difference, and
//! what cannot be written is told by the call that should have written it.
//!
//! The guest, `tests/programs/durable.c`, runs under the monitor and natively; the same requests get the
//! same replies and leave the same files.

use std::{
    fs,
    io::{self, BufRead, BufReader, Write},
    net::{SocketAddr, TcpStream, UdpSocket},
    os::unix::fs::PermissionsExt,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net, paths};

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

/// The outcome of the `count`th thing that happens without a request.
fn told(client: &mut BufReader<TcpStream>, count: usize) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let told = ask(client, "told").unwrap();
        if told.starts_with(&format!("told {count} ")) || Instant::now() > deadline {
            return told;
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// What everything that can begin a domain says of a write that fails, and a datagram's answer.
fn without_requests(server: &Monitored) -> Vec<String> {
    let mut client = connect(server);
    let mut said = Vec::new();
    for (i, what) in ["event", "pipe", "timer", "accept"].into_iter().enumerate() {
        said.push(ask(&mut client, &format!("arm {what}")).unwrap());
        if what == "accept" {
            // The connection that is accepted again is as good as any.
            said.push(ask(&mut connect(server), "back").unwrap());
        }
        said.push(told(&mut client, i + 1));
    }
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let to = SocketAddr::from(([127, 0, 0, 1], server.port()));
    for text in ["first", "second"] {
        socket.send_to(text.as_bytes(), to).unwrap();
        let mut bytes = [0; 200];
        let n = socket.recv(&mut bytes).unwrap();
        said.push(String::from_utf8_lossy(&bytes[..n]).into_owned());
    }
    said.push(told(&mut client, 6));
    said
}

#[test]
fn whatever_begins_a_domain_begins_it_again() {
    kvm_case("whatever_begins_a_domain_begins_it_again");
    let native = start(false);
    let mut server = start(true);
    let expected = without_requests(&native);
    println!("{expected:#?}");
    assert!(expected[1].contains("event 5 3 error 1"), "{expected:#?}");
    assert_eq!(without_requests(&server), expected);
    assert!(files(&server) == files(&native), "the files differ");
    assert_eq!(server.events_of("degraded").unwrap().len(), 0);
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["rerun"], 6, "{}", stats["domains"]);
    assert_eq!(stats["deferred"]["failed"], 6);
    assert_eq!(stats["audit"]["mismatches"], 0);
}

/// A script that gives what it runs a small file system of its own as its working directory, as `path`.
fn on_a_small_disk(path: &Path, program: &Path) {
    let script = format!(
        "#!/bin/sh\n\
        exec unshare --user --map-root-user --mount sh -c '\n\
        mount -t tmpfs -o size=256k small \"$PWD\" && cd \"$PWD\" && exec \"$0\" \"$@\"' {} \"$@\"\n",
        program.display()
    );
    fs::write(path, script).unwrap();
    fs::set_permissions(path, fs::Permissions::from_mode(0o755)).unwrap();
}

/// The files of a server on a disk that only it sees.
fn hidden_files(server: &Monitored) -> Vec<Vec<u8>> {
    let dir = Path::new("/proc")
        .join(server.pid().to_string())
        .join("cwd");
    ["log", "data"]
        .map(|name| fs::read(dir.join(name)).unwrap())
        .to_vec()
}

#[test]
fn a_full_disk_is_told_by_the_write_that_finds_it_full() {
    kvm_case("a_full_disk_is_told_by_the_write_that_finds_it_full");
    let dir = tempfile::tempdir().unwrap();
    let program = guest::program("durable").unwrap_or_else(|error| panic!("{error}"));
    let (small, small_native) = (dir.path().join("monitor"), dir.path().join("native"));
    on_a_small_disk(&small, &paths::vmsrs().unwrap());
    on_a_small_disk(&small_native, &program);
    let ports = [free_port().unwrap(), free_port().unwrap()];
    let native = Launch::native([small_native.into_os_string(), ports[0].to_string().into()]);
    let native = native.patience(PATIENCE).start(ports[0]).unwrap();
    let launch = Launch::native([program.into_os_string(), ports[1].to_string().into()]);
    let launch = launch.monitor(&small).options(["--audit"]);
    let mut server = launch.patience(PATIENCE).start(ports[1]).unwrap();

    let before = hidden_files(&server);
    let crashed = ask(&mut connect(&server), "fill crash");
    assert!(crashed.is_err(), "{crashed:?}");
    assert!(hidden_files(&server) == before, "something is left");
    // The second one finds the disk full from the start.
    for request in ["fill", "fill", "back"] {
        let expected = ask(&mut connect(&native), request).unwrap();
        println!("{expected}");
        assert_eq!(ask(&mut connect(&server), request).unwrap(), expected);
        assert!(
            request == "back" || expected.contains("error 28"),
            "{expected}"
        );
        assert!(
            hidden_files(&server) == hidden_files(&native),
            "the files differ"
        );
    }
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert!(
        stats["domains"]["rerun"].as_u64() >= Some(2),
        "{}",
        stats["domains"]
    );
    assert_eq!(stats["domains"]["abandoned"], 1);
    assert_eq!(stats["audit"]["mismatches"], 0);
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
