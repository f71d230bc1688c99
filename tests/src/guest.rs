//! Small C programs that the tests run as guests, from `tests/programs`. They are compiled on first
//! use; each prints what it saw, so that a run under the monitor can be compared with a native one.

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

/// The program of `tests/programs/NAME.c`, linked as asked. It is compiled unless it is there and
/// newer than its source and the header that sources share.
pub fn linked(name: &str, linkage: Linkage) -> Result<PathBuf, BuildError> {
    let failed = |source| BuildError::Io {
        program: name.to_owned(),
        source,
    };
    let source = source_dir().join(name).with_extension("c");
    let header = source_dir().join("serve.h");
    let dir = paths::profile_dir().map_err(failed)?.join("guest-programs");
    fs::create_dir_all(&dir).map_err(failed)?;
    let target = dir.join(format!("{name}{}", linkage.suffix()));
    if is_newer(&target, &source) && is_newer(&target, &header) {
        return Ok(target);
    }
    // Tests run side by side, in several processes: each compiles a file of its own, and the
    // renaming puts a complete program in place.
    let fresh = tempfile::Builder::new()
        .prefix(name)
        .tempdir_in(&dir)
        .map_err(failed)?;
    let output = fresh.path().join("program");
    let mut cc = Command::new("cc");
    cc.args([
        "-std=gnu11",
        "-O1",
        "-g",
        "-Wall",
        "-Wextra",
        "-Werror",
        "-pthread",
    ]);
    cc.args(linkage.flags()).arg("-o").arg(&output).arg(&source);
    let compiled = cc.output().map_err(failed)?;
    if !compiled.status.success() {
        return Err(BuildError::Refused {
            program: name.to_owned(),
            messages: String::from_utf8_lossy(&compiled.stderr).into_owned(),
        });
    }
    fs::rename(&output, &target).map_err(failed)?;
    Ok(target)
}

fn source_dir() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("programs")
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
        for entry in fs::read_dir(source_dir()).unwrap() {
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
}
