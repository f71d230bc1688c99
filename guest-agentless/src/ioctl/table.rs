//! The rows, by what they are about.
//!
//! Numbers, structures and directions are those of the kernel's `asm-generic/ioctls.h`, `sockios.h`, `fs.h` and
//! `termbits.h`. No row may say that more is
//! written than is: what the kernel has left alone would be overwritten.

use super::Argument::{Fd, In, InOut, Leading, Out, Unused, Value};
use super::{Inverse, Ioctl, On};
use crate::syscall::Effect;

/// Rows that belong together.
#[derive(Debug, Clone, Copy)]
pub struct Group {
    /// What they are about.
    pub title: &'static str,
    /// The rows.
    pub rows: &'static [Ioctl],
}

/// All groups: the whole table.
pub static GROUPS: &[Group] = &[
    Group {
        title: "All descriptors",
        rows: DESCRIPTORS,
    },
    Group {
        title: "Files",
        rows: FILES,
    },
    Group {
        title: "Terminals",
        rows: TERMINALS,
    },
    Group {
        title: "Terminals and sockets",
        rows: OUTPUT,
    },
    Group {
        title: "Sockets",
        rows: SOCKETS,
    },
    Group {
        title: "Network interfaces",
        rows: INTERFACES,
    },
];

/// The row of a request; none if the monitor does not carry it (`ENOTTY`).
pub fn lookup(request: u64) -> Option<&'static Ioctl> {
    // The kernel's `unsigned int cmd`.
    let request = request as u32;
    let mut rows = GROUPS.iter().flat_map(|group| group.rows);
    rows.find(|row| row.request == request)
}

/// Writes rows as `number NAME argument Effect [inverse] [waits] "note";`.
macro_rules! rows {
    ($table:ident $on:ident:
        $($number:literal $name:ident $argument:expr, $effect:ident $([$inverse:expr])? $($waits:ident)? $note:literal;)*
    ) => {
        static $table: &[Ioctl] = &[$(Ioctl {
            request: $number,
            name: stringify!($name),
            on: On::$on,
            argument: $argument,
            effect: Effect::$effect,
            inverse: rows!(@inverse $($inverse)?),
            waits: rows!(@waits $($waits)?),
            note: $note,
        }),*];
    };
    (@inverse) => { Inverse::None };
    (@inverse $inverse:expr) => { $inverse };
    (@waits) => { false };
    (@waits waits) => { true };
}

const fn setting(get: u32, set: u32) -> Inverse {
    Inverse::Setting { get, set }
}

/// Bytes of `struct termios`, `struct termios2` and `struct termio` as the kernel has them.
const TERMIOS: u32 = 36;
const TERMIOS2: u32 = 44;
const TERMIO: u32 = 18;
/// Bytes of `struct ifreq` and `struct arpreq`.
const IFREQ: u32 = 40;
const ARPREQ: u32 = 68;

const TCGETS: u32 = 0x5401;
const TCSETS: u32 = 0x5402;
const TCGETS2: u32 = 0x802c_542a;
const TCSETS2: u32 = 0x402c_542b;
const TIOCPKT: u32 = 0x5420;
const TIOCGPKT: u32 = 0x8004_5438;
const TIOCSPTLCK: u32 = 0x4004_5431;
const TIOCGPTLCK: u32 = 0x8004_5439;

rows! { DESCRIPTORS Any:
    0x541b FIONREAD Out(4), Pure "What the request itself has read of a socket counts as gone.";
    0x5421 FIONBIO In(4), Compensated "";
    0x5452 FIOASYNC In(4), Compensated "";
    0x5451 FIOCLEX Unused, Compensated "";
    0x5450 FIONCLEX Unused, Compensated "";
}

rows! { FILES File:
    0x0002 FIGETBSZ Out(4), Pure "";
    0x5460 FIOQSIZE Out(8), Pure "";
    0x8008_6601 FS_IOC_GETFLAGS Out(4), Pure "";
    0x4008_6602 FS_IOC_SETFLAGS In(4), External "";
    0x8008_7601 FS_IOC_GETVERSION Out(4), Pure "";
    0x801c_581f FS_IOC_FSGETXATTR Out(28), Pure "";
    0x401c_5820 FS_IOC_FSSETXATTR In(28), External "";
    0x4004_9409 FICLONE Fd, External waits "";
    0x1260 BLKGETSIZE Out(8), Pure "";
    0x1268 BLKSSZGET Out(4), Pure "";
    0x8008_1272 BLKGETSIZE64 Out(8), Pure "";
}

rows! { TERMINALS Terminal:
    0x5401 TCGETS Out(TERMIOS), Pure "";
    0x5402 TCSETS In(TERMIOS), Compensated [setting(TCGETS, TCSETS)] "";
    0x5403 TCSETSW In(TERMIOS), External waits "Waits for output.";
    0x5404 TCSETSF In(TERMIOS), External waits "Waits for output and drops input.";
    0x802c_542a TCGETS2 Out(TERMIOS2), Pure "";
    0x402c_542b TCSETS2 In(TERMIOS2), Compensated [setting(TCGETS2, TCSETS2)] "";
    0x402c_542c TCSETSW2 In(TERMIOS2), External waits "Waits for output.";
    0x402c_542d TCSETSF2 In(TERMIOS2), External waits "Waits for output and drops input.";
    0x5405 TCGETA Out(TERMIO), Pure "";
    0x5406 TCSETA In(TERMIO), Compensated [setting(TCGETS, TCSETS)] "";
    0x5407 TCSETAW In(TERMIO), External waits "Waits for output.";
    0x5408 TCSETAF In(TERMIO), External waits "Waits for output and drops input.";
    0x5456 TIOCGLCKTRMIOS Out(TERMIOS), Pure "";
    0x5457 TIOCSLCKTRMIOS In(TERMIOS), External "";
    0x5409 TCSBRK Value, External waits "`tcdrain` and `tcsendbreak`.";
    0x5425 TCSBRKP Value, External waits "";
    0x5427 TIOCSBRK Unused, External waits "";
    0x5428 TIOCCBRK Unused, External waits "";
    0x540a TCXONC Value, External waits "`tcflow`.";
    0x540b TCFLSH Value, External waits "`tcflush`.";
    0x540c TIOCEXCL Unused, External "";
    0x540d TIOCNXCL Unused, External "";
    0x8004_5440 TIOCGEXCL Out(4), Pure "";
    0x540e TIOCSCTTY Value, External "The controlling terminal is that of the process, whose ID is the guest's.";
    0x5422 TIOCNOTTY Unused, External "";
    0x540f TIOCGPGRP Out(4), Pure "";
    0x5410 TIOCSPGRP In(4), External waits "A process in the background gets SIGTTOU.";
    0x5429 TIOCGSID Out(4), Pure "";
    0x5412 TIOCSTI In(1), External waits "";
    0x5413 TIOCGWINSZ Out(8), Pure "";
    0x5414 TIOCSWINSZ In(8), External "The foreground gets SIGWINCH.";
    0x5415 TIOCMGET Out(4), Pure "";
    0x5416 TIOCMBIS In(4), External "";
    0x5417 TIOCMBIC In(4), External "";
    0x5418 TIOCMSET In(4), External "";
    0x5419 TIOCGSOFTCAR Out(4), Pure "";
    0x541a TIOCSSOFTCAR In(4), External "";
    0x541d TIOCCONS Unused, External "";
    0x541e TIOCGSERIAL Out(72), Pure "";
    0x545d TIOCGICOUNT Out(80), Pure "";
    0x5420 TIOCPKT In(4), Compensated [setting(TIOCGPKT, TIOCPKT)] "";
    0x8004_5438 TIOCGPKT Out(4), Pure "";
    0x5423 TIOCSETD In(4), External waits "";
    0x5424 TIOCGETD Out(4), Pure "";
    0x8004_5430 TIOCGPTN Out(4), Pure "";
    0x4004_5431 TIOCSPTLCK In(4), Compensated [setting(TIOCGPTLCK, TIOCSPTLCK)] "";
    0x8004_5439 TIOCGPTLCK Out(4), Pure "";
    0x5441 TIOCGPTPEER Value, Compensated [Inverse::Descriptor] "";
    0x8004_5432 TIOCGDEV Out(4), Pure "";
    0x4004_5436 TIOCSIG Value, External "";
    0x5437 TIOCVHANGUP Unused, External waits "";
    0x4b33 KDGKBTYPE Out(1), Pure "";
}

rows! { OUTPUT TerminalOrSocket:
    0x5411 TIOCOUTQ Out(4), Pure "Also known as `SIOCOUTQ`.";
}

rows! { SOCKETS Socket:
    0x8901 FIOSETOWN In(4), Compensated "";
    0x8902 SIOCSPGRP In(4), Compensated "";
    0x8903 FIOGETOWN Out(4), Pure "";
    0x8904 SIOCGPGRP Out(4), Pure "";
    0x8905 SIOCATMARK Out(4), Pure "";
    0x8906 SIOCGSTAMP Out(16), Pure "";
    0x8907 SIOCGSTAMPNS Out(16), Pure "";
    0x8010_8906 SIOCGSTAMP_NEW Out(16), Pure "";
    0x8010_8907 SIOCGSTAMPNS_NEW Out(16), Pure "";
    0x894b SIOCOUTQNSD Out(4), Pure "";
}

rows! { INTERFACES Socket:
    0x8910 SIOCGIFNAME InOut(IFREQ), Pure "";
    0x8912 SIOCGIFCONF Leading { bytes: 16, len_at: 0, address_at: 8 }, Pure "";
    0x8913 SIOCGIFFLAGS InOut(IFREQ), Pure "";
    0x8914 SIOCSIFFLAGS In(IFREQ), External waits "";
    0x8915 SIOCGIFADDR InOut(IFREQ), Pure "";
    0x8916 SIOCSIFADDR In(IFREQ), External waits "";
    0x8917 SIOCGIFDSTADDR InOut(IFREQ), Pure "";
    0x8918 SIOCSIFDSTADDR In(IFREQ), External waits "";
    0x8919 SIOCGIFBRDADDR InOut(IFREQ), Pure "";
    0x891a SIOCSIFBRDADDR In(IFREQ), External waits "";
    0x891b SIOCGIFNETMASK InOut(IFREQ), Pure "";
    0x891c SIOCSIFNETMASK In(IFREQ), External waits "";
    0x891d SIOCGIFMETRIC InOut(IFREQ), Pure "";
    0x891e SIOCSIFMETRIC In(IFREQ), External waits "";
    0x891f SIOCGIFMEM InOut(IFREQ), Pure "";
    0x8921 SIOCGIFMTU InOut(IFREQ), Pure "";
    0x8922 SIOCSIFMTU In(IFREQ), External waits "";
    0x8923 SIOCSIFNAME In(IFREQ), External waits "";
    0x8924 SIOCSIFHWADDR In(IFREQ), External waits "";
    0x8925 SIOCGIFENCAP InOut(IFREQ), Pure "";
    0x8927 SIOCGIFHWADDR InOut(IFREQ), Pure "";
    0x8929 SIOCGIFSLAVE InOut(IFREQ), Pure "";
    0x8931 SIOCADDMULTI In(IFREQ), External waits "";
    0x8932 SIOCDELMULTI In(IFREQ), External waits "";
    0x8933 SIOCGIFINDEX InOut(IFREQ), Pure "";
    0x8935 SIOCGIFPFLAGS InOut(IFREQ), Pure "";
    0x8938 SIOCGIFCOUNT InOut(IFREQ), Pure "";
    0x8942 SIOCGIFTXQLEN InOut(IFREQ), Pure "";
    0x8943 SIOCSIFTXQLEN In(IFREQ), External waits "";
    0x8954 SIOCGARP InOut(ARPREQ), Pure "";
    0x8953 SIOCDARP In(ARPREQ), External waits "";
    0x8955 SIOCSARP In(ARPREQ), External waits "";
    0x8970 SIOCGIFMAP InOut(IFREQ), Pure "";
}
