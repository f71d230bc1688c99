//! Threads, signals, timers, clocks and a program's own fault handlers: the same output natively
//! and under the monitor.

use std::{
    io::{BufRead, BufReader},
    process::Stdio,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use vmsrs_tests::{guest, kvm_case, process::Bounded, run};

#[test]
fn threads_lock_wait_end_and_are_joined() {
    kvm_case("threads_lock_wait_end_and_are_joined");
    for linkage in [guest::Linkage::Dynamic, guest::Linkage::Static] {
        let program = guest::linked("threads", linkage).unwrap();
        let ended = run::same(&[program], b"");
        assert_eq!(ended.out().lines().count(), 4, "{ended}");
    }
}

#[test]
fn signals_between_threads_masks_and_timers() {
    kvm_case("signals_between_threads_masks_and_timers");
    run::same(&[guest::program("thread_signals").unwrap()], b"");
}

#[test]
fn a_program_may_handle_its_own_faults_outside_of_requests() {
    kvm_case("a_program_may_handle_its_own_faults_outside_of_requests");
    let program = guest::program("own_faults").unwrap().into_os_string();
    assert_eq!(run::same(std::slice::from_ref(&program), b"").code(), 0);
    assert_eq!(
        run::same(&[program, "die".into()], b"").code(),
        128 + libc::SIGSEGV
    );
}

#[test]
fn clocks_never_go_back_and_are_the_hosts() {
    kvm_case("clocks_never_go_back_and_are_the_hosts");
    let program = guest::program("clocks").unwrap();
    let mut command = run::monitored([&program]).unwrap();
    let before = host_clocks();
    let ended = run::to_end(&mut command, b"").unwrap();
    let after = host_clocks();
    assert_eq!((ended.code(), ended.err().as_str()), (0, ""), "{ended}");
    let readings: Vec<i128> = ended
        .out()
        .split_whitespace()
        .map(|n| n.parse().unwrap())
        .collect();
    let slack = Duration::from_millis(1).as_nanos() as i128;
    for ((reading, before), after) in readings.iter().zip(before).zip(after) {
        assert!(
            (before - slack..=after + slack).contains(reading),
            "{reading} is not between {before} and {after}"
        );
    }
    assert_eq!(readings.len(), 3);
}

/// CLOCK_REALTIME, CLOCK_MONOTONIC and CLOCK_BOOTTIME of the host, in nanoseconds.
fn host_clocks() -> [i128; 3] {
    let read = |clock| {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: `time` is valid for the call to fill in.
        assert_eq!(unsafe { libc::clock_gettime(clock, &mut time) }, 0);
        i128::from(time.tv_sec) * 1_000_000_000 + i128::from(time.tv_nsec)
    };
    let real = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap()
        .as_nanos() as i128;
    [
        real,
        read(libc::CLOCK_MONOTONIC),
        read(libc::CLOCK_BOOTTIME),
    ]
}

#[test]
fn signals_from_outside_reach_the_guests_handlers() {
    kvm_case("signals_from_outside_reach_the_guests_handlers");
    let program = guest::program("signals").unwrap();
    let mut command = run::monitored([&program]).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Bounded::spawn_group(&mut command).unwrap();
    let (_, stdout, _) = child.take_pipes();
    let mut lines = BufReader::new(stdout.unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    // SIGTERM is last: it ends this guest.
    for (signal, name) in [
        (libc::SIGINT, "INT"),
        (libc::SIGHUP, "HUP"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGUSR2, "USR2"),
        (libc::SIGUSR1, "USR1"),
        (libc::SIGTERM, "TERM"),
    ] {
        child.signal(signal).unwrap();
        assert_eq!(
            lines.next().unwrap().unwrap(),
            format!("{name} from a process")
        );
    }
    assert_eq!(
        child
            .wait_for(run::PATIENCE)
            .unwrap()
            .and_then(|s| s.code()),
        Some(7)
    );
}

#[test]
fn signals_without_a_handler_end_the_guest() {
    kvm_case("signals_without_a_handler_end_the_guest");
    for signal in [libc::SIGTERM, libc::SIGINT, libc::SIGHUP, libc::SIGUSR1] {
        // In the kernel, and busy in user code.
        for script in ["echo up; read line", "echo up; while :; do :; done"] {
            let mut command = run::monitored(["sh", "-c", script]).unwrap();
            command.stdin(Stdio::piped()).stdout(Stdio::piped());
            let mut child = Bounded::spawn_group(&mut command).unwrap();
            let (stdin, stdout, _) = child.take_pipes();
            let mut line = String::new();
            BufReader::new(stdout.unwrap())
                .read_line(&mut line)
                .unwrap();
            child.signal(signal).unwrap();
            let status = child.wait_for(Duration::from_secs(10)).unwrap();
            assert_eq!(
                status.and_then(|s| s.code()),
                Some(128 + signal),
                "{script}, signal {signal}"
            );
            drop(stdin);
        }
    }
}
