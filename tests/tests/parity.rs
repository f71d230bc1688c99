//! C programs, one for each topic, that say the same natively and under the monitor, and end the same way.

use vmsrs_tests::{guest, kvm_case, run};

/// Runs `tests/programs/NAME.c` both ways; its output has to have so many lines.
fn same(name: &str, lines: usize) {
    same_with_status(name, 0, lines);
}

/// Likewise, of a program that does not end with status 0.
fn same_with_status(name: &str, status: i32, lines: usize) {
    let program = guest::program(name).unwrap_or_else(|error| panic!("{error}"));
    let ended = run::same(&[program], b"");
    assert_eq!(
        (ended.code(), ended.out().lines().count()),
        (status, lines),
        "{ended}"
    );
}

#[test]
fn system_v_shared_memory_semaphores_and_messages() {
    kvm_case("system_v_shared_memory_semaphores_and_messages");
    same("parity_ipc", 37);
}

#[test]
fn limits_of_memory() {
    kvm_case("limits_of_memory");
    same("parity_limits", 15);
}

#[test]
fn a_daemon_that_becomes_another_user() {
    kvm_case("a_daemon_that_becomes_another_user");
    same("parity_drop", 5);
}

#[test]
fn a_daemon_with_a_root_directory_of_its_own() {
    kvm_case("a_daemon_with_a_root_directory_of_its_own");
    same("parity_chroot", 5);
}

#[test]
fn signals_from_descriptors() {
    kvm_case("signals_from_descriptors");
    same("parity_async", 5);
}

#[test]
fn a_signal_that_all_threads_block_and_one_waits_for() {
    kvm_case("a_signal_that_all_threads_block_and_one_waits_for");
    same("parity_sigwait", 20);
}

#[test]
fn processes_and_threads_by_clone3() {
    kvm_case("processes_and_threads_by_clone3");
    same("parity_clone3", 19);
}

#[test]
fn filters_of_system_calls() {
    kvm_case("filters_of_system_calls");
    same("parity_seccomp", 67);
}

#[test]
fn memory_that_moves_and_advice() {
    kvm_case("memory_that_moves_and_advice");
    same("parity_mremap", 26);
}

#[test]
fn asynchronous_io() {
    kvm_case("asynchronous_io");
    same("parity_aio", 51);
}

#[test]
fn traps_while_a_timer_interrupts() {
    kvm_case("traps_while_a_timer_interrupts");
    same("parity_traps", 4);
}

#[test]
fn signals_queue_and_wait_and_are_waited_for() {
    kvm_case("signals_queue_and_wait_and_are_waited_for");
    same("parity_signals", 16);
}

#[test]
fn direct_input_and_output() {
    kvm_case("direct_input_and_output");
    same("parity_direct", 8);
}

#[test]
fn writes_of_megabytes() {
    kvm_case("writes_of_megabytes");
    same("parity_writes", 39);
}

#[test]
fn an_account_of_its_own_memory() {
    kvm_case("an_account_of_its_own_memory");
    same("parity_smaps", 16);
}

#[test]
fn a_request_that_ends_a_child_and_waits_for_it() {
    kvm_case("a_request_that_ends_a_child_and_waits_for_it");
    same("parity_dismiss", 3);
}

#[test]
fn an_abort_that_another_process_asks_for() {
    kvm_case("an_abort_that_another_process_asks_for");
    same("parity_abort", 2);
}

#[test]
fn signals_of_faults_that_another_process_sends() {
    kvm_case("signals_of_faults_that_another_process_sends");
    same_with_status("parity_sent", 128 + 11, 96);
}

#[test]
fn a_parent_that_waits_for_what_its_child_becomes() {
    kvm_case("a_parent_that_waits_for_what_its_child_becomes");
    same("parity_vfork", 22);
}

#[test]
fn what_others_see_of_its_arguments() {
    kvm_case("what_others_see_of_its_arguments");
    same("parity_title", 13);
}

#[test]
fn reservations_of_terabytes() {
    kvm_case("reservations_of_terabytes");
    same("parity_reserve", 50);
}

#[test]
fn pseudo_terminals() {
    kvm_case("pseudo_terminals");
    same("parity_tty", 179);
}

#[test]
fn network_interfaces() {
    kvm_case("network_interfaces");
    same("parity_netif", 122);
}

#[test]
fn received_bytes_that_are_dropped() {
    kvm_case("received_bytes_that_are_dropped");
    same("parity_discard", 22);
}

#[test]
fn transfers_of_nothing() {
    kvm_case("transfers_of_nothing");
    same("parity_zerolen", 124);
}

#[test]
fn a_read_takes_all_that_there_is() {
    kvm_case("a_read_takes_all_that_there_is");
    same("parity_edge", 2);
}

#[test]
fn locks_and_closes_of_files() {
    kvm_case("locks_and_closes_of_files");
    same("parity_locks", 33);
    same("parity_lostlock", 2);
}

#[test]
fn reads_take_all_that_has_arrived() {
    kvm_case("reads_take_all_that_has_arrived");
    same("parity_arrived", 26);
}

#[test]
fn peers_that_have_gone_and_peers_that_do_not_read() {
    kvm_case("peers_that_have_gone_and_peers_that_do_not_read");
    same("parity_gone", 22);
}

#[test]
fn answers_in_pieces_with_waits_between_them() {
    kvm_case("answers_in_pieces_with_waits_between_them");
    same("parity_stream", 16);
}

#[test]
fn programs_without_standard_descriptors() {
    kvm_case("programs_without_standard_descriptors");
    same("parity_stdfd", 3);
}

#[test]
fn calls_that_are_not_restarted() {
    kvm_case("calls_that_are_not_restarted");
    same("parity_restart", 12);
}

#[test]
fn a_sandbox_that_may_make_no_processes() {
    kvm_case("a_sandbox_that_may_make_no_processes");
    same("parity_tasks", 26);
}

#[test]
fn ancillary_data_of_datagrams() {
    kvm_case("ancillary_data_of_datagrams");
    same("parity_cmsg", 13);
}

#[test]
fn filters_of_sockets() {
    kvm_case("filters_of_sockets");
    same("parity_filter", 10);
}
