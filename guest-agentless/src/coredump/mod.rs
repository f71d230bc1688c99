//! Writes the ELF core of a guest process, for `gdb PROGRAM CORE`.
//!
//! The core is sparse. Of a page it holds the content, or says that it is as its file has it (or zero), or has
//! nothing, and the debugger says that it cannot read there. What is in files is found by `NT_FILE`.
//! Layout: header, program headers, notes, pages (gABI chapters 4 and 5; Linux `fs/binfmt_elf.c`).

mod notes;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io::{self, Write};

use object::elf::{
    self, ELFCLASS64, ELFDATA2LSB, ELFMAG, EV_CURRENT, FileHeader64, Ident, ProgramHeader64,
    ProgramType,
};
use object::pod::bytes_of;
use object::{LittleEndian, U16, U32, U64};

use crate::vma::Backing;
use crate::{GuestRange, PAGE_SIZE, PageNumber, Protection, Vma};

/// Segments of a core at most; a program header is counted in 16 bits.
const SEGMENTS_LIMIT: usize = 1 << 15;

const HEADER_SIZE: usize = size_of::<FileHeader64<LittleEndian>>();
const PROGRAM_HEADER_SIZE: usize = size_of::<ProgramHeader64<LittleEndian>>();

/// What the core says of the process.
#[derive(Debug, Clone, Default)]
pub struct ProcessState {
    /// Its ID.
    pub pid: i32,
    /// Its user and group.
    pub user: (u32, u32),
    /// The program's file.
    pub program: String,
    /// The auxiliary vector, without `AT_NULL`.
    pub auxv: Vec<(u64, u64)>,
}

/// A thread.
#[derive(Debug, Clone)]
pub struct ThreadState {
    /// Its ID.
    pub tid: i32,
    /// Its general registers.
    pub registers: libc::user_regs_struct,
    /// Its x87 and SSE registers in the format of FXSAVE, if they are known.
    pub vector: Option<Box<[u8; 512]>>,
}

/// A process to be written as a core.
pub struct CoreDump<'a> {
    /// The process.
    pub process: &'a ProcessState,
    /// Its threads; the first is the one that faulted.
    pub threads: &'a [ThreadState],
    /// The signal that the first thread got, and its `siginfo_t`.
    pub signal: Option<(i32, &'a [u8; 128])>,
    /// Its mappings, ascending.
    pub mappings: &'a [Vma],
    /// The content of pages, each of the size of a page.
    pub pages: BTreeMap<PageNumber, &'a [u8]>,
    /// Whole pages that are as their files have them, or zero where there is no file.
    pub unchanged: Vec<GuestRange>,
}

/// A part of memory with the same protection, with content in the core or without.
struct Segment {
    range: GuestRange,
    protection: Protection,
    has_content: bool,
}

impl CoreDump<'_> {
    /// Writes the core. Returns its size.
    pub fn write(&self, out: &mut impl Write) -> io::Result<u64> {
        let segments = self.segments();
        let notes = notes::notes(self);
        let count = segments.len() + 1;
        let notes_at = (HEADER_SIZE + count * PROGRAM_HEADER_SIZE) as u64;
        let notes_end = notes_at + notes.len() as u64;
        let pages_at = notes_end.next_multiple_of(PAGE_SIZE);

        out.write_all(bytes_of(&file_header(count as u16)))?;
        let header = program_header(elf::PT_NOTE, (notes_at, notes.len() as u64), 4);
        out.write_all(bytes_of(&header))?;
        let mut at = pages_at;
        for segment in &segments {
            let size = match segment.has_content {
                true => segment.range.len(),
                false => 0,
            };
            let header = program_header(elf::PT_LOAD, (at, size), PAGE_SIZE);
            out.write_all(bytes_of(&ProgramHeader64 {
                p_flags: U32::new(LittleEndian, flags(segment.protection)),
                p_vaddr: U64::new(LittleEndian, segment.range.start()),
                p_memsz: U64::new(LittleEndian, segment.range.len()),
                ..header
            }))?;
            at += size;
        }
        out.write_all(&notes)?;
        io::copy(
            &mut io::Read::take(io::repeat(0), pages_at - notes_end),
            out,
        )?;
        for segment in segments.iter().filter(|segment| segment.has_content) {
            for page in segment.range.pages() {
                // Every page of such a segment is one of them.
                out.write_all(self.pages.get(&page).copied().unwrap_or(&[0; 4096]))?;
            }
        }
        Ok(at)
    }

    /// The segments, ascending. Those with content come before the others where there are too many.
    fn segments(&self) -> Vec<Segment> {
        let mut segments: Vec<Segment> = Vec::new();
        let mut add = |range: GuestRange, has_content: bool| {
            // Memory that is mapped no longer was written by the request all the same.
            let vma = self.mapping_of(range.start());
            let protection = vma.map_or(Protection::READ | Protection::WRITE, |vma| vma.protection);
            let full = segments.len() >= SEGMENTS_LIMIT;
            match segments.last_mut() {
                Some(last)
                    if last.range.end() == range.start()
                        && last.has_content == has_content
                        && last.protection == protection
                        && vma.is_none_or(|vma| vma.range.start() != range.start()) =>
                {
                    last.range = GuestRange::from_bounds(last.range.start(), range.end());
                }
                _ if !full => segments.push(Segment {
                    range,
                    protection,
                    has_content,
                }),
                _ => {}
            }
        };
        for page in self.pages.keys() {
            let start = page.address().0;
            add(GuestRange::from_bounds(start, start + PAGE_SIZE), true);
        }
        for range in &self.unchanged {
            let pages = PageNumber(range.start() / PAGE_SIZE)..PageNumber(range.end() / PAGE_SIZE);
            let mut from = range.start();
            for page in self.pages.range(pages).map(|(page, _)| page.address().0) {
                if from < page {
                    add(GuestRange::from_bounds(from, page), false);
                }
                from = page + PAGE_SIZE;
            }
            if from < range.end() {
                add(GuestRange::from_bounds(from, range.end()), false);
            }
        }
        segments.sort_by_key(|segment| segment.range.start());
        segments
    }

    fn mapping_of(&self, address: u64) -> Option<&Vma> {
        let after = self
            .mappings
            .partition_point(|vma| vma.range.start() <= address);
        let vma = self.mappings.get(after.checked_sub(1)?)?;
        vma.range.contains(address).then_some(vma)
    }

    /// The mapped files, with the mapping of each.
    fn files(&self) -> impl Iterator<Item = (&Vma, &crate::FileBacking)> {
        self.mappings.iter().filter_map(|vma| match &vma.backing {
            // What stands behind shared memory without a file cannot be opened.
            Backing::File(file) if file.path.starts_with('/') && file.device != (0, 1) => {
                Some((vma, file))
            }
            _ => None,
        })
    }
}

fn file_header(segments: u16) -> FileHeader64<LittleEndian> {
    let e = LittleEndian;
    FileHeader64 {
        e_ident: Ident {
            magic: ELFMAG,
            class: ELFCLASS64,
            data: ELFDATA2LSB,
            version: EV_CURRENT,
            os_abi: elf::ELFOSABI_NONE,
            abi_version: 0,
            padding: [0; 7],
        },
        e_type: U16::new(e, elf::ET_CORE),
        e_machine: U16::new(e, elf::EM_X86_64),
        e_version: U32::new(e, u32::from(EV_CURRENT.0)),
        e_entry: U64::new(e, 0),
        e_phoff: U64::new(e, HEADER_SIZE as u64),
        e_shoff: U64::new(e, 0),
        e_flags: U32::new(e, elf::FileFlags(0)),
        e_ehsize: U16::new(e, HEADER_SIZE as u16),
        e_phentsize: U16::new(e, PROGRAM_HEADER_SIZE as u16),
        e_phnum: U16::new(e, segments),
        e_shentsize: U16::new(e, 0),
        e_shnum: U16::new(e, 0),
        e_shstrndx: U16::new(e, elf::SHN_UNDEF),
    }
}

/// The header of a segment of which so many bytes lie at an offset in the file.
fn program_header(
    kind: ProgramType,
    (offset, size): (u64, u64),
    align: u64,
) -> ProgramHeader64<LittleEndian> {
    let e = LittleEndian;
    ProgramHeader64 {
        p_type: U32::new(e, kind),
        p_flags: U32::new(e, elf::ProgramFlags(0)),
        p_offset: U64::new(e, offset),
        p_vaddr: U64::new(e, 0),
        p_paddr: U64::new(e, 0),
        p_filesz: U64::new(e, size),
        p_memsz: U64::new(e, 0),
        p_align: U64::new(e, align),
    }
}

fn flags(protection: Protection) -> elf::ProgramFlags {
    let flag = |set, flag: elf::ProgramFlags| if set { flag.0 } else { 0 };
    elf::ProgramFlags(
        flag(protection.is_readable(), elf::PF_R)
            | flag(protection.is_writable(), elf::PF_W)
            | flag(protection.is_executable(), elf::PF_X),
    )
}
