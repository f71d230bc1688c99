//! What the lane takes from Debian: programs, which have to be installed, and the cloud kernel,
//! which is only downloaded and unpacked into the target directory, once.

use std::{
    env, fs, io,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use crate::paths;

/// Depends on the current kernel of the release.
const KERNEL_META_PACKAGE: &str = "linux-image-cloud-amd64";

/// Programs that the lane uses, and the package of each.
const PROGRAMS: [(&str, &str); 6] = [
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("busybox", "busybox-static"),
    ("redis-server", "redis-server"),
    ("memcached", "memcached"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
];

/// Why a program or the kernel is not there.
#[derive(Debug, thiserror::Error)]
pub enum PackageError {
    /// A package is not installed.
    #[error("{program} is missing: install its Debian package (`apt-get install {package}`)")]
    NotInstalled {
        /// The program that was looked for.
        program: String,
        /// The package it is in.
        package: String,
    },
    /// apt knows no cloud kernel.
    #[error(
        "apt knows no package {KERNEL_META_PACKAGE}, whose kernel the nested-paging lane boots: \
         run `apt-get update` on Debian"
    )]
    NoKernelPackage,
    /// A package tool failed.
    #[error(
        "`{command}` failed, so there is no kernel for the nested-paging lane; if the package \
         lists are old, `apt-get update` helps:\n{stderr}"
    )]
    Command {
        /// The command line.
        command: String,
        /// What it said.
        stderr: String,
    },
    /// A file could not be used.
    #[error("cannot unpack the kernel of the nested-paging lane in {path}")]
    Io {
        /// The directory or file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
}

/// Finds an installed program on the search path, and where an administrator's programs are.
pub fn program(name: &str) -> Result<PathBuf, PackageError> {
    let path = env::var_os("PATH").unwrap_or_default();
    let dirs = env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    dirs.map(|dir| dir.join(name))
        .find(|file| is_executable(file))
        .ok_or_else(|| {
            let package = PROGRAMS
                .iter()
                .find(|(program, _)| *program == name)
                .map(|(_, package)| *package);
            PackageError::NotInstalled {
                program: name.to_owned(),
                package: package.unwrap_or(name).to_owned(),
            }
        })
}

fn is_executable(path: &Path) -> bool {
    path.metadata()
        .is_ok_and(|meta| meta.is_file() && meta.permissions().mode() & 0o111 != 0)
}

/// An unpacked kernel package.
#[derive(Clone, Debug)]
pub struct Kernel {
    /// What `dpkg-deb` unpacked, with the kernel's version in the file names.
    dir: PathBuf,
    version: String,
}

impl Kernel {
    /// The kernel image.
    pub fn vmlinuz(&self) -> PathBuf {
        self.dir
            .join("boot")
            .join(format!("vmlinuz-{}", self.version))
    }

    /// The directory with the modules.
    pub fn modules(&self) -> PathBuf {
        // Debian 13 moved it below /usr.
        let merged = self.dir.join("usr/lib/modules").join(&self.version);
        if merged.is_dir() {
            merged
        } else {
            self.dir.join("lib/modules").join(&self.version)
        }
    }

    /// The kernel in an unpacked package, if there is one.
    fn unpacked(dir: &Path) -> Option<Self> {
        let boot = fs::read_dir(dir.join("boot")).ok()?;
        let version = boot.filter_map(Result::ok).find_map(|entry| {
            let name = entry.file_name();
            name.to_str()?.strip_prefix("vmlinuz-").map(str::to_owned)
        })?;
        Some(Self {
            dir: dir.to_path_buf(),
            version,
        })
    }
}

/// The kernel the lane boots: the one in the target directory, else it is downloaded into it.
/// `cargo clean` makes the next run take the newest.
pub fn kernel() -> Result<Kernel, PackageError> {
    let io_error = |path: &Path| {
        let path = path.to_path_buf();
        move |source| PackageError::Io { path, source }
    };
    let cache = paths::target_dir()
        .map_err(io_error(Path::new("target")))?
        .join("npt-lane");
    let dir = cache.join("kernel");
    if let Some(kernel) = Kernel::unpacked(&dir) {
        return Ok(kernel);
    }
    fs::create_dir_all(&cache).map_err(io_error(&cache))?;
    // Unpacked beside its place and renamed: an interrupted run leaves no half of a kernel.
    let fresh = tempfile::Builder::new()
        .prefix("fresh-")
        .tempdir_in(&cache)
        .map_err(io_error(&cache))?;
    download(fresh.path())?;
    let unpacked = fresh.path().join("unpacked");
    match fs::rename(&unpacked, &dir) {
        // Another run was faster.
        Err(error) if error.kind() == io::ErrorKind::DirectoryNotEmpty => Ok(()),
        result => result,
    }
    .map_err(io_error(&dir))?;
    Kernel::unpacked(&dir).ok_or(PackageError::NoKernelPackage)
}

/// Downloads the kernel package into `dir` and unpacks it into its subdirectory `unpacked`.
fn download(dir: &Path) -> Result<(), PackageError> {
    let package = kernel_package()?;
    run(Command::new(program("apt-get")?)
        .args(["download", &package])
        .current_dir(dir))?;
    let listed = fs::read_dir(dir).map_err(|source| PackageError::Io {
        path: dir.to_path_buf(),
        source,
    })?;
    let deb = listed
        .filter_map(Result::ok)
        .map(|entry| entry.path())
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .ok_or(PackageError::NoKernelPackage)?;
    run(Command::new(program("dpkg-deb")?)
        .arg("-x")
        .arg(deb)
        .arg(dir.join("unpacked")))?;
    Ok(())
}

/// The package with the release's current cloud kernel, such as `linux-image-6.1.0-9-cloud-amd64`.
fn kernel_package() -> Result<String, PackageError> {
    let mut apt_cache = Command::new("apt-cache");
    apt_cache.args(["show", "--no-all-versions", KERNEL_META_PACKAGE]);
    // apt-cache fails for a package it does not know, which is no news about the machine.
    let shown = run(&mut apt_cache).map_err(|_| PackageError::NoKernelPackage)?;
    parse_depends(&shown).ok_or(PackageError::NoKernelPackage)
}

/// The kernel among the dependencies in apt-cache's description of the meta package.
fn parse_depends(shown: &str) -> Option<String> {
    let depends = shown
        .lines()
        .find_map(|line| line.strip_prefix("Depends:"))?;
    let names = depends
        .split([',', '|'])
        .filter_map(|dependency| dependency.split_whitespace().next());
    names
        .into_iter()
        .find(|name| name.starts_with("linux-image-"))
        .map(str::to_owned)
}

/// Runs a tool and returns its standard output.
fn run(command: &mut Command) -> Result<String, PackageError> {
    let result = command.env("LC_ALL", "C").stdin(Stdio::null()).output();
    let failed = |stderr: String| {
        let words = [command.get_program()]
            .into_iter()
            .chain(command.get_args());
        let words: Vec<_> = words.map(|word| word.to_string_lossy()).collect();
        PackageError::Command {
            command: words.join(" "),
            stderr,
        }
    };
    match result {
        Ok(output) if output.status.success() => {
            Ok(String::from_utf8_lossy(&output.stdout).into_owned())
        }
        Ok(output) => Err(failed(String::from_utf8_lossy(&output.stderr).into_owned())),
        Err(error) => Err(failed(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernel_is_found_in_the_meta_package() {
        let shown = "Package: linux-image-cloud-amd64\n\
                     Depends: linux-image-6.1.0-9-cloud-amd64 (= 6.1.27-1), other\n";
        assert_eq!(
            parse_depends(shown).as_deref(),
            Some("linux-image-6.1.0-9-cloud-amd64")
        );
        assert_eq!(parse_depends("Package: x\n"), None);
    }

    #[test]
    fn a_missing_program_names_its_package() {
        let error = program("no-such-program").unwrap_err();
        assert!(
            error
                .to_string()
                .contains("apt-get install no-such-program"),
            "{error}"
        );
        assert!(program("sh").is_ok());
    }

    #[test]
    fn an_unpacked_package_is_recognized() {
        let dir = tempfile::tempdir().unwrap();
        assert!(Kernel::unpacked(dir.path()).is_none());
        fs::create_dir(dir.path().join("boot")).unwrap();
        fs::write(dir.path().join("boot/config-6.1"), "").unwrap();
        fs::write(dir.path().join("boot/vmlinuz-6.1"), "").unwrap();
        let kernel = Kernel::unpacked(dir.path()).unwrap();
        assert!(kernel.vmlinuz().ends_with("boot/vmlinuz-6.1"));
        assert!(kernel.modules().ends_with("lib/modules/6.1"));
    }
}
