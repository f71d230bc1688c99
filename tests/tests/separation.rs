//! The guest cannot reach the monitor's memory, with the recovery data in it, by any name that
//! Linux has for a process's own memory.

use vmsrs_tests::{guest, kvm_case, run};

#[test]
fn no_name_of_its_own_memory_leads_to_the_monitors() {
    kvm_case("no_name_of_its_own_memory_leads_to_the_monitors");
    for options in [&[][..], &["--protect", "off"]] {
        let mut command = run::vmsrs(["run"]).unwrap();
        command.args(options).arg("--");
        command.arg(guest::program("own_proc").unwrap());
        let ended = run::to_end(&mut command, b"").unwrap();
        assert_eq!((ended.code(), ended.out().as_str()), (0, ""), "{ended}");
    }
}
