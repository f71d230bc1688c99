//! Memory that the monitors of all processes of a server share, out of the guests' reach: forked children have it, and
//! programs that are executed get it handed on.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::SystemTime;

use recovery::learn::Lessons;
use recovery::repeat::News;
use recovery::stats::Stats;

use crate::host::{self, handles};
use crate::kvm::Probe;
use crate::memory::token::Token;

/// What is in it.
#[repr(C)]
pub struct Common {
    /// What all of them have done.
    pub stats: Stats,
    /// What the first of them has found out about KVM, before there was another.
    pub probe: OnceLock<Probe>,
    /// The first process has ended. Who ends after it writes the counters.
    pub first_has_ended: AtomicBool,
    /// There has been more than one process.
    pub has_forked: AtomicBool,
    /// The right to touch memory that the guests share.
    pub shared_memory: Token,
    /// A number that no other server has.
    instance: AtomicU64,
    /// The faults that standard error has a line of.
    pub news: News,
    /// What `--learn` has learned in any process.
    pub lessons: Lessons,
}

/// That of the server to which this process belongs; a new one unless one `is_handed_on`. It stays for as long as any
/// process has it.
pub fn open(is_handed_on: bool) -> io::Result<&'static Common> {
    let size = size_of::<Common>() as u64;
    let file = handles::common()?.as_raw_fd();
    if is_handed_on && host::size(file)? == size {
        let start = map(file)?;
        // SAFETY: the file is as long as it was made below, by this very program, and never becomes shorter; the mapping is
        // aligned to a page and never unmapped. All that processes write to are atomics.
        return Ok(unsafe { &*start });
    }
    let start = match host::file_size_limit() < size {
        // Then it ends with the program.
        true => map(-1)?,
        false => {
            host::truncate(file, size)?;
            map(file)?
        }
    };
    // SAFETY: as above. It is zero, and all zero is valid for everything but these two.
    unsafe {
        (&raw mut (*start).stats).write(Stats::new());
        (&raw mut (*start).probe).write(OnceLock::new());
        (*start).instance.store(new_instance(), Ordering::Relaxed);
        Ok(&*start)
    }
}

impl Common {
    /// What tells the server's events from those of others: sixteen hexadecimal digits.
    pub fn instance(&self) -> String {
        format!("{:016x}", self.instance.load(Ordering::Relaxed))
    }
}

/// The time in units of 2^-22 s, and the process.
fn new_instance() -> u64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let nanos = now.map_or(0, |time| time.as_nanos());
    ((nanos >> 8) as u64) << 22 | u64::from(std::process::id()) & 0x3f_ffff
}

fn map(file: RawFd) -> io::Result<*mut Common> {
    let flags = libc::MAP_SHARED | if file < 0 { libc::MAP_ANONYMOUS } else { 0 };
    let access = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice.
    let start = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            size_of::<Common>(),
            access,
            flags,
            file,
            0,
        )
    };
    match start {
        libc::MAP_FAILED => Err(io::Error::last_os_error()),
        start => Ok(start.cast()),
    }
}
