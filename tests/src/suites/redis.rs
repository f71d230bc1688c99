//! Redis' `runtest`, with Debian's programs: once it starts the servers itself, and once it is told where one is.

use std::{fs, path::Path, process::Command};

use super::{Suite, SuiteError, outcome};

/// The suite, which starts its servers itself.
pub fn suite() -> Suite {
    Suite {
        name: "redis",
        source: "redis",
        packages: &["redis-server", "redis-tools", "tcl"],
        server: "src/redis-server",
        // SHUTDOWN is a request that ends the server.
        options: &["--allow-exit"],
        build,
        files,
        serve: None,
        command,
        tests: outcome::of_redis,
    }
}

/// The suite's tests of a server that is there already.
pub fn external() -> Suite {
    let serve = |port: u16| {
        let port = port.to_string();
        let arguments = [
            "--port",
            &port,
            "--save",
            "",
            "--enable-debug-command",
            "yes",
        ];
        arguments.map(str::to_owned).to_vec()
    };
    Suite {
        name: "redis-external",
        serve: Some(serve),
        command: |tree, file, port| {
            let mut command = command(tree, file, port);
            command.args(["--host", "127.0.0.1", "--port", &port.to_string()]);
            command
        },
        ..suite()
    }
}

/// Puts Debian's programs in their places.
fn build(tree: &Path) -> Result<(), SuiteError> {
    for name in ["server", "cli", "benchmark", "check-aof", "check-rdb"] {
        let name = format!("redis-{name}");
        let target = tree.join("src").join(&name);
        fs::copy(Path::new("/usr/bin").join(name), &target).map_err(SuiteError::io(&target))?;
    }
    Ok(())
}

/// What `runtest` has in its own list.
fn files(tree: &Path) -> Result<Vec<String>, SuiteError> {
    let mut list = Command::new("./runtest");
    let listed = list.arg("--list-tests").current_dir(tree).output();
    let listed = listed.map_err(SuiteError::io(tree))?;
    let text = String::from_utf8_lossy(&listed.stdout);
    Ok(text.lines().map(str::to_owned).collect())
}

fn command(tree: &Path, file: &str, _: u16) -> Command {
    let mut command = Command::new("./runtest");
    // One at a time; what one test raises does not end the others.
    command
        .args(["--clients", "1", "--durable", "--single", file])
        .current_dir(tree);
    command
}
