//! What comes with the bytes of a message (descriptors, credentials, addresses, times), several messages at once,
//! and messages that are waited for as a whole: as natively, and undone with their request.
//!
//! The guest is `tests/programs/ancillary.c`.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Read, Write},
    net::{SocketAddr, UdpSocket},
    os::{
        fd::AsRawFd,
        unix::net::{UnixDatagram, UnixStream},
    },
    thread,
    time::{Duration, Instant},
};

use vmm_sys_util::sock_ctrl_msg::ScmSocket;
use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);

fn start(monitored: bool) -> Monitored {
    let program = guest::program("ancillary").unwrap_or_else(|error| panic!("{error}"));
    // The next one is taken as well.
    let port = loop {
        let port = free_port().unwrap();
        if port < u16::MAX && UdpSocket::bind(("127.0.0.1", port + 1)).is_ok() {
            break port;
        }
    };
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = match monitored {
        true => Launch::monitored(command)
            .unwrap()
            .options(["--audit", "--restart", "off"]),
        false => Launch::native(command),
    };
    launch.patience(PATIENCE).start(port).unwrap()
}

fn connect(server: &Monitored, name: &str) -> BufReader<UnixStream> {
    let stream = UnixStream::connect(server.cwd().join(name)).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    BufReader::new(stream)
}

/// Files that say which they are.
fn files(texts: &[&str]) -> Vec<File> {
    let file = |text: &&str| {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(text.as_bytes()).unwrap();
        file
    };
    texts.iter().map(file).collect()
}

fn send(client: &BufReader<UnixStream>, text: &str, texts: &[&str]) {
    let files = files(texts);
    let numbers: Vec<i32> = files.iter().map(AsRawFd::as_raw_fd).collect();
    let parts = [text.as_bytes()];
    client.get_ref().send_with_fds(&parts, &numbers).unwrap();
}

fn line(client: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    match client.read_line(&mut line)? {
        0 => Err(io::ErrorKind::UnexpectedEof.into()),
        _ => Ok(line),
    }
}

fn ask(server: &Monitored, name: &str, text: &str, texts: &[&str]) -> io::Result<String> {
    let mut client = connect(server, name);
    send(&client, text, texts);
    line(&mut client)
}

/// How many descriptors the server has, once that is no more than `most`: it closes connections in its own time.
fn open_descriptors(server: &Monitored, most: usize) -> usize {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut client = BufReader::new(net::connect(server.port(), PATIENCE).unwrap());
        client.get_mut().write_all(b"state").unwrap();
        let open = line(&mut client).unwrap().split(' ').count() - 1;
        if open <= most || Instant::now() > deadline {
            return open;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

/// Every way to receive, by one client after the other.
fn talk(server: &Monitored) -> Vec<String> {
    let two = ["first file", "second file"];
    let mut said = vec![
        ask(server, "wide", "two", &two).unwrap(),
        ask(server, "wide", "none", &[]).unwrap(),
        // More than there is room for.
        ask(server, "narrow", "two", &two).unwrap(),
        ask(server, "narrow", "three", &["a", "b", "c"]).unwrap(),
        ask(server, "none", "one", &["lost"]).unwrap(),
        // The write is told to have failed by the same request that has got the descriptors.
        ask(server, "wide", "refused", &two).unwrap(),
        ask(server, "narrow", "refused", &two).unwrap(),
    ];
    // A message is not read on into the next one that brings descriptors.
    let mut client = connect(server, "wide");
    // Accepted: only then do messages come with credentials.
    send(&client, "zero", &["0"]);
    said.push(line(&mut client).unwrap());
    server.pause(true);
    send(&client, "one", &["1"]);
    send(&client, "two", &["2"]);
    server.pause(false);
    said.push(line(&mut client).unwrap());
    said.push(line(&mut client).unwrap());
    said
}

#[test]
fn what_comes_with_a_message_is_as_natively() {
    kvm_case("what_comes_with_a_message_is_as_natively");
    let native = start(false);
    let mut server = start(true);
    let expected = talk(&native);
    println!("{expected:#?}");
    assert!(expected[0].contains("=second file]"), "{expected:#?}");
    assert_eq!(talk(&server), expected);
    assert_eq!(server.events_of("degraded").unwrap().len(), 0);
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["rerun"], 2, "{}", stats["domains"]);
    assert_eq!(stats["audit"]["mismatches"], 0);
}

#[test]
fn descriptors_that_a_crashing_request_has_received_are_closed() {
    kvm_case("descriptors_that_a_crashing_request_has_received_are_closed");
    let server = start(true);
    let before = open_descriptors(&server, usize::MAX);
    for _ in 0..10 {
        let (sent, own) = UnixDatagram::pair().unwrap();
        let mut client = connect(&server, "wide");
        let numbers = [sent.as_raw_fd()];
        let parts = [&b"crash"[..]];
        client.get_ref().send_with_fds(&parts, &numbers).unwrap();
        drop(sent);
        assert!(line(&mut client).is_err());
        // Nobody has the other end any more.
        own.set_write_timeout(Some(PATIENCE)).unwrap();
        let error = own.send(b"x").unwrap_err();
        assert!(
            matches!(
                error.kind(),
                io::ErrorKind::ConnectionRefused
                    | io::ErrorKind::BrokenPipe
                    | io::ErrorKind::NotConnected
            ),
            "{error}"
        );
    }
    assert_eq!(server.await_events("recovered", 10).unwrap().len(), 10);
    assert_eq!(server.events_of("degraded").unwrap().len(), 0);
    assert!(open_descriptors(&server, before) <= before);
}

/// Messages that are there when the server looks next, and the answers to each sender.
fn burst(server: &Monitored, messages: &[(usize, &str)]) -> [Vec<String>; 2] {
    let clients = [0, 1].map(|_| UdpSocket::bind("127.0.0.1:0").unwrap());
    let to = SocketAddr::from(([127, 0, 0, 1], server.port() + 1));
    server.pause(true);
    for (client, text) in messages {
        clients[*client].send_to(text.as_bytes(), to).unwrap();
    }
    server.pause(false);
    // An answer to the last word is the last.
    let mut number = 0;
    clients.map(|client| {
        let mut answers = Vec::new();
        client.send_to(b"last", to).unwrap();
        number += 1;
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        loop {
            let mut bytes = [0; 500];
            let n = client.recv(&mut bytes).unwrap();
            let text = String::from_utf8_lossy(&bytes[..n]).into_owned();
            if text.ends_with("last") {
                return answers;
            }
            answers.push(text);
        }
    })
}

#[test]
fn several_datagrams_of_one_sender_are_received_at_once() {
    kvm_case("several_datagrams_of_one_sender_are_received_at_once");
    let burst_of = [
        (0, "one"),
        (0, "two"),
        (0, "three refused"),
        (1, "four"),
        (0, "five"),
        (1, "six"),
    ];
    let strip = |answers: [Vec<String>; 2]| {
        // Without its place in the batch, which depends on who has sent the others.
        answers.map(|of_one| {
            let rest = |text: String| text.split_once(' ').unwrap().1.to_owned();
            of_one.into_iter().map(rest).collect::<Vec<_>>()
        })
    };
    let native = start(false);
    let mut server = start(true);
    let expected = strip(burst(&native, &burst_of));
    println!("{expected:#?}");
    let answers = burst(&server, &burst_of);
    let places = |text: &String| text.split_once(' ').unwrap().0.to_owned();
    let of_first: Vec<_> = answers[0].iter().map(places).collect();
    assert_eq!(of_first, ["0/3", "1/3", "2/3", "0/1"]);
    assert_eq!(strip(answers), expected);
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["rerun"], 1, "{}", stats["domains"]);
}

#[test]
fn datagrams_of_others_are_not_lost_with_those_of_a_crashing_request() {
    kvm_case("datagrams_of_others_are_not_lost_with_those_of_a_crashing_request");
    let server = start(true);
    for _ in 0..5 {
        let messages = [
            (1, "before"),
            (0, "one"),
            (0, "crash"),
            (0, "three"),
            (1, "after"),
        ];
        let [first, second] = burst(&server, &messages);
        assert_eq!(first, Vec::<String>::new());
        assert_eq!(second.len(), 2, "{second:?}");
    }
    assert_eq!(server.await_events("recovered", 5).unwrap().len(), 5);
    assert_eq!(server.events_of("degraded").unwrap().len(), 0);
}

/// Sends `len` bytes in pieces, and `end` at their end; the reply.
fn whole(server: &Monitored, len: usize, end: &str, shut: bool) -> io::Result<String> {
    let mut client = connect(server, "all");
    let mut bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    let at = bytes.len() - 20;
    bytes[at..].fill(b' ');
    bytes[at..at + end.len()].copy_from_slice(end.as_bytes());
    for piece in bytes.chunks(len / 3) {
        client.get_mut().write_all(piece)?;
        // For most of the time the server has to wait for the rest.
        thread::sleep(Duration::from_millis(20));
    }
    if shut {
        client.get_mut().shutdown(std::net::Shutdown::Write)?;
    }
    let mut reply = String::new();
    match client.read_to_string(&mut reply) {
        _ if reply.ends_with('\n') => Ok(reply),
        Err(error) => Err(error),
        Ok(_) => Err(io::ErrorKind::UnexpectedEof.into()),
    }
}

#[test]
fn a_message_that_is_waited_for_comes_as_a_whole() {
    kvm_case("a_message_that_is_waited_for_comes_as_a_whole");
    const WHOLE: usize = 300_000;
    let native = start(false);
    let mut server = start(true);
    // As much as is asked for, less and the end, and one whose write is refused.
    for (len, end) in [
        (WHOLE, ""),
        (70_000, ""),
        (300, ""),
        (WHOLE, "refused"),
        (1000, "refused"),
    ] {
        let expected = whole(&native, len, end, true).unwrap();
        assert!(expected.starts_with(&len.to_string()), "{expected}");
        assert_eq!(whole(&server, len, end, true).unwrap(), expected);
    }
    for _ in 0..3 {
        assert!(whole(&server, WHOLE, "crash", false).is_err());
    }
    assert_eq!(server.await_events("recovered", 3).unwrap().len(), 3);
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["domains"]["rerun"], 2, "{}", stats["domains"]);
    assert_eq!(stats["audit"]["mismatches"], 0);
}
