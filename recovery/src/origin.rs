//! What a request domain is charged to: the kind of system call that delivered its work, and on which
//! descriptor.
//!
//! The origin decides how a faulting domain can be given back to the server: a connection can be reset, a
//! packet dropped, a connection attempt aborted; a wake-up that belongs to no client can only be run again.

use std::fmt;

/// The origin of a request domain; the numbers are guest descriptors.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// Bytes of a connected stream socket.
    Stream(i32),
    /// A new connection of a listening socket.
    Accept(i32),
    /// A packet of a datagram socket.
    Datagram(i32),
    /// Bytes of a connection that another thread has read (see [`crate::handoff`]).
    Handoff(i32),
    /// A wake-up by the server itself: pipe, eventfd, futex, signal.
    Internal,
    /// A time-out or an expired timer.
    Timer,
}

impl Origin {
    /// The origin without its descriptor.
    pub fn kind(self) -> OriginKind {
        match self {
            Self::Stream(_) => OriginKind::Stream,
            Self::Accept(_) => OriginKind::Accept,
            Self::Datagram(_) => OriginKind::Datagram,
            Self::Handoff(_) => OriginKind::Handoff,
            Self::Internal => OriginKind::Internal,
            Self::Timer => OriginKind::Timer,
        }
    }

    /// The guest descriptor that delivered the work, if a descriptor did.
    pub fn fd(self) -> Option<i32> {
        match self {
            Self::Stream(fd) | Self::Accept(fd) | Self::Datagram(fd) | Self::Handoff(fd) => {
                Some(fd)
            }
            Self::Internal | Self::Timer => None,
        }
    }
}

/// The form used in events and reports: `stream:7`, `timer`.
impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.fd() {
            Some(fd) => write!(f, "{}:{fd}", self.kind()),
            None => self.kind().fmt(f),
        }
    }
}

/// The kind of an [`Origin`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum OriginKind {
    /// See [`Origin::Stream`].
    Stream,
    /// See [`Origin::Accept`].
    Accept,
    /// See [`Origin::Datagram`].
    Datagram,
    /// See [`Origin::Handoff`].
    Handoff,
    /// See [`Origin::Internal`].
    Internal,
    /// See [`Origin::Timer`].
    Timer,
}

impl fmt::Display for OriginKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Stream => "stream",
            Self::Accept => "accept",
            Self::Datagram => "datagram",
            Self::Handoff => "handoff",
            Self::Internal => "internal",
            Self::Timer => "timer",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn display_names_the_kind_and_the_descriptor() {
        assert_eq!(Origin::Stream(7).to_string(), "stream:7");
        assert_eq!(Origin::Accept(3).to_string(), "accept:3");
        assert_eq!(Origin::Datagram(9).to_string(), "datagram:9");
        assert_eq!(Origin::Handoff(7).to_string(), "handoff:7");
        assert_eq!(Origin::Internal.to_string(), "internal");
        assert_eq!(Origin::Timer.to_string(), "timer");
    }

    #[test]
    fn kind_and_fd_split_the_origin() {
        assert_eq!(Origin::Datagram(9).kind(), OriginKind::Datagram);
        assert_eq!(Origin::Datagram(9).fd(), Some(9));
        assert_eq!(Origin::Timer.fd(), None);
    }
}
