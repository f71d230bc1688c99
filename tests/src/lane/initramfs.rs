//! The archive the lane boots from: programs with the shared libraries the dynamic linker would
//! load for them, the init script, and a minimal `/etc`.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io::{self, BufWriter},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use super::{
    cpio::{Archive, Kind},
    modules,
    packages::Kernel,
};

const INIT: &str = include_str!("../../lane/init");

/// Mount points and directories that programs expect.
const DIRECTORIES: [&str; 7] = [
    "/dev",
    "/proc",
    "/root",
    "/run",
    "/sys",
    "/tmp",
    "/lane/commands",
];

/// Why the archive could not be made.
#[derive(Debug, thiserror::Error)]
pub enum InitramfsError {
    /// A file could not be read or written.
    #[error("cannot use {path}")]
    File {
        /// The file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// `ldd` could not be run.
    #[error("cannot run ldd (Debian package libc-bin)")]
    Ldd(#[source] io::Error),
    /// `ldd` did not find a library.
    #[error("{program} needs the library {library}, which is not installed")]
    NoLibrary {
        /// The program that needs it.
        program: PathBuf,
        /// Its name.
        library: String,
    },
    /// The kernel has no such module.
    #[error("the kernel's package has no module {0}")]
    NoModule(String),
}

#[derive(Debug)]
enum Content {
    Directory,
    CharDevice(u32, u32),
    Bytes(Vec<u8>),
    /// Read when the archive is written.
    Host(PathBuf),
}

#[derive(Debug)]
struct Entry {
    permissions: u32,
    content: Content,
}

/// An archive under construction. Paths are absolute; parent directories come by themselves.
#[derive(Debug, Default)]
pub struct Initramfs {
    /// By path without the leading slash: the order puts every directory before what it holds.
    entries: BTreeMap<String, Entry>,
}

impl Initramfs {
    /// An empty archive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the init script, which marks its lines with `token`, and what programs expect of `/`.
    pub fn base_system(&mut self, token: &str) {
        for directory in DIRECTORIES {
            self.add(directory, 0o755, Content::Directory);
        }
        // The kernel opens it for PID 1 before anything can be mounted.
        self.add("/dev/console", 0o600, Content::CharDevice(5, 1));
        self.text("/init", 0o755, INIT);
        self.text("/lane/token", 0o644, token);
        self.text("/etc/passwd", 0o644, "root:x:0:0:root:/root:/bin/sh\n");
        self.text("/etc/group", 0o644, "root:x:0:\n");
        self.text("/etc/hosts", 0o644, "127.0.0.1 localhost\n");
    }

    /// Adds the KVM modules of `kernel` and the order in which they have to be loaded.
    pub fn modules(&mut self, kernel: &Kernel) -> Result<(), InitramfsError> {
        let modules = modules::load_order(kernel, "kvm-amd")?;
        let order: String = modules
            .iter()
            .map(|module| format!("{}\n", module.name))
            .collect();
        self.text("/lane/modules/order", 0o644, order);
        for module in modules {
            let path = format!("/lane/modules/{}.ko", module.name);
            self.add(&path, 0o644, Content::Bytes(module.image));
        }
        Ok(())
    }

    /// Adds a file that holds `text`.
    pub fn text(&mut self, path: &str, permissions: u32, text: impl Into<String>) {
        self.add(path, permissions, Content::Bytes(text.into().into_bytes()));
    }

    /// Adds the host's program `host` as `path`, and its libraries where they are on the host.
    pub fn program(&mut self, path: &str, host: &Path) -> Result<(), InitramfsError> {
        self.add(path, 0o755, Content::Host(host.to_path_buf()));
        for library in libraries(host)? {
            let path = library.to_string_lossy().into_owned();
            self.add(&path, 0o755, Content::Host(library));
        }
        Ok(())
    }

    /// Writes the archive, uncompressed: unpacking it would cost the emulated machine seconds.
    pub fn write(&self, path: &Path) -> Result<(), InitramfsError> {
        let failed = |path: &Path, source| InitramfsError::File {
            path: path.to_path_buf(),
            source,
        };
        let file = File::create(path).map_err(|error| failed(path, error))?;
        let mut archive = Archive::new(BufWriter::new(file));
        for (name, entry) in &self.entries {
            let read;
            let (kind, data): (_, &[u8]) = match &entry.content {
                Content::Directory => (Kind::Directory, &[]),
                Content::CharDevice(major, minor) => (Kind::CharDevice(*major, *minor), &[]),
                Content::Bytes(bytes) => (Kind::File, bytes),
                Content::Host(host) => {
                    read = fs::read(host).map_err(|error| failed(host, error))?;
                    (Kind::File, &read)
                }
            };
            let written = archive.entry(name, kind, entry.permissions, data);
            written.map_err(|error| failed(path, error))?;
        }
        archive
            .finish()
            .map(drop)
            .map_err(|error| failed(path, error))
    }

    fn add(&mut self, path: &str, permissions: u32, content: Content) {
        let name = path.trim_start_matches('/');
        for (at, _) in name.match_indices('/') {
            let parent = || Entry {
                permissions: 0o755,
                content: Content::Directory,
            };
            self.entries
                .entry(name[..at].to_owned())
                .or_insert_with(parent);
        }
        self.entries.insert(
            name.to_owned(),
            Entry {
                permissions,
                content,
            },
        );
    }
}

/// The files the dynamic linker would load for `program`, itself included; none if it is static.
fn libraries(program: &Path) -> Result<Vec<PathBuf>, InitramfsError> {
    let mut ldd = Command::new("ldd");
    ldd.arg(program).env("LC_ALL", "C").stdin(Stdio::null());
    let output = ldd.output().map_err(InitramfsError::Ldd)?;
    // For a static program ldd fails and prints no library.
    parse_ldd(&String::from_utf8_lossy(&output.stdout)).map_err(|library| {
        InitramfsError::NoLibrary {
            program: program.to_path_buf(),
            library,
        }
    })
}

/// The paths in ldd's output; the error is a library that was not found.
fn parse_ldd(output: &str) -> Result<Vec<PathBuf>, String> {
    let mut paths = Vec::new();
    for line in output.lines() {
        let (name, found) = line.split_once("=>").unwrap_or((line, line));
        if found.trim() == "not found" {
            return Err(name.trim().to_owned());
        }
        let path = found.split_whitespace().next().unwrap_or_default();
        // What has no path, such as the vDSO, comes from the kernel.
        if path.starts_with('/') {
            paths.push(PathBuf::from(path));
        }
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn libraries_are_found_in_the_output_of_ldd() {
        let output = "\tlinux-vdso.so.1 (0x00007ffd)\n\
                      \tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f0e)\n\
                      \t/lib64/ld-linux-x86-64.so.2 (0x00007f0e)\n";
        let found = parse_ldd(output).unwrap();
        let expected = [
            "/lib/x86_64-linux-gnu/libc.so.6",
            "/lib64/ld-linux-x86-64.so.2",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
        assert_eq!(parse_ldd("\tstatically linked\n"), Ok(vec![]));
        assert_eq!(
            parse_ldd("\tlibx.so.1 => not found\n"),
            Err("libx.so.1".to_owned())
        );
    }

    #[test]
    fn this_program_needs_libc() {
        let libraries = libraries(&std::env::current_exe().unwrap()).unwrap();
        assert!(
            libraries.iter().any(|path| path.ends_with("libc.so.6")),
            "{libraries:?}"
        );
    }

    #[test]
    fn parents_come_before_what_they_hold() {
        let mut archive = Initramfs::new();
        archive.text("/a/b/c", 0o644, "x");
        archive.text("/a-", 0o644, "x");
        let names: Vec<_> = archive.entries.keys().map(String::as_str).collect();
        assert_eq!(names, ["a", "a-", "a/b", "a/b/c"]);
    }
}
