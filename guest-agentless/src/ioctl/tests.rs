//! What has to hold for every row.

use std::collections::HashSet;

use super::*;

fn all() -> impl Iterator<Item = &'static Ioctl> {
    GROUPS.iter().flat_map(|group| group.rows)
}

fn row(name: &str) -> &'static Ioctl {
    all()
        .find(|row| row.name == name)
        .unwrap_or_else(|| panic!("{name} is not in the table"))
}

#[test]
fn look_up_finds_every_row_and_nothing_else() {
    let (mut numbers, mut names) = (HashSet::new(), HashSet::new());
    for row in all() {
        assert!(numbers.insert(row.request), "{} is there twice", row.name);
        assert!(names.insert(row.name), "{} is there twice", row.name);
        assert!(std::ptr::eq(lookup(row.request.into()).unwrap(), row));
        // The kernel cuts the number.
        let wide = u64::from(row.request) | 7 << 32;
        assert!(std::ptr::eq(lookup(wide).unwrap(), row));
    }
    assert!(lookup(0x1234).is_none());
    assert!(lookup(u64::MAX).is_none());
}

/// Numbers of newer requests hold the direction and the size of the argument.
#[test]
fn numbers_that_tell_direction_and_size_agree_with_the_row() {
    // The kernel's headers say `long` where the kernel reads and writes an `int`, or `int` where it takes a number.
    const OTHERWISE: &[&str] = &[
        "FS_IOC_GETFLAGS",
        "FS_IOC_SETFLAGS",
        "FS_IOC_GETVERSION",
        "FICLONE",
        "TIOCSIG",
    ];
    for row in all().filter(|row| !OTHERWISE.contains(&row.name)) {
        let size = (row.request >> 16 & 0x3fff) as usize;
        let told = match row.request >> 30 {
            0 => continue,
            1 => (size, 0),
            2 => (0, size),
            _ => (size, size),
        };
        let (read, written) = (row.argument.read(), row.argument.written());
        assert_eq!((read, written), told, "{}", row.name);
    }
}

#[test]
fn what_is_compensated_has_an_inverse() {
    // What the handler undoes by itself.
    const FLAGS: &[&str] = &[
        "FIONBIO",
        "FIOASYNC",
        "FIOCLEX",
        "FIONCLEX",
        "FIOSETOWN",
        "SIOCSPGRP",
    ];
    for row in all() {
        let is_compensated = row.effect == Effect::Compensated && !FLAGS.contains(&row.name);
        let has_inverse = row.inverse != Inverse::None;
        assert_eq!(is_compensated, has_inverse, "{}", row.name);
        if let Inverse::Setting { get, set } = row.inverse {
            let (get, set) = (lookup(get.into()).unwrap(), lookup(set.into()).unwrap());
            assert_eq!(get.effect, Effect::Pure, "{}", row.name);
            assert_eq!(get.argument.written(), set.argument.read(), "{}", row.name);
            assert!(matches!(set.argument, Argument::In(_)), "{}", row.name);
            assert_eq!((get.on, set.on), (row.on, row.on), "{}", row.name);
        }
    }
}

#[test]
fn only_what_cannot_be_undone_may_wait() {
    for row in all() {
        assert!(!row.waits || row.effect == Effect::External, "{}", row.name);
        let carried = [Effect::Pure, Effect::Compensated, Effect::External];
        assert!(carried.contains(&row.effect), "{}", row.name);
    }
}

#[test]
fn the_length_and_the_address_lie_in_their_structure() {
    for row in all() {
        if let Argument::Leading {
            bytes,
            len_at,
            address_at,
        } = row.argument
        {
            assert!(
                len_at + 4 <= bytes && address_at + 8 <= bytes,
                "{}",
                row.name
            );
        }
    }
    let ifconf = row("SIOCGIFCONF").argument;
    assert_eq!(ifconf.read(), size_of::<libc::ifconf>());
    let address_at = std::mem::offset_of!(libc::ifconf, ifc_ifcu) as u32;
    let (bytes, len_at) = (16, std::mem::offset_of!(libc::ifconf, ifc_len) as u32);
    assert_eq!(
        ifconf,
        Argument::Leading {
            bytes,
            len_at,
            address_at
        }
    );
}

/// Requests through which the kernel writes, written down apart from the table, from ioctl_tty(2), netdevice(7), arp(7),
/// socket(7) and the kernel's headers, so that a slip in one shows against the other.
const WRITERS: &[&str] = &[
    "FIONREAD",
    "FIGETBSZ",
    "FIOQSIZE",
    "FS_IOC_GETFLAGS",
    "FS_IOC_GETVERSION",
    "FS_IOC_FSGETXATTR",
    "BLKGETSIZE",
    "BLKSSZGET",
    "BLKGETSIZE64",
    "TCGETS",
    "TCGETS2",
    "TCGETA",
    "TIOCGLCKTRMIOS",
    "TIOCGEXCL",
    "TIOCGPGRP",
    "TIOCGSID",
    "TIOCOUTQ",
    "TIOCGWINSZ",
    "TIOCMGET",
    "TIOCGSOFTCAR",
    "TIOCGSERIAL",
    "TIOCGICOUNT",
    "TIOCGPKT",
    "TIOCGETD",
    "TIOCGPTN",
    "TIOCGPTLCK",
    "TIOCGDEV",
    "KDGKBTYPE",
    "FIOGETOWN",
    "SIOCGPGRP",
    "SIOCATMARK",
    "SIOCGSTAMP",
    "SIOCGSTAMPNS",
    "SIOCGSTAMP_NEW",
    "SIOCGSTAMPNS_NEW",
    "SIOCOUTQNSD",
    "SIOCGIFNAME",
    "SIOCGIFCONF",
    "SIOCGIFFLAGS",
    "SIOCGIFADDR",
    "SIOCGIFDSTADDR",
    "SIOCGIFBRDADDR",
    "SIOCGIFNETMASK",
    "SIOCGIFMETRIC",
    "SIOCGIFMEM",
    "SIOCGIFMTU",
    "SIOCGIFENCAP",
    "SIOCGIFHWADDR",
    "SIOCGIFSLAVE",
    "SIOCGIFINDEX",
    "SIOCGIFPFLAGS",
    "SIOCGIFCOUNT",
    "SIOCGIFTXQLEN",
    "SIOCGARP",
    "SIOCGIFMAP",
];

#[test]
fn what_the_kernel_writes_is_written_and_nothing_else() {
    for row in all() {
        let expected = WRITERS.contains(&row.name);
        assert_eq!(row.argument.written() > 0, expected, "{}", row.name);
        // What only tells something is pure, and the other way round.
        assert_eq!(row.effect == Effect::Pure, expected, "{}", row.name);
    }
    WRITERS
        .iter()
        .for_each(|name| assert_eq!(row(name).name, *name));
}

#[test]
fn numbers_and_structures_are_those_of_libc() {
    macro_rules! numbers {
        ($($name:ident)*) => {
            $(assert_eq!(u64::from(row(stringify!($name)).request), libc::$name as u64, stringify!($name));)*
        };
    }
    numbers! {
        FIONREAD FIONBIO FIOCLEX FIONCLEX TCGETS TCSETS TCSETSW TCSETSF TCGETA TCSETA TCSETAW TCSETAF TCSBRK TCXONC
        TCFLSH TIOCEXCL TIOCNXCL TIOCSCTTY TIOCNOTTY TIOCGPGRP TIOCSPGRP TIOCOUTQ TIOCSTI TIOCGWINSZ TIOCSWINSZ TIOCMGET
        TIOCMBIS TIOCMBIC TIOCMSET TIOCGSOFTCAR TIOCSSOFTCAR TIOCCONS TIOCSBRK TIOCCBRK TCGETS2 TCSETS2 TCSETSW2 TCSETSF2
        SIOCGIFNAME SIOCGIFCONF SIOCGIFFLAGS SIOCSIFFLAGS SIOCGIFADDR SIOCSIFADDR SIOCGIFMTU SIOCSIFMTU SIOCGIFHWADDR
        SIOCGIFINDEX SIOCGIFNETMASK SIOCGARP SIOCSARP SIOCDARP
    }
    fn check<T>(names: &[&str]) {
        for name in names {
            let argument = row(name).argument;
            let bytes = argument.read().max(argument.written());
            assert_eq!(bytes, size_of::<T>(), "{name}");
        }
    }
    check::<libc::ifreq>(&["SIOCGIFNAME", "SIOCGIFADDR", "SIOCSIFMTU"]);
    check::<libc::arpreq>(&["SIOCGARP", "SIOCSARP"]);
    check::<libc::winsize>(&["TIOCGWINSZ", "TIOCSWINSZ"]);
    check::<libc::termios2>(&["TCGETS2", "TCSETS2"]);
    check::<libc::timeval>(&["SIOCGSTAMP"]);
    check::<libc::timespec>(&["SIOCGSTAMPNS"]);
    check::<libc::pid_t>(&["TIOCGPGRP", "TIOCSPGRP", "TIOCGSID"]);
}
