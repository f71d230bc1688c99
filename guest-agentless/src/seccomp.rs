//! Filters of system calls that a guest installs on itself (seccomp(2)), checked and interpreted.
//!
//! A filter of the host's would bind the monitor's own calls, so the monitor executes them: classic BPF as Linux takes
//! it for this purpose (`seccomp_check_filter` in `kernel/seccomp.c`, `bpf_check_classic` in `net/core/filter.c`).

use std::sync::Arc;

use crate::Errno;

/// Instructions of one filter, at most.
pub const MOST_INSTRUCTIONS: usize = 4096;
/// Bytes of an instruction (`struct sock_filter`).
pub const INSTRUCTION: usize = 8;
/// Instructions of all filters of a thread, each of which counts for some more.
const MOST_IN_ALL: usize = 32768;
const COST_OF_ONE: usize = 4;
/// Words of a filter's own memory.
const WORDS: usize = 16;
/// Bytes of a `struct seccomp_data`.
const DATA: u32 = 64;
/// `AUDIT_ARCH_X86_64`.
pub const ARCHITECTURE: u32 = 0xc000_003e;

/// What a filter decides on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Request {
    /// The system call's number.
    pub number: u32,
    /// Address of the instruction after it.
    pub address: u64,
    /// Its arguments.
    pub args: [u64; 6],
}

impl Request {
    /// `struct seccomp_data`, by words; the offset is a multiple of four.
    fn word(&self, offset: u32) -> u32 {
        let half = |value: u64| match offset % 8 {
            0 => value as u32,
            _ => (value >> 32) as u32,
        };
        match offset {
            0 => self.number,
            4 => ARCHITECTURE,
            8 | 12 => half(self.address),
            _ => {
                let arg = (offset as usize / 8).checked_sub(2);
                half(arg.and_then(|at| self.args.get(at)).copied().unwrap_or(0))
            }
        }
    }
}

/// What becomes of a system call, from the strictest on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// The process ends by SIGSYS.
    KillProcess,
    /// The thread ends.
    KillThread,
    /// SIGSYS is sent, with this as its error.
    Trap(u16),
    /// It fails.
    Fail(u16),
    /// Another process decides.
    Notify,
    /// A tracer decides.
    Trace,
    /// It takes place, and is noted.
    Log,
    /// It takes place.
    Allow,
}

impl Verdict {
    fn from_value(value: u32) -> Verdict {
        let data = value as u16;
        match value & 0xffff_0000 {
            0x8000_0000 => Verdict::KillProcess,
            0 => Verdict::KillThread,
            0x0003_0000 => Verdict::Trap(data),
            0x0005_0000 => Verdict::Fail(data),
            0x7fc0_0000 => Verdict::Notify,
            0x7ff0_0000 => Verdict::Trace,
            0x7ffc_0000 => Verdict::Log,
            0x7fff_0000 => Verdict::Allow,
            // As Linux takes what it does not know.
            _ => Verdict::KillProcess,
        }
    }

    /// Whether Linux knows an action of this value (`SECCOMP_GET_ACTION_AVAIL`).
    pub fn is_known(value: u32) -> bool {
        value == 0x8000_0000
            || Verdict::from_value(value) != Verdict::KillProcess && value & 0xffff == 0
    }
}

/// An instruction whose operands have been checked.
#[derive(Debug, Clone, Copy)]
enum Instruction {
    Load(Source),
    LoadIndex(Source),
    Store(usize),
    StoreIndex(usize),
    Arithmetic(Arithmetic, Operand),
    Negate,
    Jump(usize),
    JumpIf {
        test: Test,
        with: Operand,
        then: usize,
        otherwise: usize,
    },
    Return(Operand),
    ToIndex,
    FromIndex,
}

#[derive(Debug, Clone, Copy)]
enum Source {
    Value(u32),
    Data(u32),
    Word(usize),
}

#[derive(Debug, Clone, Copy)]
enum Operand {
    Value(u32),
    Index,
    Accumulator,
}

#[derive(Debug, Clone, Copy)]
enum Arithmetic {
    Add,
    Subtract,
    Multiply,
    Divide,
    And,
    Or,
    Xor,
    Left,
    Right,
}

#[derive(Debug, Clone, Copy)]
enum Test {
    Equal,
    Above,
    AboveOrEqual,
    Bits,
}

/// A filter. It ends for every request: jumps lead forward only.
#[derive(Debug)]
pub struct Filter {
    instructions: Vec<Instruction>,
    bytes: Vec<u8>,
}

impl Filter {
    /// Checks a program of `struct sock_filter`.
    ///
    /// # Errors
    ///
    /// EINVAL for what Linux refuses.
    pub fn parse(bytes: &[u8]) -> Result<Filter, Errno> {
        let (raw, rest) = bytes.as_chunks::<INSTRUCTION>();
        if raw.is_empty() || raw.len() > MOST_INSTRUCTIONS || !rest.is_empty() {
            return Err(Errno::EINVAL);
        }
        let instructions = raw.iter().enumerate();
        let instructions = instructions.map(|(at, one)| Instruction::parse(*one, at, raw.len()));
        let instructions: Vec<Instruction> =
            instructions.collect::<Option<_>>().ok_or(Errno::EINVAL)?;
        let ends = matches!(instructions.last(), Some(Instruction::Return(_)));
        if !ends || !reads_only_what_it_wrote(&instructions) {
            return Err(Errno::EINVAL);
        }
        Ok(Filter {
            instructions,
            bytes: bytes.to_vec(),
        })
    }

    /// The program, as it was given.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    fn run(&self, request: &Request) -> u32 {
        let (mut a, mut x, mut words) = (0u32, 0u32, [0u32; WORDS]);
        let mut at = 0;
        while let Some(instruction) = self.instructions.get(at) {
            at += 1;
            let load = |source: Source, words: &[u32; WORDS]| match source {
                Source::Value(value) => value,
                Source::Data(offset) => request.word(offset),
                Source::Word(word) => words.get(word).copied().unwrap_or(0),
            };
            let operand = |operand: Operand| match operand {
                Operand::Value(value) => value,
                Operand::Index => x,
                Operand::Accumulator => a,
            };
            match *instruction {
                Instruction::Load(source) => a = load(source, &words),
                Instruction::LoadIndex(source) => x = load(source, &words),
                Instruction::Store(word) => words[word % WORDS] = a,
                Instruction::StoreIndex(word) => words[word % WORDS] = x,
                Instruction::Arithmetic(arithmetic, by) => {
                    let by = operand(by);
                    a = match arithmetic {
                        Arithmetic::Add => a.wrapping_add(by),
                        Arithmetic::Subtract => a.wrapping_sub(by),
                        Arithmetic::Multiply => a.wrapping_mul(by),
                        Arithmetic::Divide => match a.checked_div(by) {
                            Some(quotient) => quotient,
                            None => return 0,
                        },
                        Arithmetic::And => a & by,
                        Arithmetic::Or => a | by,
                        Arithmetic::Xor => a ^ by,
                        Arithmetic::Left => a.wrapping_shl(by),
                        Arithmetic::Right => a.wrapping_shr(by),
                    };
                }
                Instruction::Negate => a = a.wrapping_neg(),
                Instruction::Jump(to) => at = to,
                Instruction::JumpIf {
                    test,
                    with,
                    then,
                    otherwise,
                } => {
                    let with = operand(with);
                    let holds = match test {
                        Test::Equal => a == with,
                        Test::Above => a > with,
                        Test::AboveOrEqual => a >= with,
                        Test::Bits => a & with != 0,
                    };
                    at = if holds { then } else { otherwise };
                }
                Instruction::Return(value) => return operand(value),
                Instruction::ToIndex => x = a,
                Instruction::FromIndex => a = x,
            }
        }
        // Not reached: the last instruction returns.
        0
    }
}

impl Instruction {
    /// The instruction at `at` of `len`; none if Linux refuses it.
    fn parse(raw: [u8; INSTRUCTION], at: usize, len: usize) -> Option<Instruction> {
        const LD_W_ABS: u16 = 0x20;
        const LD_W_LEN: u16 = 0x80;
        const LDX_W_LEN: u16 = 0x81;
        const LD_IMM: u16 = 0x00;
        const LDX_IMM: u16 = 0x01;
        const LD_MEM: u16 = 0x60;
        const LDX_MEM: u16 = 0x61;
        const ST: u16 = 0x02;
        const STX: u16 = 0x03;
        const RET_K: u16 = 0x06;
        const RET_A: u16 = 0x16;
        const TAX: u16 = 0x07;
        const TXA: u16 = 0x87;
        const NEG: u16 = 0x84;
        const JA: u16 = 0x05;
        const ARITHMETIC: u16 = 4;
        const JUMP: u16 = 5;
        const BY_INDEX: u16 = 8;

        let code = u16::from_ne_bytes([raw[0], raw[1]]);
        let (then, otherwise) = (usize::from(raw[2]), usize::from(raw[3]));
        let value = u32::from_ne_bytes([raw[4], raw[5], raw[6], raw[7]]);
        let word = || usize::try_from(value).ok().filter(|word| *word < WORDS);
        let operand = match code & BY_INDEX {
            0 => Operand::Value(value),
            _ => Operand::Index,
        };
        let to = |by: usize| at.checked_add(1)?.checked_add(by).filter(|to| *to < len);
        Some(match code {
            LD_W_ABS if value < DATA && value.is_multiple_of(4) => {
                Instruction::Load(Source::Data(value))
            }
            LD_W_LEN => Instruction::Load(Source::Value(DATA)),
            LDX_W_LEN => Instruction::LoadIndex(Source::Value(DATA)),
            LD_IMM => Instruction::Load(Source::Value(value)),
            LDX_IMM => Instruction::LoadIndex(Source::Value(value)),
            LD_MEM => Instruction::Load(Source::Word(word()?)),
            LDX_MEM => Instruction::LoadIndex(Source::Word(word()?)),
            ST => Instruction::Store(word()?),
            STX => Instruction::StoreIndex(word()?),
            RET_K => Instruction::Return(Operand::Value(value)),
            RET_A => Instruction::Return(Operand::Accumulator),
            TAX => Instruction::ToIndex,
            TXA => Instruction::FromIndex,
            NEG => Instruction::Negate,
            JA => Instruction::Jump(to(usize::try_from(value).ok()?)?),
            _ if code & 7 == ARITHMETIC => {
                let by_value = matches!(operand, Operand::Value(_));
                let arithmetic = match code & !BY_INDEX {
                    0x04 => Arithmetic::Add,
                    0x14 => Arithmetic::Subtract,
                    0x24 => Arithmetic::Multiply,
                    0x34 if !by_value || value != 0 => Arithmetic::Divide,
                    0x44 => Arithmetic::Or,
                    0x54 => Arithmetic::And,
                    0x64 if !by_value || value < 32 => Arithmetic::Left,
                    0x74 if !by_value || value < 32 => Arithmetic::Right,
                    0xa4 => Arithmetic::Xor,
                    _ => return None,
                };
                Instruction::Arithmetic(arithmetic, operand)
            }
            _ if code & 7 == JUMP => {
                let test = match code & !BY_INDEX {
                    0x15 => Test::Equal,
                    0x25 => Test::Above,
                    0x35 => Test::AboveOrEqual,
                    0x45 => Test::Bits,
                    _ => return None,
                };
                Instruction::JumpIf {
                    test,
                    with: operand,
                    then: to(then)?,
                    otherwise: to(otherwise)?,
                }
            }
            _ => return None,
        })
    }
}

/// Whether no word is loaded on a way on which it was not stored before (`check_load_and_stores` of Linux).
fn reads_only_what_it_wrote(instructions: &[Instruction]) -> bool {
    // By instruction, the words that all jumps to it have stored.
    let mut at_targets = vec![u16::MAX; instructions.len()];
    let mut stored = 0u16;
    let bit = |word: usize| 1u16 << (word % WORDS);
    for (at, instruction) in instructions.iter().enumerate() {
        stored &= at_targets.get(at).copied().unwrap_or(0);
        let targets = match *instruction {
            Instruction::Store(word) | Instruction::StoreIndex(word) => {
                stored |= bit(word);
                continue;
            }
            Instruction::Load(Source::Word(word)) | Instruction::LoadIndex(Source::Word(word)) => {
                if stored & bit(word) == 0 {
                    return false;
                }
                continue;
            }
            Instruction::Jump(to) => [to, to],
            Instruction::JumpIf {
                then, otherwise, ..
            } => [then, otherwise],
            _ => continue,
        };
        for to in targets {
            if let Some(at_target) = at_targets.get_mut(to) {
                *at_target &= stored;
            }
        }
        stored = u16::MAX;
    }
    true
}

/// The filters of a thread, which its children get too.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    /// The newest is the last.
    all: Vec<Arc<Filter>>,
    /// No filter, but four calls that are allowed (`SECCOMP_MODE_STRICT`).
    is_strict: bool,
}

impl Filters {
    /// The strict mode.
    pub fn strict() -> Filters {
        Filters {
            all: Vec::new(),
            is_strict: true,
        }
    }

    /// Whether this is the strict mode.
    pub fn is_strict(&self) -> bool {
        self.is_strict
    }

    /// Adds a filter.
    ///
    /// # Errors
    ///
    /// EINVAL in the strict mode, ENOMEM if they get too many.
    pub fn add(&mut self, filter: Filter) -> Result<(), Errno> {
        if self.is_strict {
            return Err(Errno::EINVAL);
        }
        let cost = |filter: &Filter| filter.instructions.len() + COST_OF_ONE;
        let before: usize = self.all.iter().map(|filter| cost(filter)).sum();
        // As Linux counts it: the new one has no price of its own.
        if before + filter.instructions.len() > MOST_IN_ALL {
            return Err(Errno::ENOMEM);
        }
        self.all.push(Arc::new(filter));
        Ok(())
    }

    /// Whether `other` has what these are, and maybe more on top: then it may get them, too.
    pub fn is_base_of(&self, other: &Filters) -> bool {
        let mut both = self.all.iter().zip(&other.all);
        self.is_strict == other.is_strict
            && self.all.len() <= other.all.len()
            && both.all(|(own, others)| Arc::ptr_eq(own, others))
    }

    /// The filters, the newest last.
    pub fn iter(&self) -> impl Iterator<Item = &Filter> {
        self.all.iter().map(|filter| &**filter)
    }

    /// What becomes of `request`: the strictest of what they say, the newest where several do.
    pub fn verdict(&self, request: &Request) -> Verdict {
        if self.is_strict {
            const ALLOWED: [i64; 4] = [
                libc::SYS_read,
                libc::SYS_write,
                libc::SYS_exit,
                libc::SYS_rt_sigreturn,
            ];
            return match ALLOWED.contains(&i64::from(request.number)) {
                true => Verdict::Allow,
                false => Verdict::KillThread,
            };
        }
        let newest_first = self.all.iter().rev();
        let values = newest_first.map(|filter| filter.run(request));
        // The action is the upper half, as a signed number; the first of equal ones is taken.
        let strictest = values.min_by_key(|value| (value & 0xffff_0000) as i32);
        strictest.map_or(Verdict::Allow, Verdict::from_value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn program(instructions: &[(u16, u8, u8, u32)]) -> Vec<u8> {
        instructions
            .iter()
            .flat_map(|(code, then, otherwise, value)| {
                let [c0, c1] = code.to_ne_bytes();
                let [v0, v1, v2, v3] = value.to_ne_bytes();
                [c0, c1, *then, *otherwise, v0, v1, v2, v3]
            })
            .collect()
    }

    fn filter(instructions: &[(u16, u8, u8, u32)]) -> Filter {
        Filter::parse(&program(instructions)).unwrap()
    }

    fn request(number: u32, args: [u64; 6]) -> Request {
        Request {
            number,
            address: 0x1122_3344_5566_7788,
            args,
        }
    }

    const ALLOW: u32 = 0x7fff_0000;
    const FAIL: u32 = 0x0005_0000;

    #[test]
    fn the_request_is_read_by_words() {
        let expected = [
            (0, 9),
            (4, ARCHITECTURE),
            (8, 0x5566_7788),
            (12, 0x1122_3344),
            (16, 0xbbbb_bbbb),
            (20, 0xaaaa_aaaa),
            (56, 6),
            (60, 0),
        ];
        let request = request(9, [0xaaaa_aaaa_bbbb_bbbb, 2, 3, 4, 5, 6]);
        for (offset, value) in expected {
            let load = filter(&[(0x20, 0, 0, offset), (0x16, 0, 0, 0)]);
            assert_eq!(load.run(&request), value, "{offset}");
        }
    }

    #[test]
    fn a_filter_decides_by_number() {
        let write_fails = filter(&[
            (0x20, 0, 0, 0),
            (0x15, 0, 1, 1),
            (0x06, 0, 0, FAIL | 13),
            (0x06, 0, 0, ALLOW),
        ]);
        let mut filters = Filters::default();
        filters.add(write_fails).unwrap();
        assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(13));
        assert_eq!(filters.verdict(&request(2, [0; 6])), Verdict::Allow);
        // A newer one that says the same with another error wins; a milder one does not.
        filters.add(filter(&[(0x06, 0, 0, FAIL | 7)])).unwrap();
        assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(7));
        filters.add(filter(&[(0x06, 0, 0, ALLOW)])).unwrap();
        assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::Fail(7));
        filters.add(filter(&[(0x06, 0, 0, 0x8000_0000)])).unwrap();
        assert_eq!(filters.verdict(&request(1, [0; 6])), Verdict::KillProcess);
    }

    #[test]
    fn arithmetic_is_that_of_32_bits() {
        let compute = |code: u16, a: u32, k: u32| {
            let by_value = filter(&[(0, 0, 0, a), (code, 0, 0, k), (0x16, 0, 0, 0)]);
            let by_index = filter(&[
                (0, 0, 0, a),
                (1, 0, 0, k),
                (code | 8, 0, 0, 0),
                (0x16, 0, 0, 0),
            ]);
            let request = request(0, [0; 6]);
            assert_eq!(by_value.run(&request), by_index.run(&request));
            by_value.run(&request)
        };
        assert_eq!(compute(0x04, u32::MAX, 2), 1);
        assert_eq!(compute(0x14, 1, 2), u32::MAX);
        assert_eq!(compute(0x24, 1 << 31, 3), 1 << 31);
        assert_eq!(compute(0x34, 7, 2), 3);
        assert_eq!(compute(0x44, 5, 2), 7);
        assert_eq!(compute(0x54, 7, 2), 2);
        assert_eq!(compute(0x64, 3, 31), 1 << 31);
        assert_eq!(compute(0x74, 1 << 31, 31), 1);
        assert_eq!(compute(0xa4, 5, 1), 4);
        // By zero, it ends with the strictest answer but one.
        let by_zero = filter(&[
            (0, 0, 0, 5),
            (1, 0, 0, 0),
            (0x3c, 0, 0, 0),
            (0x06, 0, 0, ALLOW),
        ]);
        assert_eq!(by_zero.run(&request(0, [0; 6])), 0);
        let negated = filter(&[(0, 0, 0, 5), (0x84, 0, 0, 0), (0x16, 0, 0, 0)]);
        assert_eq!(negated.run(&request(0, [0; 6])), (-5i32) as u32);
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        let refused =
            |instructions: &[(u16, u8, u8, u32)]| Filter::parse(&program(instructions)).is_err();
        let allow = (0x06, 0, 0, ALLOW);
        assert!(refused(&[]));
        assert!(refused(&vec![allow; MOST_INSTRUCTIONS + 1]));
        assert!(Filter::parse(&[0; 7]).is_err());
        // No return at the end.
        assert!(refused(&[allow, (0x20, 0, 0, 0)]));
        // Jumps that lead out.
        assert!(refused(&[(0x05, 0, 0, 1), allow]));
        assert!(refused(&[(0x05, 0, 0, u32::MAX), allow]));
        assert!(refused(&[(0x15, 0, 1, 1), allow]));
        assert!(!refused(&[(0x15, 0, 0, 1), allow]));
        // What is not in the request, or not one of its words.
        assert!(refused(&[(0x20, 0, 0, 64), allow]));
        assert!(refused(&[(0x20, 0, 0, 2), allow]));
        assert!(refused(&[(0x28, 0, 0, 0), allow]));
        // A word that was not stored, or only on one way.
        assert!(refused(&[(0x60, 0, 0, 3), allow]));
        assert!(refused(&[(0x02, 0, 0, 16), allow]));
        assert!(!refused(&[(0x02, 0, 0, 3), (0x60, 0, 0, 3), allow]));
        assert!(refused(&[
            (0x15, 0, 1, 1),
            (0x02, 0, 0, 3),
            (0x60, 0, 0, 3),
            allow
        ]));
        // Division by zero, shifts by too much, a remainder, what is no instruction.
        for bad in [
            (0x34, 0, 0, 0),
            (0x64, 0, 0, 32),
            (0x94, 0, 0, 3),
            (0x0e, 0, 0, 0),
            (0xffff, 0, 0, 0),
        ] {
            assert!(refused(&[bad, allow]), "{bad:?}");
        }
    }

    /// Whatever is accepted ends, and never panics.
    #[test]
    fn random_programs_end() {
        let mut state = 1u64;
        let mut next = || {
            state = state
                .wrapping_mul(6364136223846793005)
                .wrapping_add(1442695040888963407);
            (state >> 33) as u32
        };
        const CODES: [u16; 20] = [
            0x20, 0x80, 0x81, 0, 1, 0x60, 0x61, 2, 3, 0x16, 7, 0x87, 0x84, 5, 0x04, 0x3c, 0x6c,
            0x15, 0x2d, 0x45,
        ];
        let mut accepted = 0;
        for _ in 0..20_000 {
            let len = 1 + next() % 12;
            let mut instructions: Vec<_> = (0..len)
                .map(|_| {
                    let code = CODES[next() as usize % CODES.len()];
                    (code, (next() % 4) as u8, (next() % 4) as u8, next() % 20)
                })
                .collect();
            instructions.push((0x16, 0, 0, 0));
            if let Ok(filter) = Filter::parse(&program(&instructions)) {
                accepted += 1;
                filter.run(&request(next(), [u64::from(next()); 6]));
            }
        }
        assert!(accepted > 1000, "{accepted}");
    }

    #[test]
    fn filters_have_a_limit_and_an_order() {
        let mut filters = Filters::default();
        let long = || filter(&vec![(0x06, 0, 0, ALLOW); MOST_INSTRUCTIONS]);
        let base = filters.clone();
        let added = (0..9).take_while(|_| filters.add(long()).is_ok()).count();
        assert_eq!(added, 7);
        assert!(base.is_base_of(&filters) && !filters.is_base_of(&base));
        assert!(!Filters::strict().is_base_of(&filters));
        assert_eq!(Filters::strict().add(long()), Err(Errno::EINVAL));
        assert_eq!(
            Filters::strict().verdict(&request(39, [0; 6])),
            Verdict::KillThread
        );
        assert_eq!(
            Filters::strict().verdict(&request(1, [0; 6])),
            Verdict::Allow
        );
    }

    #[test]
    fn known_actions_are_those_of_linux() {
        for known in [
            0x8000_0000,
            0,
            0x0003_0000,
            0x0005_0000,
            0x7fc0_0000,
            0x7ff0_0000,
            0x7ffc_0000,
            ALLOW,
        ] {
            assert!(Verdict::is_known(known), "{known:#x}");
        }
        for unknown in [1, 0x0005_0001, 0x1234_0000, 0x8000_0001] {
            assert!(!Verdict::is_known(unknown), "{unknown:#x}");
        }
    }
}
