//! Part of the build script: compiles the guest's vDSO with the C compiler.

use std::path::Path;
use std::process::{Command, exit};

const SOURCES: [&str; 3] = ["vdso.c", "clock_page.h", "vdso.lds"];

/// No SSE: the code is called with whatever vector state the guest has, and needs none. No
/// stack protector: its canary is at `%fs`, which belongs to the guest's libc.
const COMPILE_FLAGS: &[&str] = &[
    "-std=gnu11",
    "-O2",
    "-fPIC",
    "-ffreestanding",
    "-fvisibility=hidden",
    "-fno-stack-protector",
    "-fno-stack-clash-protection",
    "-fno-jump-tables",
    "-fasynchronous-unwind-tables",
    "-fcf-protection=none",
    "-mno-sse",
    "-mno-mmx",
    "-mno-red-zone",
    "-Wall",
    "-Wextra",
];

/// `-s`: the dynamic symbols are all that a program looks at.
const LINK_FLAGS: &[&str] = &[
    "-shared",
    "-nostdlib",
    "-Wl,-soname,linux-vdso.so.1",
    "-Wl,--hash-style=both",
    "-Wl,--build-id=none",
    "-Wl,--eh-frame-hdr",
    "-Wl,--no-undefined",
    "-Wl,-Bsymbolic",
    "-Wl,-z,max-page-size=4096",
    "-Wl,-z,noexecstack",
    "-Wl,-z,norelro",
    "-Wl,-s",
];

/// Builds the sources in `source_dir` into the shared object `out`.
///
/// The compiler is `$CC` (which may carry arguments), else `cc`. Ends the build with a message for
/// the user when that fails.
pub fn build_vdso(source_dir: &Path, out: &Path) {
    println!("cargo::rerun-if-env-changed=CC");
    for source in SOURCES {
        println!(
            "cargo::rerun-if-changed={}",
            source_dir.join(source).display()
        );
    }

    let compiler = std::env::var("CC").unwrap_or_default();
    let mut words = compiler.split_whitespace();
    let program = words.next().unwrap_or("cc");
    let mut command = Command::new(program);
    command
        .args(words)
        .args(COMPILE_FLAGS)
        .args(LINK_FLAGS)
        .arg("-Wl,-T")
        .arg(source_dir.join("vdso.lds"))
        .arg("-o")
        .arg(out)
        .arg(source_dir.join("vdso.c"));

    match command.status() {
        Ok(status) if status.success() => {}
        Ok(status) => fail(&format!(
            "the C compiler `{program}` could not build the guest's vDSO ({status})"
        )),
        Err(error) => fail(&format!(
            "cannot run the C compiler `{program}`: {error}. The guest's vDSO is written in C: \
             install one (Debian: apt-get install gcc) or set CC"
        )),
    }
}

fn fail(message: &str) -> ! {
    println!("cargo::error={message}");
    exit(1);
}
