//! What the kernel shows of this process under `/proc`: the guest's arguments, environment and auxiliary vector, where
//! they are in its memory, so that whatever a server writes over them as its title is seen by `ps`.

use std::io;

use crate::loader::Shown;

/// `struct prctl_mm_map` of `linux/prctl.h`.
#[repr(C)]
struct MemoryMap {
    start_code: u64,
    end_code: u64,
    start_data: u64,
    end_data: u64,
    start_brk: u64,
    brk: u64,
    start_stack: u64,
    arg_start: u64,
    arg_end: u64,
    env_start: u64,
    env_end: u64,
    auxv: u64,
    auxv_size: u32,
    exe_fd: u32,
}

/// Fields of `/proc/self/stat`, by their numbers in proc(5).
struct Stat(String);

impl Stat {
    fn field(&self, number: usize) -> io::Result<u64> {
        // The name, field 2, may contain anything.
        let behind = self.0.rsplit_once(") ").map(|(_, rest)| rest);
        let field = behind.and_then(|rest| rest.split(' ').nth(number.checked_sub(3)?));
        let value = field.and_then(|field| field.trim().parse().ok());
        value.ok_or_else(|| io::ErrorKind::InvalidData.into())
    }
}

/// From now on the kernel shows `shown` (`PR_SET_MM_MAP`, prctl(2)). The monitor's heap stays what it is, so no other
/// thread may be running that could move its end meanwhile.
pub fn show_program(shown: &Shown) -> io::Result<()> {
    let stat = Stat(std::fs::read_to_string("/proc/self/stat")?);
    // SAFETY: asks where the heap ends, and moves nothing.
    let brk = unsafe { libc::sbrk(0) } as u64;
    let map = MemoryMap {
        start_code: stat.field(26)?,
        end_code: stat.field(27)?,
        start_data: stat.field(45)?,
        end_data: stat.field(46)?,
        start_brk: stat.field(47)?,
        brk,
        start_stack: shown.stack_pointer,
        arg_start: shown.args.start(),
        arg_end: shown.args.end(),
        env_start: shown.environment.start(),
        env_end: shown.environment.end(),
        auxv: shown.auxv_at,
        auxv_size: size_of_val(shown.auxv.as_slice()) as u32,
        exe_fd: u32::MAX,
    };
    // SAFETY: the structure has the size that is said. What it changes besides names of things in guest memory, which the
    // kernel reads as it reads any process's, is what it was before.
    let done = unsafe {
        libc::prctl(
            libc::PR_SET_MM,
            libc::PR_SET_MM_MAP,
            &raw const map,
            size_of::<MemoryMap>(),
            0,
        )
    };
    match done {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_counted_from_behind_the_name() {
        let stat = Stat("17 (a) b) S 1 2 3\n".into());
        assert_eq!((stat.field(4).unwrap(), stat.field(6).unwrap()), (1, 3));
        assert!(stat.field(3).is_err() && stat.field(7).is_err() && stat.field(0).is_err());
    }
}
