//! lighttpd's `tests/`, with Debian's server and modules.

use std::{fs, path::Path, process::Command};

use super::{Suite, SuiteError, names, outcome, run};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "lighttpd",
        source: "lighttpd",
        packages: &["gcc", "perl", "lighttpd", "lighttpd-mod-deflate"],
        server: "src/lighttpd",
        options: &[],
        build,
        files: |tree| names(&tree.join("tests"), ".t"),
        serve: None,
        command,
        tests: outcome::of_tap,
    }
}

/// Puts Debian's server in its place and builds the programs that it talks to.
fn build(tree: &Path) -> Result<(), SuiteError> {
    let server = tree.join("src/lighttpd");
    fs::copy("/usr/sbin/lighttpd", &server).map_err(SuiteError::io(&server))?;
    for program in ["fcgi-responder", "scgi-responder"] {
        let mut gcc = Command::new("gcc");
        gcc.arg("-o").arg(program).arg(format!("{program}.c"));
        run(gcc.current_dir(tree.join("tests")))?;
    }
    Ok(())
}

fn command(tree: &Path, file: &str, _: u16) -> Command {
    let tests = tree.join("tests");
    let mut command = Command::new("sh");
    command
        .args(["-c", "./prepare.sh && exec perl \"./$1\"", "sh", file])
        .env("top_builddir", tree)
        .env("srcdir", &tests)
        // The server asks for these.
        .env("USER", "tester")
        .env("SHELL", "/bin/sh")
        // Named like this, it takes Debian's modules.
        .env("LIGHTTPD_EXE_PATH", tree.join("src/lighttpd"))
        .current_dir(&tests);
    command
}
