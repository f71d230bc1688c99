//! Where the monitor's own pages lie in the guest, and the few bytes of code in them.
//!
//! There is no guest kernel. Ring 0 holds a GDT, an IDT, one TSS and stack per vCPU, and two kinds of
//! stub: `syscall` lands on a port write, an exception on a `hlt`, and both leave the guest. The region
//! lies outside every guest window, so no pointer that the guest passes can name it.

/// Guest-physical and guest-virtual address of the monitor region.
pub const MONITOR_BASE: u64 = 0x60_0000_0000;

/// Bytes in front of the page tables: stubs, descriptor tables and one page per vCPU.
pub const CONTROL_SIZE: u64 = (CONTROL_PAGES + MAX_VCPUS) * 4096;

/// vCPUs, and so guest threads alive at one time.
pub const MAX_VCPUS: u64 = 1024;

const CONTROL_PAGES: u64 = 8;

/// The `syscall` entry. Accessible to ring 3: a PVM host enters it without leaving ring 3.
pub const SYSCALL_STUB: u64 = MONITOR_BASE;
/// The `sysretq` in it.
pub const SYSCALL_RETURN: u64 = SYSCALL_STUB + 2;
/// 256 exception stubs of [`EXCEPTION_STUB_SIZE`] bytes.
pub const EXCEPTION_STUBS: u64 = MONITOR_BASE + 0x1000;
/// Bytes per exception stub.
pub const EXCEPTION_STUB_SIZE: u64 = 16;
/// The interrupt descriptor table.
pub const IDT: u64 = MONITOR_BASE + 0x2000;
/// The global descriptor table.
pub const GDT: u64 = MONITOR_BASE + 0x3000;
/// Code that the start-up probe runs in ring 3.
pub const PROBE_CODE: u64 = MONITOR_BASE + 0x4000;

/// The port that the `syscall` stub writes to.
pub const SYSCALL_PORT: u16 = 0x10;

/// `out SYSCALL_PORT, al; sysretq`. A host that enters the stub in ring 3 never runs the `sysretq`.
pub const SYSCALL_STUB_CODE: [u8; 5] = [0xe6, SYSCALL_PORT as u8, 0x48, 0x0f, 0x07];

/// `rdtsc; syscall; ud2`: shows the time-stamp counter, the system-call path and the exception path.
pub const PROBE: [u8; 6] = [0x0f, 0x31, 0x0f, 0x05, 0x0f, 0x0b];

/// Ring-0 code selector; `syscall` loads it from STAR.
pub const KERNEL_CODE: u16 = 0x10;
/// Ring-0 stack selector.
pub const KERNEL_DATA: u16 = 0x18;
/// Ring-3 stack selector: the same value as under Linux.
pub const USER_DATA: u16 = 0x2b;
/// Ring-3 code selector: the same value as under Linux.
pub const USER_CODE: u16 = 0x33;
/// Task-state selector.
pub const TASK_STATE: u16 = 0x40;

/// STAR: `sysretq` loads CS = base + 16 and SS = base + 8, `syscall` loads CS = base and SS = base + 8.
pub const STAR: u64 = (0x23 << 48) | ((KERNEL_CODE as u64) << 32);

/// Limit of a task-state segment: 104 bytes and the I/O permission bits behind them.
pub const TASK_STATE_LIMIT: u32 = 0x68 + 3;

/// The page of one vCPU: its task-state segment at the start, its exception stack growing down from the
/// end.
pub fn vcpu_page(index: u64) -> u64 {
    MONITOR_BASE + (CONTROL_PAGES + index) * 4096
}

/// The root of the guest's page tables, followed by the pages from which the others are taken.
pub const PAGE_TABLES: u64 = MONITOR_BASE + CONTROL_SIZE;
/// Bytes of page tables: enough for 64 GiB of scattered guest memory in 4 KiB pages.
pub const PAGE_TABLES_SIZE: u64 = 128 << 20;

/// Guest-physical address of the slot that exists only for a moment.
pub const SPARE_PAGE: u64 = PAGE_TABLES + PAGE_TABLES_SIZE;

/// Whether `rip` lies in an exception stub.
pub fn is_exception_stub(rip: u64) -> bool {
    (EXCEPTION_STUBS..IDT).contains(&rip)
}

/// The vector whose stub `rip` is at, or one byte behind its `hlt`.
pub fn vector_of_stub(rip: u64) -> Option<u8> {
    let offset = rip.checked_sub(EXCEPTION_STUBS)?;
    let vector = offset / EXCEPTION_STUB_SIZE;
    (vector < 32 && offset % EXCEPTION_STUB_SIZE <= 1).then_some(vector as u8)
}

/// The descriptors behind the selectors above. Index = selector / 8.
pub fn gdt() -> [u64; 8] {
    let mut table = [0u64; 8];
    table[usize::from(KERNEL_CODE) / 8] = 0x00af_9b00_0000_ffff;
    table[usize::from(KERNEL_DATA) / 8] = 0x00cf_9300_0000_ffff;
    table[usize::from(USER_DATA) / 8] = 0x00cf_f300_0000_ffff;
    table[usize::from(USER_CODE) / 8] = 0x00af_fb00_0000_ffff;
    table
}

/// The 16-byte interrupt gate of `vector`: type 0xE, to that vector's stub in ring 0. As under Linux, `int n`
/// may use those of the breakpoint and of the overflow trap only.
pub fn idt_gate(vector: u64) -> [u64; 2] {
    let privilege: u64 = if matches!(vector, 3 | 4) { 3 } else { 0 };
    let target = EXCEPTION_STUBS + vector * EXCEPTION_STUB_SIZE;
    let low = (target & 0xffff)
        | (u64::from(KERNEL_CODE) << 16)
        | ((0x8e00 | privilege << 13) << 32)
        | ((target >> 16) & 0xffff) << 48;
    [low, target >> 32]
}

/// Exceptions for which the CPU pushes an error code (SDM volume 3, table 6-1).
pub fn pushes_error_code(vector: u8) -> bool {
    matches!(vector, 8 | 10..=14 | 17 | 21 | 29 | 30)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gates_point_to_their_stubs() {
        let [low, high] = idt_gate(14);
        let target = (low & 0xffff) | (low >> 48 << 16) | (high << 32);
        assert_eq!(target, EXCEPTION_STUBS + 14 * EXCEPTION_STUB_SIZE);
        assert_eq!((low >> 16) as u16, KERNEL_CODE);
        assert_eq!(low >> 40 & 0xff, 0x8e);
        assert_eq!(idt_gate(3)[0] >> 40 & 0xff, 0xee);
    }

    #[test]
    fn star_yields_the_selectors_of_linux() {
        let sysret = (STAR >> 48) as u16;
        assert_eq!((sysret + 16) | 3, USER_CODE);
        assert_eq!((sysret + 8) | 3, USER_DATA);
        assert_eq!((STAR >> 32) as u16, KERNEL_CODE);
    }
}
