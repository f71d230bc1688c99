//! Writes to pages that other processes have claimed, one instruction at a time.

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber};
use recovery::claims::{Change, PageKey, WORD, Words};

use super::{Stepped, read_word};
use crate::kvm::Registers;
use crate::memory::page_range;
use crate::process::State;
use crate::process::decode;
use crate::process::step::TRAP_FLAG;
use crate::process::thread::Thread;

/// Bytes that an instruction may write to be told apart: what repeats stops after each of them.
const WRITE_MAX: u64 = 64;

/// A page that may be written by the next instruction, and no other.
pub struct SharedStep {
    page: PageNumber,
    key: PageKey,
    /// The instruction.
    registers: Registers,
    /// The words that it may write, and what they hold.
    words: Vec<(u64, u64)>,
}

impl Thread {
    /// The words of `page` that the instruction writes which the guest stands at, if they are known.
    pub(super) fn words_written(&mut self, page: PageNumber) -> Option<Words> {
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        let written = decode::writes(self.vcpu.registers(), bases)?;
        let mut words = Words::NONE;
        let start = page.address().0;
        for part in written {
            if part.len() > WRITE_MAX {
                return None;
            }
            let Some(part) = part.intersection(page_range(page)) else {
                continue;
            };
            let first = (part.start() - start) / WORD;
            let last = (part.end() - start).div_ceil(WORD);
            (first..last).for_each(|word| words.insert(word as usize));
        }
        (words != Words::NONE).then_some(words)
    }

    /// Lets the guest write `words` of the page with its next instruction.
    pub(super) fn step_shared(
        &mut self,
        state: &mut State,
        page: PageNumber,
        key: PageKey,
        words: &Words,
    ) {
        let address = |word: usize| page.address().0 + word as u64 * WORD;
        let words = words.iter().map(address);
        let registers = *self.vcpu.registers();
        self.shared_steps.push(SharedStep {
            page,
            key,
            registers,
            words: words.map(|word| (word, read_word(word))).collect(),
        });
        if let Some(shared) = &mut state.shared {
            shared.told_apart += 1;
        }
        state.space.set_writable(page, true);
        self.vcpu.registers().rflags |= TRAP_FLAG;
    }

    /// The instruction has been executed, or will not be.
    pub(in crate::process) fn end_shared_steps(&mut self, state: &mut State) {
        let bases = (self.vcpu.fs_base(), self.vcpu.gs_base());
        let now = *self.vcpu.registers();
        for step in std::mem::take(&mut self.shared_steps) {
            state.space.trap(step.page);
            let Some(shared) = &mut state.shared else {
                continue;
            };
            let mut held = step.words.iter().copied();
            let held = |range: GuestRange| {
                let (at, shift) = place(range);
                let word = held.find(|(address, _)| *address == at);
                word.map_or(0, |(_, value)| value >> shift)
            };
            // Others may write at the same moment, so what the word holds afterwards does not tell.
            let exactly = decode::change(&step.registers, bases, &now, held);
            let exactly = exactly.filter(|c| c.range.start() % WORD + c.range.len() <= WORD);
            let mut changes = Vec::new();
            for (address, before) in &step.words {
                let (added, is_sum) = match &exactly {
                    Some(change) => {
                        let (_, shift) = place(change.range);
                        (
                            change.written.wrapping_sub(change.found) << shift,
                            change.is_sum,
                        )
                    }
                    None => (read_word(*address).wrapping_sub(*before), false),
                };
                if added == 0 {
                    continue;
                }
                let word = (address % PAGE_SIZE / WORD) as usize;
                let stepped = shared.steps.entry((step.key, word)).or_insert(Stepped {
                    address: *address,
                    change: 0,
                    after: 0,
                    is_sum: true,
                });
                stepped.change = stepped.change.wrapping_add(added);
                stepped.after = before.wrapping_add(added);
                stepped.is_sum &= is_sum;
                changes.push(Change {
                    word,
                    added,
                    is_sum,
                });
            }
            shared.claims.done(step.key, changes);
        }
    }
}

/// The address of the word that the range begins in, and how many bits of it come before.
fn place(range: GuestRange) -> (u64, u32) {
    let within = range.start() % WORD;
    (range.start() - within, within as u32 * 8)
}
