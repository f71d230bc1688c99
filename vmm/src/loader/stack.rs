//! The first thread's stack: its mapping and what is on it when the program starts.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;

use guest_agentless::{Backing, Errno, GuestRange, PAGE_SIZE, Protection, Vma};

use super::LoadError;
use super::auxv::Entry;
use crate::memory::{AddressSpace, STACK_TOP, Source, copy};
use crate::sys::errno_of;

/// Bounds of the stack's size, which follows `RLIMIT_STACK`.
const STACK_SIZES: (u64, u64) = (256 << 10, 64 << 20);
/// Bytes of one argument or environment string with its NUL (`MAX_ARG_STRLEN`).
const MAX_STRING: u64 = 32 * PAGE_SIZE;
/// Bytes of all of them with their pointers: a quarter of the stack, within these bounds (`ARG_MAX`, and
/// three quarters of the default stack).
const TOTAL_SIZES: (u64, u64) = (128 << 10, 6 << 20);
/// `AT_PLATFORM`.
const PLATFORM: &[u8] = b"x86_64\0";
/// The kernel leaves so many zero bytes at the top.
const TOP_BYTES: u64 = 8;
/// Bytes of a pointer and of every other word on the stack.
const WORD: u64 = 8;

/// What `AT_RANDOM` points to.
pub type RandomBytes = [u8; 16];

/// What a program finds on its stack.
#[derive(Debug, Clone, Copy)]
pub struct Contents<'a, S> {
    /// The arguments.
    pub args: &'a [S],
    /// The environment.
    pub environment: &'a [S],
    /// The path that was executed (`AT_EXECFN`).
    pub file_name: &'a OsStr,
    /// The auxiliary vector without `AT_RANDOM`, `AT_EXECFN`, `AT_PLATFORM` and `AT_NULL`.
    pub auxv: &'a [Entry],
    /// What `AT_RANDOM` points to.
    pub random: RandomBytes,
}

/// Where the kernel looks, in every process, for what it shows of it under `/proc`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// The stack pointer at the start of the program.
    pub stack_pointer: u64,
    /// The strings of the arguments.
    pub args: GuestRange,
    /// Those of the environment, right behind them.
    pub environment: GuestRange,
    /// Where the auxiliary vector is.
    pub auxv_at: u64,
    /// All of it, with `AT_NULL`.
    pub auxv: Vec<Entry>,
}

/// Maps the stack.
pub fn map(space: &mut AddressSpace, executable: bool) -> Result<GuestRange, Errno> {
    let readwrite = Protection::READ | Protection::WRITE;
    let vma = Vma::new(
        GuestRange::from_bounds(STACK_TOP - size(soft_limit()?), STACK_TOP),
        match executable {
            true => readwrite | Protection::EXEC,
            false => readwrite,
        },
        false,
        Backing::Stack,
    );
    let range = vma.range;
    // The size is a limit, not a need.
    space.map(vma, Source::Zeros, libc::MAP_NORESERVE)?;
    Ok(range)
}

/// The soft limit on the stack's size.
fn soft_limit() -> Result<u64, Errno> {
    let mut limit = libc::rlimit {
        rlim_cur: 0,
        rlim_max: 0,
    };
    // SAFETY: `limit` is valid for the call to fill in.
    match unsafe { libc::getrlimit(libc::RLIMIT_STACK, &mut limit) } {
        0 => Ok(limit.rlim_cur),
        _ => Err(errno_of(&std::io::Error::last_os_error())),
    }
}

/// The size of a stack under this limit, which may be `RLIM_INFINITY`.
fn size(limit: u64) -> u64 {
    limit.clamp(STACK_SIZES.0, STACK_SIZES.1) & !(PAGE_SIZE - 1)
}

/// Bytes for `AT_RANDOM`.
pub fn random_bytes() -> Result<RandomBytes, Errno> {
    let mut bytes = RandomBytes::default();
    // SAFETY: `bytes` is valid for the call to fill in.
    let count = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    match usize::try_from(count) {
        Ok(count) if count == bytes.len() => Ok(bytes),
        // So few bytes come all at once (getrandom(2)).
        Ok(_) => Err(Errno::EIO),
        Err(_) => Err(errno_of(&std::io::Error::last_os_error())),
    }
}

/// Writes `contents` to the top of the stack, from the stack pointer on; returns where they are.
pub fn fill<S: AsRef<OsStr>>(
    stack: GuestRange,
    contents: &Contents<'_, S>,
) -> Result<Shown, LoadError> {
    let (bytes, shown) = build(stack, contents)?;
    copy::write(shown.stack_pointer, &bytes)
        .map_err(|_| LoadError::monitor("write the program's stack")(Errno::EFAULT))?;
    Ok(shown)
}

/// The bytes up to the end of `stack`, the stack pointer first, and what is where.
///
/// Upwards: argc, the arguments, the environment, the auxiliary vector (System V ABI, AMD64 supplement,
/// 3.4.1); then what they point to, in the kernel's order.
fn build<S: AsRef<OsStr>>(
    stack: GuestRange,
    contents: &Contents<'_, S>,
) -> Result<(Vec<u8>, Shown), LoadError> {
    let (args, environment) = (contents.args, contents.environment);
    let file_name = contents.file_name;
    let strings = || {
        args.iter()
            .chain(environment)
            .map(AsRef::as_ref)
            .chain([file_name])
    };
    let string_bytes = check_sizes(stack, args.len() + environment.len(), strings())?;

    // The check leaves three quarters of the stack, so nothing below can go past its start.
    let strings_start = stack.end() - TOP_BYTES - string_bytes;
    let platform = strings_start - PLATFORM.len() as u64;
    let random = (platform - contents.random.len() as u64) & !15;
    let file_name_at = stack.end() - TOP_BYTES - string_size(file_name);
    let mut auxv = contents.auxv.to_vec();
    auxv.extend([
        (libc::AT_RANDOM, random),
        (libc::AT_EXECFN, file_name_at),
        (libc::AT_PLATFORM, platform),
        (libc::AT_NULL, 0),
    ]);

    let mut words = vec![args.len() as u64];
    let mut next = strings_start;
    for group in [args, environment] {
        for string in group {
            words.push(next);
            next += string_size(string.as_ref());
        }
        words.push(0);
    }
    let args_end = strings_start
        + args
            .iter()
            .map(|arg| string_size(arg.as_ref()))
            .sum::<u64>();
    let auxv_at = words.len() as u64 * WORD;
    words.extend(auxv.iter().flat_map(|(kind, value)| [kind, value]));

    let pointer = (random - words.len() as u64 * WORD) & !15;
    let shown = Shown {
        stack_pointer: pointer,
        args: GuestRange::from_bounds(strings_start, args_end),
        environment: GuestRange::from_bounds(args_end, file_name_at),
        auxv_at: pointer + auxv_at,
        auxv,
    };
    let mut bytes = Vec::with_capacity((stack.end() - pointer) as usize);
    bytes.extend(words.iter().flat_map(|word| word.to_le_bytes()));
    bytes.resize((random - pointer) as usize, 0);
    bytes.extend(contents.random);
    bytes.resize((platform - pointer) as usize, 0);
    bytes.extend(PLATFORM);
    for string in strings() {
        bytes.extend(string.as_bytes());
        bytes.push(0);
    }
    bytes.resize((stack.end() - pointer) as usize, 0);
    Ok((bytes, shown))
}

/// Bytes of a string with its NUL.
fn string_size(string: &OsStr) -> u64 {
    string.len() as u64 + 1
}

/// The bytes of all strings, if they and `pointers` pointers to them are not more than `execve` takes.
fn check_sizes<'a>(
    stack: GuestRange,
    pointers: usize,
    strings: impl Iterator<Item = &'a OsStr>,
) -> Result<u64, LoadError> {
    let mut total = 0u64;
    for string in strings {
        if string_size(string) > MAX_STRING {
            return Err(LoadError::ArgumentsTooLong(
                "one of them is longer than 128 KiB",
            ));
        }
        total += string_size(string);
    }
    let limit = (stack.len() / 4).clamp(TOTAL_SIZES.0, TOTAL_SIZES.1);
    match total + pointers as u64 * WORD <= limit {
        true => Ok(total),
        false => Err(LoadError::ArgumentsTooLong(
            "together they need more than a quarter of the stack (ulimit -s)",
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stack(len: u64) -> GuestRange {
        GuestRange::from_bounds(STACK_TOP - len, STACK_TOP)
    }

    fn contents<'a>(args: &'a [&'a str], environment: &'a [&'a str]) -> Contents<'a, &'a str> {
        Contents {
            args,
            environment,
            file_name: OsStr::new("/bin/x"),
            auxv: &[(libc::AT_PAGESZ, PAGE_SIZE)],
            random: *b"0123456789abcdef",
        }
    }

    /// A stack as the program sees it.
    struct Seen(Vec<u8>);

    impl Seen {
        fn bytes(&self, address: u64) -> &[u8] {
            &self.0[(address - (STACK_TOP - self.0.len() as u64)) as usize..]
        }

        fn string(&self, address: u64) -> &str {
            let bytes = self.bytes(address).split(|byte| *byte == 0).next().unwrap();
            std::str::from_utf8(bytes).unwrap()
        }

        fn words(&self) -> impl Iterator<Item = u64> {
            self.0
                .chunks_exact(8)
                .map(|word| u64::from_le_bytes(*word.first_chunk().unwrap()))
        }
    }

    #[test]
    fn everything_is_where_it_is_said_to_be() {
        // All remainders of lengths and counts that alignment could depend on.
        for length in 0..17 {
            for count in 0..4 {
                let long = "a".repeat(length);
                let (args, environment) = (vec![long.as_str(); count + 1], ["A=b", "", "C"]);
                let (seen, shown) = build(stack(1 << 20), &contents(&args, &environment)).unwrap();
                assert!(
                    seen.len().is_multiple_of(16),
                    "the stack pointer is aligned"
                );
                let seen = Seen(seen);
                let mut words = seen.words();
                assert_eq!(words.next(), Some(args.len() as u64));
                for string in args.iter().copied().map(Some).chain([None]) {
                    let pointer = words.next().unwrap();
                    assert_eq!((pointer != 0).then(|| seen.string(pointer)), string);
                }
                for string in environment.into_iter().map(Some).chain([None]) {
                    let pointer = words.next().unwrap();
                    assert_eq!((pointer != 0).then(|| seen.string(pointer)), string);
                }
                let mut entry = |kind| {
                    assert_eq!(words.next(), Some(kind));
                    words.next().unwrap()
                };
                assert_eq!(entry(libc::AT_PAGESZ), PAGE_SIZE);
                let random = entry(libc::AT_RANDOM);
                assert_eq!(
                    (random % 16, &seen.bytes(random)[..16]),
                    (0, &b"0123456789abcdef"[..])
                );
                assert_eq!(seen.string(entry(libc::AT_EXECFN)), "/bin/x");
                assert_eq!(seen.string(entry(libc::AT_PLATFORM)), "x86_64");
                assert_eq!(entry(libc::AT_NULL), 0);
                assert!(seen.0.ends_with(b"/bin/x\0\0\0\0\0\0\0\0\0"));

                let text = |range: GuestRange| &seen.bytes(range.start())[..range.len() as usize];
                let strings =
                    |all: &[&str]| all.iter().flat_map(|s| [*s, "\0"]).collect::<String>();
                assert_eq!(text(shown.args), strings(&args).as_bytes());
                assert_eq!(text(shown.environment), strings(&environment).as_bytes());
                let auxv = shown.auxv.iter().flat_map(|entry| [entry.0, entry.1]);
                let auxv: Vec<u8> = auxv.flat_map(u64::to_le_bytes).collect();
                assert_eq!(seen.bytes(shown.auxv_at)[..auxv.len()], auxv);
            }
        }
    }

    #[test]
    fn what_execve_does_not_take() {
        let long = "x".repeat(MAX_STRING as usize);
        let fits = &long[1..];
        let built = |len, args: &[&str]| build(stack(len), &contents(args, &[]));
        assert!(built(8 << 20, &[fits]).is_ok());
        assert!(built(8 << 20, &[&long]).is_err());
        assert!(built(8 << 20, &[fits; 15]).is_ok());
        assert!(
            built(8 << 20, &[fits; 16]).is_err(),
            "a quarter of the stack"
        );
        assert!(built(64 << 20, &[fits; 47]).is_ok());
        assert!(built(64 << 20, &[fits; 48]).is_err(), "6 MiB");
        assert!(
            built(256 << 10, &[fits]).is_err(),
            "128 KiB with the pointer"
        );
        assert!(built(256 << 10, &[""; 14_000]).is_ok());
        assert!(built(256 << 10, &[""; 15_000]).is_err(), "pointers count");
    }

    #[test]
    fn the_size_follows_the_limit_within_bounds() {
        assert_eq!(size(8 << 20), 8 << 20);
        assert_eq!(size(libc::RLIM_INFINITY), 64 << 20);
        assert_eq!(size(0), 256 << 10);
        assert_eq!(size((1 << 20) + 1), 1 << 20);
    }
}
