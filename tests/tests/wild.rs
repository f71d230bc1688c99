//! System calls with wild arguments, many of them undone: nothing that the guest does makes the monitor fail.

use std::process::Command;

use vmsrs_tests::{guest, kvm_case, run};

/// Children that make some hundred calls each.
const ROUNDS: u64 = 40;

fn survives(options: &[&str], seed: u64) {
    let program = guest::program("wild").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let mut command: Command = run::vmsrs(["run", "--report-dir"]).unwrap();
    command.arg(dir.path()).args(options).arg("--").arg(program);
    command.args([seed.to_string(), ROUNDS.to_string()]);
    let ended = run::to_end(&mut command, b"").unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    let told = ended.err();
    assert!(
        !told.contains("panicked") && !told.contains("audit:"),
        "{ended}"
    );
    let ends: Vec<u64> = ended
        .out()
        .split(' ')
        .filter_map(|word| word.parse().ok())
        .collect();
    assert_eq!(ends.iter().sum::<u64>(), ROUNDS, "{ended}");
    println!("{options:?}: {}", ended.out().trim());
}

#[test]
fn wild_calls_without_recovery() {
    kvm_case("wild_calls_without_recovery");
    survives(&["--protect=off"], 1);
}

#[test]
fn wild_calls_in_requests() {
    kvm_case("wild_calls_in_requests");
    survives(&[], 2);
}

#[test]
fn wild_calls_are_undone_byte_for_byte() {
    kvm_case("wild_calls_are_undone_byte_for_byte");
    survives(&["--audit"], 3);
}
