//! Which file runs: the search in `PATH`, and `#!` lines.

use std::ffi::{OsStr, OsString};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use guest_agentless::script::{self, ScriptError};

use super::error::refuse;
use super::file::{ProgramFile, may_execute};
use super::{LoadError, Program, Unusable};

/// How many scripts may each be run by the next. Linux's own comment says four, and its code
/// (`exec_binprm`) lets five pass.
pub const MAX_SCRIPTS: usize = 5;

/// Where programs are if there is no `PATH`, as glibc has it.
const DEFAULT_PATH: &str = "/bin:/usr/bin";

/// Finds a program as `execvp` does: a name with a slash is a path; any other is looked for in the
/// directories of `path`, of which an empty one is the working directory.
///
/// A candidate that cannot be executed is passed over, but it makes the error "not executable" instead of
/// "not found" if there is no other.
pub fn find_program(name: &OsStr, path: Option<&OsStr>) -> Result<PathBuf, LoadError> {
    if name.is_empty() {
        return Err(LoadError::NotFound(name.into()));
    }
    if name.as_bytes().contains(&b'/') {
        return Ok(name.into());
    }
    let path = path.unwrap_or(OsStr::new(DEFAULT_PATH));
    let mut refused = None;
    for directory in path.as_bytes().split(|byte| *byte == b':') {
        let candidate = Path::new(OsStr::from_bytes(directory)).join(name);
        match check_candidate(&candidate) {
            Ok(()) => return Ok(candidate),
            Err(source @ (Unusable::PermissionDenied | Unusable::NotRegular)) => {
                refused.get_or_insert(LoadError::NotExecutable {
                    path: candidate,
                    source,
                });
            }
            Err(_) => {}
        }
    }
    Err(refused.unwrap_or(LoadError::NotFound(name.into())))
}

/// Whether `execve` would take it, as far as permissions go. Shells pass over directories silently.
fn check_candidate(candidate: &Path) -> Result<(), Unusable> {
    match fs::metadata(candidate)?.file_type() {
        t if t.is_dir() => Err(Unusable::Directory),
        t if !t.is_file() => Err(Unusable::NotRegular),
        _ if !may_execute(candidate)? => Err(Unusable::PermissionDenied),
        _ => Ok(()),
    }
}

/// The file that is to be loaded in the end.
#[derive(Debug)]
pub struct Target {
    /// The file.
    pub file: ProgramFile,
    /// Its path, as the user or the last `#!` line gives it.
    pub path: PathBuf,
    /// The arguments, those of the `#!` lines included; at least one.
    pub args: Vec<OsString>,
}

/// Goes from script to interpreter until there is something that is no script.
pub fn follow_scripts(program: &Program<'_>) -> Result<Target, LoadError> {
    let mut args = program.args.to_vec();
    if args.is_empty() {
        // As the kernel does: too many programs rely on an argv[0].
        args.push(OsString::new());
    }
    let mut path = program.path.to_owned();
    for _ in 0..=MAX_SCRIPTS {
        let refuse = |source| refuse(program.path, &path, source);
        let file = ProgramFile::open(&path).map_err(refuse)?;
        match script::parse(file.head()) {
            Ok(line) => {
                let interpreter = line.interpreter.to_owned();
                let script = std::mem::replace(&mut path, interpreter.clone().into());
                let first = std::iter::once(interpreter)
                    .chain(line.argument.map(OsStr::to_owned))
                    .chain(std::iter::once(script.into()));
                args.splice(..1, first);
            }
            Err(ScriptError::NotAScript) if file.head().starts_with(b"\x7fELF") => {
                return Ok(Target { file, path, args });
            }
            Err(ScriptError::NotAScript) => return Err(refuse(Unusable::ExecFormat)),
            Err(error) => return Err(refuse(Unusable::Script(error))),
        }
    }
    Err(LoadError::TooManyScripts(program.path.into()))
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::os::unix::fs::PermissionsExt;
    use std::process::Command;

    use super::*;

    fn write(path: &Path, contents: &str, mode: u32) {
        fs::write(path, contents).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }

    /// What a program prints when the host runs it; none if the host refuses.
    fn native(path: &Path) -> Option<String> {
        loop {
            match Command::new(path).arg("x").output() {
                // A test that forked at the wrong moment holds the file open for writing.
                Err(error) if error.kind() == io::ErrorKind::ExecutableFileBusy => {}
                result => return result.ok().map(|o| String::from_utf8(o.stdout).unwrap()),
            }
        }
    }

    #[test]
    fn scripts_are_followed_as_the_kernel_does() {
        let directory = tempfile::tempdir().unwrap();
        let mut interpreter = PathBuf::from("/bin/echo");
        for index in 0..MAX_SCRIPTS + 2 {
            let path = directory.path().join(format!("script{index}"));
            let line = format!("#! {} -a {index} \n", interpreter.display());
            write(&path, &line, 0o755);
            let args = ["dropped".into(), "x".into()];
            let program = Program {
                path: &path,
                args: &args,
                environment: &[],
            };
            let followed = match follow_scripts(&program) {
                Ok(target) => {
                    assert_eq!(target.path, Path::new("/bin/echo"));
                    assert_eq!(target.args[0], "/bin/echo");
                    Some(
                        target.args[1..]
                            .join(OsStr::new(" "))
                            .into_string()
                            .unwrap()
                            + "\n",
                    )
                }
                Err(LoadError::TooManyScripts(_)) => None,
                Err(error) => panic!("{error}"),
            };
            assert_eq!(followed, native(&path), "script {index}");
            interpreter = path;
        }
    }

    #[test]
    fn a_name_with_a_slash_is_a_path() {
        let found = find_program(OsStr::new("./no/such"), Some(OsStr::new("/bin")));
        assert_eq!(found.unwrap(), Path::new("./no/such"));
    }

    #[test]
    fn the_path_is_searched_in_order() {
        let directory = tempfile::tempdir().unwrap();
        for name in ["directory", "plain", "good"] {
            fs::create_dir(directory.path().join(name)).unwrap();
        }
        let at = |name: &str| directory.path().join(name).join("program");
        fs::create_dir(at("directory")).unwrap();
        write(&at("plain"), "#!/bin/sh\n", 0o644);
        write(&at("good"), "#!/bin/sh\n", 0o755);
        let search = |directories: &[&str]| {
            let path = directories.iter().map(|name| directory.path().join(name));
            let path = std::env::join_paths(path).unwrap();
            find_program(OsStr::new("program"), Some(&path))
        };
        assert_eq!(
            search(&["none", "directory", "plain", "good"]).unwrap(),
            at("good")
        );
        let error = search(&["none", "directory", "plain"]).unwrap_err();
        assert_eq!(error.exit_status(), 126);
        assert!(matches!(error, LoadError::NotExecutable { path, .. } if path == at("plain")));
        let error = search(&["none", "directory"]).unwrap_err();
        assert_eq!(
            (error.to_string().as_str(), error.exit_status()),
            ("program: not found", 127)
        );
    }

    #[test]
    fn a_missing_or_empty_path() {
        assert_eq!(
            find_program(OsStr::new("true"), None).unwrap(),
            Path::new("/bin/true")
        );
        assert!(find_program(OsStr::new("true"), Some(OsStr::new(""))).is_err());
        assert_eq!(
            find_program(OsStr::new(""), None)
                .unwrap_err()
                .exit_status(),
            127
        );
        // An empty directory is the working directory, which for tests is the package's.
        let plain = find_program(OsStr::new("Cargo.toml"), Some(OsStr::new("/none:")));
        assert_eq!(plain.unwrap_err().exit_status(), 126);
    }
}
