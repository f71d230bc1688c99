//! The files that a guest has mapped, as far as symbols and unwind information go.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::sync::Arc;

use guest_agentless::elf::Segment;
use guest_agentless::unwind::{LineTable, UnwindInfo};
use guest_agentless::{Elf, FileBacking, SymbolTable};

use crate::memory::reserved_fd;

/// Larger files are not read.
const MAX_FILE: u64 = 512 << 20;

/// Files that are remembered at most, among them those that could not be read.
const MAX_MODULES: usize = 64;

/// Bytes that the remembered files take at most, about; the last one used is kept in any case.
const MAX_BYTES: usize = 256 << 20;

/// Bytes of a function in a symbol table, about: the entry and a name.
const FUNCTION_BYTES: usize = 80;

/// What is known of one file.
pub(super) struct Module {
    segments: Vec<Segment>,
    /// Its functions.
    pub(super) symbols: SymbolTable,
    /// How to get from a frame to its caller's, if it says.
    pub(super) unwind_info: Option<Arc<UnwindInfo>>,
    /// Its lines, if it was built with them.
    pub(super) lines: Option<LineTable>,
}

impl Module {
    /// Reads a whole file; an error if it is none that could be a program.
    fn parse(bytes: &[u8]) -> io::Result<Module> {
        let elf = Elf::parse(bytes).map_err(io::Error::other)?;
        Ok(Module {
            segments: elf.segments,
            symbols: SymbolTable::load(bytes).unwrap_or_default(),
            unwind_info: UnwindInfo::load(bytes).map(Arc::new),
            lines: LineTable::load(bytes),
        })
    }

    /// The address in the file of the byte at `offset`.
    pub(super) fn vaddr_of(&self, offset: u64) -> Option<u64> {
        self.segments.iter().find_map(|s| s.vaddr_of(offset))
    }

    /// Bytes that it takes, about.
    fn size(&self) -> usize {
        let unwind_info = self.unwind_info.as_ref().map_or(0, |info| info.size());
        let lines = self.lines.as_ref().map_or(0, LineTable::size);
        self.symbols.len() * FUNCTION_BYTES + unwind_info + lines
    }
}

/// The files that were read, within bounds.
#[derive(Default)]
pub(super) struct Modules {
    /// The last one used is the last.
    entries: Vec<Entry>,
}

struct Entry {
    device: (u32, u32),
    inode: u64,
    /// None if the file could not be read, so that it is not tried again for every fault.
    module: Option<Module>,
    size: usize,
}

impl Modules {
    /// The module of a mapped file; none if it is not what can be found at its path now, or cannot be read.
    /// Once read it stays known, also when the file is replaced (an upgrade of a package, say).
    pub(super) fn get(&mut self, file: &FileBacking) -> Option<&Module> {
        let is_it = |e: &Entry| (e.device, e.inode) == (file.device, file.inode);
        let entry = match self.entries.iter().position(is_it) {
            Some(at) => self.entries.remove(at),
            None => Entry::load(file),
        };
        self.entries.push(entry);
        self.evict();
        self.entries.last()?.module.as_ref()
    }

    /// Forgets the files that were not used for longest, until the bounds are kept.
    fn evict(&mut self) {
        let mut size: usize = self.entries.iter().map(|entry| entry.size).sum();
        while self.entries.len() > MAX_MODULES || (size > MAX_BYTES && self.entries.len() > 1) {
            size -= self.entries.remove(0).size;
        }
    }
}

impl Entry {
    fn load(file: &FileBacking) -> Entry {
        let module = match read(file).and_then(|bytes| Module::parse(&bytes)) {
            Ok(module) => Some(module),
            Err(error) => {
                log::debug!("no symbols of {}: {error}", file.path);
                None
            }
        };
        Entry {
            device: file.device,
            inode: file.inode,
            size: module.as_ref().map_or(0, Module::size),
            module,
        }
    }
}

/// The content of a mapped file, if it is still the one at its path.
pub fn read(file: &FileBacking) -> io::Result<Vec<u8>> {
    // To open anything but a file can have effects, so look first; and look again at what was opened.
    check(&fs::metadata(&*file.path)?, file)?;
    let mut options = OpenOptions::new();
    let opened: File = options
        .read(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
        .open(&*file.path)?;
    // To read it all takes long; the number may be one that the guest is to get back by a restart.
    let opened = File::from(reserved_fd(opened.into())?);
    let metadata = opened.metadata()?;
    check(&metadata, file)?;
    let mut bytes = Vec::with_capacity(usize::try_from(metadata.len()).unwrap_or(0));
    opened.take(MAX_FILE).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn check(metadata: &Metadata, file: &FileBacking) -> io::Result<()> {
    let device = (libc::major(metadata.dev()), libc::minor(metadata.dev()));
    if !metadata.is_file() || (device, metadata.ino()) != (file.device, file.inode) {
        return Err(io::Error::other("it is no longer the mapped file"));
    }
    if metadata.len() > MAX_FILE {
        return Err(io::Error::other("it is too large"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The mapping of a file from its beginning.
    fn backing(path: &str) -> FileBacking {
        let metadata = fs::metadata(path).unwrap();
        FileBacking {
            path: Arc::from(path),
            offset: 0,
            device: (libc::major(metadata.dev()), libc::minor(metadata.dev())),
            inode: metadata.ino(),
        }
    }

    #[test]
    fn a_file_is_read_once_and_stays_known() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("program");
        fs::copy("/bin/true", &path).unwrap();
        let file = backing(path.to_str().unwrap());
        let mut modules = Modules::default();
        assert!(modules.get(&file).is_some());
        fs::remove_file(&path).unwrap();
        assert!(modules.get(&file).is_some());
        assert!(Modules::default().get(&file).is_none());
    }

    #[test]
    fn only_the_mapped_file_itself_is_read() {
        let true_file = backing("/bin/true");
        let replaced = FileBacking {
            inode: true_file.inode + 1,
            ..true_file.clone()
        };
        let elsewhere = FileBacking {
            device: (0, 1),
            ..true_file
        };
        let not_a_program = backing("/etc/passwd");
        let missing = FileBacking::shared_anonymous(1);
        let directory = backing("/");
        let mut modules = Modules::default();
        for file in [replaced, elsewhere, not_a_program, missing, directory] {
            assert!(modules.get(&file).is_none(), "{file:?}");
        }
        assert_eq!(modules.entries.len(), 5);
    }

    #[test]
    fn the_number_of_files_is_bounded() {
        let mut modules = Modules::default();
        let file = backing("/bin/true");
        for inode in 0..2 * MAX_MODULES as u64 {
            assert!(modules.get(&file).is_some());
            modules.get(&FileBacking::shared_anonymous(inode));
        }
        assert_eq!(modules.entries.len(), MAX_MODULES);
        modules.entries.iter_mut().for_each(|e| e.size = MAX_BYTES);
        assert!(modules.get(&file).is_some());
        assert_eq!(modules.entries.len(), 1);
    }
}
