//! `--learn`: an input that has crashed the server twice at the same place is refused before it reaches the
//! server, and innocent inputs are not.

use std::{
    io::{ErrorKind, Read, Write},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Event, Launch, Monitored, free_port, kvm_case,
    load::Load,
    memcached, net,
    redis::{self, Client as RedisClient, encode},
    web::{self, Client, PATIENCE, must_reset, request, send},
};

/// The number of inputs that were refused, once the server has ended.
fn refused(server: &mut Monitored) -> u64 {
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    stats["offenders"]["refused"].as_u64().unwrap()
}

fn events(server: &Monitored, name: &str) -> Vec<Event> {
    server.events_of(name).unwrap()
}

fn await_events(server: &Monitored, name: &str, count: usize) {
    let deadline = Instant::now() + PATIENCE;
    while events(server, name).len() < count {
        assert!(Instant::now() < deadline, "{:#?}", server.events());
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_third_time_it_does_not_reach_the_server() {
    kvm_case("the_third_time_it_does_not_reach_the_server");
    let mut server = web::start(&["--learn"]);
    for _ in 0..20 {
        must_reset(&server, &request("/crash"));
    }
    // One byte of difference makes it another input.
    let other = request("/crash").replace("test", "Test");
    must_reset(&server, &other);
    let mut client = Client::connect(&server).unwrap();
    assert_eq!(client.get("/hello").unwrap(), "hello");
    assert_eq!(client.stats().unwrap()["connections"], 1);
    let refused = refused(&mut server);
    let recovered = events(&server, "recovered").len() as u64;
    // Trials come after five seconds, which 20 requests do not take on any machine of ours; if they do, a trial
    // is a crash that is recovered from.
    assert_eq!(refused + recovered, 21);
    assert!((3..=4).contains(&recovered), "{recovered}");
    let told = events(&server, "refused");
    assert!(!told.is_empty() && told.len() < 18, "{told:#?}");
    assert_eq!(told[0].number("count"), Some(1));
    assert_eq!(told[0].number("crashes"), Some(2));
    assert_eq!(told[0].text("kind"), Some("null-write"));
    let length = request("/crash").len() as u64;
    assert_eq!(told[0].number("input_bytes"), Some(length));
    assert!(
        told[0]
            .text("peer")
            .is_some_and(|p| p.starts_with("127.0.0.1:"))
    );
}

#[test]
fn a_refused_client_gets_the_error_reply() {
    kvm_case("a_refused_client_gets_the_error_reply");
    let mut server = web::start(&["--learn", "--error-reply", "http"]);
    for _ in 0..10 {
        let answer = send(&server, &request("/crash")).unwrap();
        assert!(answer.starts_with("HTTP/1.1 500 "), "{answer}");
    }
    assert!(refused(&mut server) >= 7);
}

#[test]
fn without_the_option_nothing_is_refused() {
    kvm_case("without_the_option_nothing_is_refused");
    let mut server = web::start(&[]);
    for _ in 0..5 {
        must_reset(&server, &request("/crash"));
    }
    assert_eq!(refused(&mut server), 0);
    assert_eq!(events(&server, "recovered").len(), 5);
}

#[test]
fn it_is_forgotten_in_time() {
    kvm_case("it_is_forgotten_in_time");
    let mut server = web::start(&["--learn", "--learn-for", "500ms"]);
    for _ in 0..3 {
        for _ in 0..2 {
            must_reset(&server, &request("/crash"));
        }
        thread::sleep(Duration::from_millis(600));
    }
    assert_eq!(refused(&mut server), 0);
    assert_eq!(events(&server, "recovered").len(), 6);
}

#[test]
fn the_end_of_a_request_does_not_stand_for_all_of_it() {
    kvm_case("the_end_of_a_request_does_not_stand_for_all_of_it");
    let mut server = web::start(&["--learn"]);
    let whole = request("/crash");
    let (start, end) = whole.split_at(whole.len() - 2);
    let mut other = Client::connect(&server).unwrap();
    for n in 1..=5 {
        let mut culprit = Client::connect(&server).unwrap();
        culprit.stream.write_all(start.as_bytes()).unwrap();
        let deadline = Instant::now() + PATIENCE;
        // One parser is the other client's.
        while other.stats().unwrap()["parser"] < 2 * 4096 {
            assert!(Instant::now() < deadline);
        }
        culprit.stream.write_all(end.as_bytes()).unwrap();
        assert!(culprit.rest().is_err());
        await_events(&server, "recovered", n);
    }
    // The same bytes as the end of an innocent request.
    let innocent = request("/hello");
    let mut client = Client::connect(&server).unwrap();
    client
        .stream
        .write_all(&innocent.as_bytes()[..innocent.len() - 2])
        .unwrap();
    thread::sleep(Duration::from_millis(50));
    client.stream.write_all(end.as_bytes()).unwrap();
    assert_eq!(client.body().unwrap(), "hello");
    assert_eq!(refused(&mut server), 0);
}

#[test]
fn an_innocent_input_is_cleared_by_its_trial() {
    kvm_case("an_innocent_input_is_cleared_by_its_trial");
    let mut server = web::start(&["--learn"]);
    let mut other = Client::connect(&server).unwrap();
    assert_eq!(other.get("/poison").unwrap(), "hello");
    for _ in 0..2 {
        must_reset(&server, &request("/item"));
    }
    let learned = Instant::now();
    assert_eq!(other.get("/mend").unwrap(), "hello");
    // It is refused although it would succeed, but not for long.
    let mut tries = 0;
    let answer = loop {
        tries += 1;
        match send_and_read(&server, "/item") {
            Some(answer) => break answer,
            None => thread::sleep(Duration::from_millis(50)),
        }
        assert!(learned.elapsed() < Duration::from_secs(15), "not cleared");
    };
    assert_eq!(answer, "item 42");
    assert!(tries > 1 || learned.elapsed() > Duration::from_secs(4));
    // From now on it can be as it was, and crashing it again does not teach.
    assert_eq!(other.get("/item").unwrap(), "item 42");
    assert_eq!(other.get("/poison").unwrap(), "hello");
    for _ in 0..4 {
        must_reset(&server, &request("/item"));
    }
    assert_eq!(other.get("/mend").unwrap(), "hello");
    assert_eq!(send_and_read(&server, "/item").as_deref(), Some("item 42"));
    assert_eq!(refused(&mut server), tries - 1);
}

fn send_and_read(server: &Monitored, path: &str) -> Option<String> {
    Client::connect(server).unwrap().get(path).ok()
}

/// What a connection has been through may be what crashes; the same bytes on another are innocent.
#[test]
fn an_armed_connection_does_not_make_others_suspect_for_long() {
    kvm_case("an_armed_connection_does_not_make_others_suspect_for_long");
    let mut server = web::start(&["--learn"]);
    // Somebody else's success in between is enough.
    for _ in 0..4 {
        let mut culprit = Client::connect(&server).unwrap();
        assert_eq!(culprit.get("/arm").unwrap(), "hello");
        assert!(culprit.get("/hello").is_err());
        assert_eq!(send_and_read(&server, "/hello").as_deref(), Some("hello"));
    }
    assert_eq!(refused(&mut server), 0);
}

#[test]
fn redis_does_not_get_to_see_it_under_load() {
    kvm_case("redis_does_not_get_to_see_it_under_load");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let mut server = launch.options(["--learn"]).start(port).unwrap();
    let load = Load::start::<redis::Healthy>(server.address(), 8, PATIENCE);
    let mut client = RedisClient::connect(port, PATIENCE).unwrap();
    assert!(client.call(&["SET", "k", "v"]).unwrap().is_ok());
    for _ in 0..20 {
        let mut culprit = RedisClient::connect(port, PATIENCE).unwrap();
        // After a proper request on the same connection.
        assert!(culprit.call(&["SET", "j", "v"]).unwrap().is_ok());
        culprit.send(&encode(&["DEBUG", "SEGFAULT"])).unwrap();
        assert!(culprit.reply().is_err());
    }
    let outcome = load.finish();
    assert!(outcome.problems.is_empty(), "{outcome:#?}");
    let refused = refused(&mut server);
    let recovered = events(&server, "recovered").len() as u64;
    assert_eq!(refused + recovered, 20);
    assert!(refused >= 15, "{refused} refused, {recovered} recovered");
}

/// A server that reads a few bytes at a time has got the first of them when they could still be anybody's: the
/// whole input is looked at.
#[test]
fn an_input_that_is_read_in_pieces() {
    kvm_case("an_input_that_is_read_in_pieces");
    let mut server = web::start_with(&["--learn"], &["8"]);
    assert!(request("/crash")[..8] == request("/crate")[..8]);
    for _ in 0..10 {
        must_reset(&server, &request("/crash"));
        assert_eq!(send_and_read(&server, "/crate").as_deref(), Some("hello"));
        // More than what has crashed is something else.
        let mut client = Client::connect(&server).unwrap();
        assert_eq!(client.get("/crater").unwrap(), "hello");
    }
    let refused = refused(&mut server);
    let recovered = events(&server, "recovered").len() as u64;
    assert_eq!(refused + recovered, 10);
    assert!(refused >= 7, "{refused} refused, {recovered} recovered");
}

#[test]
fn memcached_does_not_get_to_see_it() {
    kvm_case("memcached_does_not_get_to_see_it");
    let port = free_port().unwrap();
    let launch = Launch::monitored(memcached::command(port, 4)).unwrap();
    let inject = ["--learn", "--inject", "rip:match=STRIKE-ME,after=0"];
    let mut server = launch.options(inject).start(port).unwrap();
    let mut other = memcached::Client::connect(port, PATIENCE).unwrap();
    for _ in 0..20 {
        let mut stream = net::connect(port, PATIENCE).unwrap();
        let value = format!("{}STRIKE-ME", "x".repeat(3000));
        let command = format!("set k 0 0 {}\r\n{value}\r\n", value.len());
        stream.write_all(command.as_bytes()).unwrap();
        let error = stream.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        other.set("healthy", b"value").unwrap();
    }
    let refused = refused(&mut server);
    let recovered = events(&server, "recovered").len() as u64;
    assert_eq!(refused + recovered, 20);
    assert!(refused >= 15, "{refused} refused, {recovered} recovered");
}
