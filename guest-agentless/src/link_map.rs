//! Where the dynamic loader keeps its list of the libraries: what a debugger reads to find them.
//!
//! The program's `DT_DEBUG` names a `struct r_debug`, which begins a list of `struct link_map` (`link.h`).
//! All of it is the guest's memory, so nothing of it is believed: every step is bounded.

use object::LittleEndian;
use object::elf::{PT_DYNAMIC, PT_PHDR, ProgramHeader64};
use object::pod::slice_from_bytes;

use crate::{GuestRange, GuestVa};

/// Program headers that are looked at.
const HEADERS_LIMIT: u64 = 64;
/// Entries of the dynamic section.
const DYNAMIC_LIMIT: u64 = 256;
/// Libraries.
const LIBRARIES_LIMIT: usize = 1024;
/// Bytes of a library's path.
const PATH_LIMIT: usize = 256;

const HEADER_SIZE: usize = size_of::<ProgramHeader64<LittleEndian>>();
const DT_DEBUG: u64 = 21;
/// `struct r_debug`, and the offset of its list in it.
const DEBUG_SIZE: u64 = 48;
const DEBUG_LIST: u64 = 8;
/// The public part of `struct link_map`: `l_addr`, `l_name`, `l_ld`, `l_next`, `l_prev`.
const LINK_MAP_WORDS: usize = 5;
/// Bytes of all of it, with some to spare: its private part has the place of the library's thread-local variables
/// (at byte 1,152 in glibc 2.36).
const LINK_MAP_SIZE: u64 = 2048;

/// Reads guest memory: fills the buffer from the address, or says that it cannot.
pub type Read<'a> = dyn FnMut(u64, &mut [u8]) -> bool + 'a;

/// The memory in which a debugger finds the libraries of the program whose headers lie at `headers`
/// (`AT_PHDR`, `AT_PHNUM`); empty for a static program.
pub fn memory(headers: (u64, u64), read: &mut Read<'_>) -> Vec<GuestRange> {
    let mut ranges = Vec::new();
    // Whatever was found until something cannot be read.
    let _ = walk(headers, read, &mut ranges);
    ranges
}

fn walk((at, count): (u64, u64), read: &mut Read<'_>, ranges: &mut Vec<GuestRange>) -> Option<()> {
    let count = count.min(HEADERS_LIMIT) as usize;
    let mut bytes = vec![0; count * HEADER_SIZE];
    if !read(at, &mut bytes) {
        return None;
    }
    let (headers, _) = slice_from_bytes::<ProgramHeader64<LittleEndian>>(&bytes, count).ok()?;
    let find = |kind| {
        headers
            .iter()
            .find(|header| header.p_type.get(LittleEndian) == kind)
    };
    let bias = find(PT_PHDR).map_or(0, |header| {
        at.wrapping_sub(header.p_vaddr.get(LittleEndian))
    });
    let dynamic = find(PT_DYNAMIC)?;
    let section = bias.wrapping_add(dynamic.p_vaddr.get(LittleEndian));
    let entries = (dynamic.p_memsz.get(LittleEndian) / 16).min(DYNAMIC_LIMIT);
    let debug = (0..entries).find_map(|i| {
        let [tag, value] = words(section.wrapping_add(i * 16), read)?;
        (tag == DT_DEBUG).then_some(value)
    })?;
    ranges.push(GuestRange::new(GuestVa(section), entries * 16)?);
    let [mut next] = words(debug.wrapping_add(DEBUG_LIST), read)?;
    ranges.push(GuestRange::new(GuestVa(debug), DEBUG_SIZE)?);
    for _ in 0..LIBRARIES_LIMIT {
        if next == 0 {
            break;
        }
        let [_, name, _, after, _]: [u64; LINK_MAP_WORDS] = words(next, read)?;
        ranges.push(GuestRange::new(GuestVa(next), LINK_MAP_SIZE)?);
        ranges.push(GuestRange::new(GuestVa(name), PATH_LIMIT as u64)?);
        next = after;
    }
    Some(())
}

fn words<const N: usize>(at: u64, read: &mut Read<'_>) -> Option<[u64; N]> {
    let mut words = [0; N];
    for (word, offset) in words.iter_mut().zip((0u64..).step_by(8)) {
        let mut bytes = [0; 8];
        if !read(at.checked_add(offset)?, &mut bytes) {
            return None;
        }
        *word = u64::from_le_bytes(bytes);
    }
    Some(words)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Memory from address 0 on.
    fn reader(memory: &[u8]) -> impl FnMut(u64, &mut [u8]) -> bool + '_ {
        |at, into| {
            let end = (at as usize).checked_add(into.len());
            let from = end.and_then(|end| memory.get(at as usize..end));
            from.map(|from| into.copy_from_slice(from)).is_some()
        }
    }

    /// A program at 0x1000 with its headers, a dynamic section at 0x1200, `r_debug` at 0x1400 and two
    /// libraries, the second of which goes on with `last`.
    fn memory_of(last: u64) -> Vec<u8> {
        let mut memory = vec![0; 0x2000];
        let mut put = |at: usize, words: &[u64]| {
            let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            memory[at..at + bytes.len()].copy_from_slice(&bytes);
        };
        put(0x1040, &[u64::from(PT_PHDR.0), 0x40, 0x40]);
        put(0x1078, &[u64::from(PT_DYNAMIC.0), 0, 0x200, 0, 64, 64]);
        put(0x1200, &[1, 77, DT_DEBUG, 0x1400]);
        put(0x1400, &[1, 0x1500]);
        put(0x1500, &[0x1000, 0x1600, 0x1200, 0x1540, 0]);
        put(0x1540, &[0x8000, 0x1610, 0x8200, last, 0x1500]);
        memory
    }

    #[test]
    fn the_list_is_followed_to_its_end() {
        let memory_image = memory_of(0);
        let ranges = memory((0x1040, 2), &mut reader(&memory_image));
        let starts: Vec<u64> = ranges.iter().map(|range| range.start()).collect();
        assert_eq!(starts, [0x1200, 0x1400, 0x1500, 0x1600, 0x1540, 0x1610]);
    }

    #[test]
    fn a_hostile_list_ends() {
        let circle = memory_of(0x1500);
        let ranges = memory((0x1040, u64::MAX), &mut |at, into| {
            // However many headers are asked for.
            let end = (at as usize + into.len()).min(circle.len());
            let from = circle.get(at as usize..end);
            from.map(|from| into[..from.len()].copy_from_slice(from))
                .is_some()
        });
        assert_eq!(ranges.len(), 2 + 2 * LIBRARIES_LIMIT);
        for last in [u64::MAX, u64::MAX - 8, 0x1ff0] {
            let ranges = memory((0x1040, 2), &mut reader(&memory_of(last)));
            assert_eq!(ranges.len(), 6, "{last:#x}");
        }
        assert!(memory((u64::MAX, 9), &mut reader(&circle)).is_empty());
    }
}
