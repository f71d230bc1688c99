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
mod tests;
