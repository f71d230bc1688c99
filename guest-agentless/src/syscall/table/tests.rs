//! What has to hold for every row.

use std::collections::HashSet;

use super::*;
use crate::syscall::{Arg, ArgKind, Effect, Size, Support};

fn all() -> impl Iterator<Item = &'static Syscall> {
    AREAS.iter().flat_map(|area| area.rows)
}

fn row(name: &str) -> &'static Syscall {
    all()
        .find(|call| call.name == name)
        .unwrap_or_else(|| panic!("{name} is not in the table"))
}

/// Whether the row says that the kernel writes through this argument, or leaves it to the handler.
fn may_be_written(arg: &Arg) -> bool {
    use ArgKind::*;
    matches!(
        arg.kind,
        Out(_) | InOut(_) | IovecOut { .. } | MsgOut | Custom
    )
}

#[test]
fn look_up_finds_every_row_and_nothing_else() {
    let mut numbers = HashSet::new();
    for call in all() {
        assert!(numbers.insert(call.number), "{} is there twice", call.name);
        assert!(std::ptr::eq(lookup(call.number.into()).unwrap(), call));
    }
    assert!(numbers.len() > 300);
    assert_eq!((0..2048).filter_map(lookup).count(), numbers.len());
    assert!(lookup(u64::MAX).is_none());
    assert_eq!(lookup(0).map(|call| call.name), Some("read"));
    assert_eq!(lookup(322).map(|call| call.name), Some("execveat"));
}

#[test]
fn sizes_come_from_arguments_that_can_hold_them() {
    for call in all() {
        assert!(call.args.len() <= 6, "{}", call.name);
        let kind = |index: u8| call.args.get(usize::from(index)).map(|arg| arg.kind);
        for arg in call.args {
            use ArgKind::*;
            let right = match arg.kind {
                In(size) | Out(size) | InOut(size) => match size {
                    Size::Fixed(bytes) => bytes > 0,
                    Size::Arg(index) => kind(index) == Some(Value),
                    Size::Elements { count, each } => kind(count) == Some(Value) && each > 0,
                    Size::Pointee(index) => kind(index) == Some(InOut(Size::Fixed(4))),
                },
                IovecIn { count } | IovecOut { count } => kind(count) == Some(Value),
                _ => true,
            };
            assert!(right, "{}: {}", call.name, arg.name);
        }
    }
}

#[test]
fn a_refusal_names_its_error_and_has_no_effect() {
    for call in all().filter(|call| call.support == Support::Refused) {
        let symbol = call.refusal().map(crate::Errno::name).unwrap_or_default();
        assert!(
            call.note.starts_with(symbol),
            "{}: {:?}",
            call.name,
            call.note
        );
        assert!(
            matches!(call.effect, Effect::Pure | Effect::Process),
            "{}",
            call.name
        );
    }
    assert_eq!(row("mlockall").refusal(), Some(crate::Errno::EPERM));
    assert_eq!(row("read").refusal(), None);
    for call in all().filter(|call| call.support == Support::Partial) {
        assert!(!call.note.is_empty(), "{}: which limits?", call.name);
    }
}

#[test]
fn arguments_that_only_a_handler_understands_are_explained() {
    let custom = |call: &&Syscall| call.args.iter().any(|arg| arg.kind == ArgKind::Custom);
    for call in all().filter(custom) {
        assert!(!call.note.is_empty(), "{}", call.name);
    }
}

/// Calls of the x86-64 ABI through which the kernel writes memory, and the indices of those arguments.
/// Written down apart from the table, from the manual pages, so that a slip in one shows against the other.
const WRITERS: &[(&str, &[usize])] = &[
    ("accept", &[1, 2]),
    ("accept4", &[1, 2]),
    ("adjtimex", &[0]),
    ("arch_prctl", &[1]),
    ("capget", &[0, 1]),
    ("capset", &[0]),
    ("clock_adjtime", &[1]),
    ("clock_getres", &[1]),
    ("clock_gettime", &[1]),
    ("clock_nanosleep", &[3]),
    ("clone", &[2, 3]),
    ("copy_file_range", &[1, 3]),
    ("epoll_pwait", &[1]),
    ("epoll_pwait2", &[1]),
    ("epoll_wait", &[1]),
    ("fcntl", &[2]),
    ("fgetxattr", &[2]),
    ("flistxattr", &[1]),
    ("fstat", &[1]),
    ("fstatfs", &[1]),
    ("futex", &[0, 4]),
    ("getcpu", &[0, 1]),
    ("getcwd", &[0]),
    ("getdents", &[1]),
    ("getdents64", &[1]),
    ("getgroups", &[1]),
    ("getitimer", &[1]),
    ("getpeername", &[1, 2]),
    ("getrandom", &[0]),
    ("getresgid", &[0, 1, 2]),
    ("getresuid", &[0, 1, 2]),
    ("getrlimit", &[1]),
    ("getrusage", &[1]),
    ("getsockname", &[1, 2]),
    ("getsockopt", &[3, 4]),
    ("gettimeofday", &[0, 1]),
    ("getxattr", &[2]),
    ("get_robust_list", &[1, 2]),
    ("ioctl", &[2]),
    ("io_getevents", &[3]),
    ("io_setup", &[1]),
    ("io_submit", &[2]),
    ("lgetxattr", &[2]),
    ("listxattr", &[1]),
    ("llistxattr", &[1]),
    ("lstat", &[1]),
    ("mincore", &[2]),
    ("mq_getsetattr", &[2]),
    ("mq_timedreceive", &[1, 3]),
    ("msgctl", &[2]),
    ("msgrcv", &[1]),
    ("nanosleep", &[1]),
    ("newfstatat", &[2]),
    ("pipe", &[0]),
    ("pipe2", &[0]),
    ("poll", &[0]),
    ("ppoll", &[0, 2]),
    ("prctl", &[1]),
    ("pread64", &[1]),
    ("preadv", &[1]),
    ("preadv2", &[1]),
    ("prlimit64", &[3]),
    ("pselect6", &[1, 2, 3, 4]),
    ("read", &[1]),
    ("readlink", &[1]),
    ("readlinkat", &[2]),
    ("readv", &[1]),
    ("recvfrom", &[1, 4, 5]),
    ("recvmmsg", &[1, 4]),
    ("recvmsg", &[1]),
    ("rt_sigaction", &[2]),
    ("rt_sigpending", &[0]),
    ("rt_sigprocmask", &[2]),
    ("rt_sigtimedwait", &[1]),
    ("sched_getaffinity", &[2]),
    ("sched_getattr", &[1]),
    ("sched_getparam", &[1]),
    ("sched_rr_get_interval", &[1]),
    ("sched_setattr", &[1]),
    ("select", &[1, 2, 3, 4]),
    ("semctl", &[3]),
    ("sendfile", &[2]),
    ("sendmmsg", &[1]),
    ("setitimer", &[2]),
    ("shmctl", &[2]),
    ("sigaltstack", &[1]),
    ("socketpair", &[3]),
    ("splice", &[1, 3]),
    ("stat", &[1]),
    ("statfs", &[1]),
    ("statx", &[4]),
    ("sysinfo", &[0]),
    ("time", &[0]),
    ("timer_create", &[2]),
    ("timer_gettime", &[1]),
    ("timer_settime", &[3]),
    ("timerfd_gettime", &[1]),
    ("timerfd_settime", &[3]),
    ("times", &[0]),
    ("uname", &[0]),
    ("ustat", &[1]),
    ("wait4", &[1, 3]),
    ("waitid", &[2, 4]),
];

#[test]
fn what_the_kernel_writes_is_marked_and_nothing_else() {
    // These arguments are Custom for another reason than that the kernel writes them.
    const ONLY_READ: &[(&str, usize)] =
        &[("futex", 3), ("msgsnd", 1), ("pselect6", 5), ("seccomp", 2)];
    for call in all().filter(|call| call.support != Support::Refused) {
        let listed = WRITERS
            .iter()
            .find(|(name, _)| *name == call.name)
            .map_or(&[][..], |w| w.1);
        for (index, arg) in call.args.iter().enumerate() {
            if ONLY_READ.contains(&(call.name, index)) {
                continue;
            }
            let expected = listed.contains(&index);
            assert_eq!(may_be_written(arg), expected, "{}: {}", call.name, arg.name);
        }
    }
    for (name, indices) in WRITERS {
        assert!(
            indices.iter().all(|index| *index < row(name).args.len()),
            "{name}"
        );
    }
}

/// The sizes of the structures in fixed-size rows, as libc has them.
#[test]
fn structures_have_the_sizes_that_libc_gives_them() {
    fn check<T>(uses: &[(&str, usize)]) {
        for (name, index) in uses {
            let bytes = match row(name).args[*index].kind {
                ArgKind::In(size) | ArgKind::Out(size) | ArgKind::InOut(size) => match size {
                    Size::Fixed(bytes) | Size::Elements { each: bytes, .. } => bytes,
                    _ => panic!("{name}: no fixed size"),
                },
                _ => panic!("{name}: not memory"),
            };
            assert_eq!(bytes as usize, size_of::<T>(), "{name}");
        }
    }
    check::<libc::stat>(&[("stat", 1), ("fstat", 1), ("lstat", 1), ("newfstatat", 2)]);
    check::<libc::statx>(&[("statx", 4)]);
    check::<libc::statfs>(&[("statfs", 1), ("fstatfs", 1)]);
    check::<libc::utsname>(&[("uname", 0)]);
    check::<libc::sysinfo>(&[("sysinfo", 0)]);
    check::<libc::rusage>(&[("getrusage", 1), ("wait4", 3), ("waitid", 4)]);
    check::<libc::rlimit>(&[
        ("getrlimit", 1),
        ("setrlimit", 1),
        ("prlimit64", 2),
        ("prlimit64", 3),
    ]);
    check::<libc::siginfo_t>(&[
        ("waitid", 2),
        ("rt_sigtimedwait", 1),
        ("rt_sigqueueinfo", 2),
    ]);
    check::<libc::stack_t>(&[("sigaltstack", 0), ("sigaltstack", 1)]);
    check::<libc::sigevent>(&[("timer_create", 1)]);
    check::<libc::tms>(&[("times", 0)]);
    check::<libc::timex>(&[("adjtimex", 0), ("clock_adjtime", 1)]);
    check::<libc::itimerval>(&[("getitimer", 1), ("setitimer", 1), ("setitimer", 2)]);
    check::<libc::itimerspec>(&[
        ("timer_gettime", 1),
        ("timerfd_settime", 2),
        ("timerfd_gettime", 1),
    ]);
    check::<libc::timespec>(&[
        ("clock_gettime", 1),
        ("nanosleep", 1),
        ("ppoll", 2),
        ("pselect6", 4),
    ]);
    check::<libc::timeval>(&[("select", 4), ("gettimeofday", 0)]);
    check::<libc::utimbuf>(&[("utime", 1)]);
    check::<[libc::timespec; 2]>(&[("utimensat", 2), ("utimes", 1)]);
    check::<libc::pollfd>(&[("poll", 0), ("ppoll", 0)]);
    check::<libc::epoll_event>(&[("epoll_wait", 1), ("epoll_ctl", 3), ("epoll_pwait", 1)]);
    check::<libc::sembuf>(&[("semop", 1)]);
    check::<libc::mq_attr>(&[("mq_open", 3), ("mq_getsetattr", 2)]);
    check::<libc::gid_t>(&[("getgroups", 1), ("getresuid", 0)]);
    check::<libc::sched_param>(&[("sched_getparam", 1)]);
}

/// What `strace -f -c` counted for redis-server 7.0 and memcached 1.6 on Debian 12, from the start to
/// SIGTERM: with append-only file, background saves, `DEBUG` commands, I/O threads and Unix sockets.
const SERVERS_USE: &[&str] = &[
    "accept4",
    "access",
    "arch_prctl",
    "bind",
    "brk",
    "chdir",
    "clock_nanosleep",
    "clone",
    "clone3",
    "close",
    "connect",
    "dup",
    "epoll_create",
    "epoll_create1",
    "epoll_ctl",
    "epoll_wait",
    "eventfd2",
    "execve",
    "exit",
    "exit_group",
    "fcntl",
    "fdatasync",
    "fsync",
    "futex",
    "getcwd",
    "getegid",
    "geteuid",
    "getgid",
    "getpeername",
    "getpid",
    "getrandom",
    "getrusage",
    "getsockname",
    "getsockopt",
    "getuid",
    "ioctl",
    "kill",
    "listen",
    "lseek",
    "madvise",
    "mkdir",
    "mmap",
    "mprotect",
    "munmap",
    "newfstatat",
    "open",
    "openat",
    "pipe2",
    "prctl",
    "pread64",
    "prlimit64",
    "read",
    "readlink",
    "recvfrom",
    "rename",
    "rseq",
    "rt_sigaction",
    "rt_sigprocmask",
    "rt_sigreturn",
    "sched_getaffinity",
    "sendmsg",
    "set_robust_list",
    "set_tid_address",
    "setgid",
    "setgroups",
    "setitimer",
    "setsockopt",
    "setuid",
    "socket",
    "sysinfo",
    "tgkill",
    "umask",
    "uname",
    "unlink",
    "wait4",
    "write",
    "writev",
];

#[test]
fn everything_that_the_reference_servers_call_is_there() {
    SERVERS_USE
        .iter()
        .for_each(|name| assert!(row(name).name == *name));
}
