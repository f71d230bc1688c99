//! One loadable segment.

use object::LittleEndian;
use object::elf::{self, ProgramHeader64};
use object::read::elf::ProgramHeader;

use super::{ADDRESS_LIMIT, ElfError};
use crate::{GuestRange, PAGE_SIZE, Protection};

/// A part of the file that is mapped (`PT_LOAD`), with zeros after it where it is longer in memory.
///
/// Address and offset are equal modulo the page size, sizes and sums do not overflow, and all of it lies
/// in the lower half of the address space.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Which program header it is.
    pub index: usize,
    /// Address of the first byte.
    pub vaddr: u64,
    /// Bytes in memory; more than zero.
    pub memsz: u64,
    /// Bytes that come from the file; at most `memsz`.
    pub filesz: u64,
    /// Offset in the file of the first byte.
    pub offset: u64,
    /// What its pages allow.
    pub protection: Protection,
    /// A power of two and at least a page.
    pub align: u64,
}

impl Segment {
    /// The segment of a `PT_LOAD` header; none if it has no bytes.
    pub(super) fn read(
        index: usize,
        header: &ProgramHeader64<LittleEndian>,
    ) -> Result<Option<Segment>, ElfError> {
        let endian = LittleEndian;
        let bad = |why| ElfError::BadSegment { index, why };
        let flags = header.p_flags(endian).0;
        let flag = |bit: u32, protection| {
            if flags & bit != 0 {
                protection
            } else {
                Protection::NONE
            }
        };
        let align = header.p_align(endian);
        let segment = Segment {
            index,
            vaddr: header.p_vaddr(endian),
            memsz: header.p_memsz(endian),
            filesz: header.p_filesz(endian),
            offset: header.p_offset(endian),
            protection: flag(elf::PF_R.0, Protection::READ)
                | flag(elf::PF_W.0, Protection::WRITE)
                | flag(elf::PF_X.0, Protection::EXEC),
            // As the kernel: what is no power of two does not count.
            align: if align.is_power_of_two() {
                align.max(PAGE_SIZE)
            } else {
                PAGE_SIZE
            },
        };
        if segment.filesz > segment.memsz {
            return Err(bad("it is longer in the file than in memory"));
        }
        if segment.memsz == 0 {
            return Ok(None);
        }
        match segment.vaddr.checked_add(segment.memsz) {
            Some(end) if end <= ADDRESS_LIMIT => {}
            _ => return Err(bad("it lies beyond the user's part of the address space")),
        }
        if i64::try_from(segment.offset.saturating_add(segment.filesz)).is_err() {
            return Err(bad("its offset lies beyond any file"));
        }
        if segment.vaddr % PAGE_SIZE != segment.offset % PAGE_SIZE {
            return Err(bad(
                "its address and its offset differ modulo the page size",
            ));
        }
        if segment.align > ADDRESS_LIMIT {
            return Err(bad("its alignment is larger than the address space"));
        }
        Ok(Some(segment))
    }

    /// Its addresses.
    pub fn range(&self) -> GuestRange {
        GuestRange::from_bounds(self.vaddr, self.vaddr.saturating_add(self.memsz))
    }

    /// The pages that it touches.
    pub fn pages(&self) -> GuestRange {
        // It ends in the lower half of the address space, so rounding up cannot overflow.
        self.range().to_pages().unwrap_or_else(|| self.range())
    }

    /// The offset in the file of the byte at an address, if the file has it.
    pub fn offset_of(&self, vaddr: u64) -> Option<u64> {
        let inside = vaddr.checked_sub(self.vaddr)?;
        (inside < self.filesz).then(|| self.offset.saturating_add(inside))
    }

    /// The address of the byte at `offset` in the file, if that is part of it.
    pub fn vaddr_of(&self, offset: u64) -> Option<u64> {
        let inside = offset.checked_sub(self.offset)?;
        (inside < self.filesz).then(|| self.vaddr.saturating_add(inside))
    }
}
