//! Program files: opened with the checks that `execve` makes, and read no further than their headers.

use std::ffi::CString;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use guest_agentless::{Elf, ElfError, FileBacking, PAGE_SIZE};

use super::Unusable;

/// What is read at first: enough for a `#!` line and the headers of nearly all programs.
const HEAD_BYTES: u64 = PAGE_SIZE;
/// No headers are looked for beyond this. Tools that edit programs put them at the end of the file.
const MAX_HEAD_BYTES: u64 = 64 << 20;

/// An open program, interpreter or script.
#[derive(Debug)]
pub struct ProgramFile {
    file: File,
    path: PathBuf,
    /// The path as mappings show it.
    shown_path: Arc<str>,
    device: (u32, u32),
    inode: u64,
    len: u64,
    head: Vec<u8>,
}

impl ProgramFile {
    /// Opens a file that is to be executed.
    pub fn open(path: &Path) -> Result<ProgramFile, Unusable> {
        // Opening a device or a pipe can have effects of its own.
        check_type(&fs::metadata(path)?)?;
        if !may_execute(path)? {
            return Err(Unusable::PermissionDenied);
        }
        let file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|error| match error.raw_os_error() {
                Some(libc::EACCES) => Unusable::Unreadable,
                _ => Unusable::from(error),
            })?;
        let metadata = file.metadata()?;
        check_type(&metadata)?;
        let head = read_head(&file, HEAD_BYTES.min(metadata.len()))?;
        let path = fs::canonicalize(path)?;
        Ok(ProgramFile {
            file,
            shown_path: path.to_string_lossy().into(),
            path,
            device: (libc::major(metadata.dev()), libc::minor(metadata.dev())),
            inode: metadata.ino(),
            len: metadata.len(),
            head,
        })
    }

    /// The path without symbolic links.
    pub fn into_path(self) -> PathBuf {
        self.path
    }

    /// The first bytes: at least what the kernel looks at for a `#!` line, or the whole file.
    pub fn head(&self) -> &[u8] {
        &self.head
    }

    /// What stands behind a mapping of the file from `offset`.
    pub fn backing(&self, offset: u64) -> FileBacking {
        FileBacking {
            path: Arc::clone(&self.shown_path),
            offset,
            device: self.device,
            inode: self.inode,
        }
    }

    /// Reads it as a program of which every page of every segment is in the file.
    pub fn elf(&self) -> Result<Elf, Unusable> {
        let elf = self.headers()?;
        for segment in &elf.segments {
            // What is missing of a last page reads as zeros, as the kernel has it.
            let needed = segment.offset.saturating_add(segment.filesz);
            if segment.filesz > 0 && needed > self.len.next_multiple_of(PAGE_SIZE) {
                return Err(ElfError::Truncated { needed }.into());
            }
        }
        Ok(elf)
    }

    fn headers(&self) -> Result<Elf, Unusable> {
        let mut needed = match Elf::parse(&self.head) {
            Err(ElfError::Truncated { needed }) => needed,
            result => return result.map_err(elf_error),
        };
        // The ELF header, the program headers and the interpreter's path can each ask for more.
        let mut seen = self.head.len() as u64;
        while needed > seen && needed <= self.len {
            if needed > MAX_HEAD_BYTES {
                return Err(Unusable::HeadersTooFar {
                    limit: MAX_HEAD_BYTES,
                });
            }
            let head = read_head(&self.file, needed)?;
            seen = needed;
            needed = match Elf::parse(&head) {
                Err(ElfError::Truncated { needed }) => needed,
                result => return result.map_err(elf_error),
            };
        }
        Err(ElfError::Truncated { needed }.into())
    }
}

impl AsFd for ProgramFile {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

fn elf_error(error: ElfError) -> Unusable {
    match error {
        ElfError::Elf32 => Unusable::ThirtyTwoBit,
        error => Unusable::Elf(error),
    }
}

fn check_type(metadata: &Metadata) -> Result<(), Unusable> {
    match metadata.file_type() {
        t if t.is_dir() => Err(Unusable::Directory),
        t if !t.is_file() => Err(Unusable::NotRegular),
        _ => Ok(()),
    }
}

/// Whether the monitor's credentials may execute `path`; a mount without execution counts.
pub fn may_execute(path: &Path) -> io::Result<bool> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: `path` is a NUL-terminated string.
    let result =
        unsafe { libc::faccessat(libc::AT_FDCWD, path.as_ptr(), libc::X_OK, libc::AT_EACCESS) };
    match result {
        0 => Ok(true),
        _ => match io::Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::EACCES) => Ok(false),
            error => Err(error),
        },
    }
}

/// The first `len` bytes of a file, or less if it has become shorter.
fn read_head(file: &File, len: u64) -> io::Result<Vec<u8>> {
    let mut head = vec![0; len.min(MAX_HEAD_BYTES) as usize];
    let mut filled = 0;
    while filled < head.len() {
        match file.read_at(&mut head[filled..], filled as u64) {
            Ok(0) => break,
            Ok(count) => filled += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    head.truncate(filled);
    Ok(head)
}
