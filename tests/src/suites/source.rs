//! Debian's source packages, got with `apt-get source`. apt's configuration is left as it is: the sources of the
//! system's binary packages are asked for in a configuration of this program's own.

use std::{
    ffi::OsString,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::{SuiteError, run};
use crate::packages;

/// The directory of the unpacked source of `package`, in the empty directory `dir`.
pub fn unpacked(package: &str, dir: &Path) -> Result<PathBuf, SuiteError> {
    let missing = packages::missing_of(&["dpkg-dev"]).map_err(SuiteError::io(dir))?;
    if !missing.is_empty() {
        return Err(SuiteError::Packages(packages::install_command(&missing)));
    }
    let apt = apt(dir).map_err(SuiteError::io(dir))?;
    // A source that is not there is no matter as long as another one has the package.
    let _ = run(Command::new("apt-get")
        .args(&apt)
        .arg("--quiet")
        .arg("update"));
    let mut get = Command::new("apt-get");
    get.args(&apt).args(["--quiet", "source", package]);
    run(get.current_dir(dir)).map_err(|_| SuiteError::NoSource(package.to_owned()))?;
    let listed = dir.read_dir().map_err(SuiteError::io(dir))?;
    let mut paths = listed.filter_map(|entry| Some(entry.ok()?.path()));
    let found = paths.find(|path| path.join("debian").is_dir());
    found.ok_or_else(|| SuiteError::NoSource(package.to_owned()))
}

/// apt's options for source packages; its lists are kept in `dir`.
fn apt(dir: &Path) -> std::io::Result<Vec<OsString>> {
    let (parts, lists) = (dir.join("apt/parts"), dir.join("apt/lists"));
    fs::create_dir_all(&parts)?;
    fs::create_dir_all(lists.join("partial"))?;
    let etc = Path::new("/etc/apt");
    let in_parts = etc.join("sources.list.d").read_dir().into_iter().flatten();
    let files = in_parts.filter_map(|entry| Some(entry.ok()?.path()));
    for file in files.chain([etc.join("sources.list")]) {
        if let (Some(name), Ok(text)) = (file.file_name(), fs::read_to_string(&file)) {
            fs::write(parts.join(name), of_sources(&text))?;
        }
    }
    let option = |name: &str, value: &Path| {
        let mut option = OsString::from(format!("{name}="));
        option.push(value);
        ["-o".into(), option]
    };
    let options = [
        option("Dir::Etc::SourceList", Path::new("/dev/null")),
        option("Dir::Etc::SourceParts", &parts),
        option("Dir::State::Lists", &lists),
    ];
    Ok(options.concat())
}

/// A list of sources of binary packages, as one of source packages, in either format.
fn of_sources(list: &str) -> String {
    let line = |line: &str| {
        if line.starts_with("Types:") {
            "Types: deb-src\n".to_owned()
        } else if let Some(rest) = line.strip_prefix("deb ") {
            format!("deb-src {rest}\n")
        } else {
            format!("{line}\n")
        }
    };
    list.lines().map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_formats_ask_for_sources() {
        assert_eq!(
            of_sources("# deb x\ndeb [a=b] http://h/ s main\n"),
            "# deb x\ndeb-src [a=b] http://h/ s main\n"
        );
        assert_eq!(
            of_sources("Types: deb\nURIs: http://h/\n"),
            "Types: deb-src\nURIs: http://h/\n"
        );
    }
}
