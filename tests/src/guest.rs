//! Programs that the tests run as guests, compiled on first use: small ones of one file from `tests/programs`, and servers
//! from `tests/guest`, in C, C++, Go and Java.

use std::{
    fs, io,
    path::{Path, PathBuf},
    process::Command,
};

use crate::paths;

/// How a guest program is linked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Linkage {
    /// Position-independent, with the dynamic loader: the default of Debian's compiler.
    Dynamic,
    /// Dynamic, at a fixed address.
    NonPie,
    /// Without a dynamic loader, at a fixed address.
    Static,
    /// Position-independent, relocating itself.
    StaticPie,
}

impl Linkage {
    /// Every way to link.
    pub const ALL: [Self; 4] = [Self::Dynamic, Self::NonPie, Self::Static, Self::StaticPie];

    fn flags(self) -> &'static [&'static str] {
        match self {
            Self::Dynamic => &["-fPIE", "-pie"],
            Self::NonPie => &["-fno-pie", "-no-pie"],
            Self::Static => &["-fno-pie", "-no-pie", "-static"],
            Self::StaticPie => &["-fPIE", "-static-pie"],
        }
    }

    fn suffix(self) -> &'static str {
        match self {
            Self::Dynamic => "",
            Self::NonPie => "-nonpie",
            Self::Static => "-static",
            Self::StaticPie => "-static-pie",
        }
    }
}

/// Why there is no such guest program.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The compiler could not be run, or a file not be written.
    #[error("cannot build the guest program {program} (tests/packages.txt names the packages)")]
    Io {
        /// The program.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The compiler refused it.
    #[error("{program} does not compile:\n{messages}")]
    Refused {
        /// The program.
        program: String,
        /// What the compiler said.
        messages: String,
    },
}

/// The dynamic program of `tests/programs/NAME.c`.
pub fn program(name: &str) -> Result<PathBuf, BuildError> {
    linked(name, Linkage::Dynamic)
}

/// The program of `tests/programs/NAME.c`, linked as asked.
pub fn linked(name: &str, linkage: Linkage) -> Result<PathBuf, BuildError> {
    let sources = || {
        let dir = package_dir().join("programs");
        let file = dir.join(name).with_extension("c");
        Ok(Sources {
            headers: vec![dir.join("serve.h")],
            files: vec![file],
        })
    };
    let target = format!("{name}{}", linkage.suffix());
    compiled(name, &target, sources, |sources, output| {
        gcc(sources, output, linkage.flags())
    })
}

/// The server of all files in `tests/guest/NAME`, or in `tests/NAME` for the demo server.
pub fn server(name: &str) -> Result<PathBuf, BuildError> {
    compiled(
        name,
        name,
        || Sources::of_server(name),
        |sources, output| gcc(sources, output, &[]),
    )
}

/// The server in Go of `tests/guest/NAME`.
pub fn go_server(name: &str) -> Result<PathBuf, BuildError> {
    compiled(
        name,
        name,
        || Sources::of_server(name),
        |sources, output| {
            let mut go = Command::new("go");
            go.args(["build", "-o"]).arg(output).args(&sources.files);
            // What it needs to know of the libraries comes with them.
            go.env("GO111MODULE", "off")
                .env("GOCACHE", output.with_extension("cache"));
            go
        },
    )
}

/// The class `Server` of `tests/guest/NAME`, of one file in Java.
pub fn java_server(name: &str) -> Result<PathBuf, BuildError> {
    let sources = || Sources::of_server(name);
    compiled(name, "Server.class", sources, |sources, output| {
        let mut javac = Command::new("javac");
        javac.arg("-d").args(output.parent()).args(&sources.files);
        javac
    })
}

/// As [`server`], with all of the random server but its main program.
pub fn server_with_fixtures(name: &str) -> Result<PathBuf, BuildError> {
    let sources = || {
        let mut all = Sources::of_server("random-server")?;
        all.files.retain(|file| !file.ends_with("main.c"));
        let own = Sources::of_server(name)?;
        all.files.extend(own.files);
        all.headers.extend(own.headers);
        Ok(all)
    };
    compiled(name, name, sources, |sources, output| {
        gcc(sources, output, &[])
    })
}

struct Sources {
    files: Vec<PathBuf>,
    headers: Vec<PathBuf>,
}

impl Sources {
    fn of_server(name: &str) -> io::Result<Sources> {
        let dirs = [
            package_dir().join("guest").join(name),
            package_dir().join(name),
        ];
        let dir = dirs.iter().find(|dir| dir.is_dir()).unwrap_or(&dirs[0]);
        let mut sources = Sources {
            files: Vec::new(),
            headers: Vec::new(),
        };
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            match path.extension().and_then(|extension| extension.to_str()) {
                Some("c" | "cc" | "go" | "java") => sources.files.push(path),
                Some("h") => sources.headers.push(path),
                _ => {}
            }
        }
        sources.files.sort();
        Ok(sources)
    }

    fn are_older_than(&self, target: &Path) -> bool {
        let mut all = self.files.iter().chain(&self.headers);
        all.all(|source| is_newer(target, source))
    }
}

const FLAGS: [&str; 11] = [
    "-D_GNU_SOURCE",
    "-O1",
    "-g",
    "-pthread",
    "-fno-omit-frame-pointer",
    // As Debian's own packages have it.
    "-fstack-protector-strong",
    "-Wall",
    "-Wextra",
    "-Werror",
    // Some overflow on purpose.
    "-Wno-error=stringop-overflow",
    "-Wno-error=use-after-free",
];

fn gcc(sources: &Sources, output: &Path, flags: &[&str]) -> Command {
    let mut cc = Command::new("gcc");
    cc.args(FLAGS).args(flags).arg("-o").arg(output);
    cc.args(&sources.files).arg("-lm");
    if sources
        .files
        .iter()
        .any(|file| file.extension().is_some_and(|extension| extension == "cc"))
    {
        cc.arg("-lstdc++");
    }
    cc
}

/// The program `target`. It is compiled unless it is there and newer than its sources. Where there are no sources at
/// all, as in the nested-paging lane, it was brought along. `compiler` makes the command that writes it from them.
fn compiled(
    name: &str,
    target: &str,
    sources: impl FnOnce() -> io::Result<Sources>,
    compiler: impl FnOnce(&Sources, &Path) -> Command,
) -> Result<PathBuf, BuildError> {
    let failed = |source| BuildError::Io {
        program: name.to_owned(),
        source,
    };
    let dir = paths::profile_dir().map_err(failed)?.join("guest-programs");
    let file_name = target;
    let target = dir.join(file_name);
    if !package_dir().is_dir() && target.is_file() {
        return Ok(target);
    }
    let sources = sources().map_err(failed)?;
    if sources.are_older_than(&target) {
        return Ok(target);
    }
    fs::create_dir_all(&dir).map_err(failed)?;
    // Tests run side by side, in several processes: each compiles a file of its own, and the
    // renaming puts a complete program in place.
    let fresh = tempfile::Builder::new()
        .prefix(name)
        .tempdir_in(&dir)
        .map_err(failed)?;
    let output = fresh.path().join(file_name);
    let compiled = compiler(&sources, &output).output().map_err(failed)?;
    if !compiled.status.success() {
        return Err(BuildError::Refused {
            program: name.to_owned(),
            messages: String::from_utf8_lossy(&compiled.stderr).into_owned(),
        });
    }
    fs::rename(&output, &target).map_err(failed)?;
    Ok(target)
}

fn package_dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn is_newer(target: &Path, source: &Path) -> bool {
    let modified = |path: &Path| fs::metadata(path).and_then(|meta| meta.modified()).ok();
    matches!((modified(target), modified(source)), (Some(t), Some(s)) if t > s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_program_compiles_in_every_way() {
        for entry in fs::read_dir(package_dir().join("programs")).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "h") {
                continue;
            }
            let name = path.file_stem().and_then(|stem| stem.to_str()).unwrap();
            for linkage in Linkage::ALL {
                if let Err(error) = linked(name, linkage) {
                    panic!("{linkage:?}: {error}");
                }
            }
        }
    }

    #[test]
    fn every_server_compiles() {
        let servers = fs::read_dir(package_dir().join("guest")).unwrap();
        let names = servers.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        for name in names.chain(["demo-server".into()]) {
            let built = match &*name {
                "effects-server" => server_with_fixtures(&name),
                "go-server" => go_server(&name),
                "java-server" => java_server(&name),
                _ => server(&name),
            };
            if let Err(error) = built {
                panic!("{error}");
            }
        }
    }
}
