//! Source lines of code addresses.

use std::rc::Rc;

use addr2line::Context;
use gimli::{Dwarf, EndianRcSlice, LittleEndian, SectionId};

use super::info::find_section;

/// The line information of one program or library (`.debug_line` and what belongs to it).
pub struct LineTable {
    context: Context<EndianRcSlice<LittleEndian>>,
    size: usize,
}

/// A place in the source.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceLine {
    /// Path of the file, as the compiler was given it.
    pub file: String,
    /// The line, counted from 1, if it is known.
    pub line: Option<u32>,
}

impl LineTable {
    /// Reads it from a whole file; none if that was built without, or with compressed sections, or is
    /// malformed.
    pub fn load(bytes: &[u8]) -> Option<LineTable> {
        find_section(bytes, SectionId::DebugLine.name().as_bytes())?;
        let mut size = 0;
        let load = |id: SectionId| -> Result<_, gimli::Error> {
            // A section that is missing is as good as an empty one.
            let section = find_section(bytes, id.name().as_bytes());
            let content = section.map_or(&[][..], |(_, content)| content);
            size += content.len();
            Ok(EndianRcSlice::new(Rc::from(content), LittleEndian))
        };
        let dwarf = Dwarf::load(load).ok()?;
        let context = Context::from_dwarf(dwarf).ok()?;
        Some(LineTable { context, size })
    }

    /// Bytes that it keeps, about.
    pub fn size(&self) -> usize {
        self.size
    }

    /// The line of an address of the file. In an inlined function it is the line there.
    pub fn lookup(&self, file_vaddr: u64) -> Option<SourceLine> {
        // The end of the address space has no line, and the lookup counts past it.
        file_vaddr.checked_add(1)?;
        let location = self.context.find_location(file_vaddr).ok().flatten()?;
        Some(SourceLine {
            file: location.file?.to_owned(),
            line: location.line,
        })
    }
}
