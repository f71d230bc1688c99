//! Builds the demo server, a C program, for `build.rs`: its compiler flags are here and nowhere else.

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Hardened as distributions build their servers: the planted heap and stack bugs rely on these checks to
/// be noticed at once. `-O1 -g` keeps a crash's stack readable in the fault reports.
const FLAGS: &[&str] = &[
    "-std=c11",
    "-D_GNU_SOURCE",
    "-O1",
    "-g",
    "-fno-omit-frame-pointer",
    "-fstack-protector-strong",
    "-U_FORTIFY_SOURCE",
    "-D_FORTIFY_SOURCE=2",
    "-fPIE",
    "-pie",
    "-pthread",
    "-Wall",
    "-Wextra",
];

/// Compiles every C file of the directory `source` into the program `out`.
///
/// The compiler is `$CC` (which may carry arguments), else `cc`. Cargo is told to run the build script again
/// when a source, a header or `$CC` changes.
///
/// # Panics
///
/// With the compiler's own message, when it is missing or fails: a build script has no better way to say so.
pub fn build_demo_server(source: &Path, out: &Path) {
    println!("cargo::rerun-if-env-changed=CC");
    println!("cargo::rerun-if-changed={}", source.display());
    let cc = env::var("CC")
        .ok()
        .filter(|cc| !cc.trim().is_empty())
        .unwrap_or_else(|| "cc".to_owned());
    let mut words = cc.split_whitespace();
    let mut command = Command::new(words.next().unwrap_or("cc"));
    command
        .args(words)
        .args(FLAGS)
        // The same program wherever it is built, and short names in stack traces.
        .arg(format!(
            "-ffile-prefix-map={}=demo-server",
            source.display()
        ))
        .arg("-o")
        .arg(out)
        .args(c_files(source));
    match command.output() {
        Ok(output) if output.status.success() => {
            for line in String::from_utf8_lossy(&output.stderr).lines() {
                println!("cargo::warning={line}");
            }
        }
        Ok(output) => {
            panic!(
                "cannot build the demo server: {command:?}\n{}",
                String::from_utf8_lossy(&output.stderr)
            )
        }
        Err(error) => {
            panic!(
                "cannot run the C compiler `{cc}` (on Debian: apt install gcc libc6-dev; or set CC): {error}"
            )
        }
    }
}

/// The C files of a directory in a fixed order; each source and header is also announced to Cargo.
fn c_files(source: &Path) -> Vec<PathBuf> {
    let entries =
        fs::read_dir(source).unwrap_or_else(|error| panic!("{}: {error}", source.display()));
    let mut files: Vec<PathBuf> = entries.flatten().map(|entry| entry.path()).collect();
    files.sort();
    for file in files
        .iter()
        .filter(|file| has_extension(file, "c") || has_extension(file, "h"))
    {
        println!("cargo::rerun-if-changed={}", file.display());
    }
    files.retain(|file| has_extension(file, "c"));
    files
}

fn has_extension(file: &Path, extension: &str) -> bool {
    file.extension() == Some(OsStr::new(extension))
}
