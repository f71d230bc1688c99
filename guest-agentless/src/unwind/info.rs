//! The unwind information of one file.

use std::sync::Arc;

use framehop::{ExplicitModuleSectionInfo, Module};
use gimli::{BaseAddresses, EhFrame, EhFrameHdr, UnwindSection};
use object::LittleEndian;
use object::elf;
use object::read::elf::{FileHeader, SectionHeader};

use crate::Vma;
use crate::elf::{Elf, Segment, file_header};

/// What `.eh_frame` and `.eh_frame_hdr` of a program or library say about how to get from a frame to its
/// caller's.
#[derive(Debug, Clone)]
pub struct UnwindInfo {
    /// How the file is mapped, lowest address first; at least one.
    segments: Vec<Segment>,
    eh_frame: Section,
    /// The index, which an unusual linker may leave out.
    eh_frame_hdr: Option<Section>,
}

#[derive(Debug, Clone)]
struct Section {
    /// Address in the file.
    vaddr: u64,
    bytes: Arc<[u8]>,
}

impl UnwindInfo {
    /// Reads it from a whole file; none if that has none or is malformed.
    pub fn load(bytes: &[u8]) -> Option<UnwindInfo> {
        Some(UnwindInfo {
            segments: Elf::parse(bytes).ok()?.segments,
            eh_frame: section(bytes, b".eh_frame")?,
            eh_frame_hdr: section(bytes, b".eh_frame_hdr"),
        })
    }

    /// Bytes that it keeps, about.
    pub fn size(&self) -> usize {
        let index = self.eh_frame_hdr.as_ref().map_or(0, |hdr| hdr.bytes.len());
        self.eh_frame.bytes.len() + index
    }

    /// Where the function begins that holds `address`, or the part of it that has unwind information of its
    /// own. `vma` is a mapping of this file that holds the address.
    pub fn function_start(&self, vma: &Vma, address: u64) -> Option<u64> {
        let offset = vma.file_offset(address)?;
        let vaddr = self.segments.iter().find_map(|s| s.vaddr_of(offset))?;
        let mut bases = BaseAddresses::default().set_eh_frame(self.eh_frame.vaddr);
        let entries = EhFrame::new(&self.eh_frame.bytes, gimli::LittleEndian);
        let entry = match &self.eh_frame_hdr {
            Some(hdr) => {
                bases = bases.set_eh_frame_hdr(hdr.vaddr);
                let hdr = EhFrameHdr::new(&hdr.bytes, gimli::LittleEndian);
                let hdr = hdr.parse(&bases, 8).ok()?;
                let cie = EhFrame::cie_from_offset;
                hdr.table()?
                    .fde_for_address(&entries, &bases, vaddr, cie)
                    .ok()?
            }
            None => entries
                .fde_for_address(&bases, vaddr, EhFrame::cie_from_offset)
                .ok()?,
        };
        let before = vaddr.checked_sub(entry.initial_address())?;
        address.checked_sub(before)
    }

    /// As a linker makes it that writes no index.
    #[cfg(test)]
    pub(super) fn forget_index(&mut self) {
        self.eh_frame_hdr = None;
    }

    /// The module that the unwinder knows for `vma`, a mapping of this file that holds `address`.
    pub(super) fn module(&self, vma: &Vma, address: u64) -> Option<Module<Arc<[u8]>>> {
        let offset = vma.file_offset(address)?;
        let vaddr = self.segments.iter().find_map(|s| s.vaddr_of(offset))?;
        let base_svma = self.segments.first()?.vaddr;
        // How far the first segment is below; an address that allows no such base is not of this file.
        let base_avma = address.checked_sub(vaddr.checked_sub(base_svma)?)?;
        let hdr = self.eh_frame_hdr.as_ref();
        Some(Module::new(
            String::new(),
            vma.range.start()..vma.range.end(),
            base_avma,
            ExplicitModuleSectionInfo {
                base_svma,
                eh_frame_svma: Some(self.eh_frame.range()),
                eh_frame: Some(Arc::clone(&self.eh_frame.bytes)),
                eh_frame_hdr_svma: hdr.map(Section::range),
                eh_frame_hdr: hdr.map(|hdr| Arc::clone(&hdr.bytes)),
                ..ExplicitModuleSectionInfo::default()
            },
        ))
    }
}

impl Section {
    fn range(&self) -> std::ops::Range<u64> {
        self.vaddr..self.vaddr.saturating_add(self.bytes.len() as u64)
    }
}

/// A copy of a section, if the file has it.
fn section(bytes: &[u8], name: &[u8]) -> Option<Section> {
    let (vaddr, content) = find_section(bytes, name)?;
    Some(Section {
        vaddr,
        bytes: Arc::from(content),
    })
}

/// Address and content of a section; none if it is missing, empty, compressed or cut off.
pub(super) fn find_section<'a>(bytes: &'a [u8], name: &[u8]) -> Option<(u64, &'a [u8])> {
    let endian = LittleEndian;
    let sections = file_header(bytes).ok()?.sections(endian, bytes).ok()?;
    let (_, header) = sections.section_by_name(endian, name)?;
    if header.sh_flags(endian).0 & elf::SHF_COMPRESSED.0 != 0 {
        return None;
    }
    let content = header.data(endian, bytes).ok()?;
    (!content.is_empty()).then(|| (header.sh_addr(endian), content))
}
