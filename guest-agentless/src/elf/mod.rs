//! ELF program files, checked as far as a loader has to rely on them.
//!
//! A file is input that anybody may have made: every count, offset and size is checked, so that what
//! [`Elf`] holds can be used without a second look.

mod error;
mod segment;
#[cfg(test)]
mod tests;

use object::LittleEndian;
use object::elf::{self, FileHeader64, ProgramHeader64};
use object::read::elf::{FileHeader, ProgramHeader};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;

use crate::{GuestRange, PAGE_SIZE};

pub use error::ElfError;
pub use segment::Segment;

/// The kernel takes no more program headers than fit into so many bytes.
const MAX_HEADER_BYTES: usize = 65536;

/// Bytes of a path with its NUL.
const PATH_MAX: u64 = libc::PATH_MAX as u64;

/// End of the lower half of the address space: no program can be loaded above it.
const ADDRESS_LIMIT: u64 = 1 << 47;

/// What a loader needs to know about a program or an interpreter. Addresses are those in the file: a
/// position-independent one adds the base it is loaded at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Elf {
    /// Where it begins to run.
    pub entry: u64,
    /// It can be loaded anywhere (`ET_DYN`: position-independent programs and shared libraries).
    pub is_pie: bool,
    /// Where its program headers are, for `AT_PHDR`, `AT_PHENT` and `AT_PHNUM`.
    pub program_headers: ProgramHeaders,
    /// What is to be mapped (`PT_LOAD`), lowest address first; at least one.
    pub segments: Vec<Segment>,
    /// The dynamic loader that has to be loaded with it (`PT_INTERP`).
    pub interpreter: Option<OsString>,
    /// It asks for a stack that code can run on.
    pub executable_stack: bool,
}

/// The table of program headers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ProgramHeaders {
    /// Offset in the file.
    pub offset: u64,
    /// How many there are.
    pub count: u16,
    /// Bytes of each.
    pub entry_size: u16,
    /// Address of the table, if one of the segments holds it.
    pub vaddr: Option<u64>,
}

impl Elf {
    /// Reads a program from `bytes`: the whole file, or a first part of it. If a part was not enough, the
    /// error is [`ElfError::Truncated`] and says how much is.
    pub fn parse(bytes: &[u8]) -> Result<Elf, ElfError> {
        let header = file_header(bytes)?;
        let endian = LittleEndian;
        let is_pie = match header.e_type(endian) {
            elf::ET_EXEC => false,
            elf::ET_DYN => true,
            other => return Err(ElfError::WrongType(other.0)),
        };
        let headers = program_headers(header, bytes)?;

        let mut segments: Vec<Segment> = Vec::new();
        let mut interpreter = None;
        let mut executable_stack = false;
        let mut phdr_vaddr = None;
        for (index, program_header) in headers.iter().enumerate() {
            match program_header.p_type(endian) {
                elf::PT_LOAD => segments.extend(Segment::read(index, program_header)?),
                elf::PT_INTERP if interpreter.is_none() => {
                    interpreter = Some(read_interpreter(program_header, bytes)?);
                }
                elf::PT_PHDR => phdr_vaddr = Some(program_header.p_vaddr(endian)),
                elf::PT_GNU_STACK => {
                    executable_stack = program_header.p_flags(endian).0 & elf::PF_X.0 != 0;
                }
                _ => {}
            }
        }
        check_order(&segments)?;

        let offset = header.e_phoff(endian);
        let holder = segments.iter().find_map(|segment| segment.vaddr_of(offset));
        let program_headers = ProgramHeaders {
            offset,
            count: header.e_phnum(endian),
            entry_size: header.e_phentsize(endian),
            vaddr: holder.or(phdr_vaddr),
        };
        let entry = header.e_entry(endian);
        Ok(Elf {
            entry,
            is_pie,
            program_headers,
            segments,
            interpreter,
            executable_stack,
        })
    }

    /// The pages from the lowest to the highest segment, holes between them included.
    pub fn span(&self) -> GuestRange {
        let start = self
            .segments
            .first()
            .map_or(0, |segment| segment.pages().start());
        let end = self
            .segments
            .last()
            .map_or(0, |segment| segment.pages().end());
        GuestRange::from_bounds(start, end)
    }

    /// The largest alignment that a segment asks for: that of the base. At least a page.
    pub fn align(&self) -> u64 {
        self.segments
            .iter()
            .map(|segment| segment.align)
            .max()
            .unwrap_or(PAGE_SIZE)
    }

    /// The address at which the byte at this offset in the file is loaded.
    pub fn vaddr_of_offset(&self, offset: u64) -> Option<u64> {
        self.segments
            .iter()
            .find_map(|segment| segment.vaddr_of(offset))
    }
}

/// The header of a little-endian 64-bit x86-64 file.
pub(crate) fn file_header(bytes: &[u8]) -> Result<&FileHeader64<LittleEndian>, ElfError> {
    let magic = &elf::ELFMAG[..];
    if !bytes.starts_with(magic) {
        return Err(ElfError::NotElf);
    }
    let class = bytes.get(magic.len()).copied();
    let data = bytes.get(magic.len() + 1).copied();
    if class == Some(elf::ELFCLASS32.0) {
        return Err(ElfError::Elf32);
    }
    if data == Some(elf::ELFDATA2MSB.0) {
        return Err(ElfError::BigEndian);
    }
    let needed = size_of::<FileHeader64<LittleEndian>>() as u64;
    if (bytes.len() as u64) < needed {
        return Err(ElfError::Truncated { needed });
    }
    // What is left that could be wrong is a class, an encoding or a version that nobody has defined.
    let header = FileHeader64::<LittleEndian>::parse(bytes).map_err(|_| ElfError::NotElf)?;
    match header.e_machine(LittleEndian) {
        elf::EM_X86_64 => Ok(header),
        other => Err(ElfError::wrong_machine(other)),
    }
}

fn program_headers<'a>(
    header: &FileHeader64<LittleEndian>,
    bytes: &'a [u8],
) -> Result<&'a [ProgramHeader64<LittleEndian>], ElfError> {
    let each = size_of::<ProgramHeader64<LittleEndian>>();
    let found = header.e_phentsize(LittleEndian);
    if usize::from(found) != each {
        return Err(ElfError::BadHeaderSize(found));
    }
    let count = header.e_phnum(LittleEndian);
    if count == 0 || usize::from(count) > MAX_HEADER_BYTES / each {
        return Err(ElfError::BadHeaderCount(count));
    }
    require(
        bytes,
        header.e_phoff(LittleEndian),
        u64::from(count) * each as u64,
    )?;
    header
        .program_headers(LittleEndian, bytes)
        .map_err(|_| ElfError::BadHeaderCount(count))
}

/// The bytes of the file from `offset`.
fn require(bytes: &[u8], offset: u64, len: u64) -> Result<&[u8], ElfError> {
    let needed = offset
        .checked_add(len)
        .ok_or(ElfError::Truncated { needed: u64::MAX })?;
    let range = usize::try_from(offset)
        .ok()
        .zip(usize::try_from(needed).ok());
    range
        .and_then(|(start, end)| bytes.get(start..end))
        .ok_or(ElfError::Truncated { needed })
}

fn read_interpreter(
    header: &ProgramHeader64<LittleEndian>,
    bytes: &[u8],
) -> Result<OsString, ElfError> {
    let len = header.p_filesz(LittleEndian);
    if !(2..=PATH_MAX).contains(&len) {
        return Err(ElfError::BadInterpreter);
    }
    let path = require(bytes, header.p_offset(LittleEndian), len)?;
    match path.iter().position(|byte| *byte == 0) {
        Some(end) if end > 0 && path.ends_with(&[0]) => {
            Ok(OsString::from_vec(path[..end].to_vec()))
        }
        _ => Err(ElfError::BadInterpreter),
    }
}

/// Segments come in ascending order and do not share a byte; a loader relies on it.
fn check_order(segments: &[Segment]) -> Result<(), ElfError> {
    if segments.is_empty() {
        return Err(ElfError::NothingToLoad);
    }
    for pair in segments.windows(2) {
        if pair[0].range().end() > pair[1].vaddr {
            return Err(ElfError::BadSegment {
                index: pair[1].index,
                why: "it overlaps the one before or lies below it",
            });
        }
    }
    Ok(())
}
