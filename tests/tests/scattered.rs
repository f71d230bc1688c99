//! Memory far apart, for which there are not enough guest-physical addresses.

use vmsrs_tests::{guest, kvm_case, run};

fn out(how: &str) -> String {
    let program = guest::program("scattered").unwrap_or_else(|error| panic!("{error}"));
    let argv = [program.into_os_string(), how.into()];
    let mut command = run::monitored(argv).unwrap_or_else(|error| panic!("{error}"));
    let ended = run::to_end(&mut command, b"").unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    ended.out()
}

#[test]
fn addresses_that_are_not_used_any_more_are_used_anew() {
    kvm_case("addresses_that_are_not_used_any_more_are_used_anew");
    assert_eq!(out("again"), "always new\n");
}

#[test]
fn where_there_are_no_addresses_left_is_no_memory() {
    kvm_case("where_there_are_no_addresses_left_is_no_memory");
    let told = "an end: 1, after 1984\nand a new beginning\n";
    assert_eq!(out("ever"), told);
}
