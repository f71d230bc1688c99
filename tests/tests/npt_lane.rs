//! The second KVM lane: the demo, the Redis crash scenario and the tests that have most to do with paging, under SVM
//! with nested paging, in a machine that QEMU emulates. Takes some minutes; `VMSRS_NPT_DEADLINE` gives a slow host
//! more seconds. It uses no KVM of the host's, so it does not count as a test that does.

use std::{
    env,
    path::{Path, PathBuf},
    time::Duration,
};

use vmsrs_tests::{
    error,
    guest::{self, BuildError},
    lane::{Lane, LaneError, Report},
    paths,
};

const DEADLINE: Duration = Duration::from_secs(900);

type Guest = fn(&str) -> Result<PathBuf, BuildError>;

/// Test programs that run there, with the guest program that they need and the cases (all, if there are none): what
/// depends on how memory is mapped, and on how threads are stopped.
const TESTS: [(&str, Guest, &str, &[&str]); 8] = [
    ("wakeup", guest::program, "wakeup", &[]),
    ("locks", guest::program, "lock_server", &[]),
    ("large_write_sets", guest::program, "large_writes", &[]),
    ("prefork", guest::program, "prefork_order", &[]),
    (
        "separation",
        guest::program,
        "own_proc",
        &["no_name_of_its_own"],
    ),
    (
        "parity",
        guest::program,
        "parity_reserve",
        &["reservations_of_terabytes"],
    ),
    (
        "audit",
        guest::server,
        "random-server",
        &["leaves_no_trace"],
    ),
    (
        "faults",
        guest::server,
        "fault-server",
        &["every_fault_leaves"],
    ),
];

#[test]
fn demo_and_redis_pass_under_nested_paging() {
    let report = run(deadline()).unwrap_or_else(|failure| panic!("{}", error::chain(&failure)));
    println!("{report}");
    assert_eq!(
        report.npt, "Y",
        "the machine's KVM does not use nested paging"
    );
    let failed: Vec<_> = report
        .failures()
        .map(|result| result.command.as_str())
        .collect();
    assert!(
        failed.is_empty(),
        "failed in the nested-paging lane: {failed:#?}"
    );
}

fn run(deadline: Duration) -> Result<Report, LaneError> {
    let vmsrs = paths::vmsrs().unwrap_or_else(|error| panic!("{error}"));
    let mut lane = Lane::new()?;
    lane.debian_program("redis-server")?;
    lane.debian_program("memcached")?;
    lane.program(Path::new(env!("CARGO_BIN_EXE_redis-crash")))?;
    // Whatever VMSRS_BIN calls it.
    lane.program_as("vmsrs", &vmsrs)?;

    // The same clients and server without the monitor: if this fails, the lane itself is at fault.
    let native = [
        "redis-crash",
        "--native",
        "--clients",
        "20",
        "--seconds",
        "2",
        "--patience",
        "60",
    ];
    lane.command(&native, deadline / 4);
    lane.command(&["vmsrs", "check"], deadline / 8);
    lane.command(&["vmsrs", "demo"], deadline / 2);
    let crash = [
        "redis-crash",
        "--vmsrs",
        "/usr/bin/vmsrs",
        "--seconds",
        "15",
        "--patience",
        "60",
    ];
    lane.command(&crash, deadline / 2);
    for (test, build, program, cases) in TESTS {
        let program = build(program).unwrap_or_else(|error| panic!("{error}"));
        lane.test_program(test, &program)?;
        let argv = [&[test, "--test-threads=1"], cases].concat();
        lane.command(&argv, deadline / 2);
    }
    lane.run(deadline)
}

fn deadline() -> Duration {
    let Ok(seconds) = env::var("VMSRS_NPT_DEADLINE") else {
        return DEADLINE;
    };
    let seconds = seconds
        .parse()
        .expect("VMSRS_NPT_DEADLINE is a number of seconds");
    Duration::from_secs(seconds)
}
