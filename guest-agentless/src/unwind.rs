//! Call stacks, from registers and a copy of the stack's bytes.
//!
//! Nothing here reads guest memory: when a stack is walked, its thread has long gone on. The walk follows
//! the unwind information of the mapped files (`.eh_frame`), and frame pointers where there is none.
//! Whatever it reads may be damaged, so it is bounded, believes only return addresses that lie in executable
//! mappings, and ends early rather than guess.
//!
//! One thing is not bounded: framehop evaluates the expressions in unwind information without a limit, so a
//! file made for the purpose can keep it busy for ever. To map one, somebody must already run code of theirs.

mod info;
mod lines;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use framehop::x86_64::{CacheX86_64, UnwindRegsX86_64, UnwinderX86_64};
use framehop::{FrameAddress, Unwinder};

use crate::{Backing, FileBacking, Vma};

pub use info::UnwindInfo;
pub use lines::{LineTable, SourceLine};

/// Frames that a call stack has at most.
pub const MAX_FRAMES: usize = 64;

/// The registers that a walk starts from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Registers {
    /// The instruction pointer.
    pub rip: u64,
    /// The stack pointer.
    pub rsp: u64,
    /// The base pointer, which may or may not be a frame pointer.
    pub rbp: u64,
}

/// One frame of a call stack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct StackFrame {
    /// The faulting instruction, or the return address into this frame.
    pub address: u64,
    /// The stack pointer there: in a caller's frame, what it is when the call has returned.
    pub rsp: u64,
}

/// The addresses of [`frames`]: `rip` itself, then return addresses. A return address points behind its call;
/// look up what is called for one byte before it.
pub fn unwind(
    from: Registers,
    stack: &[u8],
    mappings: &[Vma],
    unwind_info: &mut dyn FnMut(&FileBacking) -> Option<Arc<UnwindInfo>>,
) -> Vec<u64> {
    let frames = frames(from, stack, mappings, unwind_info);
    frames.into_iter().map(|frame| frame.address).collect()
}

/// The call stack, innermost frame first.
///
/// `stack` is a copy of the memory from `rsp` upwards. `unwind_info` gives the unwind information of a mapped
/// file, and is asked only for the files that the walk comes through.
pub fn frames(
    from: Registers,
    stack: &[u8],
    mappings: &[Vma],
    unwind_info: &mut dyn FnMut(&FileBacking) -> Option<Arc<UnwindInfo>>,
) -> Vec<StackFrame> {
    let is_code = |address| executable(mappings, address).is_some();
    let is_return_address = |address: &u64| address.checked_sub(1).is_some_and(is_code);
    let mut read_stack = |address| read(stack, from.rsp, address).ok_or(());

    let mut frames = vec![StackFrame {
        address: from.rip,
        rsp: from.rsp,
    }];
    let mut address = FrameAddress::from_instruction_pointer(from.rip);
    let mut registers = UnwindRegsX86_64::new(from.rip, from.rsp, from.rbp);
    if !is_code(from.rip)
        && let Some(caller) = read_stack(from.rsp).ok().filter(is_return_address)
        && let Some(caller_address) = FrameAddress::from_return_address(caller)
    {
        // A call through a bad pointer: all that happened at `rip` is the push of the return address.
        let rsp = from.rsp.wrapping_add(8);
        frames.push(StackFrame {
            address: caller,
            rsp,
        });
        address = caller_address;
        registers = UnwindRegsX86_64::new(caller, rsp, from.rbp);
    }

    let mut unwinder = UnwinderX86_64::<Arc<[u8]>>::new();
    let mut cache = CacheX86_64::new();
    let mut known: Vec<u64> = Vec::new();
    while frames.len() < MAX_FRAMES {
        let code = address.address_for_lookup();
        if let Some(vma) = executable(mappings, code)
            && let Backing::File(file) = &vma.backing
            && !known.contains(&vma.range.start())
        {
            known.push(vma.range.start());
            let module = unwind_info(file).and_then(|info| info.module(vma, code));
            module.into_iter().for_each(|m| unwinder.add_module(m));
        }
        let next = unwinder.unwind_frame(address, &mut registers, &mut cache, &mut read_stack);
        let Some(caller) = next.ok().flatten().filter(is_return_address) else {
            break;
        };
        let Some(caller_address) = FrameAddress::from_return_address(caller) else {
            break;
        };
        frames.push(StackFrame {
            address: caller,
            rsp: registers.sp(),
        });
        address = caller_address;
    }
    frames
}

/// The executable mapping that holds `address`.
fn executable(mappings: &[Vma], address: u64) -> Option<&Vma> {
    mappings
        .iter()
        .find(|vma| vma.range.contains(address))
        .filter(|vma| vma.protection.is_executable())
}

/// The word at `address`, where `stack` is what the memory holds from `base` upwards.
fn read(stack: &[u8], base: u64, address: u64) -> Option<u64> {
    let at = usize::try_from(address.checked_sub(base)?).ok()?;
    stack
        .get(at..)?
        .first_chunk()
        .copied()
        .map(u64::from_le_bytes)
}
