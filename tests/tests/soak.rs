//! Faults without end: what the server and the monitor hold stays the same.
//!
//! `VMSRS_SOAK_FAULTS` sets the number of faults; the default takes seconds, a million three quarters of an hour.

use std::{
    env,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
    process::Command,
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net, talk};

const FAULTS: &str = "VMSRS_SOAK_FAULTS";
const PATIENCE: Duration = Duration::from_secs(30);

/// What a server and its monitor hold.
#[derive(Debug, Clone, Copy)]
struct Held {
    resident_kib: u64,
    descriptors: usize,
    mappings: usize,
    threads: usize,
    reports: usize,
    report_kib: u64,
}

fn held(server: &Monitored) -> Held {
    let proc = Path::new("/proc").join(server.pid().to_string());
    let count = |name: &str| fs::read_dir(proc.join(name)).unwrap().count();
    let maps = fs::read_to_string(proc.join("maps")).unwrap();
    let (mut reports, mut bytes) = (0, 0);
    for report in fs::read_dir(server.report_dir()).unwrap() {
        reports += 1;
        // One may be removed at any time.
        for file in fs::read_dir(report.unwrap().path())
            .into_iter()
            .flatten()
            .flatten()
        {
            bytes += file.metadata().map_or(0, |meta| meta.len());
        }
    }
    Held {
        resident_kib: server.resident_kib().unwrap(),
        descriptors: count("fd"),
        mappings: maps.lines().count(),
        threads: count("task"),
        reports,
        report_kib: bytes >> 10,
    }
}

/// What a server and its monitor hold when the reporter has caught up: while it writes a core, it holds that too.
fn held_at_rest(server: &Monitored) -> Held {
    let mut least = held(server);
    for _ in 0..25 {
        thread::sleep(Duration::from_millis(10));
        let now = held(server);
        least.resident_kib = least.resident_kib.min(now.resident_kib);
    }
    least
}

fn start(options: &[&str]) -> Monitored {
    start_by(|launch| launch.options(options))
}

fn start_by(how: impl FnOnce(Launch) -> Launch) -> Monitored {
    let port = free_port().unwrap();
    let program = guest::program("soak").unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = how(Launch::monitored(command).unwrap());
    launch.patience(PATIENCE).start(port).unwrap()
}

/// Every write set is hidden, so that the page tables above are replaced each time: in the end tables that
/// were replaced have to be used again.
#[test]
fn hidden_memory_comes_back_however_often() {
    kvm_case("hidden_memory_comes_back_however_often");
    const CRASHES: u64 = 500;
    let mut server = start(&["--restore-at-once", "0", "--audit"]);
    for _ in 0..CRASHES {
        talk::crash(server.port(), "crash", PATIENCE);
    }
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
    let stats = server.stats().unwrap();
    let audit = &stats["audit"];
    assert_eq!(audit["mismatches"], 0, "{}", server.output_tail());
    assert_eq!(audit["checks"], CRASHES, "{stats}");
    assert_eq!(stats["restoration"]["postponed"], CRASHES, "{stats}");
}

#[test]
fn nothing_grows_with_the_number_of_faults() {
    kvm_case("nothing_grows_with_the_number_of_faults");
    let faults: u64 = env::var(FAULTS).map_or(1500, |n| n.parse().expect("a number of faults"));
    let mut server = start(&["--quarantine-limit", "1M"]);
    let port = server.port();
    let mut other = net::connect(port, PATIENCE).unwrap();
    let begin = Instant::now();
    // The first third fills the report directory and everything else that has a limit.
    let mut early = None;
    for n in 1..=faults {
        talk::crash(port, "crash", PATIENCE);
        if n % 100 == 0 {
            other.write_all(b"hello").unwrap();
            other.read_exact(&mut [0; 3]).unwrap();
        }
        if n == faults / 3 {
            early = Some(held_at_rest(&server));
        }
        if n % (faults / 10).max(1) == 0 {
            println!("{n} faults, {:?}: {:?}", begin.elapsed(), held(&server));
        }
    }
    let (early, late) = (early.unwrap(), held_at_rest(&server));
    let context = format!("{early:?} -> {late:?}");
    // Two connections more or less are being closed.
    assert!(late.descriptors <= early.descriptors + 4, "{context}");
    assert!(late.mappings <= early.mappings + 16, "{context}");
    assert!(late.threads <= early.threads + 2, "{context}");
    assert!(
        late.resident_kib <= early.resident_kib + early.resident_kib / 10 + 2048,
        "{context}"
    );
    assert!(late.reports <= early.reports + 100, "{context}");
    // What is saved between two looks comes on top.
    assert!(late.report_kib <= 1536, "{context}");
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
    let stats = server.stats().unwrap();
    assert_eq!(
        stats["domains"]["abandoned"].as_u64(),
        Some(faults),
        "{stats}"
    );
}

/// Reports wait in memory while they cannot be written.
#[test]
fn a_backlog_of_reports_leaves_nothing() {
    kvm_case("a_backlog_of_reports_leaves_nothing");
    const CRASHES: u64 = 400;
    const MIB: u64 = 1 << 10;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let made = Command::new("mkfifo").arg(&path).status().unwrap();
    assert!(made.success());
    // A pipe holds some hundred events, and then whoever writes waits for a reader.
    let mut pipe = File::options().read(true).write(true).open(&path).unwrap();
    let mut server = start_by(|launch| launch.events_to(path));
    // The memory of a core is kept ready from the first fault on.
    talk::crash(server.port(), "crash", PATIENCE);
    let before = held_at_rest(&server).resident_kib;
    for _ in 0..CRASHES {
        talk::crash(server.port(), "crash", PATIENCE);
    }
    let waiting = held_at_rest(&server).resident_kib;
    assert!(waiting > before + 8 * MIB, "{before} -> {waiting}");

    thread::spawn(move || io::copy(&mut pipe, &mut io::sink()));
    let begin = Instant::now();
    let mut after = waiting;
    while after > before + 6 * MIB && begin.elapsed() < PATIENCE {
        after = held_at_rest(&server).resident_kib;
    }
    assert!(
        after <= before + 6 * MIB,
        "{before} -> {waiting} -> {after}"
    );
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
}
