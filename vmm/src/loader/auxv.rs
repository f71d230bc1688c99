//! The auxiliary vector: what the kernel tells a program about itself and the machine.

/// An entry: its type (`AT_*`) and its value.
pub type Entry = (u64, u64);

/// The smallest signal stack that the kernel can deliver a signal on; not in every libc's headers.
const AT_MINSIGSTKSZ: u64 = 51;
/// Clock ticks per second as the ABI counts them (`USER_HZ`), whatever the kernel's own tick is.
const TICKS_PER_SECOND: u64 = 100;

/// What the auxiliary vector says that depends on the program. Addresses are guest addresses.
#[derive(Debug, Clone, Copy)]
pub struct Auxv {
    /// Start of the vDSO image.
    pub vdso: u64,
    /// The program headers; 0 if they are not in memory.
    pub program_headers: u64,
    /// Bytes of a program header.
    pub program_header_size: u16,
    /// Number of program headers.
    pub program_header_count: u16,
    /// Where the dynamic loader is loaded; 0 without one.
    pub base: u64,
    /// The program's own entry point.
    pub entry: u64,
}

impl Auxv {
    /// The entries, except for those that point into the stack and the final `AT_NULL`.
    pub fn entries(&self) -> Vec<Entry> {
        let number = |value: libc::uid_t| u64::from(value);
        // SAFETY: these calls take nothing and always succeed.
        let [uid, euid, gid, egid] = unsafe {
            [
                libc::getuid(),
                libc::geteuid(),
                libc::getgid(),
                libc::getegid(),
            ]
        };
        let mut entries = vec![
            (libc::AT_SYSINFO_EHDR, self.vdso),
            (libc::AT_HWCAP, cpu_features()),
            (libc::AT_PAGESZ, guest_agentless::PAGE_SIZE),
            (libc::AT_CLKTCK, TICKS_PER_SECOND),
            (libc::AT_PHDR, self.program_headers),
            (libc::AT_PHENT, u64::from(self.program_header_size)),
            (libc::AT_PHNUM, u64::from(self.program_header_count)),
            (libc::AT_BASE, self.base),
            (libc::AT_FLAGS, 0),
            (libc::AT_ENTRY, self.entry),
            (libc::AT_UID, number(uid)),
            (libc::AT_EUID, number(euid)),
            (libc::AT_GID, number(gid)),
            (libc::AT_EGID, number(egid)),
            (libc::AT_SECURE, 0),
            // The host's bit for FSGSBASE does not hold: the vCPUs run without CR4.FSGSBASE.
            (libc::AT_HWCAP2, 0),
        ];
        match host_entry(AT_MINSIGSTKSZ) {
            0 => {}
            size => entries.push((AT_MINSIGSTKSZ, size)),
        }
        entries
    }
}

/// The feature bits of CPUID leaf 1, EDX, which the guest's CPUID has as well. The monitor's own `AT_HWCAP`
/// does not tell: glibc puts bits of its own in that place.
fn cpu_features() -> u64 {
    // SAFETY: every x86-64 processor has CPUID and this leaf. Newer compilers know it to be safe.
    #[allow(unused_unsafe)]
    let leaf = unsafe { core::arch::x86_64::__cpuid(1) };
    u64::from(leaf.edx)
}

/// The monitor's own entry of this type; 0 if it has none.
fn host_entry(kind: u64) -> u64 {
    // SAFETY: takes a number only.
    unsafe { libc::getauxval(kind) }
}
