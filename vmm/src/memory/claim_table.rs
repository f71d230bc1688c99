//! The table of claims ([`recovery::claims`]), in memory that forked processes share and no guest reaches.

use std::io;

use recovery::claims::Table;

/// Groups: enough for thousands of processes that write a few pages each at a time. Memory is used for those that are.
const GROUPS: usize = 2048;

/// A new table; it stays for as long as any process has it.
pub fn create() -> io::Result<&'static Table<GROUPS>> {
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Table<GROUPS>>(),
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_ANONYMOUS,
            -1,
            0,
        )
    };
    if start == libc::MAP_FAILED {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the mapping is as long as the table, aligned to a page, never unmapped, and zero, which is a valid table; it
    // consists of atomics, so that other processes may write it.
    Ok(unsafe { &*start.cast::<Table<GROUPS>>() })
}
