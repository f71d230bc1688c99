//! Linux error numbers, and the one place where a result becomes the value of RAX.

use std::fmt;

/// A Linux error number.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Errno(i32);

macro_rules! errnos {
    ($($name:ident $text:literal;)*) => {
        /// The error numbers of the Linux ABI.
        impl Errno {
            $(#[doc = $text] pub const $name: Errno = Errno(libc::$name);)*

            /// Symbol and description; none for a number that Linux does not define.
            const fn entry(self) -> Option<(&'static str, &'static str)> {
                match self.0 {
                    $(libc::$name => Some((stringify!($name), $text)),)*
                    _ => None,
                }
            }
        }

        /// All of them.
        const ALL: &[Errno] = &[$(Errno::$name),*];
    };
}

errnos! {
    EPERM "Operation not permitted";
    ENOENT "No such file or directory";
    ESRCH "No such process";
    EINTR "Interrupted system call";
    EIO "Input/output error";
    ENXIO "No such device or address";
    E2BIG "Argument list too long";
    ENOEXEC "Exec format error";
    EBADF "Bad file descriptor";
    ECHILD "No child processes";
    EAGAIN "Resource temporarily unavailable";
    ENOMEM "Cannot allocate memory";
    EACCES "Permission denied";
    EFAULT "Bad address";
    ENOTBLK "Block device required";
    EBUSY "Device or resource busy";
    EEXIST "File exists";
    EXDEV "Invalid cross-device link";
    ENODEV "No such device";
    ENOTDIR "Not a directory";
    EISDIR "Is a directory";
    EINVAL "Invalid argument";
    ENFILE "Too many open files in system";
    EMFILE "Too many open files";
    ENOTTY "Inappropriate ioctl for device";
    ETXTBSY "Text file busy";
    EFBIG "File too large";
    ENOSPC "No space left on device";
    ESPIPE "Illegal seek";
    EROFS "Read-only file system";
    EMLINK "Too many links";
    EPIPE "Broken pipe";
    EDOM "Numerical argument out of domain";
    ERANGE "Numerical result out of range";
    EDEADLK "Resource deadlock avoided";
    ENAMETOOLONG "File name too long";
    ENOLCK "No locks available";
    ENOSYS "Function not implemented";
    ENOTEMPTY "Directory not empty";
    ELOOP "Too many levels of symbolic links";
    ENOMSG "No message of desired type";
    EIDRM "Identifier removed";
    ECHRNG "Channel number out of range";
    EL2NSYNC "Level 2 not synchronized";
    EL3HLT "Level 3 halted";
    EL3RST "Level 3 reset";
    ELNRNG "Link number out of range";
    EUNATCH "Protocol driver not attached";
    ENOCSI "No CSI structure available";
    EL2HLT "Level 2 halted";
    EBADE "Invalid exchange";
    EBADR "Invalid request descriptor";
    EXFULL "Exchange full";
    ENOANO "No anode";
    EBADRQC "Invalid request code";
    EBADSLT "Invalid slot";
    EBFONT "Bad font file format";
    ENOSTR "Device not a stream";
    ENODATA "No data available";
    ETIME "Timer expired";
    ENOSR "Out of streams resources";
    ENONET "Machine is not on the network";
    ENOPKG "Package not installed";
    EREMOTE "Object is remote";
    ENOLINK "Link has been severed";
    EADV "Advertise error";
    ESRMNT "Srmount error";
    ECOMM "Communication error on send";
    EPROTO "Protocol error";
    EMULTIHOP "Multihop attempted";
    EDOTDOT "RFS specific error";
    EBADMSG "Bad message";
    EOVERFLOW "Value too large for defined data type";
    ENOTUNIQ "Name not unique on network";
    EBADFD "File descriptor in bad state";
    EREMCHG "Remote address changed";
    ELIBACC "Can not access a needed shared library";
    ELIBBAD "Accessing a corrupted shared library";
    ELIBSCN ".lib section in a.out corrupted";
    ELIBMAX "Attempting to link in too many shared libraries";
    ELIBEXEC "Cannot exec a shared library directly";
    EILSEQ "Invalid or incomplete multibyte or wide character";
    ERESTART "Interrupted system call should be restarted";
    ESTRPIPE "Streams pipe error";
    EUSERS "Too many users";
    ENOTSOCK "Socket operation on non-socket";
    EDESTADDRREQ "Destination address required";
    EMSGSIZE "Message too long";
    EPROTOTYPE "Protocol wrong type for socket";
    ENOPROTOOPT "Protocol not available";
    EPROTONOSUPPORT "Protocol not supported";
    ESOCKTNOSUPPORT "Socket type not supported";
    EOPNOTSUPP "Operation not supported";
    EPFNOSUPPORT "Protocol family not supported";
    EAFNOSUPPORT "Address family not supported by protocol";
    EADDRINUSE "Address already in use";
    EADDRNOTAVAIL "Cannot assign requested address";
    ENETDOWN "Network is down";
    ENETUNREACH "Network is unreachable";
    ENETRESET "Network dropped connection on reset";
    ECONNABORTED "Software caused connection abort";
    ECONNRESET "Connection reset by peer";
    ENOBUFS "No buffer space available";
    EISCONN "Transport endpoint is already connected";
    ENOTCONN "Transport endpoint is not connected";
    ESHUTDOWN "Cannot send after transport endpoint shutdown";
    ETOOMANYREFS "Too many references: cannot splice";
    ETIMEDOUT "Connection timed out";
    ECONNREFUSED "Connection refused";
    EHOSTDOWN "Host is down";
    EHOSTUNREACH "No route to host";
    EALREADY "Operation already in progress";
    EINPROGRESS "Operation now in progress";
    ESTALE "Stale file handle";
    EUCLEAN "Structure needs cleaning";
    ENOTNAM "Not a XENIX named type file";
    ENAVAIL "No XENIX semaphores available";
    EISNAM "Is a named type file";
    EREMOTEIO "Remote I/O error";
    EDQUOT "Disk quota exceeded";
    ENOMEDIUM "No medium found";
    EMEDIUMTYPE "Wrong medium type";
    ECANCELED "Operation canceled";
    ENOKEY "Required key not available";
    EKEYEXPIRED "Key has expired";
    EKEYREVOKED "Key has been revoked";
    EKEYREJECTED "Key was rejected by service";
    EOWNERDEAD "Owner died";
    ENOTRECOVERABLE "State not recoverable";
    ERFKILL "Operation not possible due to RF-kill";
    EHWPOISON "Memory page has hardware error";
}

impl Errno {
    /// The errno with this number, which the kernel and libc give as a positive value. The sign is
    /// dropped, so that a raw system-call result (`-EFAULT`) converts as well.
    pub const fn from_raw(number: i32) -> Errno {
        Errno(number.saturating_abs())
    }

    /// The number, positive.
    pub const fn raw(self) -> i32 {
        self.0
    }

    /// The symbol, such as `EFAULT`; `E?` for a number that Linux does not define.
    pub const fn name(self) -> &'static str {
        match self.entry() {
            Some((name, _)) => name,
            None => "E?",
        }
    }

    /// All of them.
    pub const fn all() -> &'static [Errno] {
        ALL
    }

    /// The errno with this symbol.
    pub fn from_name(name: &str) -> Option<Errno> {
        ALL.iter().copied().find(|errno| errno.name() == name)
    }

    /// What the error means, in glibc's words.
    pub const fn description(self) -> &'static str {
        match self.entry() {
            Some((_, text)) => text,
            None => "unknown error",
        }
    }
}

/// The value that RAX takes for `result`: every system call's answer goes through here.
pub const fn to_rax(result: Result<u64, Errno>) -> u64 {
    match result {
        Ok(value) => value,
        Err(errno) => (-(errno.0 as i64)) as u64,
    }
}

/// What a value of RAX says: the inverse of [`to_rax`].
pub const fn from_rax(rax: u64) -> Result<u64, Errno> {
    // The kernel keeps the last 4095 values for errors (IS_ERR_VALUE).
    match rax as i64 {
        error @ -4095..=-1 => Err(Errno(-error as i32)),
        _ => Ok(rax),
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.entry() {
            Some((name, text)) => write!(f, "{name} ({text})"),
            None => write!(f, "error {}", self.0),
        }
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl std::error::Error for Errno {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_of_linux_has_a_name() {
        // 41 and 58 were never assigned.
        for number in (1..=133).filter(|n| ![41, 58].contains(n)) {
            assert_ne!(Errno::from_raw(number).name(), "E?", "errno {number}");
        }
        assert_eq!(ALL.len(), 131);
        assert_eq!(Errno::from_raw(41).to_string(), "error 41");
    }

    #[test]
    fn prints_symbol_and_meaning() {
        assert_eq!(Errno::EFAULT.to_string(), "EFAULT (Bad address)");
        assert_eq!(
            format!("{:?}", Errno::EAGAIN),
            "EAGAIN (Resource temporarily unavailable)"
        );
        assert_eq!(Errno::from_raw(-libc::ENOMEM), Errno::ENOMEM);
        assert_eq!(Errno::from_name("ENOMEM"), Some(Errno::ENOMEM));
        assert_eq!(Errno::from_name("E?"), None);
    }

    #[test]
    fn rax_round_trip() {
        for &errno in ALL {
            assert_eq!(from_rax(to_rax(Err(errno))), Err(errno));
        }
        for value in [0, 1, u64::MAX - 4095, 0x7fff_ffff_f000] {
            assert_eq!(from_rax(to_rax(Ok(value))), Ok(value));
        }
        assert_eq!(to_rax(Err(Errno::EPERM)), u64::MAX);
    }
}
