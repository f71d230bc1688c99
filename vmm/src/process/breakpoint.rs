//! Breakpoints in the code of one thread's rerun: `int3` in place of an instruction.
//!
//! KVM's own debugging is not to be relied on (not on PVM), so the byte is written to the code and the
//! exceptions come through the IDT. Code is private to the process and read-only to the guest, so the write
//! goes through `/proc/self/mem`, which copies the page first; the copy flushes the translation of the page
//! that was mapped before. The bytes are in place only while the thread that they are for holds the run
//! token.

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::kvm::Registers;

const INT3: u8 = 0xcc;
/// The trap flag in RFLAGS: an exception after one instruction.
const TRAP_FLAG: u64 = 1 << 8;

/// What a debug exception was for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Debug {
    /// The instruction at a breakpoint is about to be executed.
    Reached,
    /// The instruction at a breakpoint has been executed.
    Passed,
}

/// The breakpoints of one thread.
#[derive(Debug, Default)]
pub struct Breakpoints {
    /// Addresses, and the bytes that belong there.
    planted: Vec<(u64, u8)>,
    /// The one whose instruction is being executed.
    passing: Option<(u64, u8)>,
}

impl Breakpoints {
    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.planted.is_empty() && self.passing.is_none()
    }

    /// Puts one at `address`, unless it is there; false if that cannot be done.
    pub fn plant(&mut self, memory: &File, address: u64) -> bool {
        if self.planted.iter().any(|(at, _)| *at == address) {
            return true;
        }
        let mut byte = [0];
        let done = memory.read_exact_at(&mut byte, address).is_ok()
            && memory.write_all_at(&[INT3], address).is_ok();
        if done {
            self.planted.push((address, byte[0]));
        }
        done
    }

    /// The first byte of the instruction at `address`, if there is a breakpoint.
    pub fn replaced(&self, address: u64) -> Option<u8> {
        let planted = self.planted.iter().find(|(at, _)| *at == address)?;
        Some(planted.1)
    }

    /// The guest was interrupted just after an `int3` and before its exception: KVM forgets that exception when
    /// it is given the registers again, so the instruction is to be executed once more.
    pub fn rewind(&self, registers: &mut Registers) {
        let before = registers.rip.wrapping_sub(1);
        if self.replaced(before).is_some() {
            registers.rip = before;
        }
    }

    /// Takes all away.
    pub fn clear(&mut self, memory: &File, registers: &mut Registers) {
        if self.passing.take().is_some() {
            registers.rflags &= !TRAP_FLAG;
        }
        for (address, byte) in self.planted.drain(..) {
            restore(memory, address, byte);
        }
    }

    /// What an exception with that vector was for, if for one of these. RIP becomes that of the instruction.
    pub fn recognise(
        &mut self,
        memory: &File,
        vector: u8,
        registers: &mut Registers,
    ) -> Option<Debug> {
        match vector {
            1 => {
                let (address, byte) = self.passing.take()?;
                registers.rflags &= !TRAP_FLAG;
                if memory.write_all_at(&[INT3], address).is_ok() {
                    self.planted.push((address, byte));
                }
                Some(Debug::Passed)
            }
            3 => {
                let address = registers.rip.wrapping_sub(1);
                self.planted.iter().find(|(at, _)| *at == address)?;
                registers.rip = address;
                Some(Debug::Reached)
            }
            _ => None,
        }
    }

    /// Lets the thread execute the instruction at its RIP, at which there is a breakpoint.
    pub fn pass(&mut self, memory: &File, registers: &mut Registers) {
        let at = |(address, _): &(u64, u8)| *address == registers.rip;
        let Some(index) = self.planted.iter().position(at) else {
            return;
        };
        let (address, byte) = self.planted.swap_remove(index);
        restore(memory, address, byte);
        self.passing = Some((address, byte));
        registers.rflags |= TRAP_FLAG;
    }
}

fn restore(memory: &File, address: u64, byte: u8) {
    if let Err(error) = memory.write_all_at(&[byte], address) {
        // The page was copied when the breakpoint was planted, so there is nothing that could fail.
        log::error!("the code at {address:#x} could not be put back: {error}");
    }
}
