//! Which address an instruction was about to access, where KVM does not say.

use guest_agentless::GuestRange;
use iced_x86::{
    Decoder, DecoderOptions, Instruction, InstructionInfoFactory, Mnemonic, OpKind, Register,
};

use crate::kvm::Registers;
use crate::memory::copy;

/// Bytes of the longest instruction (SDM volume 2, 2.3.11).
const LONGEST: usize = 15;

/// The instruction at `rip`, if it can be read.
fn instruction_at(rip: u64) -> Option<Instruction> {
    let mut code = [0u8; LONGEST];
    // An instruction at the end of a mapping is shorter.
    let len = (1..=LONGEST)
        .rev()
        .find(|len| copy::read(rip, &mut code[..*len]).is_ok())?;
    Some(Decoder::with_ip(64, &code[..len], rip, DecoderOptions::NONE).decode())
}

/// All memory that the instruction at RIP accesses; none if that is not known. `bases` are those of FS and GS.
pub fn accesses(registers: &Registers, bases: (u64, u64)) -> Option<Vec<GuestRange>> {
    /// RFLAGS.DF: strings are processed downwards.
    const DIRECTION: u64 = 1 << 10;
    let instruction = instruction_at(registers.rip)?;
    // They would save, set or clear the flag that makes the thread stop after them.
    if instruction.is_invalid()
        || matches!(
            instruction.mnemonic(),
            Mnemonic::Pushfq | Mnemonic::Popfq | Mnemonic::Iretq
        )
    {
        return None;
    }
    let repeats = instruction.has_rep_prefix() || instruction.has_repne_prefix();
    let times = match repeats && instruction.is_string_instruction() {
        true if registers.rflags & DIRECTION != 0 => return None,
        true => registers.rcx,
        false => 1,
    };
    let base = |register| match register {
        Register::FS => Some(bases.0),
        Register::GS => Some(bases.1),
        other => value(registers, other),
    };
    let mut factory = InstructionInfoFactory::new();
    let mut ranges = Vec::new();
    let used = factory.info(&instruction).used_memory().iter();
    for memory in used {
        let start = memory.virtual_address(0, |register, _, _| base(register))?;
        let size = memory.memory_size().size() as u64;
        if size == 0 {
            return None;
        }
        let end = start.checked_add(size.checked_mul(times)?)?;
        ranges.push(GuestRange::from_bounds(start, end));
    }
    Some(ranges)
}

/// The address of the first memory operand of the instruction at RIP that the host cannot access.
pub fn inaccessible_operand(registers: &Registers) -> Option<u64> {
    let Some(instruction) = instruction_at(registers.rip) else {
        return Some(registers.rip);
    };
    (0..instruction.op_count())
        .filter(|operand| {
            matches!(
                instruction.op_kind(*operand),
                OpKind::Memory | OpKind::MemorySegRSI | OpKind::MemorySegRDI | OpKind::MemoryESRDI
            )
        })
        .filter_map(|operand| {
            instruction.virtual_address(operand, 0, |register, _, _| value(registers, register))
        })
        .find(|address| copy::read(*address, &mut [0]).is_err())
}

/// Where the call instruction `code` at RIP leads to. `read` reads eight bytes of guest memory.
pub fn call_target(
    code: &[u8],
    registers: &Registers,
    read: impl FnOnce(u64) -> Option<[u8; 8]>,
) -> Option<u64> {
    let call = Decoder::with_ip(64, code, registers.rip, DecoderOptions::NONE).decode();
    if call.mnemonic() != Mnemonic::Call || call.op_count() != 1 || call.is_call_far() {
        return None;
    }
    match call.op0_kind() {
        OpKind::NearBranch64 => Some(call.near_branch_target()),
        OpKind::Register => value(registers, call.op0_register()),
        OpKind::Memory => {
            let at = call.virtual_address(0, 0, |register, _, _| value(registers, register))?;
            read(at).map(u64::from_le_bytes)
        }
        _ => None,
    }
}

/// Whether the instruction at `rip` is `int n`.
pub fn is_interrupt(rip: u64) -> bool {
    const INT: u8 = 0xcd;
    let mut opcode = [0u8];
    copy::read(rip, &mut opcode).is_ok() && opcode == [INT]
}

/// The value of a register in an address; segment bases other than FS and GS are zero, and those two are
/// not used for mapped files.
fn value(r: &Registers, register: Register) -> Option<u64> {
    Some(match register.full_register() {
        Register::RAX => r.rax,
        Register::RBX => r.rbx,
        Register::RCX => r.rcx,
        Register::RDX => r.rdx,
        Register::RSI => r.rsi,
        Register::RDI => r.rdi,
        Register::RBP => r.rbp,
        Register::RSP => r.rsp,
        Register::R8 => r.r8,
        Register::R9 => r.r9,
        Register::R10 => r.r10,
        Register::R11 => r.r11,
        Register::R12 => r.r12,
        Register::R13 => r.r13,
        Register::R14 => r.r14,
        Register::R15 => r.r15,
        Register::CS | Register::DS | Register::ES | Register::SS => 0,
        _ => return None,
    })
}
