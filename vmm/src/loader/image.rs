//! Mapping the segments of an ELF file.

use std::os::fd::AsFd;
use std::path::Path;

use guest_agentless::{Backing, Elf, Errno, GuestRange, GuestVa, PAGE_SIZE, Protection, Vma};

use super::error::refuse;
use super::file::ProgramFile;
use super::{LoadError, Unusable};
use crate::memory::{AddressSpace, Source, copy, window};

/// Where an ELF file is loaded.
#[derive(Debug, Clone, Copy)]
pub struct Image {
    range: GuestRange,
    /// What is added to the addresses in the file; wraps around where the file was linked higher up.
    bias: u64,
}

/// A loaded dynamic loader.
#[derive(Debug, Clone, Copy)]
pub struct Interpreter {
    /// Where the first thread starts.
    pub entry: u64,
    /// What is added to the addresses in its file (`AT_BASE`).
    pub bias: u64,
}

/// Loads the dynamic loader at `path` for `program`, high up.
pub fn load_interpreter(
    space: &mut AddressSpace,
    program: &Path,
    path: &Path,
    written: &mut Vec<GuestRange>,
) -> Result<Interpreter, LoadError> {
    let failed = LoadError::monitor("map the program's interpreter");
    let refuse = |source| match refuse(program, path, source) {
        // A program that names itself.
        LoadError::NotExecutable { path, source } => LoadError::Interpreter {
            interpreter: path.clone(),
            path,
            source,
        },
        error => error,
    };
    let file = ProgramFile::open(path).map_err(refuse)?;
    let elf = file.elf().map_err(refuse)?;
    // Room to move it up to where its alignment wants it.
    let room = elf.span().len().saturating_add(elf.align() - PAGE_SIZE);
    let free = space
        .find_free(0, room, false)
        .ok_or_else(|| failed(Errno::ENOMEM))?;
    let image = Image::place(&elf, free.start()).map_err(refuse)?;
    let entry = image.entry(&elf).map_err(refuse)?;
    image.map(space, &file, &elf, written).map_err(failed)?;
    Ok(Interpreter {
        entry,
        bias: image.bias,
    })
}

impl Image {
    /// The place of `elf`: at `base` or as little above it as its alignment wants, or where it was
    /// linked if it cannot be moved.
    pub fn place(elf: &Elf, base: u64) -> Result<Image, Unusable> {
        let span = elf.span();
        let bias = match elf.is_pie {
            true => {
                let mask = elf.align() - 1;
                base.wrapping_sub(span.start()).wrapping_add(mask) & !mask
            }
            false => 0,
        };
        let start = span.start().wrapping_add(bias);
        match window::checked(start, span.len()) {
            Some(range) => Ok(Image { range, bias }),
            None => Err(Unusable::Placement {
                range: GuestRange::from_bounds(start, start.saturating_add(span.len())),
            }),
        }
    }

    /// The pages from the lowest to the highest segment.
    pub fn range(&self) -> GuestRange {
        self.range
    }

    /// Where the byte at `vaddr` in the file is loaded.
    pub fn address(&self, vaddr: u64) -> u64 {
        vaddr.wrapping_add(self.bias)
    }

    /// Where it begins to run.
    pub fn entry(&self, elf: &Elf) -> Result<u64, Unusable> {
        let entry = self.address(elf.entry);
        match self.range.contains(entry) {
            true => Ok(entry),
            false => Err(Unusable::EntryPoint(elf.entry)),
        }
    }

    /// Maps the segments. What is written of them is added to `written`.
    pub fn map(
        &self,
        space: &mut AddressSpace,
        file: &ProgramFile,
        elf: &Elf,
        written: &mut Vec<GuestRange>,
    ) -> Result<(), Errno> {
        if space.vmas().overlapping(self.range).next().is_some() {
            return Err(Errno::EEXIST);
        }
        for segment in &elf.segments {
            let start = self.address(segment.vaddr);
            let range = GuestRange::new(GuestVa(start), segment.memsz).ok_or(Errno::ENOMEM)?;
            let from_file = GuestRange::from_bounds(start, start.saturating_add(segment.filesz));
            let offset = segment.offset & !(PAGE_SIZE - 1);
            let zeros = map_file(space, file, offset, from_file, segment.protection)?;
            let pages = range.to_pages().ok_or(Errno::ENOMEM)?;
            map_zeros(space, pages, zeros, segment.protection)?;
            let tail = GuestRange::from_bounds(from_file.end(), zeros.min(pages.end()));
            // As on Linux, what cannot be written stays as the file has it.
            let has_tail = segment.memsz > segment.filesz && !tail.is_empty();
            if has_tail && segment.protection.is_writable() {
                zero_tail(tail)?;
                written.push(tail);
            }
        }
        Ok(())
    }
}

/// Maps the part of a segment that is in the file; returns where its pages end.
///
/// A page that it shares with the segment before it is replaced, as on Linux.
fn map_file(
    space: &mut AddressSpace,
    file: &ProgramFile,
    offset: u64,
    range: GuestRange,
    protection: Protection,
) -> Result<u64, Errno> {
    if range.is_empty() {
        return Ok(range.start());
    }
    let pages = range.to_pages().ok_or(Errno::ENOMEM)?;
    space.unmap(pages)?;
    let vma = Vma::new(
        pages,
        protection,
        false,
        Backing::File(file.backing(offset)),
    );
    space.map(vma, Source::File(file.as_fd(), offset), 0)?;
    Ok(pages.end())
}

/// Maps those of the segment's pages that have nothing from the file: those from `start` on, without one
/// that the segment before it has made already.
fn map_zeros(
    space: &mut AddressSpace,
    pages: GuestRange,
    start: u64,
    protection: Protection,
) -> Result<(), Errno> {
    let start = start & !(PAGE_SIZE - 1);
    let start = space
        .vmas()
        .find(start)
        .map_or(start, |before| before.range.end());
    let zeros = GuestRange::from_bounds(start, pages.end());
    match zeros.is_empty() {
        true => Ok(()),
        false => space.map(Vma::anonymous(zeros, protection), Source::Zeros, 0),
    }
}

/// Zeroes what the file's last page holds behind the segment.
fn zero_tail(tail: GuestRange) -> Result<(), Errno> {
    const ZEROS: [u8; PAGE_SIZE as usize] = [0; PAGE_SIZE as usize];
    let zeros = ZEROS.get(..tail.len() as usize).ok_or(Errno::EFAULT)?;
    copy::write(tail.start(), zeros).map_err(|_| Errno::EFAULT)
}
