//! The routine through which the monitor touches guest memory.
//!
//! A guest page may be missing, protected or backed by a file that was truncated, at any moment, so a
//! plain dereference could kill the monitor. The copy is a `rep movsb` between two labels; the monitor's
//! SIGSEGV/SIGBUS handler (`process/fault_signals.rs`) recognises a fault there and resumes at the second label with the rest of the
//! count in RCX, like the exception tables of the Linux kernel's `copy_from_user`.

use guest_agentless::GuestRange;

use super::window;

core::arch::global_asm!(
    ".globl vmsrs_copy",
    ".hidden vmsrs_copy",
    ".globl vmsrs_copy_end",
    ".hidden vmsrs_copy_end",
    // rdi = destination, rsi = source, rdx = count; returns the count that was not copied.
    "vmsrs_copy:",
    "mov rcx, rdx",
    "rep movsb",
    "vmsrs_copy_end:",
    "mov rax, rcx",
    "ret",
);

unsafe extern "C" {
    fn vmsrs_copy(destination: *mut u8, source: *const u8, count: usize) -> usize;
    static vmsrs_copy_end: u8;
}

/// The guest memory could not be accessed in full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("guest memory is not accessible")]
pub struct Inaccessible;

/// For the handler of a fault at `context`: resumes the copy behind the access that has faulted; false if it was not the
/// copy.
pub fn mend(context: &mut libc::ucontext_t) -> bool {
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let (start, end) = (vmsrs_copy as *const (), &raw const vmsrs_copy_end);
    let is_copy = (start as i64..end as i64).contains(rip);
    if is_copy {
        *rip = end as i64;
    }
    is_copy
}

/// Copies guest memory at `range` to `into`; returns the number of bytes copied, which is less than the
/// whole when guest memory ends or is not readable there.
pub fn read_partial(range: GuestRange, into: &mut [u8]) -> usize {
    let count = into.len().min(range.len() as usize);
    if !window::contains(range) {
        return 0;
    }
    // SAFETY: the destination is a live exclusive slice of at least `count` bytes. The source lies in a
    // guest window, where no Rust object lives; faults on it are handled.
    count - unsafe { vmsrs_copy(into.as_mut_ptr(), range.start() as *const u8, count) }
}

/// Copies `from` to guest memory at `range`; returns the number of bytes copied. The tracker has to know
/// of the write beforehand.
pub fn write_partial(range: GuestRange, from: &[u8]) -> usize {
    let count = from.len().min(range.len() as usize);
    if !window::contains(range) {
        return 0;
    }
    // SAFETY: the source is a live slice of at least `count` bytes. The destination lies in a guest
    // window, where no Rust object lives; faults on it are handled.
    count - unsafe { vmsrs_copy(range.start() as *mut u8, from.as_ptr(), count) }
}

/// Fills `into` from guest memory at `address`.
pub fn read(address: u64, into: &mut [u8]) -> Result<(), Inaccessible> {
    let range = window::checked(address, into.len() as u64).ok_or(Inaccessible)?;
    match read_partial(range, into) {
        n if n == into.len() => Ok(()),
        _ => Err(Inaccessible),
    }
}

/// Writes all of `from` to guest memory at `address`. The tracker has to know of it beforehand.
pub fn write(address: u64, from: &[u8]) -> Result<(), Inaccessible> {
    let range = window::checked(address, from.len() as u64).ok_or(Inaccessible)?;
    match write_partial(range, from) {
        n if n == from.len() => Ok(()),
        _ => Err(Inaccessible),
    }
}

/// Copies guest memory as far as it can be read; returns how many bytes there were.
pub fn read_up_to(address: u64, into: &mut [u8]) -> usize {
    let window = window::windows().find(|w| w.contains(address));
    let Some(window) = window else { return 0 };
    let len = (window.end() - address).min(into.len() as u64) as usize;
    match window::checked(address, len as u64) {
        Some(range) => read_partial(range, &mut into[..len]),
        None => 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_from_nowhere_fails_and_the_monitor_lives() {
        crate::process::fault_signals::install_handler().unwrap();
        let mut buffer = [0u8; 16];
        assert_eq!(read(0x4000_0000, &mut buffer), Err(Inaccessible));
        assert_eq!(write(0x4000_0000, &buffer), Err(Inaccessible));
        assert_eq!(
            read(0x7fff_0000_0000, &mut buffer),
            Err(Inaccessible),
            "outside the windows"
        );
        assert_eq!(read(u64::MAX, &mut buffer), Err(Inaccessible));
    }
}
