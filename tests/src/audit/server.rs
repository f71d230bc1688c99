//! Builds the guest.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

/// Why there is no guest.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// A file or the compiler could not be used.
    #[error("cannot build a server of the tests (tests/packages.txt names the packages)")]
    Io(#[from] io::Error),
    /// The compiler refused it.
    #[error("a server of the tests does not compile:\n{0}")]
    Refused(String),
}

/// Compiles `tests/guest/random-server` into `dir` and returns the program.
pub fn build(dir: &Path) -> Result<PathBuf, BuildError> {
    compile(dir, "random-server", sources("random-server")?)
}

/// Compiles `tests/guest/NAME` into `dir`, with all of the random server but its main program.
pub fn build_with_fixtures(dir: &Path, name: &str) -> Result<PathBuf, BuildError> {
    let mut files = sources("random-server")?;
    files.retain(|file| !file.ends_with("main.c"));
    files.extend(sources(name)?);
    compile(dir, name, files)
}

fn sources(name: &str) -> io::Result<Vec<PathBuf>> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("guest")
        .join(name);
    let mut files = Vec::new();
    for entry in fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            files.push(path);
        }
    }
    files.sort();
    Ok(files)
}

fn compile(dir: &Path, name: &str, files: Vec<PathBuf>) -> Result<PathBuf, BuildError> {
    let program = dir.join(name);
    let mut cc = Command::new("cc");
    cc.args(["-std=c11", "-D_GNU_SOURCE", "-O1", "-g", "-pthread"]);
    cc.args(["-fno-omit-frame-pointer", "-Wall", "-Wextra", "-Werror"]);
    let compiled = cc.arg("-o").arg(&program).args(files).output()?;
    if compiled.status.success() {
        Ok(program)
    } else {
        let messages = String::from_utf8_lossy(&compiled.stderr).into_owned();
        Err(BuildError::Refused(messages))
    }
}
