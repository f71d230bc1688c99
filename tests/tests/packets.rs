//! A fault that needs several packets: the earlier bytes of the request arrived in domains that were committed
//! long ago, and are in a parser's state. Resetting the connection makes the server free that.

use std::{
    io::{ErrorKind, Write},
    time::Instant,
};

use vmsrs_tests::{
    Monitored, free_port, kvm_case,
    redis::{self, Client, Reply, encode},
    web,
};

/// Crashes of each test.
const CRASHES: usize = 60;

#[test]
fn a_parser_per_connection_is_freed_with_it() {
    kvm_case("a_parser_per_connection_is_freed_with_it");
    let mut server = web::start(&[]);
    let mut other = web::Client::connect(&server).unwrap();
    let mut before = None;
    for n in 0..CRASHES {
        let mut culprit = web::Client::connect(&server).unwrap();
        // 20,000 bytes of a request, piece by piece, with other clients' work in between.
        let pieces = ["GET /cra".to_owned(), "sh HTTP/1.1\r\nPad: ".to_owned()];
        let padding = (0..20).map(|_| "x".repeat(1000));
        for (i, piece) in pieces.into_iter().chain(padding).enumerate() {
            culprit.stream.write_all(piece.as_bytes()).unwrap();
            if i % 5 == 0 {
                assert_eq!(other.get("/hello").unwrap(), "hello");
            }
        }
        // Until all of it is in the parser.
        await_that(|| other.stats().unwrap()["parser"] >= 20_000);
        culprit.stream.write_all(b"\r\n\r\n").unwrap();
        let error = culprit.rest().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset, "{n}");
        let stats = other.stats().unwrap();
        // The request that asks is in the parser, too.
        assert_eq!((stats["connections"], stats["parser"]), (1, 4096), "{n}");
        // The allocator's cache of freed chunks fills up first; it counts as used.
        if n >= 10 {
            let heap = stats["heap"];
            assert_eq!(*before.get_or_insert(heap), heap, "crash {n}");
        }
    }
    assert_eq!(server.terminate().unwrap().code(), Some(128 + 15));
    let recovered = server.events_of("recovered").unwrap();
    assert_eq!(recovered.len(), CRASHES, "{}", server.output_tail());
    for (n, event) in recovered.iter().enumerate() {
        assert_eq!(event.number("repeat"), Some(n as u64));
    }
}

/// Whether Redis keeps that many bytes of an unfinished command for some client.
fn keeps(client: &mut Client, bytes: usize) -> bool {
    let Reply::Bulk(text) = client.call(&["CLIENT", "LIST"]).unwrap() else {
        return false;
    };
    let text = String::from_utf8_lossy(&text).into_owned();
    let kept = |field: &str| field.strip_prefix("qbuf=")?.parse::<usize>().ok();
    text.split_whitespace().filter_map(kept).any(|n| n >= bytes)
}

/// Waits until it is so.
fn await_that(mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + web::PATIENCE;
    while !is_so() {
        assert!(Instant::now() < deadline, "it does not come to that");
    }
}

fn info(client: &mut Client, section: &str, name: &str) -> u64 {
    match client.call(&["INFO", section]).unwrap() {
        Reply::Bulk(text) => {
            let text = String::from_utf8_lossy(&text).into_owned();
            let value = text
                .lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'));
            value.and_then(|value| value.trim().parse().ok()).unwrap()
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn half_a_command_of_redis_is_freed_with_its_connection() {
    kvm_case("half_a_command_of_redis_is_freed_with_its_connection");
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    let mut other = Client::connect(port, web::PATIENCE).unwrap();
    let large = "x".repeat(30_000);
    let command = encode(&["DEBUG", "SEGFAULT", &large]);
    let (start, rest) = command.split_at(20_000);
    let mut used = Vec::new();
    for n in 0..CRASHES {
        let mut culprit = Client::connect(port, web::PATIENCE).unwrap();
        culprit.send(start).unwrap();
        for i in 0..5 {
            assert!(other.call(&["SET", &format!("k{i}"), "v"]).unwrap().is_ok());
        }
        await_that(|| keeps(&mut other, 19_000));
        culprit.send(rest).unwrap();
        assert!(culprit.reply().is_err(), "crash {n} was answered");
        assert_eq!(info(&mut other, "clients", "connected_clients"), 1);
        used.push(info(&mut other, "memory", "used_memory"));
    }
    // Redis' own housekeeping resizes a buffer now and then; a leak of the parser's 20,000 bytes would show.
    let settled = &used[CRASHES / 4..];
    let (least, most) = (settled.iter().min().unwrap(), settled.iter().max().unwrap());
    assert!(most - least < 40_000, "{used:?}");
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    assert_eq!(server.events_of("recovered").unwrap().len(), CRASHES);
    assert!(server.events_of("degraded").unwrap().is_empty());
}
