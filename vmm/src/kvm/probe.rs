//! The start-up probe: which of the known kinds of KVM is this?
//!
//! It runs `rdtsc; syscall; ud2` in ring 3 once on the first vCPU and looks at how it comes back, and then the first
//! half a few times more to see what that costs.

use std::time::Duration;

use super::{EntryPath, Exit, KvmError, Vcpu, layout};
use crate::host;

/// What the probe has found out.
#[derive(Debug, Clone, Copy)]
pub struct Probe {
    /// How `syscall` enters and leaves.
    pub path: EntryPath,
    /// Whether the guest reads the host's time-stamp counter.
    pub tsc_is_host: bool,
    /// CPU time of an entry and an exit: 20 to 90 µs under PVM, a millisecond where KVM itself is emulated.
    pub exit_cost: Duration,
}

/// Exits whose cost is measured.
const MEASURED: u32 = 16;

/// Finds out what this KVM is, and leaves `vcpu` set up for it, in ring 3 with cleared registers.
pub fn probe(vcpu: &mut Vcpu) -> Result<Probe, KvmError> {
    let unexpected = |what: &str, exit: Exit| KvmError::Probe(format!("{what} ended in {exit:?}"));
    let initial = *vcpu.registers();
    vcpu.registers().rip = layout::PROBE_CODE;
    let before = host_tsc();
    match vcpu.run()? {
        Exit::Syscall => {}
        exit => return Err(unexpected("`syscall` in ring 3", exit)),
    }
    let after = host_tsc();
    let path = match vcpu.privilege_level()? {
        3 => EntryPath::Ring3,
        _ => EntryPath::Ring0,
    };
    vcpu.set_entry_path(path);
    let regs = *vcpu.registers();
    let tsc = (regs.rax & 0xffff_ffff) | (regs.rdx << 32);
    let begin = host::thread_cpu_time();
    for _ in 0..MEASURED {
        vcpu.registers().rip = layout::PROBE_CODE;
        match vcpu.run()? {
            Exit::Syscall => {}
            exit => return Err(unexpected("`syscall` in ring 3, again,", exit)),
        }
    }
    let exit_cost = host::thread_cpu_time().saturating_sub(begin) / MEASURED;
    match vcpu.run()? {
        Exit::Exception { vector: 6, .. } => {}
        exit => return Err(unexpected("`ud2` after the return from `syscall`", exit)),
    }
    let ud2 = layout::PROBE_CODE + 4;
    if vcpu.registers().rip != ud2 {
        let rip = vcpu.registers().rip;
        return Err(KvmError::Probe(format!(
            "`ud2` at {ud2:#x} was reported at {rip:#x}"
        )));
    }
    *vcpu.registers() = initial;
    Ok(Probe {
        path,
        tsc_is_host: (before..=after).contains(&tsc),
        exit_cost,
    })
}

fn host_tsc() -> u64 {
    // SAFETY: RDTSC is part of every x86-64 CPU and touches no memory.
    unsafe { core::arch::x86_64::_rdtsc() }
}
