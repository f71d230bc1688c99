//! Opens a core as an engineer would: the command that `vmsrs report` prints, with `gdb` of Debian.

use std::{io, path::Path, process::Command};

use crate::run::{self, Ended};

/// The command in the text of a report: program and core.
pub fn command(report: &str) -> Option<(String, String)> {
    let line = report
        .lines()
        .find_map(|line| line.trim().strip_prefix("gdb "))?;
    let (program, core) = line.split_once(' ')?;
    Some((program.to_owned(), core.to_owned()))
}

/// What `gdb` says to each of `commands` about the core.
pub fn ask(program: &Path, core: &Path, commands: &[&str]) -> io::Result<Ended> {
    let mut gdb = Command::new("gdb");
    // Nothing of the user's, nothing from the network, and the libraries that belong to threads.
    gdb.env_remove("DEBUGINFOD_URLS").args(["-nx", "-batch"]);
    for setting in ["debuginfod enabled off", "auto-load safe-path /", "width 0"] {
        gdb.arg("-iex").arg(format!("set {setting}"));
    }
    for command in commands {
        gdb.args(["-ex", command]);
    }
    run::to_end(gdb.arg(program).arg(core), b"")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_is_found_in_a_report() {
        let report = "Core      /r/core (5 KiB)\n          gdb /usr/bin/server /r/core\n\nInput\n";
        let expected = ("/usr/bin/server".to_owned(), "/r/core".to_owned());
        assert_eq!(command(report), Some(expected));
        assert_eq!(command("Core      none: no room\n"), None);
    }
}
