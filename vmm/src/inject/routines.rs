//! Code for requests that are to go on for ever: on a page behind the vDSO, which is there only where faults can be
//! injected.

use guest_agentless::PAGE_SIZE;

/// `jmp .`
const SPIN: &[u8] = &[0xeb, 0xfe];

/// Maps and fills a megabyte after the other. Where there is no more, it dies as if of that.
#[rustfmt::skip]
const EAT: &[u8] = &[
    0xb8, 9, 0, 0, 0,                   // again: mov eax, SYS_mmap
    0x31, 0xff,                         // xor edi, edi
    0xbe, 0, 0, 0x10, 0,                // mov esi, 1 << 20
    0xba, 3, 0, 0, 0,                   // mov edx, PROT_READ | PROT_WRITE
    0x41, 0xba, 0x22, 0, 0, 0,          // mov r10d, MAP_PRIVATE | MAP_ANONYMOUS
    0x49, 0xc7, 0xc0, 0xff, 0xff, 0xff, 0xff, // mov r8, -1
    0x45, 0x31, 0xc9,                   // xor r9d, r9d
    0x0f, 0x05,                         // syscall
    0x48, 0x85, 0xc0,                   // test rax, rax
    0x78, 0x0d,                         // js dead
    0x48, 0x89, 0xc7,                   // mov rdi, rax
    0xb9, 0, 0, 2, 0,                   // mov ecx, (1 << 20) / 8
    0xf3, 0x48, 0xab,                   // rep stosq
    0xeb, 0xcb,                         // jmp again
    0x0f, 0x0b,                         // dead: ud2
];

/// Waits for somebody to change a word of its own stack, for ever.
#[rustfmt::skip]
const WAIT: &[u8] = &[
    0x48, 0x8d, 0x7c, 0x24, 0x80,       // again: lea rdi, [rsp - 128]
    0x48, 0x83, 0xe7, 0xf8,             // and rdi, -8
    0x8b, 0x17,                         // mov edx, [rdi]
    0x31, 0xf6,                         // xor esi, esi (FUTEX_WAIT)
    0x45, 0x31, 0xd2,                   // xor r10d, r10d
    0xb8, 202, 0, 0, 0,                 // mov eax, SYS_futex
    0x0f, 0x05,                         // syscall
    0xeb, 0xe7,                         // jmp again
];

const EAT_AT: usize = 16;
const WAIT_AT: usize = 128;

/// Where the routines are in the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Routines {
    base: u64,
}

impl Routines {
    /// Routines whose page is at `base`.
    pub fn at(base: u64) -> Routines {
        Routines { base }
    }

    /// Behind a vDSO at `vdso` that was made by [`with_routines`] from `image`.
    pub fn behind(vdso: u64, image: &[u8]) -> Routines {
        Routines::at(vdso + (image.len() as u64).next_multiple_of(PAGE_SIZE))
    }

    /// Never ends.
    pub fn spin(self) -> u64 {
        self.base
    }

    /// Allocates without end.
    pub fn eat(self) -> u64 {
        self.base + EAT_AT as u64
    }

    /// Waits without end.
    pub fn wait(self) -> u64 {
        self.base + WAIT_AT as u64
    }
}

/// The vDSO `image` with a page of routines behind it.
pub fn with_routines(image: &[u8]) -> Vec<u8> {
    let page = PAGE_SIZE as usize;
    let base = image.len().next_multiple_of(page);
    let mut whole = vec![0; base + page];
    whole[..image.len()].copy_from_slice(image);
    for (at, code) in [(0, SPIN), (EAT_AT, EAT), (WAIT_AT, WAIT)] {
        whole[base + at..][..code.len()].copy_from_slice(code);
    }
    whole
}

#[cfg(test)]
mod tests {
    use super::*;
    use iced_x86::{Decoder, DecoderOptions, Instruction, Mnemonic};

    fn decode(code: &[u8], at: u64) -> Vec<Instruction> {
        let mut decoder = Decoder::with_ip(64, code, at, DecoderOptions::NONE);
        decoder.iter().collect()
    }

    #[test]
    fn the_routines_go_in_circles() {
        let image = with_routines(&[1; 5000]);
        assert_eq!(image.len(), 12288);
        let routines = Routines::behind(0x7000, &[1; 5000]);
        for (at, len) in [
            (routines.spin(), SPIN.len()),
            (routines.eat(), EAT.len()),
            (routines.wait(), WAIT.len()),
        ] {
            let code = decode(&image[(at - 0x7000) as usize..][..len], at);
            assert!(code.iter().all(|i| !i.is_invalid()));
            let back = code.iter().rfind(|i| i.mnemonic() == Mnemonic::Jmp);
            assert_eq!(back.map(Instruction::near_branch_target), Some(at));
            // Other jumps lead to an instruction of the routine.
            for jump in code.iter().filter(|i| i.is_jcc_short_or_near()) {
                assert!(code.iter().any(|i| i.ip() == jump.near_branch_target()));
            }
        }
    }
}
