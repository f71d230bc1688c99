//! memcached's `t/`, with its `testapp`, which tests the binary protocol; and those files again that are about TLS.

use std::{path::Path, process::Command};

use super::{Suite, SuiteError, names, outcome, run};

/// The suite.
pub fn suite() -> Suite {
    Suite {
        name: "memcached",
        source: "memcached",
        packages: &[
            "gcc",
            "make",
            "libevent-dev",
            "libsasl2-dev",
            "libssl-dev",
            "libio-socket-ssl-perl",
            "libauthen-sasl-perl",
            "sasl2-bin",
        ],
        // With commands that only tests use. `MemcachedTest.pm` and `testapp` start it.
        server: "memcached-debug",
        options: &[],
        build,
        files,
        serve: None,
        command,
        tests: outcome::of_tap,
    }
}

/// What the `Makefile` has for TLS.
pub fn with_tls() -> Suite {
    Suite {
        name: "memcached-tls",
        files: |tree| {
            let mut files = files(tree)?;
            files.retain(|file| {
                file.starts_with("ssl") || ["binary.t", "getset.t"].contains(&file.as_str())
            });
            Ok(files)
        },
        command: |tree, file, port| {
            let mut command = command(tree, file, port);
            command.env("SSL_TEST", "1");
            command
        },
        ..suite()
    }
}

/// As `debian/rules` has it.
fn build(tree: &Path) -> Result<(), SuiteError> {
    let mut configure = Command::new("./configure");
    run(configure
        .args(["--quiet", "--enable-sasl", "--enable-tls"])
        .current_dir(tree))?;
    let mut make = Command::new("make");
    run(make
        .args([
            "--silent",
            "memcached-debug",
            "sizes",
            "testapp",
            "timedrun",
        ])
        .current_dir(tree))
}

fn files(tree: &Path) -> Result<Vec<String>, SuiteError> {
    let mut files = vec!["testapp".to_owned()];
    files.extend(names(&tree.join("t"), ".t")?);
    Ok(files)
}

fn command(tree: &Path, file: &str, _: u16) -> Command {
    let mut command = match file {
        "testapp" => Command::new("./testapp"),
        _ => Command::new("perl"),
    };
    if file != "testapp" {
        command.arg(format!("t/{file}"));
    }
    command.env("RUN_SASL_TESTS", "1").current_dir(tree);
    command
}
