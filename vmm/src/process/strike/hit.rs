//! What a strike does to the guest.

use std::os::unix::fs::FileExt;

use guest_agentless::to_rax;
use guest_agentless::{Backing, Errno, GuestRange, GuestVa, PAGE_SIZE, PageNumber, Signal};

use super::{At, Struck, read_word};
use crate::inject::target::{View, flip_address_bit, set_register};
use crate::inject::{Corruption, Injector, Memory, What, Wild};
use crate::memory::copy;
use crate::process::State;
use crate::process::fault::Fault;
use crate::process::thread::Thread;
use crate::rng::Rng;

/// Bytes of code after an address that count as about to be executed.
const CODE_AHEAD: u64 = 16;
/// Return addresses from which one is chosen: the innermost ones are returned to soon.
const RETURNS: usize = 4;

/// What was hit, in words; and what comes of it. None if there was nothing to hit.
pub(super) type Hit = Option<(String, Struck)>;

impl Thread {
    /// Does `what` to the guest, which stands `at` a place of the running domain.
    pub(super) fn hit(
        &mut self,
        state: &mut State,
        injector: &Injector,
        what: What,
        at: At,
        rng: &mut Rng,
    ) -> Hit {
        let registers = *self.vcpu.registers();
        let routines = injector.routines;
        match what {
            What::Rip(wild) => {
                let to = match wild {
                    Wild::Null => 0,
                    Wild::Garbage => rng.number(),
                    Wild::Heap => self.any_data(state, rng)?,
                };
                self.divert(to, at)
            }
            What::Loop => self.divert(routines.spin(), at),
            What::Eat => self.divert(routines.eat(), at),
            What::Hold => self.divert(routines.wait(), at),
            What::Abort => {
                let fault = Fault::raised(Signal::SIGABRT);
                Some(("SIGABRT".into(), Struck::Fault(fault)))
            }
            What::Syscall(error) => {
                if at != At::Call {
                    return None;
                }
                let all = Errno::all();
                let error = error.or_else(|| rng.pick(all).copied())?;
                let name = guest_agentless::syscall::lookup(registers.rax).map_or("?", |r| r.name);
                let detail = format!("{name} fails with {}", error.name());
                Some((detail, Struck::Fails(error)))
            }
            What::Alloc if at == At::Call => Some((
                "no memory from the kernel".into(),
                Struck::Fails(Errno::ENOMEM),
            )),
            What::Alloc => {
                let after = read_word(registers.rsp)?;
                let registers = self.vcpu.registers();
                registers.rip = after;
                registers.rsp = registers.rsp.wrapping_add(8);
                registers.rax = 0;
                Some(("an allocation returns NULL".into(), Struck::Diverted))
            }
            What::Pointer(corruption) => {
                let found = view(state).pointers(&registers, at == At::Call);
                let (name, value) = *rng.pick(&found)?;
                let to = match corruption {
                    Corruption::Bit => flip_address_bit(value, rng.number()),
                    Corruption::Unmapped => unmapped(state, rng)?,
                };
                set_register(self.vcpu.registers(), name, to);
                Some((format!("{name} {value:#x} -> {to:#x}"), Struck::GoOn))
            }
            What::Return => {
                let found = view(state).return_addresses(registers.rsp);
                let place = *rng.pick(&found[..found.len().min(RETURNS)])?;
                self.overwrite(state, place, &rng.number().to_le_bytes(), "return address")
            }
            What::Canary => {
                let found = view(state).canaries(registers.rsp, self.vcpu.fs_base());
                let place = *rng.pick(&found)?;
                self.overwrite(state, place, &rng.number().to_le_bytes(), "canary")
            }
            What::Heap => {
                let (start, end) = state.space.heap();
                state.main_arena().ok()?;
                let range = GuestRange::from_bounds(start, end);
                let found = view(state).chunk_sizes(&registers, range);
                let place = *rng.pick(&found)?;
                let size = read_word(place)? ^ 1 << (3 + rng.below(13));
                self.overwrite(state, place, &size.to_le_bytes(), "chunk size")
            }
            What::Flip(memory) => {
                let place = match memory {
                    Memory::Written => {
                        let pages = self.written_pages(state);
                        rng.pick(&pages)?.address().0 + rng.below(PAGE_SIZE)
                    }
                    Memory::Shared => self.any_data(state, rng)?,
                    Memory::Code => {
                        let found = view(state).code_ahead(&registers);
                        *rng.pick(&found)? + rng.below(CODE_AHEAD)
                    }
                };
                let mut byte = [0];
                copy::read(place, &mut byte).ok()?;
                byte[0] ^= 1 << rng.below(8);
                self.overwrite(state, place, &byte, "bit")
            }
        }
    }

    fn divert(&mut self, to: u64, at: At) -> Hit {
        let registers = self.vcpu.registers();
        let detail = format!("rip {:#x} -> {to:#x}", registers.rip);
        registers.rip = to;
        if at == At::Call {
            registers.rax = to_rax(Err(Errno::ENOSYS));
        }
        Some((detail, Struck::Diverted))
    }

    /// Overwrites guest memory, whatever the guest itself may do with it.
    fn overwrite(&mut self, state: &mut State, place: u64, bytes: &[u8], what: &str) -> Hit {
        let range = GuestRange::new(GuestVa(place), bytes.len() as u64)?;
        let mut before = vec![0; bytes.len()];
        copy::read(place, &mut before).ok()?;
        self.mark_written(state, range);
        let memory = &self.process.own_memory;
        copy::write(place, bytes)
            .ok()
            .or_else(|| memory.write_all_at(bytes, place).ok())?;
        let detail = format!("{what} at {place:#x} {} -> {}", hex(&before), hex(bytes));
        Some((detail, Struck::GoOn))
    }

    /// Pages that the running domain has changed.
    fn written_pages(&mut self, state: &mut State) -> Vec<PageNumber> {
        let mut pages = Vec::new();
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.changed(&mut memory, |_| true, |page, _| pages.push(page));
        pages
    }

    /// An address in private data that has been written at some time, but not by the running domain.
    fn any_data(&mut self, state: &mut State, rng: &mut Rng) -> Option<u64> {
        let own = self.written_pages(state);
        let data = state.space.vmas().iter().filter(|vma| {
            vma.protection.is_writable() && !vma.shared && vma.backing != Backing::Stack
        });
        let pages: Vec<PageNumber> = data
            .flat_map(|vma| state.tracker.written_since_mapped(vma.range))
            .filter(|page| !own.contains(page))
            .collect();
        Some(rng.pick(&pages)?.address().0 + rng.below(PAGE_SIZE))
    }
}

fn view(state: &State) -> View<'_> {
    View {
        vmas: state.space.vmas(),
        read: &copy::read_up_to,
    }
}

/// An address between the mappings.
fn unmapped(state: &State, rng: &mut Rng) -> Option<u64> {
    let gap = state.space.find_free(0, 1 << 20, false)?;
    Some(gap.start() + rng.below(gap.len()))
}

fn hex(bytes: &[u8]) -> String {
    bytes
        .iter()
        .rev()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
