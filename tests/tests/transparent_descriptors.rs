//! The guest's descriptors: the numbers it would have natively, its own limit, and none of the
//! monitor's, neither to see nor to close.

use std::{ffi::OsStr, path::Path};

use vmsrs_tests::{guest, kvm_case, paths, run};

/// Runs `program` natively and under the monitor in a shell that sets limits first.
fn limited(limits: &str, program: &Path, args: &[&str]) -> (run::Ended, run::Ended) {
    let script = format!("{limits}; exec \"$@\"");
    let vmsrs = paths::vmsrs().unwrap();
    let run = |prefix: &[&OsStr]| {
        let mut shell = run::native(["sh", "-c", &script, "sh"]);
        shell.args(prefix).arg(program).args(args);
        run::to_end(&mut shell, b"").unwrap()
    };
    let prefix = [vmsrs.as_os_str(), OsStr::new("run"), OsStr::new("--")];
    (run(&[]), run(&prefix))
}

#[test]
fn descriptors_are_numbered_limited_and_listed_as_natively() {
    kvm_case("descriptors_are_numbered_limited_and_listed_as_natively");
    let program = guest::program("descriptors").unwrap();
    let (native, monitored) = limited("ulimit -S -n 256", &program, &[]);
    assert_eq!(native.code(), 0, "{native}");
    assert_eq!(native, monitored, "{native}\n{monitored}");
}

#[test]
fn the_soft_limit_is_inherited() {
    kvm_case("the_soft_limit_is_inherited");
    let program = guest::program("show").unwrap();
    let soft = |ended: &run::Ended| ended.out().split(' ').next().map(str::to_owned);
    for limits in ["ulimit -S -n 1024", "ulimit -S -n 64", "ulimit -n 512"] {
        let (native, monitored) = limited(limits, &program, &["limits"]);
        assert_eq!(monitored.code(), 0, "{limits}: {monitored}");
        assert_eq!(soft(&monitored), soft(&native), "{limits}");
    }
}

#[test]
fn the_listing_of_a_tool_shows_its_own_descriptors_only() {
    kvm_case("the_listing_of_a_tool_shows_its_own_descriptors_only");
    run::same(&["ls", "/proc/self/fd"], b"");
}

#[test]
fn the_map_shows_the_guests_own_mappings() {
    kvm_case("the_map_shows_the_guests_own_mappings");
    let program = guest::program("maps").unwrap();
    let ended = run::same(&[program], b"");
    assert!(ended.out().contains("foreign 0"), "{ended}");
}
