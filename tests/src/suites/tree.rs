//! The two copies of a suite's built source package: in one the server is there, in the other the monitor.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use super::{Suite, SuiteError, run, source};
use crate::{guest, packages};

/// A built suite.
pub struct Trees {
    /// With the server.
    pub native: PathBuf,
    /// With the monitor in the server's place.
    pub monitored: PathBuf,
    /// Where the monitor writes its events.
    pub events: PathBuf,
}

/// The trees of `suite` in `work`, got and built unless they are there. `monitor` is the command that the server's path
/// and arguments are put behind.
pub fn built(suite: &Suite, work: &Path, monitor: &[String]) -> Result<Trees, SuiteError> {
    let missing = packages::missing_of(suite.packages).map_err(SuiteError::io(work))?;
    if !missing.is_empty() {
        return Err(SuiteError::Packages(packages::install_command(&missing)));
    }
    let dir = work.join(suite.source);
    if !dir.is_dir() {
        // Built beside its place and renamed: an interrupted run leaves no half of a tree.
        fs::create_dir_all(work).map_err(SuiteError::io(work))?;
        let fresh = tempfile::Builder::new().prefix("fresh-").tempdir_in(work);
        let fresh = fresh.map_err(SuiteError::io(work))?;
        let unpacked = source::unpacked(suite.source, fresh.path())?;
        (suite.build)(&unpacked)?;
        let trees = fresh.path().join("trees");
        fs::create_dir(&trees).map_err(SuiteError::io(&trees))?;
        copy(&unpacked, &trees.join("monitored"))?;
        fs::rename(&unpacked, trees.join("native")).map_err(SuiteError::io(&trees))?;
        fs::rename(&trees, &dir).map_err(SuiteError::io(&dir))?;
    }
    let trees = Trees {
        native: dir.join("native"),
        monitored: dir.join("monitored"),
        events: dir.join("events"),
    };
    let server = trees.native.join(suite.server);
    let mut command = monitor.to_vec();
    command.extend(["--events", &trees.events.to_string_lossy()].map(str::to_owned));
    command.extend(["--report-dir", &dir.join("reports").to_string_lossy()].map(str::to_owned));
    command.extend(suite.options.iter().map(|option| (*option).to_owned()));
    command.extend(["--".to_owned(), server.to_string_lossy().into_owned()]);
    let stand_in = trees.monitored.join(suite.server);
    place(&stand_in, &command).map_err(SuiteError::io(&stand_in))?;
    // In place only when the words are: it finds them by its own name.
    fs::copy(guest::program("stand_in")?, &stand_in).map_err(SuiteError::io(&stand_in))?;
    Ok(trees)
}

/// Writes the command that the stand-in executes.
fn place(stand_in: &Path, command: &[String]) -> io::Result<()> {
    let mut name = stand_in.as_os_str().to_owned();
    name.push(".command");
    fs::write(name, command.join("\n") + "\n")
}

/// With all attributes and links.
fn copy(from: &Path, to: &Path) -> Result<(), SuiteError> {
    run(Command::new("cp").arg("-a").arg(from).arg(to))
}
