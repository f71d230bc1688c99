//! Wrong uses: each has its exit status, and a message that says what is wrong and what to do.
//!
//! 125: the monitor could not do it; 126: the program cannot be run; 127: there is none.

use std::{
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use tempfile::TempDir;
use vmsrs_tests::{
    guest, kvm_case, paths,
    run::{self, Ended},
};

fn vmsrs(args: &[&str]) -> Ended {
    run::to_end(&mut run::vmsrs(args).unwrap(), b"").unwrap()
}

/// The exit status is `status`, nothing goes to the output, and the message has all of `parts`.
fn assert_refused(ended: &Ended, status: i32, parts: &[&str]) {
    assert_eq!(
        (ended.code(), ended.out().as_str()),
        (status, ""),
        "{ended}"
    );
    for part in parts {
        assert!(ended.err().contains(part), "no {part:?} in {ended}");
    }
    let lines = ended.err().lines().count();
    assert!((1..10).contains(&lines), "a message is short: {ended}");
}

/// An executable file with `content`.
fn executable(dir: &TempDir, content: &[u8]) -> PathBuf {
    let path = dir.path().join("program");
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// Runs a file with `content` under the monitor.
fn run_content(content: &[u8]) -> Ended {
    let dir = tempfile::tempdir().unwrap();
    let path = executable(&dir, content);
    run::to_end(&mut run::monitored([path]).unwrap(), b"").unwrap()
}

/// A working ELF program, to be spoilt.
fn elf() -> Vec<u8> {
    fs::read(guest::program("show").unwrap()).unwrap()
}

#[test]
fn no_such_program() {
    kvm_case("no_such_program");
    for name in [
        "no-such-program",
        "./no-such-program",
        "/no/such/program",
        "",
    ] {
        let ended = run::to_end(&mut run::monitored([name]).unwrap(), b"").unwrap();
        assert_refused(&ended, 127, &["vmsrs: ", name, "not found"]);
    }
}

#[test]
fn not_executable() {
    kvm_case("not_executable");
    assert_refused(
        &vmsrs(&["run", "--", "/etc/passwd"]),
        126,
        &["/etc/passwd", "permission"],
    );
}

#[test]
fn a_directory() {
    kvm_case("a_directory");
    assert_refused(&vmsrs(&["run", "--", "/etc"]), 126, &["/etc", "directory"]);
}

#[test]
fn not_an_elf_program() {
    kvm_case("not_an_elf_program");
    for content in [&b"hello\n"[..], b"", b"\x7fELF", &elf()[..100]] {
        let ended = run_content(content);
        assert_refused(&ended, 126, &["cannot run ", "program"]);
    }
    assert_refused(
        &run_content(b"hello\n"),
        126,
        &["neither an ELF program nor a script"],
    );
}

#[test]
fn an_elf_program_for_32_bits() {
    kvm_case("an_elf_program_for_32_bits");
    let mut content = elf();
    content[4] = 1; // EI_CLASS = ELFCLASS32
    content[18..20].copy_from_slice(&3u16.to_le_bytes()); // e_machine = EM_386
    assert_refused(&run_content(&content), 126, &["32-bit", "x86-64"]);
}

#[test]
fn an_elf_program_for_another_machine() {
    kvm_case("an_elf_program_for_another_machine");
    let mut content = elf();
    content[18..20].copy_from_slice(&183u16.to_le_bytes()); // e_machine = EM_AARCH64
    assert_refused(&run_content(&content), 126, &["cannot run ", "x86-64"]);
}

#[test]
fn an_elf_program_whose_interpreter_is_missing() {
    kvm_case("an_elf_program_whose_interpreter_is_missing");
    let mut content = elf();
    let (real, missing) = (
        b"/lib64/ld-linux-x86-64.so.2",
        b"/lib64/no-such-interpreter!",
    );
    let at = content.windows(real.len()).position(|w| w == real).unwrap();
    content[at..at + real.len()].copy_from_slice(missing);
    assert_refused(
        &run_content(&content),
        126,
        &["interpreter", "/lib64/no-such-interpreter!"],
    );
}

#[test]
fn a_script_whose_interpreter_is_missing() {
    kvm_case("a_script_whose_interpreter_is_missing");
    let ended = run_content(b"#!/no/such/shell\n");
    assert_refused(&ended, 126, &["interpreter", "/no/such/shell"]);
}

/// `vmsrs ARGS` where /dev is an empty file system, after `prepare` has run there.
fn with_other_dev(prepare: &str, args: &[&str]) -> Ended {
    // SAFETY: `geteuid` takes nothing, cannot fail and touches no memory.
    let mapped: &[&str] = match unsafe { libc::geteuid() } {
        0 => &[],
        _ => &["--map-root-user"],
    };
    let script = format!("mount -t tmpfs none /dev && {prepare} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .arg("--mount")
        .args(mapped)
        .args(["sh", "-c", &script, "sh"]);
    // Root may open everything; without capabilities it is as anybody.
    command.args(["setpriv", "--bounding-set=-all", "--inh-caps=-all"]);
    command.arg(paths::vmsrs().unwrap()).args(args);
    run::to_end(&mut command, b"").unwrap()
}

#[test]
fn no_kvm_device() {
    kvm_case("no_kvm_device");
    let ended = with_other_dev("true", &["run", "--", "true"]);
    assert_refused(&ended, 125, &["/dev/kvm", "No such file", "vmsrs check"]);
    let check = with_other_dev("true", &["check"]);
    assert_eq!(check.code(), 1, "{check}");
    assert!(check.out().contains("MISSING  /dev/kvm"), "{check}");
    assert!(check.out().contains("to mend it: "), "{check}");
}

#[test]
fn no_permission_for_kvm() {
    kvm_case("no_permission_for_kvm");
    let prepare = "touch /dev/kvm && chmod 0 /dev/kvm";
    let ended = with_other_dev(prepare, &["run", "--", "true"]);
    assert_refused(
        &ended,
        125,
        &["/dev/kvm", "Permission denied", "vmsrs check"],
    );
    let check = with_other_dev(prepare, &["check"]);
    assert_eq!(check.code(), 1, "{check}");
    assert!(check.out().contains("usermod -aG kvm"), "{check}");
}

#[test]
fn a_kvm_device_that_is_none() {
    kvm_case("a_kvm_device_that_is_none");
    let ended = with_other_dev(
        "touch /dev/kvm && chmod 666 /dev/kvm",
        &["run", "--", "true"],
    );
    assert_refused(&ended, 125, &["vmsrs check"]);
}

#[test]
fn bad_options() {
    kvm_case("bad_options");
    let cases: [(&[&str], &[&str]); 9] = [
        (&[], &["Usage: ", "run", "demo"]),
        (&["frobnicate"], &["frobnicate", "--help"]),
        (&["run"], &["<PROGRAM>", "Usage: "]),
        (&["run", "--"], &["<PROGRAM>", "Usage: "]),
        (
            &["run", "--frobnicate", "--", "true"],
            &["--frobnicate", "--help"],
        ),
        (
            &["run", "--frobnicate", "true"],
            &["--frobnicate", "--help"],
        ),
        (
            &["run", "--protect", "maybe", "--", "true"],
            &["maybe", "on", "off"],
        ),
        (&["run", "--events"], &["--events", "FILE"]),
        (&["demo", "--users", "many"], &["many", "--users"]),
    ];
    for (args, parts) in cases {
        let ended = vmsrs(args);
        assert_eq!(
            (ended.code(), ended.out().as_str()),
            (125, ""),
            "{args:?}: {ended}"
        );
        for part in parts {
            assert!(
                ended.err().contains(part),
                "{args:?}: no {part:?} in {ended}"
            );
        }
    }
}

#[test]
fn files_that_cannot_be_written() {
    kvm_case("files_that_cannot_be_written");
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    fs::write(&file, "").unwrap();
    let below_a_file = file.join("x");
    let below_a_file = below_a_file.to_str().unwrap();
    for (option, what) in [
        ("--events", "events file"),
        ("--stats", "stats file"),
        ("--report-dir", "report directory"),
    ] {
        let reports = dir.path().join("reports");
        let reports = reports.to_str().unwrap();
        let args = [
            "run",
            "--report-dir",
            reports,
            option,
            below_a_file,
            "--",
            "true",
        ];
        // An option that is given twice is refused too, but not for what is tested here.
        let skip = if option == "--report-dir" { 2 } else { 0 };
        let args = [&args[..1], &args[1 + skip..]].concat();
        assert_refused(&vmsrs(&args), 125, &[what, below_a_file, "Not a directory"]);
    }
}

#[test]
fn an_unwritable_report_directory_says_how_to_name_another() {
    kvm_case("an_unwritable_report_directory_says_how_to_name_another");
    let mut command = run::vmsrs(["run", "--", "true"]).unwrap();
    let ended = run::to_end(command.env("XDG_STATE_HOME", "/proc/none"), b"").unwrap();
    assert_refused(&ended, 125, &["/proc/none/vmsrs/reports", "--report-dir"]);
    command.env_remove("XDG_STATE_HOME").env_remove("HOME");
    let ended = run::to_end(&mut command, b"").unwrap();
    assert_refused(&ended, 125, &["XDG_STATE_HOME", "HOME", "--report-dir"]);
}

#[test]
fn help_teaches() {
    kvm_case("help_teaches");
    let help = vmsrs(&["--help"]);
    assert_eq!((help.code(), help.err().as_str()), (0, ""), "{help}");
    for part in [
        "Examples:",
        "vmsrs check",
        "vmsrs demo",
        "vmsrs run -- ",
        "vmsrs report last",
    ] {
        assert!(help.out().contains(part), "no {part:?} in {help}");
    }
    let help = vmsrs(&["run", "--help"]);
    assert_eq!(help.code(), 0, "{help}");
    for part in [
        "--events",
        "--stats",
        "--report-dir",
        "--protect <on|off>",
        "PROGRAM",
    ] {
        assert!(help.out().contains(part), "no {part:?} in {help}");
    }
}

#[test]
fn reports_where_there_are_none() {
    kvm_case("reports_where_there_are_none");
    let dir = tempfile::tempdir().unwrap();
    let missing = dir.path().join("missing");
    for dir in [dir.path(), missing.as_path()] {
        let dir = dir.to_str().unwrap();
        let list = vmsrs(&["report", "--report-dir", dir]);
        assert_eq!((list.code(), list.err().as_str()), (0, ""), "{list}");
        assert!(list.out().contains("nothing has crashed yet"), "{list}");
        for id in ["nonsense", "last", "../../etc"] {
            let ended = vmsrs(&["report", "--report-dir", dir, id]);
            assert_refused(&ended, 1, &["no report", id]);
        }
    }
    assert!(!missing.exists(), "a look must not create the directory");
}

#[test]
fn a_check_names_every_requirement() {
    kvm_case("a_check_names_every_requirement");
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().to_str().unwrap();
    let check = vmsrs(&["check", "--report-dir", dir]);
    assert_eq!((check.code(), check.err().as_str()), (0, ""), "{check}");
    for requirement in [
        "CPU",
        "Linux",
        "/dev/kvm",
        "KVM API version",
        "KVM_CAP_SYNC_REGS",
        "KVM_CAP_IMMEDIATE_EXIT",
        "KVM_CAP_DIRTY_LOG_RING",
        "memory slots",
        "vCPUs",
        "open files",
        "address space",
        "report directory",
        "guest entry",
    ] {
        let found = check.out().lines().any(|line| {
            let mut words = line.splitn(2, ' ');
            let level = words.next().unwrap_or_default();
            let rest = words.next().unwrap_or_default().trim_start();
            ["ok", "warn"].contains(&level) && rest.starts_with(requirement)
        });
        assert!(found, "{requirement}: {check}");
    }
    assert!(
        check.out().contains("This machine can run guests."),
        "{check}"
    );
    let bad = vmsrs(&["check", "--report-dir", "/proc/none"]);
    assert_eq!(bad.code(), 1, "{bad}");
    assert!(bad.out().contains("MISSING  report directory"), "{bad}");
    assert!(!Path::new("/proc/none").exists());
}
