//! Where the build put things: the tests use the `vmsrs` of their own target directory.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

/// Environment variable that names another `vmsrs` to test.
pub const VMSRS_BIN: &str = "VMSRS_BIN";

/// Why there is no monitor to test.
#[derive(Debug, thiserror::Error)]
pub enum NoMonitor {
    /// The file is not there.
    #[error(
        "there is no monitor at {0}: build it first with `cargo build -p vmm` (and `--release` for \
         release tests), or name one with {VMSRS_BIN}=PATH"
    )]
    Missing(PathBuf),
    /// The test program does not know where it is itself.
    #[error("the path of this test program is not known")]
    Here(#[source] io::Error),
}

/// The `vmsrs` binary under test: the one `VMSRS_BIN` names, else the one of the profile this
/// program was built with. Cargo does not build another package's binary for an integration
/// test, so whoever runs the tests builds it first, as `run-tests` does.
pub fn vmsrs() -> Result<PathBuf, NoMonitor> {
    let path = match env::var_os(VMSRS_BIN) {
        Some(path) => PathBuf::from(path),
        None => profile_dir().map_err(NoMonitor::Here)?.join("vmsrs"),
    };
    // Servers are started in a directory of their own, so a relative path would not be found.
    path.canonicalize().map_err(|_| NoMonitor::Missing(path))
}

/// The directory of the profile this program was built with, such as `target/release`.
pub fn profile_dir() -> io::Result<PathBuf> {
    let exe = env::current_exe()?;
    profile_dir_of(&exe).map(Path::to_path_buf).ok_or_else(|| {
        io::Error::new(
            io::ErrorKind::NotFound,
            format!("{} is not in a target directory", exe.display()),
        )
    })
}

/// The test program `NAME` of this package: the file of `tests/NAME.rs` that was built last.
pub fn test_program(name: &str) -> io::Result<PathBuf> {
    let is_it = |path: &Path| {
        let file = path.file_name().and_then(|file| file.to_str());
        let hash = file.and_then(|file| file.strip_prefix(name)?.strip_prefix('-'));
        hash.is_some_and(|hash| hash.chars().all(|c| c.is_ascii_hexdigit()))
    };
    let mut newest = None;
    for entry in fs::read_dir(profile_dir()?.join("deps"))? {
        let entry = entry?;
        if is_it(&entry.path()) {
            newest = newest.max(Some((entry.metadata()?.modified()?, entry.path())));
        }
    }
    let none = || io::Error::new(io::ErrorKind::NotFound, format!("no test program {name}"));
    newest.map(|(_, path)| path).ok_or_else(none)
}

/// The target directory this program was built into.
pub fn target_dir() -> io::Result<PathBuf> {
    let profile = profile_dir()?;
    Ok(profile.parent().unwrap_or(&profile).to_path_buf())
}

/// The root of the workspace.
pub fn workspace_dir() -> &'static Path {
    let package = Path::new(env!("CARGO_MANIFEST_DIR"));
    package.parent().unwrap_or(package)
}

/// Programs lie in the profile directory itself, test programs in its `deps`.
fn profile_dir_of(exe: &Path) -> Option<&Path> {
    let dir = exe.parent()?;
    if dir.ends_with("deps") {
        dir.parent()
    } else {
        Some(dir)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_profile_directory_is_found_from_programs_and_from_tests() {
        let release = Path::new("/t/release");
        assert_eq!(
            profile_dir_of(Path::new("/t/release/run-tests")),
            Some(release)
        );
        assert_eq!(
            profile_dir_of(Path::new("/t/release/deps/npt_lane-0a1b")),
            Some(release)
        );
    }
}
