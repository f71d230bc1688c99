//! Function names for addresses.

use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, Sym};

use crate::elf::{Elf, ElfError, Segment, file_header};
use crate::vma::Vma;

/// The functions of one program or library, by address.
#[derive(Debug, Clone, Default)]
pub struct SymbolTable {
    /// Sorted by address, one for each.
    functions: Vec<Function>,
    /// How its bytes are mapped; to get from an offset in the file to an address in it.
    segments: Vec<Segment>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Function {
    start: u64,
    /// Zero if the file does not say.
    size: u64,
    /// Names that other files can see are the better ones where there are several.
    global: bool,
    name: Box<str>,
}

/// Why no functions could be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SymbolError {
    /// It is no program or library of this machine.
    #[error(transparent)]
    Elf(#[from] ElfError),
    /// The section headers or symbol tables are malformed.
    #[error("the symbol table is malformed")]
    Malformed(#[from] object::read::Error),
}

impl SymbolTable {
    /// Reads the functions of a whole file from `.symtab` and `.dynsym`. A stripped file has few or none,
    /// which is no error.
    pub fn load(bytes: &[u8]) -> Result<SymbolTable, SymbolError> {
        let header = file_header(bytes)?;
        let sections = header.sections(LittleEndian, bytes)?;
        let mut functions = Vec::new();
        for kind in [elf::SHT_SYMTAB, elf::SHT_DYNSYM] {
            let table = sections.symbols(LittleEndian, bytes, kind)?;
            for symbol in table.iter().filter(|symbol| is_function(symbol)) {
                let Ok(name) = symbol.name(LittleEndian, table.strings()) else {
                    continue;
                };
                if name.is_empty() {
                    continue;
                }
                functions.push(Function {
                    start: symbol.st_value(LittleEndian),
                    size: symbol.st_size(LittleEndian),
                    global: !symbol.is_local(),
                    name: String::from_utf8_lossy(name).into(),
                });
            }
        }
        // Of several names for one address the first stays: a global one, of the largest extent.
        functions.sort_by(|a, b| {
            let rank = |f: &Function| (f.start, !f.global, u64::MAX - f.size);
            rank(a).cmp(&rank(b)).then_with(|| a.name.cmp(&b.name))
        });
        functions.dedup_by_key(|function| function.start);
        Ok(SymbolTable {
            functions,
            segments: Elf::parse(bytes)?.segments,
        })
    }

    /// The function that holds an address of the file, and how far into it that is.
    pub fn lookup(&self, file_vaddr: u64) -> Option<(&str, u64)> {
        let after = self
            .functions
            .partition_point(|function| function.start <= file_vaddr);
        let function = self.functions.get(after.checked_sub(1)?)?;
        let offset = file_vaddr - function.start;
        // One without a size reaches up to the next, in its segment; hand-written assembly has such.
        let inside =
            match function.size {
                0 => self.segments.iter().map(Segment::range).any(|segment| {
                    segment.contains(function.start) && segment.contains(file_vaddr)
                }),
                size => offset < size,
            };
        inside.then_some((&*function.name, offset))
    }

    /// The function at an address of the guest, where `vma` is the mapping of this file that holds it.
    pub fn lookup_in(&self, vma: &Vma, address: u64) -> Option<(&str, u64)> {
        let offset = vma.file_offset(address)?;
        self.lookup(
            self.segments
                .iter()
                .find_map(|segment| segment.vaddr_of(offset))?,
        )
    }

    /// The address in the file of a function.
    pub fn address_of(&self, name: &str) -> Option<u64> {
        self.functions
            .iter()
            .find(|function| &*function.name == name)
            .map(|found| found.start)
    }

    /// How many functions it knows.
    pub fn len(&self) -> usize {
        self.functions.len()
    }

    /// Whether it knows no function.
    pub fn is_empty(&self) -> bool {
        self.functions.is_empty()
    }
}

/// The offset in a file of the function with this name: unlike [`SymbolTable`], which keeps one name of each
/// address, by any of its names. None for one that is chosen when the program is linked (`STT_GNU_IFUNC`).
pub fn function_offset(bytes: &[u8], name: &str) -> Option<u64> {
    let header = file_header(bytes).ok()?;
    let sections = header.sections(LittleEndian, bytes).ok()?;
    let segments = Elf::parse(bytes).ok()?.segments;
    [elf::SHT_SYMTAB, elf::SHT_DYNSYM]
        .into_iter()
        .find_map(|kind| {
            let table = sections.symbols(LittleEndian, bytes, kind).ok()?;
            let mut functions = table
                .iter()
                .filter(|s| is_function(s) && s.st_type() == elf::STT_FUNC);
            let named = |symbol: &&elf::Sym64<LittleEndian>| {
                symbol
                    .name(LittleEndian, table.strings())
                    .is_ok_and(|n| n == name.as_bytes())
            };
            let address = functions.find(named)?.st_value(LittleEndian);
            segments
                .iter()
                .find_map(|segment| segment.offset_of(address))
        })
}

fn is_function(symbol: &elf::Sym64<LittleEndian>) -> bool {
    matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_GNU_IFUNC)
        && !symbol.is_undefined(LittleEndian)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Backing, FileBacking, GuestRange, Protection};
    use proptest::prelude::*;
    use std::sync::{Arc, LazyLock};

    /// The program that runs this test has symbols.
    static OWN: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read("/proc/self/exe").unwrap());

    #[test]
    fn functions_are_found_by_address_and_name() {
        let table = SymbolTable::load(&OWN).unwrap();
        assert!(table.len() > 100);
        let main = table.address_of("main").unwrap();
        assert_eq!(table.lookup(main), Some(("main", 0)));
        assert_eq!(table.lookup(main + 1), Some(("main", 1)));
        assert_eq!(table.lookup(0), None);
        assert_eq!(table.lookup(u64::MAX), None);
    }

    #[test]
    fn a_function_is_found_in_its_file_by_any_of_its_names() {
        let table = SymbolTable::load(&OWN).unwrap();
        let offset = function_offset(&OWN, "main").unwrap();
        let segments = Elf::parse(&OWN).unwrap().segments;
        let address = segments.iter().find_map(|segment| segment.vaddr_of(offset));
        assert_eq!(address, table.address_of("main"));
        assert_eq!(function_offset(&OWN, "no such function"), None);
        assert_eq!(function_offset(b"no program", "main"), None);
        // glibc has two names for it.
        let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
        let libc = maps
            .split_whitespace()
            .find(|word| word.ends_with("libc.so.6"));
        let libc = std::fs::read(libc.unwrap()).unwrap();
        let offset = function_offset(&libc, "malloc");
        assert!(offset.is_some() && offset == function_offset(&libc, "__libc_malloc"));
    }

    #[test]
    fn an_address_of_the_guest_goes_through_its_mapping() {
        let table = SymbolTable::load(&OWN).unwrap();
        let elf = Elf::parse(&OWN).unwrap();
        let main = table.address_of("main").unwrap();
        let segment = elf
            .segments
            .iter()
            .find(|segment| segment.range().contains(main))
            .unwrap();
        let base = 0x5555_5555_0000;
        let pages = segment.pages();
        let offset = segment.offset & !4095;
        let backing = Backing::File(FileBacking {
            path: Arc::from("/own"),
            offset,
            device: (0, 0),
            inode: 1,
        });
        let vma = Vma::new(
            GuestRange::from_bounds(base + pages.start(), base + pages.end()),
            Protection::READ | Protection::EXEC,
            false,
            backing,
        );
        assert_eq!(table.lookup_in(&vma, base + main + 2), Some(("main", 2)));
        assert_eq!(table.lookup_in(&vma, main), None);
        let anonymous = Vma {
            backing: Backing::Anonymous,
            ..vma
        };
        assert_eq!(table.lookup_in(&anonymous, base + main), None);
    }

    #[test]
    fn a_stripped_program_has_no_symbols_and_that_is_no_error() {
        let table = SymbolTable::load(&std::fs::read("/bin/true").unwrap()).unwrap();
        assert_eq!(table.address_of("main"), None);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn mutilated_tables_are_read_or_refused(
            cut in 0.5f64..1.0,
            patches in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..40),
        ) {
            let mut bytes = std::fs::read("/bin/true").unwrap();
            let header_at = 64.min(bytes.len());
            if cut < 0.75 {
                bytes.truncate((bytes.len() as f64 * cut) as usize);
            }
            for (at, byte) in patches {
                let at = at.index(bytes.len());
                // Half of the damage goes to the header and the section headers at the end.
                let at = if byte % 2 == 0 { at } else { bytes.len() - 1 - at % 2048.min(bytes.len()) };
                bytes[if byte % 8 == 1 { at % header_at } else { at }] = byte;
            }
            if let Ok(table) = SymbolTable::load(&bytes) {
                let _ = table.lookup(0x2000);
            }
        }
    }
}
