//! What cannot be run, and what the user is told.

use std::error::Error;

use super::*;

/// The message with its sources, and the exit status, of a program that cannot be loaded.
fn refusal(path: &Path) -> (String, u8) {
    let mut guest = Guest::new();
    let error = guest.load(path, &["x"]).unwrap_err();
    let mut text = error.to_string().replace(path.to_str().unwrap(), "PATH");
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    (text, error.exit_status())
}

#[test]
fn what_is_not_there() {
    let directory = tempfile::tempdir().unwrap();
    assert_eq!(
        refusal(&directory.path().join("none")),
        ("PATH: not found".into(), 127)
    );
    let (text, status) = refusal(&executable(&directory, "file", "").join("below"));
    assert!(
        text.starts_with("cannot run PATH: it cannot be opened: Not a directory"),
        "{text}"
    );
    assert_eq!(status, 126);
}

#[test]
fn what_is_no_program() {
    let directory = tempfile::tempdir().unwrap();
    let neither = "exec format error: neither an ELF program nor a script with a #! line";
    let plain = directory.path().join("plain");
    std::fs::write(&plain, "#!/bin/sh\n").unwrap();
    let mut endless: Vec<u8> = b"#!".to_vec();
    endless.resize(1000, b'x');
    for (path, reason) in [
        (directory.path().to_owned(), "it is a directory".to_owned()),
        ("/dev/null".into(), "it is not a regular file".into()),
        (plain, "permission denied".into()),
        (executable(&directory, "empty", ""), neither.into()),
        (executable(&directory, "text", "echo"), neither.into()),
        (
            executable(&directory, "nobody", "#! \n"),
            "exec format error: the #! line names no interpreter".into(),
        ),
        (
            executable(&directory, "endless", endless),
            "exec format error: the #! line is longer than 256 bytes".into(),
        ),
    ] {
        assert_eq!(refusal(&path), (format!("cannot run PATH: {reason}"), 126));
    }
}

#[test]
fn programs_for_other_machines_and_damaged_ones() {
    let directory = tempfile::tempdir().unwrap();
    let program = std::fs::read(compile_tiny(&directory, &[])).unwrap();
    let refused = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = program.clone();
        change(&mut bytes);
        let (text, status) = refusal(&executable(&directory, "changed", bytes));
        assert_eq!(status, 126);
        text
    };
    const CLASS: usize = 4;
    const MACHINE: usize = 18;
    const ENTRY: usize = 24;
    const PHOFF: usize = 32;
    assert_eq!(
        refused(&|bytes| bytes[CLASS] = 1),
        "cannot run PATH: a 32-bit program; only x86-64 is supported"
    );
    assert_eq!(
        refused(&|bytes| bytes[MACHINE] = 183),
        "cannot run PATH: an ELF file for AArch64; only x86-64 programs can run"
    );
    assert_eq!(
        refused(&|bytes| bytes[ENTRY..][..8].fill(0)),
        "cannot run PATH: its entry point 0x0 lies outside of it"
    );
    // The program headers begin behind the end of the file.
    assert!(refused(&|bytes| bytes[PHOFF + 4] = 1).contains("the ELF file is cut off"));
    assert!(refused(&|bytes| bytes.truncate(4096)).contains("the ELF file is cut off"));
    assert_eq!(
        refused(&|bytes| {
            bytes[PHOFF..][..8].copy_from_slice(&(100u64 << 20).to_le_bytes());
            bytes.resize(101 << 20, 0);
        }),
        "cannot run PATH: the headers of the ELF file lie beyond the first 64 MiB"
    );
}

#[test]
fn a_program_that_has_to_lie_elsewhere() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile_tiny(
        &directory,
        &["-Wl,-Ttext-segment=0x200000000", "-mcmodel=large"],
    );
    let (text, status) = refusal(&path);
    assert!(
        text.contains("cannot run PATH: it has to be loaded at 0x200000000.."),
        "{text}"
    );
    assert!(
        text.contains("programs can lie at [0x10000..0x80000000"),
        "{text}"
    );
    assert_eq!(status, 126);
}

#[test]
fn interpreters_that_are_missing_or_none() {
    let directory = tempfile::tempdir().unwrap();
    let cannot = |interpreter: &str, reason: &str| {
        let text = "cannot run PATH: its interpreter";
        (
            format!("{text} {interpreter} cannot be used: {reason}"),
            126,
        )
    };
    let script = executable(&directory, "script", "#!/no/such/shell\n");
    assert_eq!(refusal(&script), cannot("/no/such/shell", "no such file"));
    let program = compile(&directory, &["-Wl,--dynamic-linker=/no/such/linker"]);
    assert_eq!(refusal(&program), cannot("/no/such/linker", "no such file"));
    let flag = format!("-Wl,--dynamic-linker={}", script.display());
    let program = compile(&directory, &[&flag]);
    let script = script.to_str().unwrap();
    assert_eq!(refusal(&program), cannot(script, "not an ELF file"));
}

#[test]
fn arguments_that_are_too_long() {
    let mut guest = Guest::new();
    let error = guest
        .load(Path::new("/bin/true"), &["true", &"x".repeat(200_000)])
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "arguments and environment are too long: one of them is longer than 128 KiB"
    );
    assert_eq!(error.exit_status(), 126);
}

/// Whatever is in the headers: the program is loaded or refused, and the monitor lives.
#[test]
fn damaged_headers_do_no_harm() {
    let directory = tempfile::tempdir().unwrap();
    let program = std::fs::read(compile_tiny(&directory, &[])).unwrap();
    let headers = 64 + 56 * usize::from(program[56]);
    let path = executable(&directory, "damaged", &program);
    let mut guest = Guest::new();
    let mut loaded = 0;
    for position in 4..headers {
        for change in [0x01, 0x10, 0x80, 0xff] {
            let mut damaged = program.clone();
            damaged[position] ^= change;
            std::fs::write(&path, damaged).unwrap();
            loaded += u32::from(guest.load(&path, &["x"]).is_ok());
            guest.clear();
        }
    }
    assert!(loaded > 0);
}
