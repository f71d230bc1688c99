//! The memory that a call's arguments stand for: from registers and table row to addresses and lengths.

use super::{ArgKind, Size, Syscall};

/// What the kernel does with a span.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Access {
    /// It reads.
    Read,
    /// It writes.
    Write,
    /// Both.
    ReadWrite,
}

impl Access {
    /// Whether the kernel writes, so that the pages have to be marked before the call.
    pub fn writes(self) -> bool {
        self != Access::Read
    }
}

/// Guest memory that the kernel reads or writes through one argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Span {
    /// Index of the argument.
    pub argument: usize,
    /// The address in the register; not null.
    pub address: u64,
    /// Bytes; not zero. As large as the guest says: nothing has checked that they exist.
    pub len: u64,
    /// What the kernel does.
    pub access: Access,
}

/// How the kernel takes a number out of a register, where that is not the whole register.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Int {
    /// `int`; where a size is negative the kernel answers `EINVAL` and touches nothing.
    Signed,
    /// `unsigned int`.
    Unsigned,
}

/// The sizes that the kernel declares as 32-bit: the upper half of the register may hold anything.
const INT_SIZES: &[(libc::c_long, u8, Int)] = &[
    (libc::SYS_bind, 2, Int::Signed),
    (libc::SYS_connect, 2, Int::Signed),
    (libc::SYS_epoll_pwait, 2, Int::Signed),
    (libc::SYS_epoll_pwait2, 2, Int::Signed),
    (libc::SYS_epoll_wait, 2, Int::Signed),
    (libc::SYS_getdents, 2, Int::Unsigned),
    (libc::SYS_getdents64, 2, Int::Unsigned),
    (libc::SYS_getgroups, 0, Int::Signed),
    (libc::SYS_poll, 1, Int::Unsigned),
    (libc::SYS_ppoll, 1, Int::Unsigned),
    (libc::SYS_readlink, 2, Int::Signed),
    (libc::SYS_readlinkat, 3, Int::Signed),
    (libc::SYS_sched_getaffinity, 1, Int::Unsigned),
    (libc::SYS_sched_getattr, 2, Int::Unsigned),
    (libc::SYS_sched_setaffinity, 1, Int::Unsigned),
    (libc::SYS_semop, 2, Int::Unsigned),
    (libc::SYS_semtimedop, 2, Int::Unsigned),
    (libc::SYS_sendto, 5, Int::Signed),
    (libc::SYS_setgroups, 0, Int::Signed),
    (libc::SYS_setsockopt, 4, Int::Signed),
];

/// A size declared as `int`: a negative one stands for no bytes.
fn from_signed(value: u32) -> u64 {
    u64::try_from(value as i32).unwrap_or(0)
}

impl Syscall {
    /// The size or count in argument `index`, as the kernel takes it.
    pub fn count(&self, index: u8, args: &[u64; 6]) -> u64 {
        let value = args.get(usize::from(index)).copied().unwrap_or(0);
        let number = libc::c_long::from(self.number);
        let int = INT_SIZES
            .iter()
            .find(|(call, at, _)| (*call, *at) == (number, index));
        match int {
            None => value,
            Some((_, _, Int::Unsigned)) => u64::from(value as u32),
            Some((_, _, Int::Signed)) => from_signed(value as u32),
        }
    }

    /// The spans of the `In`, `Out` and `InOut` arguments; those that stand for no bytes are left out.
    /// `read_u32` reads the guest's memory, for sizes that a pointer leads to; its failure is the result.
    ///
    /// Strings, vectors, messages and `Custom` arguments are for the call's handler.
    pub fn spans<E>(
        &self,
        args: [u64; 6],
        mut read_u32: impl FnMut(u64) -> Result<u32, E>,
    ) -> impl Iterator<Item = Result<Span, E>> {
        self.args
            .iter()
            .zip(args)
            .enumerate()
            .filter_map(move |(argument, (arg, address))| {
                let (size, access) = match arg.kind {
                    ArgKind::In(size) => (size, Access::Read),
                    ArgKind::Out(size) => (size, Access::Write),
                    ArgKind::InOut(size) => (size, Access::ReadWrite),
                    _ => return None,
                };
                if address == 0 {
                    return None;
                }
                let len = match size {
                    Size::Fixed(bytes) => u64::from(bytes),
                    Size::Arg(index) => self.count(index, &args),
                    Size::Elements { count, each } => {
                        self.count(count, &args).saturating_mul(u64::from(each))
                    }
                    Size::Pointee(index) => {
                        // A null pointer to the size is the kernel's to refuse.
                        match args.get(usize::from(index)).copied().filter(|at| *at != 0) {
                            None => 0,
                            Some(at) => match read_u32(at) {
                                Ok(value) => from_signed(value),
                                Err(error) => return Some(Err(error)),
                            },
                        }
                    }
                };
                (len > 0).then_some(Ok(Span {
                    argument,
                    address,
                    len,
                    access,
                }))
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::syscall::lookup;

    fn spans(number: i64, args: [u64; 6]) -> Vec<(usize, u64, u64, Access)> {
        let call = lookup(number as u64).unwrap();
        let read = |at| {
            if at == 0x900 {
                Ok(28)
            } else {
                Err("unreadable")
            }
        };
        let found = call.spans(args, read).map(|span| {
            let Span {
                argument,
                address,
                len,
                access,
            } = span.unwrap();
            (argument, address, len, access)
        });
        found.collect()
    }

    #[test]
    fn every_kind_of_size() {
        use Access::*;
        assert_eq!(
            spans(libc::SYS_read, [3, 0x100, 50, 0, 0, 0]),
            [(1, 0x100, 50, Write)]
        );
        assert_eq!(
            spans(libc::SYS_epoll_wait, [3, 0x100, 10, 0, 0, 0]),
            [(1, 0x100, 120, Write)]
        );
        assert_eq!(
            spans(libc::SYS_recvfrom, [3, 0x100, 50, 0, 0x200, 0x900]),
            [
                (1, 0x100, 50, Write),
                (4, 0x200, 28, Write),
                (5, 0x900, 4, ReadWrite)
            ]
        );
        assert_eq!(spans(libc::SYS_close, [0x100; 6]), []);
        assert_eq!(
            spans(libc::SYS_rt_sigprocmask, [0, 0, 0x100, 8, 0, 0]),
            [(2, 0x100, 8, Write)]
        );
    }

    #[test]
    fn null_pointers_and_null_sizes_stand_for_nothing() {
        assert_eq!(spans(libc::SYS_accept4, [3, 0, 0, 0, 0, 0]), []);
        assert_eq!(spans(libc::SYS_getsockname, [3, 0x100, 0, 0, 0, 0]), []);
        assert_eq!(spans(libc::SYS_read, [3, 0x100, 0, 0, 0, 0]), []);
    }

    #[test]
    fn an_unreadable_size_is_an_error() {
        let call = lookup(libc::SYS_accept as u64).unwrap();
        let first = call
            .spans([3, 0x100, 0x200, 0, 0, 0], |_| Err::<u32, _>("unreadable"))
            .next();
        assert_eq!(first, Some(Err("unreadable")));
    }

    #[test]
    fn the_upper_half_of_a_register_does_not_count_in_an_int() {
        let junk = 0xdead_beef_0000_0000;
        let wait = |count| spans(libc::SYS_epoll_wait, [3, 0x100, count, 0, 0, 0]);
        assert_eq!(wait(junk | 2), wait(2));
        assert_eq!(wait(u64::MAX), []);
        assert_eq!(wait(junk | 0xffff_ffff), []);
        // unsigned: as large as it says.
        let poll = spans(libc::SYS_poll, [0x100, junk | 0xffff_ffff, 0, 0, 0, 0]);
        assert_eq!(poll[0].2, 0xffff_ffff * 8);
        // size_t: the whole register.
        assert_eq!(
            spans(libc::SYS_read, [3, 0x100, junk | 2, 0, 0, 0])[0].2,
            junk | 2
        );
    }

    #[test]
    fn lengths_saturate() {
        let call = Syscall {
            args: &[
                super::super::Arg {
                    name: "p",
                    kind: ArgKind::Out(Size::Elements { count: 1, each: 16 }),
                },
                super::super::Arg {
                    name: "n",
                    kind: ArgKind::Value,
                },
            ],
            ..*lookup(0).unwrap()
        };
        let read = |_| Ok::<_, ()>(0);
        let span = call.spans([1, u64::MAX, 0, 0, 0, 0], read).next();
        assert_eq!(span.unwrap().unwrap().len, u64::MAX);
    }

    /// The calls whose sizes are `size_t` or `unsigned long`: the whole register.
    const LONG_SIZES: &[&str] = &[
        "read",
        "write",
        "pread64",
        "pwrite64",
        "openat2",
        "clone3",
        "getcwd",
        "getxattr",
        "lgetxattr",
        "fgetxattr",
        "listxattr",
        "llistxattr",
        "flistxattr",
        "setxattr",
        "lsetxattr",
        "fsetxattr",
        "sendto",
        "recvfrom",
        "ppoll",
        "epoll_pwait",
        "epoll_pwait2",
        "mq_timedsend",
        "mq_timedreceive",
        "rt_sigprocmask",
        "rt_sigpending",
        "rt_sigsuspend",
        "rt_sigtimedwait",
        "signalfd",
        "signalfd4",
        "getrandom",
    ];

    #[test]
    fn the_width_of_every_size_is_decided() {
        for call in (0..512)
            .filter_map(lookup)
            .filter(|call| call.refusal().is_none())
        {
            let sizes: Vec<u8> = call
                .args
                .iter()
                .filter_map(|arg| size_index(arg.kind))
                .collect();
            let is_int = |index: &u8| {
                INT_SIZES.iter().any(|(number, at, _)| {
                    (*number, at) == (libc::c_long::from(call.number), index)
                })
            };
            let longs = sizes.iter().filter(|index| !is_int(index)).count();
            assert_eq!(longs > 0, LONG_SIZES.contains(&call.name), "{}", call.name);
        }
        for (number, index, _) in INT_SIZES {
            let call = lookup(*number as u64).unwrap();
            let used = call
                .args
                .iter()
                .any(|arg| size_index(arg.kind) == Some(*index));
            assert!(used, "{} {index}", call.name);
        }
    }

    fn size_index(kind: ArgKind) -> Option<u8> {
        match kind {
            ArgKind::In(size) | ArgKind::Out(size) | ArgKind::InOut(size) => match size {
                Size::Arg(index) | Size::Elements { count: index, .. } => Some(index),
                Size::Fixed(_) | Size::Pointee(_) => None,
            },
            _ => None,
        }
    }
}
