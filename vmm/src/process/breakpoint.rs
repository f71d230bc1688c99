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
    /// Where the guest was interrupted, if an `int3` may have been executed there whose exception is still to
    /// come.
    interrupted: Option<u64>,
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

    /// The guest was interrupted, maybe just after an `int3` and before its exception. KVM forgets that exception
    /// when it is given the registers again, so the instruction is to be executed once more; unless it was
    /// already on its way, and then it comes with these registers.
    pub fn rewind(&mut self, registers: &mut Registers) {
        let before = registers.rip.wrapping_sub(1);
        if self.replaced(before).is_some() {
            registers.rip = before;
        }
        if self.replaced(registers.rip).is_some() {
            self.interrupted = Some(registers.rip);
        }
    }

    /// The guest has left on its own account: no exception is on its way.
    pub fn settled(&mut self) {
        self.interrupted = None;
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
                let rip = registers.rip;
                let planted = |address: &u64| self.replaced(*address).is_some();
                if let Some(address) = [rip.wrapping_sub(1), rip].into_iter().find(planted) {
                    registers.rip = address;
                    return Some(Debug::Reached);
                }
                // It was taken away, or the domain undone, between the interruption and the exception.
                let address = self.interrupted?;
                if rip == address.wrapping_add(1) {
                    registers.rip = address;
                }
                Some(Debug::Passed)
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

#[cfg(test)]
mod tests {
    use super::*;

    fn planted_at(code: &[u8]) -> (File, Breakpoints, u64) {
        let memory = File::options()
            .read(true)
            .write(true)
            .open("/proc/self/mem");
        let memory = memory.unwrap();
        let mut breakpoints = Breakpoints::default();
        let address = code.as_ptr() as u64;
        assert!(breakpoints.plant(&memory, address));
        (memory, breakpoints, address)
    }

    fn at(rip: u64) -> Registers {
        Registers {
            rip,
            ..Registers::default()
        }
    }

    #[test]
    fn an_exception_that_outlives_an_interruption_is_recognised() {
        let code = vec![0x90u8; 2];
        let (memory, mut breakpoints, address) = planted_at(&code);
        let mut registers = at(address + 1);
        breakpoints.rewind(&mut registers);
        assert_eq!(registers.rip, address);
        // Lost and executed again, or with the registers as they are.
        for rip in [address + 1, address] {
            let mut registers = at(rip);
            let debug = breakpoints.recognise(&memory, 3, &mut registers);
            assert_eq!((debug, registers.rip), (Some(Debug::Reached), address));
        }
    }

    #[test]
    fn an_exception_that_outlives_its_breakpoint_does_nothing() {
        let code = vec![0x90u8; 2];
        let (memory, mut breakpoints, address) = planted_at(&code);
        let mut registers = at(address + 1);
        breakpoints.rewind(&mut registers);
        breakpoints.clear(&memory, &mut registers);
        for rip in [address + 1, address] {
            let mut registers = at(rip);
            let debug = breakpoints.recognise(&memory, 3, &mut registers);
            assert_eq!((debug, registers.rip), (Some(Debug::Passed), address));
        }
        breakpoints.settled();
        let debug = breakpoints.recognise(&memory, 3, &mut at(address));
        assert_eq!(debug, None, "an int3 of the guest's own");
    }
}
