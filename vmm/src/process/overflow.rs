//! Whether a fault is the end of a stack.

use guest_agentless::{GuestRange, Protection};

use super::State;
use crate::kvm::Registers;

/// Bytes below the stack pointer that a function without calls may use (System V ABI).
const RED_ZONE: u64 = 128;

/// Whether the access to `address` went past the end of the stack that the running domain began on: the
/// stack pointer is there too, or has moved over it, and nothing accessible lies between the address and the
/// stack.
pub fn is_stack_overflow(state: &State, registers: &Registers, address: u64) -> bool {
    let Some(domain) = &state.domain else {
        return false;
    };
    if address.saturating_add(RED_ZONE) < registers.rsp {
        return false;
    }
    let above = GuestRange::from_bounds(address, u64::MAX);
    let accessible = |vma: &&guest_agentless::Vma| vma.protection != Protection::NONE;
    let next = state.space.vmas().overlapping(above).find(accessible);
    next.is_some_and(|stack| {
        stack.range.start() > address && stack.range.contains(domain.checkpoint.registers.rsp)
    })
}
