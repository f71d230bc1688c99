//! Real programs, and what is left of them after mutilation.

use std::path::Path;

use proptest::prelude::*;

use super::*;
use crate::Protection;

fn read(path: &str) -> Option<Vec<u8>> {
    std::fs::read(path).ok()
}

/// A dynamic, position-independent program that every Debian has.
fn program() -> Vec<u8> {
    read("/bin/true").expect("every Linux has /bin/true")
}

fn patched(at: usize, bytes: &[u8]) -> Result<Elf, ElfError> {
    let mut program = program();
    program[at..at + bytes.len()].copy_from_slice(bytes);
    Elf::parse(&program)
}

/// Offset of the first program header of a type.
fn header_at(program: &[u8], p_type: u32) -> usize {
    let headers = Elf::parse(program).unwrap().program_headers;
    (0..usize::from(headers.count))
        .map(|index| headers.offset as usize + 56 * index)
        .find(|at| program[*at..*at + 4] == p_type.to_le_bytes())
        .unwrap()
}

#[test]
fn a_dynamic_program() {
    let elf = Elf::parse(&program()).unwrap();
    assert!(elf.is_pie);
    let interpreter = elf.interpreter.as_ref().unwrap();
    assert!(Path::new(interpreter).is_absolute());
    assert!(!elf.executable_stack);
    assert_eq!(elf.program_headers.vaddr, Some(elf.program_headers.offset));
    assert_eq!(elf.span().start(), 0);
    assert!(
        elf.segments
            .iter()
            .any(|s| s.protection == Protection::READ | Protection::EXEC)
    );

    let code = elf
        .segments
        .iter()
        .find(|s| s.range().contains(elf.entry))
        .unwrap();
    assert!(code.protection.is_executable());
    assert_eq!(elf.vaddr_of_offset(code.offset + 3), Some(code.vaddr + 3));
    assert!(elf.segments.iter().any(|s| s.memsz > s.filesz), "no .bss");

    let loader = Elf::parse(&std::fs::read(interpreter).unwrap()).unwrap();
    assert!(loader.is_pie && loader.interpreter.is_none());
}

#[test]
fn a_first_part_is_enough_and_its_lack_is_measured() {
    let program = program();
    let whole = Elf::parse(&program).unwrap();
    assert_eq!(Elf::parse(&program[..4096]).as_ref(), Ok(&whole));
    let mut len = 4;
    // As a loader does: read what is said to be needed, until nothing more is.
    let found = loop {
        match Elf::parse(&program[..len]) {
            Err(ElfError::Truncated { needed }) => {
                assert!(needed > len as u64);
                len = needed as usize;
            }
            other => break other,
        }
    };
    assert_eq!(found, Ok(whole));
}

#[test]
fn wrong_files_are_named() {
    assert_eq!(Elf::parse(b""), Err(ElfError::NotElf));
    assert_eq!(Elf::parse(b"#!/bin/sh\n"), Err(ElfError::NotElf));
    assert_eq!(
        Elf::parse(b"\x7fELF"),
        Err(ElfError::Truncated { needed: 64 })
    );
    assert_eq!(patched(4, &[1]), Err(ElfError::Elf32));
    assert_eq!(patched(4, &[9]), Err(ElfError::NotElf));
    assert_eq!(patched(5, &[2]), Err(ElfError::BigEndian));
    assert_eq!(
        patched(18, &183u16.to_le_bytes()),
        Err(ElfError::WrongMachine("AArch64".into()))
    );
    assert_eq!(
        patched(16, &1u16.to_le_bytes()),
        Err(ElfError::WrongType(1))
    );
    assert_eq!(
        patched(54, &57u16.to_le_bytes()),
        Err(ElfError::BadHeaderSize(57))
    );
    assert_eq!(
        patched(56, &0u16.to_le_bytes()),
        Err(ElfError::BadHeaderCount(0))
    );
    assert_eq!(
        patched(56, &0xffffu16.to_le_bytes()),
        Err(ElfError::BadHeaderCount(0xffff))
    );
    assert_eq!(
        patched(32, &u64::MAX.to_le_bytes()),
        Err(ElfError::Truncated { needed: u64::MAX })
    );
}

#[test]
fn impossible_segments_are_refused() {
    let load = header_at(&program(), 1);
    let why = |field: usize, value: u64| match patched(load + field, &value.to_le_bytes()) {
        Err(ElfError::BadSegment { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    assert!(why(8, 1).contains("modulo"));
    assert!(why(8, !4095).contains("beyond any file"));
    assert!(why(16, !4095).contains("address space"));
    assert!(why(32, u64::MAX).contains("longer"));
    assert!(why(40, u64::MAX).contains("address space"));
    assert!(why(40, 1 << 40).contains("overlaps"));
    assert!(why(48, 1 << 63).contains("alignment"));
}

#[test]
fn interpreters_are_checked() {
    let interp = header_at(&program(), 3);
    assert_eq!(
        patched(interp + 32, &1u64.to_le_bytes()),
        Err(ElfError::BadInterpreter)
    );
    assert_eq!(
        patched(interp + 32, &5u64.to_le_bytes()),
        Err(ElfError::BadInterpreter)
    );
    assert_eq!(
        patched(interp + 32, &5000u64.to_le_bytes()),
        Err(ElfError::BadInterpreter)
    );
    assert_eq!(
        patched(interp + 8, &(1u64 << 40).to_le_bytes())
            .map(|_| ())
            .unwrap_err(),
        ElfError::Truncated {
            needed: (1 << 40)
                + Elf::parse(&program()).unwrap().interpreter.unwrap().len() as u64
                + 1
        }
    );
}

#[test]
fn a_stack_for_code_is_seen() {
    let stack = header_at(&program(), 0x6474_e551);
    assert!(
        patched(stack + 4, &7u32.to_le_bytes())
            .unwrap()
            .executable_stack
    );
}

proptest! {
    #[test]
    fn mutilated_files_are_read_or_refused(
        len in 0usize..5000,
        patches in prop::collection::vec((0usize..1024, any::<u8>()), 0..12),
    ) {
        let mut program = program();
        program.truncate(len);
        for (at, byte) in patches {
            if let Some(place) = program.get_mut(at) {
                *place = byte;
            }
        }
        if let Ok(elf) = Elf::parse(&program) {
            prop_assert!(!elf.segments.is_empty());
            prop_assert!(elf.span().end() <= ADDRESS_LIMIT);
            prop_assert!(elf.align().is_power_of_two());
        }
    }

    #[test]
    fn unaligned_bytes_are_read_alike(shift in 0usize..16) {
        let program = program();
        let mut shifted = vec![0; shift];
        shifted.extend(&program);
        prop_assert_eq!(Elf::parse(&shifted[shift..]), Elf::parse(&program));
    }
}
