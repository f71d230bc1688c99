//! What an injection may hit, as far as it is a matter of registers and memory.

use guest_agentless::{GuestRange, VmaMap};

use crate::kvm::Registers;

/// Words of the stack that are looked at.
const STACK_WORDS: usize = 512;
/// Words at the top of the stack in which pointers to the heap are looked for.
const NEAR_WORDS: usize = 64;
/// Bits of an address that are flipped: the others make it one that the CPU refuses.
const ADDRESS_BITS: u64 = 47;
/// Bytes of the longest call instruction, and of the shortest.
const CALL_LENGTHS: std::ops::RangeInclusive<u64> = 2..=7;

/// Guest memory and mappings to choose from.
pub struct View<'a> {
    /// The mappings.
    pub vmas: &'a VmaMap,
    /// Reads guest memory; how many bytes could be read.
    pub read: &'a dyn Fn(u64, &mut [u8]) -> usize,
}

/// A register by its name, and its value.
pub type Named = (&'static str, u64);

impl View<'_> {
    fn word(&self, address: u64) -> Option<u64> {
        let mut word = [0; 8];
        ((self.read)(address, &mut word) == 8).then(|| u64::from_le_bytes(word))
    }

    fn stack(&self, rsp: u64, words: usize) -> impl Iterator<Item = (u64, u64)> {
        let mut bytes = vec![0; words * 8];
        let len = (self.read)(rsp, &mut bytes);
        bytes.truncate(len - len % 8);
        let words: Vec<u64> = bytes
            .chunks_exact(8)
            .map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()))
            .collect();
        words
            .into_iter()
            .enumerate()
            .map(move |(at, word)| (rsp + at as u64 * 8, word))
    }

    /// The general registers that hold an address of something mapped. After a system call its arguments do not
    /// matter any more, so `at_call` leaves only what is still needed.
    pub fn pointers(&self, r: &Registers, at_call: bool) -> Vec<Named> {
        let kept = [
            ("rbx", r.rbx),
            ("rbp", r.rbp),
            ("r12", r.r12),
            ("r13", r.r13),
            ("r14", r.r14),
            ("r15", r.r15),
        ];
        let scratch = [
            ("rax", r.rax),
            ("rcx", r.rcx),
            ("rdx", r.rdx),
            ("rsi", r.rsi),
            ("rdi", r.rdi),
            ("r8", r.r8),
            ("r9", r.r9),
            ("r10", r.r10),
            ("r11", r.r11),
        ];
        let scratch = scratch.into_iter().filter(|_| !at_call);
        kept.into_iter()
            .chain(scratch)
            .filter(|(_, value)| self.vmas.find(*value).is_some())
            .collect()
    }

    /// Where on the stack the innermost return addresses are: words that point behind a call instruction.
    pub fn return_addresses(&self, rsp: u64) -> Vec<u64> {
        self.stack(rsp, STACK_WORDS)
            .filter(|(_, word)| self.is_return_address(*word))
            .map(|(at, _)| at)
            .collect()
    }

    fn is_return_address(&self, address: u64) -> bool {
        let vma = self.vmas.find(address);
        if !vma.is_some_and(|vma| vma.protection.is_executable()) {
            return false;
        }
        let mut code = [0; 7];
        let from = address.saturating_sub(code.len() as u64);
        if (self.read)(from, &mut code) != code.len() {
            return false;
        }
        // `call rel32`, or `call r/m64` of any length.
        code[2] == 0xe8
            || CALL_LENGTHS.into_iter().any(|len| {
                let at = code.len() - len as usize;
                code[at] == 0xff && code[at + 1] >> 3 & 7 == 2
            })
    }

    /// Where on the stack the stack protector's canary lies.
    pub fn canaries(&self, rsp: u64, fs_base: u64) -> Vec<u64> {
        // glibc keeps it there for the compiler (`tcbhead_t.stack_guard`).
        let guard = self.word(fs_base.wrapping_add(0x28));
        let Some(guard) = guard.filter(|guard| *guard != 0) else {
            return Vec::new();
        };
        self.stack(rsp, STACK_WORDS)
            .filter(|(_, word)| *word == guard)
            .map(|(at, _)| at)
            .collect()
    }

    /// Where the sizes of heap chunks are that registers and the top of the stack point to.
    pub fn chunk_sizes(&self, r: &Registers, heap: GuestRange) -> Vec<u64> {
        let registers = [
            r.rax, r.rbx, r.rcx, r.rdx, r.rsi, r.rdi, r.rbp, r.r8, r.r9, r.r10, r.r11, r.r12,
            r.r13, r.r14, r.r15,
        ];
        let stack = self.stack(r.rsp, NEAR_WORDS).map(|(_, word)| word);
        let mut sizes: Vec<u64> = registers
            .into_iter()
            .chain(stack)
            .filter(|pointer| pointer % 16 == 0 && heap.contains(*pointer))
            .filter_map(|pointer| pointer.checked_sub(8))
            .filter(|at| heap.contains(*at) && self.is_chunk_size(*at, heap))
            .collect();
        sizes.sort_unstable();
        sizes.dedup();
        sizes
    }

    fn is_chunk_size(&self, at: u64, heap: GuestRange) -> bool {
        let Some(word) = self.word(at) else {
            return false;
        };
        // `malloc.c`: sizes are multiples of 16, the low bits are flags.
        let size = word & !7;
        size >= 32 && size % 16 == 0 && size <= heap.end() - at
    }

    /// Code that is about to be executed: where the thread is, and where its callers go on.
    pub fn code_ahead(&self, r: &Registers) -> Vec<u64> {
        let returns = self.stack(r.rsp, STACK_WORDS).map(|(_, word)| word);
        let returns = returns.filter(|word| self.is_return_address(*word));
        std::iter::once(r.rip).chain(returns).collect()
    }
}

/// `value` with one bit of an address flipped.
pub fn flip_address_bit(value: u64, random: u64) -> u64 {
    value ^ 1 << (random % ADDRESS_BITS)
}

/// Gives a register another value.
pub fn set_register(r: &mut Registers, name: &str, value: u64) {
    let register = match name {
        "rax" => &mut r.rax,
        "rbx" => &mut r.rbx,
        "rcx" => &mut r.rcx,
        "rdx" => &mut r.rdx,
        "rsi" => &mut r.rsi,
        "rdi" => &mut r.rdi,
        "rbp" => &mut r.rbp,
        "r8" => &mut r.r8,
        "r9" => &mut r.r9,
        "r10" => &mut r.r10,
        "r11" => &mut r.r11,
        "r12" => &mut r.r12,
        "r13" => &mut r.r13,
        "r14" => &mut r.r14,
        "r15" => &mut r.r15,
        _ => return,
    };
    *register = value;
}

#[cfg(test)]
mod tests {
    use super::*;
    use guest_agentless::{Protection, Vma};

    const CODE: u64 = 0x10000;
    const STACK: u64 = 0x20000;
    const HEAP: u64 = 0x30000;

    struct Guest {
        vmas: VmaMap,
        memory: Vec<u8>,
    }

    impl Guest {
        fn new() -> Guest {
            let mut vmas = VmaMap::new();
            for (start, protection) in [
                (CODE, Protection::READ | Protection::EXEC),
                (STACK, Protection::READ | Protection::WRITE),
                (HEAP, Protection::READ | Protection::WRITE),
            ] {
                let range = GuestRange::from_bounds(start, start + 0x1000);
                vmas.insert(Vma::anonymous(range, protection)).unwrap();
            }
            Guest {
                vmas,
                memory: vec![0; 0x40000],
            }
        }

        fn put(&mut self, at: u64, word: u64) {
            self.memory[at as usize..][..8].copy_from_slice(&word.to_le_bytes());
        }

        fn look<T>(&self, what: impl FnOnce(&View<'_>) -> T) -> T {
            let read = |at: u64, into: &mut [u8]| {
                let Some(part) = self.memory.get(at as usize..) else {
                    return 0;
                };
                let len = part.len().min(into.len());
                into[..len].copy_from_slice(&part[..len]);
                len
            };
            what(&View {
                vmas: &self.vmas,
                read: &read,
            })
        }
    }

    #[test]
    fn pointers_are_registers_with_mapped_addresses() {
        let registers = Registers {
            rbx: HEAP + 8,
            rbp: 7,
            rdi: STACK,
            ..Registers::default()
        };
        let guest = Guest::new();
        let names = |at_call| -> Vec<&str> {
            let found = guest.look(|view| view.pointers(&registers, at_call));
            found.iter().map(|(name, _)| *name).collect()
        };
        assert_eq!(names(true), ["rbx"]);
        assert_eq!(names(false), ["rbx", "rdi"]);
        let mut changed = registers;
        set_register(&mut changed, "rbx", 5);
        assert_eq!(changed.rbx, 5);
        assert_eq!(flip_address_bit(8, 3), 0);
    }

    #[test]
    fn return_addresses_follow_calls() {
        let mut guest = Guest::new();
        // `call rel32`, `call [rip + x]`, `call rax`, and something else.
        for (at, code) in [
            (0x10, &[0xe8, 1, 2, 3, 4][..]),
            (0x20, &[0xff, 0x15, 1, 2, 3, 4]),
            (0x30, &[0xff, 0xd0]),
            (0x40, &[0x90, 0x90, 0x90]),
        ] {
            guest.memory[(CODE + at) as usize..][..code.len()].copy_from_slice(code);
        }
        for (slot, word) in [CODE + 0x15, 3, CODE + 0x26, CODE + 0x32, CODE + 0x43]
            .into_iter()
            .enumerate()
        {
            guest.put(STACK + slot as u64 * 8, word);
        }
        let found = guest.look(|view| view.return_addresses(STACK));
        assert_eq!(found, [STACK, STACK + 16, STACK + 24]);
    }

    #[test]
    fn canaries_are_copies_of_the_guard() {
        let mut guest = Guest::new();
        guest.put(HEAP + 0x28, 0x1122_3300);
        guest.put(STACK + 24, 0x1122_3300);
        assert_eq!(guest.look(|view| view.canaries(STACK, HEAP)), [STACK + 24]);
        assert!(guest.look(|view| view.canaries(STACK, CODE)).is_empty());
    }

    #[test]
    fn chunks_have_sizes_that_fit_into_the_heap() {
        let mut guest = Guest::new();
        let heap = GuestRange::from_bounds(HEAP, HEAP + 0x1000);
        guest.put(HEAP + 0x18, 0x41);
        guest.put(HEAP + 0x58, 0x10_0001);
        let registers = Registers {
            rbx: HEAP + 0x20,
            rcx: HEAP + 0x60,
            rdx: HEAP + 0x21,
            rsi: HEAP,
            rsp: STACK,
            ..Registers::default()
        };
        let found = guest.look(|view| view.chunk_sizes(&registers, heap));
        assert_eq!(found, [HEAP + 0x18]);
    }
}
