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
    #[error("cannot build the random server (tests/packages.txt names the packages)")]
    Io(#[from] io::Error),
    /// The compiler refused it.
    #[error("the random server does not compile:\n{0}")]
    Refused(String),
}

/// Compiles `tests/guest/random-server` into `dir` and returns the program.
pub fn build(dir: &Path) -> Result<PathBuf, BuildError> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("guest/random-server");
    let mut files = Vec::new();
    for entry in fs::read_dir(source)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "c") {
            files.push(path);
        }
    }
    files.sort();
    let program = dir.join("random-server");
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
