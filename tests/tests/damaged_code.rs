//! Code that has been damaged, by a flipped bit or by whoever else can write there, crashes the next request and no
//! further one: what nobody in the server may have written is as its file has it.

use std::fs::{self, File};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::FileExt;
use std::time::Duration;

use vmsrs_tests::{Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(10);
/// An instruction that is in the program's code once.
const MARK: [u8; 10] = *b"\x48\xb8ode mark";
/// `ud2`.
const INVALID: [u8; 2] = [0x0f, 0x0b];

/// Writes an invalid instruction in place of the marked one.
fn damage(server: &Monitored) {
    let process = format!("/proc/{}", server.pid());
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("{process}/mem"))
        .unwrap();
    let maps = fs::read_to_string(format!("{process}/maps")).unwrap();
    let mut found = 0;
    for line in maps.lines().filter(|line| line.ends_with("/damaged_code")) {
        let (start, end) = line.split_once(' ').unwrap().0.split_once('-').unwrap();
        let address = |text| u64::from_str_radix(text, 16).unwrap();
        let mut bytes = vec![0; (address(end) - address(start)) as usize];
        memory.read_exact_at(&mut bytes, address(start)).unwrap();
        if let Some(at) = bytes.windows(MARK.len()).position(|bytes| bytes == MARK) {
            let at = address(start) + at as u64;
            memory.write_all_at(&INVALID, at).unwrap();
            found += 1;
        }
    }
    assert_eq!(found, 1, "{maps}");
}

#[test]
fn one_request_crashes() {
    kvm_case("one_request_crashes");
    let port = free_port().unwrap();
    let program = guest::program("damaged_code").unwrap();
    let command = [program.to_str().unwrap(), &port.to_string()].map(str::to_owned);
    let mut server = Monitored::start(port, command).unwrap();
    let connect = || net::connect(port, PATIENCE).unwrap();
    let mut healthy = connect();
    let mut ask = || {
        healthy.write_all(b"hello").unwrap();
        let mut reply = [0; 3];
        healthy.read_exact(&mut reply).unwrap();
        assert_eq!(&reply, b"ok\n");
    };
    ask();
    for _ in 0..3 {
        damage(&server);
        let mut unlucky = connect();
        unlucky.write_all(b"hello").unwrap();
        let error = unlucky.read(&mut [0; 16]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        for _ in 0..5 {
            ask();
        }
    }
    let events = server.await_events("recovered", 3).unwrap();
    assert_eq!(events.len(), 3);
    let signals = events.iter().map(|event| event.text("signal"));
    assert!(signals.eq([Some("SIGILL"); 3]), "{events:?}");
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(stats["pages"]["damaged"], 3);
}
