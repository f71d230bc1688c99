//! Effects that wait for the commit.

use guest_agentless::GuestRange;

use super::HostCall;
use crate::host::Ancillary;
use crate::process::signals::SignalInfo;

/// An effect that is done when the domain commits.
#[derive(Debug)]
pub enum Deferred {
    /// Bytes for a peer (class *held*).
    Send { fd: i32, bytes: Vec<u8> },
    /// A datagram or record for a peer, with its address, `MSG_*` flags and ancillary data.
    SendTo {
        fd: i32,
        bytes: Vec<u8>,
        flags: i32,
        address: Vec<u8>,
        ancillary: Ancillary,
    },
    /// Bytes for a file, a pipe or a terminal, at an offset or where the file is (class *deferred write*), or at the
    /// end of the file if the descriptor appended then.
    Write {
        fd: i32,
        bytes: Vec<u8>,
        offset: Option<u64>,
        appends: bool,
    },
    /// The offset of a file that a write before it moves.
    Seek { fd: i32, at: u64 },
    /// The time of the last change that the guest was told, in seconds and nanoseconds.
    Stamp { fd: i32, time: (i64, i64) },
    /// `fsync` and its kin, of the file behind the descriptor if it is about one.
    Sync(HostCall),
    /// Another call that is put off, and what it does.
    Later { call: HostCall, what: &'static str },
    /// Bytes that the domain has read from a socket without taking them.
    Take { fd: i32, len: usize },
    /// `close`.
    Close { fd: i32 },
    /// `shutdown`.
    Shutdown { fd: i32, how: i32 },
    /// A signal to the guest process itself.
    SignalSelf { info: SignalInfo },
    /// A signal to a thread of the guest.
    SignalThread { tid: i32, info: SignalInfo },
    /// A signal to another process.
    SignalProcess { pid: i32, signal: i32 },
    /// Pages that the guest has given up and that are zero now.
    Discard { range: GuestRange },
}

impl Deferred {
    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Deferred::Send { fd, bytes } => format!("send of {} bytes to socket {fd}", bytes.len()),
            Deferred::SendTo { fd, bytes, .. } => {
                format!("datagram of {} bytes to socket {fd}", bytes.len())
            }
            Deferred::Write { fd, bytes, .. } => format!("write of {} bytes to {fd}", bytes.len()),
            Deferred::Seek { fd, at } => format!("offset of {fd} to {at}"),
            Deferred::Stamp { fd, .. } => format!("time of the last change of {fd}"),
            Deferred::Sync(call) => format!("sync of {}", call.args()[0] as i32),
            Deferred::Later { call, what } => format!("{what} ({})", call.args()[0] as i32),
            Deferred::Take { fd, len } => format!("{len} bytes read from socket {fd}"),
            Deferred::Close { fd } => format!("close of {fd}"),
            Deferred::Shutdown { fd, .. } => format!("shutdown of {fd}"),
            Deferred::SignalSelf { info } => format!("{:?} to itself", info.signal),
            Deferred::SignalThread { tid, info } => format!("{:?} to thread {tid}", info.signal),
            Deferred::SignalProcess { pid, signal } => format!("signal {signal} to process {pid}"),
            Deferred::Discard { range } => format!("discard of {range:?}"),
        }
    }

    /// The bytes that would have left the guest.
    pub fn output(&self) -> &[u8] {
        match self {
            Deferred::Send { bytes, .. }
            | Deferred::SendTo { bytes, .. }
            | Deferred::Write { bytes, .. } => bytes,
            _ => &[],
        }
    }
}
