//! What undoes effects that were done at once.

use std::os::fd::OwnedFd;

use guest_agentless::{Errno, GuestRange, Signal, Vma};
use recovery::SuspendedPages;
use recovery::tracker::SavedPages;

use super::HostCall;
use crate::memory::{Limit, Stash};
use crate::process::files::Replaced;
use crate::process::signals::Action;

/// What undoes an effect that was done at once.
pub enum Undo {
    /// A descriptor was made.
    Close { fd: i32 },
    /// A descriptor came with a message.
    Received { fd: i32 },
    /// A connection was accepted.
    Reset { fd: i32 },
    /// A close was announced.
    Reopen { fd: i32 },
    /// An interest list was changed: put it back to this (none: not in the list).
    Interest {
        epoll: i32,
        fd: i32,
        event: Option<libc::epoll_event>,
    },
    /// `fcntl` with a value that can be set back.
    Fcntl { fd: i32, command: i32, value: i32 },
    /// A socket option was set.
    SocketOption {
        fd: i32,
        level: i32,
        name: i32,
        value: Vec<u8>,
    },
    /// A socket has told its error, which it does once.
    SocketError { fd: i32, error: Errno },
    /// A file offset was moved.
    Offset { fd: i32, offset: i64 },
    /// An eventfd was read.
    EventCount { fd: i32, count: u64 },
    /// A timerfd was read.
    Expirations { fd: i32, count: u64 },
    /// A pipe was read.
    Unread { fd: i32, bytes: Vec<u8> },
    /// A socket is read without taking the bytes.
    PeekOffset { fd: i32 },
    /// A descriptor was replaced by `dup2`.
    Replaced(Replaced),
    /// The working directory was changed.
    Directory { old: OwnedFd },
    /// A watch was added to an inotify descriptor.
    Watch { fd: i32, watch: i32 },
    /// An interval timer was set.
    IntervalTimer {
        call: HostCall,
        signal: Option<Signal>,
    },
    /// Pages were locked or unlocked.
    Locked {
        range: GuestRange,
        before: Vec<GuestRange>,
    },
    /// Another call that has an inverse, and what was done.
    Call { call: HostCall, what: &'static str },
    /// A mapping was made.
    Unmap { range: GuestRange },
    /// Mappings were moved out of the way or unmapped.
    Remap {
        stash: Vec<Stash>,
        pages: Vec<SavedPages>,
        /// What the domain had written there when it was suspended.
        suspended: SuspendedPages,
    },
    /// Protections were changed.
    Protect { old: Vec<Vma> },
    /// The end of the heap was moved.
    Heap {
        /// First address and end before.
        heap: (u64, u64),
        /// The end since then.
        end: u64,
    },
    /// A signal disposition was changed.
    Disposition { signal: Signal, action: Action },
    /// The thread was renamed.
    ThreadName { name: Vec<u8> },
    /// An attribute of the thread or process was set.
    Prctl { option: i32, value: u64 },
    /// A limit that is the guest's own was changed.
    OwnLimit { resource: u32, limit: Limit },
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Undo {
    /// The descriptors that it is about, where it is about some; -1 stands for none.
    pub fn descriptors(&self) -> [i32; 2] {
        match self {
            Undo::Interest { epoll, fd, .. } => [*epoll, *fd],
            Undo::Close { fd }
            | Undo::Received { fd }
            | Undo::Reset { fd }
            | Undo::Reopen { fd }
            | Undo::Fcntl { fd, .. }
            | Undo::SocketOption { fd, .. }
            | Undo::SocketError { fd, .. }
            | Undo::Offset { fd, .. }
            | Undo::EventCount { fd, .. }
            | Undo::Expirations { fd, .. }
            | Undo::Unread { fd, .. }
            | Undo::PeekOffset { fd }
            | Undo::Watch { fd, .. } => [*fd, -1],
            Undo::Replaced(replaced) => [replaced.fd(), -1],
            // Not all of them begin with a descriptor, but those that do are.
            Undo::Call { call, .. } => [call.args()[0] as i32, -1],
            _ => [-1, -1],
        }
    }

    /// Whether it means nothing once the descriptor that it is about is closed.
    pub fn ends_with_descriptor(&self) -> bool {
        matches!(
            self,
            Undo::Close { .. }
                | Undo::Fcntl { .. }
                | Undo::Offset { .. }
                | Undo::SocketOption { .. }
                | Undo::SocketError { .. }
        )
    }

    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Undo::Close { fd } => format!("descriptor {fd} was opened"),
            Undo::Received { fd } => format!("descriptor {fd} was received"),
            Undo::Reset { fd } => format!("connection {fd} was accepted"),
            Undo::Reopen { fd } => format!("descriptor {fd} was closed"),
            Undo::Interest { epoll, fd, .. } => format!("epoll {epoll}: interest in {fd} changed"),
            Undo::Fcntl { fd, .. } => format!("flags of descriptor {fd} were changed"),
            Undo::SocketOption {
                fd, level, name, ..
            } => {
                format!("option {level}:{name} of socket {fd} was set")
            }
            Undo::SocketError { fd, error } => format!("error {error:?} of socket {fd} was told"),
            Undo::Offset { fd, .. } => format!("offset of descriptor {fd} was moved"),
            Undo::EventCount { fd, count } => format!("eventfd {fd} was read ({count})"),
            Undo::Expirations { fd, count } => format!("timerfd {fd} was read ({count})"),
            Undo::Unread { fd, bytes } => format!("{} bytes were read from {fd}", bytes.len()),
            Undo::PeekOffset { fd } => format!("socket {fd} was read"),
            Undo::Replaced(replaced) => format!("descriptor {} was replaced", replaced.fd()),
            Undo::Directory { .. } => "the working directory was changed".into(),
            Undo::Watch { fd, watch } => format!("watch {watch} was added to {fd}"),
            Undo::IntervalTimer { .. } => "an interval timer was set".into(),
            Undo::Locked { range, .. } => format!("{range:?} was locked or unlocked"),
            Undo::Call { call, what } => format!("{what} ({})", call.args()[0] as i32),
            Undo::Unmap { range } => format!("{range:?} was mapped"),
            Undo::Remap { pages, .. } => {
                let ranges: Vec<_> = pages.iter().map(SavedPages::range).collect();
                format!("{ranges:?} was unmapped or replaced")
            }
            Undo::Protect { old } => {
                let ranges: Vec<_> = old.iter().map(|vma| vma.range).collect();
                format!("protection of {ranges:?} was changed")
            }
            Undo::Heap { .. } => "the heap was resized".into(),
            Undo::Disposition { signal, .. } => format!("the action for {signal:?} was changed"),
            Undo::ThreadName { .. } => "the thread was renamed".into(),
            Undo::Prctl { option, .. } => format!("attribute {option} of the process was set"),
            Undo::OwnLimit { .. } => "a limit was changed".into(),
        }
    }
}
