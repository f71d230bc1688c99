//! `--error-reply`: a client whose request is abandoned gets a proper error of the protocol before its
//! connection ends, if nothing of an answer has left; and earlier answers are not lost by the end.

use std::{
    fs,
    io::{ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Launch, Monitored, free_port, kvm_case, memcached, net,
    redis::{self, Client as RedisClient, Reply, encode},
    run,
    web::{self, Client, PATIENCE, must_reset, request, send},
};

const HTTP: &str =
    "HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n";

/// More descriptors than the idle server and its monitor have, and less than one for each crash would make.
const DESCRIPTORS: usize = 30;

/// The counter of error replies, once the server has ended.
fn replies(server: &mut Monitored) -> u64 {
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    stats["error_replies"].as_u64().unwrap()
}

#[test]
fn http_clients_get_a_complete_answer() {
    kvm_case("http_clients_get_a_complete_answer");
    let mut server = web::start(&["--error-reply", "http"]);
    // Those of the monitor, too; the first request of all makes some.
    assert_eq!(send(&server, &request("/crash")).unwrap(), HTTP);
    let descriptors = || {
        fs::read_dir(format!("/proc/{}/fd", server.pid()))
            .unwrap()
            .count()
    };
    await_that(|| descriptors() <= DESCRIPTORS);
    for path in ["/crash", "/abort"] {
        for _ in 0..20 {
            assert_eq!(send(&server, &request(path)).unwrap(), HTTP, "{path}");
        }
    }
    // On a connection that has been answered before, and with input that the server has not read.
    let mut client = Client::connect(&server).unwrap();
    for _ in 0..10 {
        assert_eq!(client.get("/hello").unwrap(), "hello");
    }
    let long = format!("{}{}", request("/crash"), "x".repeat(1 << 20));
    let mut sender = client.stream.try_clone().unwrap();
    let sending = thread::spawn(move || sender.write_all(long.as_bytes()));
    let mut answer = vec![0; HTTP.len()];
    client.stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, HTTP.as_bytes());
    assert_eq!(client.rest().unwrap(), "");
    sending.join().unwrap().unwrap();
    drop(client);
    await_that(|| descriptors() <= DESCRIPTORS);
    // The server has let go of all of them.
    let mut client = Client::connect(&server).unwrap();
    assert_eq!(client.stats().unwrap()["connections"], 1);
    assert_eq!(replies(&mut server), 42);
    let recovered = server.events_of("recovered").unwrap();
    let replied = |event: &vmsrs_tests::Event| event.get("replied") == Some(&true.into());
    assert!(recovered.len() == 42 && recovered.iter().all(replied));
}

#[test]
fn without_the_option_there_is_a_reset() {
    kvm_case("without_the_option_there_is_a_reset");
    let mut server = web::start(&[]);
    must_reset(&server, &request("/crash"));
    assert_eq!(replies(&mut server), 0);
}

#[test]
fn half_an_answer_is_not_followed_by_an_error() {
    kvm_case("half_an_answer_is_not_followed_by_an_error");
    let mut server = web::start(&["--error-reply", "http"]);
    let mut client = Client::connect(&server).unwrap();
    client
        .stream
        .write_all(request("/half").as_bytes())
        .unwrap();
    let mut got = Vec::new();
    let error = client.stream.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    let text = String::from_utf8_lossy(&got);
    assert!(text.ends_with("half of it"), "{text}");
    // Nor is a large answer of which the rest still waits in the server.
    let mut slow = Client::connect(&server).unwrap();
    slow.stream.write_all(request("/large").as_bytes()).unwrap();
    slow.stream.read_exact(&mut [0; 1000]).unwrap();
    slow.stream.write_all(request("/crash").as_bytes()).unwrap();
    await_that(|| server.events_of("recovered").unwrap().len() == 2);
    let mut rest = Vec::new();
    let error = slow.stream.read_to_end(&mut rest).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert!(rest.len() > 100_000 && rest.ends_with(b"xxxx"));
    assert_eq!(replies(&mut server), 0);
    assert_eq!(server.events_of("recovered").unwrap().len(), 2);
}

#[test]
fn what_looks_like_tls_is_not_answered() {
    kvm_case("what_looks_like_tls_is_not_answered");
    let mut server = web::start(&["--error-reply", "http"]);
    let mut client = Client::connect(&server).unwrap();
    assert_eq!(client.get("/arm").unwrap(), "hello");
    let record = b"\x17\x03\x03\x00\x05abc\r\n\r\n";
    client.stream.write_all(record).unwrap();
    let error = client.rest().unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(replies(&mut server), 0);
}

#[test]
fn redis_clients_get_an_error() {
    kvm_case("redis_clients_get_an_error");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let options = ["--error-reply", "resp"];
    let mut server = launch.options(options).start(port).unwrap();
    for fault in ["SEGFAULT", "PANIC", "ASSERT"] {
        let mut client = RedisClient::connect(port, PATIENCE).unwrap();
        assert!(client.call(&["SET", "k", fault]).unwrap().is_ok());
        match client.call(&["DEBUG", fault]).unwrap() {
            Reply::Error(text) => assert!(text.contains("crashed the server"), "{text}"),
            other => panic!("{other:?}"),
        }
        assert!(client.reply().is_err(), "the connection has ended");
        let mut other = RedisClient::connect(port, PATIENCE).unwrap();
        let value = other.call(&["GET", "k"]).unwrap();
        assert_eq!(value, Reply::Bulk(fault.into()));
    }
    assert_eq!(replies(&mut server), 3);
}

#[test]
fn memcached_clients_get_an_error() {
    kvm_case("memcached_clients_get_an_error");
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 4)).unwrap();
    let inject = ["--inject", "rip:match=STRIKE-ME,after=1"];
    let options = ["--error-reply", "memcached"];
    let launch = launch.options(inject).options(options);
    let mut server = launch.start(port).unwrap();
    let mut other = memcached::Client::connect(port, PATIENCE).unwrap();
    for _ in 0..10 {
        let answer = send(&server, "set k 0 0 9\r\nSTRIKE-ME\r\n").unwrap();
        let expected = "SERVER_ERROR the request crashed the server and was undone\r\n";
        assert_eq!(answer, expected);
        other.set("healthy", b"value").unwrap();
    }
    assert_eq!(replies(&mut server), 10);
}

#[test]
fn the_bytes_of_a_file() {
    kvm_case("the_bytes_of_a_file");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("reply");
    fs::write(&path, "sorry\0\n").unwrap();
    let mut server = web::start(&["--error-reply", path.to_str().unwrap()]);
    // It was read at the start.
    fs::remove_file(&path).unwrap();
    assert_eq!(send(&server, &request("/crash")).unwrap(), "sorry\0\n");
    assert_eq!(replies(&mut server), 1);
}

#[test]
fn a_wrong_reply_is_refused_at_the_start() {
    kvm_case("a_wrong_reply_is_refused_at_the_start");
    let mut command = run::vmsrs(["run", "--error-reply", "/no/such", "--", "true"]).unwrap();
    let ended = run::to_end(&mut command, b"").unwrap();
    assert_eq!(ended.code(), 125, "{ended}");
    assert!(ended.err().contains("/no/such"), "{ended}");
}

/// A client that does not read yet has been promised an answer: Redis has written all of it, and the kernel
/// has more of it than the client has room for. Then its next request crashes.
#[test]
fn an_earlier_answer_is_not_lost_by_the_reset() {
    kvm_case("an_earlier_answer_is_not_lost_by_the_reset");
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    let mut client = RedisClient::connect(port, PATIENCE).unwrap();
    let value = "v".repeat(1 << 20);
    assert!(client.call(&["SET", "large", &value]).unwrap().is_ok());
    let expected = format!("${}\r\n{value}\r\n", value.len());
    let mut slow = net::connect(port, PATIENCE).unwrap();
    slow.write_all(&encode(&["GET", "large"])).unwrap();
    await_that(|| has_written_all(&mut client));
    slow.write_all(&encode(&["DEBUG", "SEGFAULT"])).unwrap();
    await_that(|| server.events_of("recovered").unwrap().len() == 1);
    // Nobody waits for the slow one, and Redis has let go of it.
    assert!(client.call(&["SET", "k", "v"]).unwrap().is_ok());
    await_that(|| clients(&mut client).len() == 1);
    thread::sleep(Duration::from_millis(100));
    let mut got = Vec::new();
    let error = slow.read_to_end(&mut got).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(got.len(), expected.len());
    assert!(got == expected.as_bytes());
    assert_eq!(server.terminate().unwrap().code(), Some(0));
}

fn await_that(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come to that");
    }
}

/// The lines of `CLIENT LIST`.
fn clients(client: &mut RedisClient) -> Vec<String> {
    match client.call(&["CLIENT", "LIST"]).unwrap() {
        Reply::Bulk(text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            text.lines().map(str::to_owned).collect()
        }
        other => panic!("{other:?}"),
    }
}

/// Whether the other client's last command was GET, and nothing of its answer is left in Redis.
fn has_written_all(client: &mut RedisClient) -> bool {
    let list = clients(client);
    let other = list.iter().find(|line| line.contains(" cmd=get "));
    other.is_some_and(|line| line.contains(" obl=0 oll=0 omem=0 "))
}
