//! Why a file cannot be loaded.

use object::elf::{self, Machine};

/// Why a file is not a program that can be loaded. To `execve` all of them are `ENOEXEC`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ElfError {
    /// No ELF file at all.
    #[error("not an ELF file")]
    NotElf,
    /// A 32-bit file.
    #[error("a 32-bit ELF file; only 64-bit programs can run")]
    Elf32,
    /// A big-endian file.
    #[error("a big-endian ELF file; only x86-64 programs can run")]
    BigEndian,
    /// For another processor.
    #[error("an ELF file for {0}; only x86-64 programs can run")]
    WrongMachine(String),
    /// Neither a program nor a shared object.
    #[error("an ELF file of type {0}; only programs (2, 3) can run")]
    WrongType(u16),
    /// The size of a program header is not that of the ABI.
    #[error("program headers of {0} bytes instead of 56")]
    BadHeaderSize(u16),
    /// No program headers or too many.
    #[error("{0} program headers; at least 1 and at most 1170 are allowed")]
    BadHeaderCount(u16),
    /// It ends too early.
    #[error("the ELF file is cut off: at least {needed} bytes are needed")]
    Truncated {
        /// Bytes of the file that are needed to read on.
        needed: u64,
    },
    /// A loadable segment that makes no sense.
    #[error("program header {index} describes an impossible segment: {why}")]
    BadSegment {
        /// Which program header.
        index: usize,
        /// What is wrong.
        why: &'static str,
    },
    /// No loadable segment.
    #[error("the ELF file has nothing to load")]
    NothingToLoad,
    /// The path of the dynamic loader is missing, too long or not terminated.
    #[error("the path of the program's interpreter is malformed")]
    BadInterpreter,
}

impl ElfError {
    pub(super) fn wrong_machine(machine: Machine) -> ElfError {
        let name = match machine {
            elf::EM_386 => "i386",
            elf::EM_AARCH64 => "AArch64",
            elf::EM_ARM => "Arm",
            elf::EM_RISCV => "RISC-V",
            elf::EM_PPC64 => "PowerPC64",
            elf::EM_S390 => "S/390",
            elf::EM_MIPS => "MIPS",
            elf::EM_LOONGARCH => "LoongArch",
            elf::EM_BPF => "BPF",
            Machine(number) => return ElfError::WrongMachine(format!("machine {number}")),
        };
        ElfError::WrongMachine(name.to_owned())
    }
}
