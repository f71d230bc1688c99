//! The effects of a domain outside guest memory: what waits for its commit and what undoes it.

use std::io;

use guest_agentless::{GuestRange, Vma};
use recovery::SuspendedPages;
use recovery::tracker::SavedPages;

use super::State;
use super::control;
use super::signals::{Action, SignalInfo};
use super::thread::Thread;
use crate::host;
use crate::memory::{AddressSpace, Stash};

/// An effect that is done when the domain commits.
#[derive(Debug)]
pub enum Deferred {
    /// Bytes for a peer (class *held*).
    Send { fd: i32, bytes: Vec<u8> },
    /// A datagram for a peer, with its address.
    SendTo {
        fd: i32,
        bytes: Vec<u8>,
        address: Vec<u8>,
    },
    /// Bytes for a file, a pipe or a terminal, at an offset or where the file is (class *deferred write*).
    Write {
        fd: i32,
        bytes: Vec<u8>,
        offset: Option<u64>,
    },
    /// `fsync` or `fdatasync`.
    Sync { fd: i32, data_only: bool },
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

/// What undoes an effect that was done at once.
pub enum Undo {
    /// A descriptor was made.
    Close { fd: i32 },
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
    /// A file offset was moved.
    Offset { fd: i32, offset: i64 },
    /// An eventfd was read.
    EventCount { fd: i32, count: u64 },
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
    Disposition {
        signal: guest_agentless::Signal,
        action: Action,
    },
    /// The thread was renamed.
    ThreadName { name: Vec<u8> },
    /// An attribute of the thread or process was set.
    Prctl { option: i32, value: u64 },
    /// The guest's limit on descriptors was changed.
    DescriptorLimit { limit: (u64, u64) },
}

impl std::fmt::Debug for Undo {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

impl Undo {
    /// For the report.
    pub fn describe(&self) -> String {
        match self {
            Undo::Close { fd } => format!("descriptor {fd} was opened"),
            Undo::Reset { fd } => format!("connection {fd} was accepted"),
            Undo::Reopen { fd } => format!("descriptor {fd} was closed"),
            Undo::Interest { epoll, fd, .. } => format!("epoll {epoll}: interest in {fd} changed"),
            Undo::Fcntl { fd, .. } => format!("flags of descriptor {fd} were changed"),
            Undo::SocketOption {
                fd, level, name, ..
            } => {
                format!("option {level}:{name} of socket {fd} was set")
            }
            Undo::Offset { fd, .. } => format!("offset of descriptor {fd} was moved"),
            Undo::EventCount { fd, count } => format!("eventfd {fd} was read ({count})"),
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
            Undo::DescriptorLimit { .. } => "the descriptor limit was changed".into(),
        }
    }
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
            Deferred::Sync { fd, .. } => format!("sync of {fd}"),
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

impl Thread {
    /// Does an effect that waited for the commit.
    pub fn perform(&mut self, state: &mut State, effect: Deferred) {
        self.process.stats.deferred.done.inc();
        match effect {
            Deferred::Send { fd, bytes } => {
                self.process.stats.held.bytes_sent.add(bytes.len() as u64);
                state.files.send(fd, bytes);
            }
            Deferred::SendTo { fd, bytes, address } => {
                self.process.stats.held.bytes_sent.add(bytes.len() as u64);
                // As on the wire, a datagram may get lost.
                let _ = host::send_to(fd, &bytes, &address);
            }
            Deferred::Write { fd, bytes, offset } => {
                if let Err(error) = host::write_all(fd, &bytes, offset) {
                    // The guest was told that the write had succeeded.
                    log::error!(
                        "a deferred write of {} bytes to {fd} failed: {error}",
                        bytes.len()
                    );
                    self.process.stats.deferred.failed.inc();
                }
            }
            Deferred::Sync { fd, data_only } => {
                if let Err(error) = host::sync(fd, data_only) {
                    log::error!("a deferred sync of {fd} failed: {error}");
                    self.process.stats.deferred.failed.inc();
                }
            }
            Deferred::Close { fd } => {
                state.files.close(fd);
            }
            Deferred::Shutdown { fd, how } => state.files.shutdown(fd, how),
            Deferred::SignalSelf { info } => {
                control::post_to_process(info);
                self.control.request_attention();
            }
            Deferred::SignalThread { tid, info } => {
                if let Some(control) = self.process.threads().get(&tid) {
                    control.send(info);
                }
            }
            Deferred::SignalProcess { pid, signal } => {
                let _ = host::kill(pid, signal);
            }
            Deferred::Discard { range } => self.discard_if_zero(state, range),
        }
    }

    /// Undoes an effect.
    ///
    /// `suspended` is what the domain had written when it was suspended.
    pub fn undo(&mut self, state: &mut State, suspended: &mut SuspendedPages, inverse: Undo) {
        let outcome: io::Result<()> = match inverse {
            Undo::Close { fd } => {
                state.files.close(fd);
                Ok(())
            }
            Undo::Reset { fd } => {
                state.files.reset(fd);
                state.files.close(fd);
                Ok(())
            }
            Undo::Reopen { fd } => {
                state.files.set_closing(fd, false);
                Ok(())
            }
            Undo::Interest { epoll, fd, event } => state.files.restore_interest(epoll, fd, event),
            Undo::Fcntl { fd, command, value } => host::fcntl(fd, command, value).map(drop),
            Undo::SocketOption {
                fd,
                level,
                name,
                value,
            } => host::set_socket_option(fd, level, name, &value),
            Undo::Offset { fd, offset } => host::seek(fd, offset),
            Undo::EventCount { fd, count } => host::write_all(fd, &count.to_ne_bytes(), None),
            Undo::Unmap { range } => {
                self.touch(state, range);
                drop(suspended.take(range));
                self.unmap_again(state, range)
                    .map_err(|e| io::Error::from_raw_os_error(e.raw()))
            }
            Undo::Remap {
                stash,
                pages,
                suspended: written,
            } => {
                for saved in &pages {
                    self.unmap_now(state, saved.range());
                }
                state.space.unstash(stash);
                let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                suspended.put_back(written);
                for saved in pages {
                    tracker.put_back(&mut memory, saved);
                }
                Ok(())
            }
            Undo::Protect { old } => {
                state.space.restore_protection(old);
                Ok(())
            }
            Undo::Heap { heap, .. } => {
                state.space.set_heap(heap);
                Ok(())
            }
            Undo::Disposition { signal, action } => {
                state.dispositions.set(signal, action);
                Ok(())
            }
            Undo::ThreadName { name } => {
                host::set_thread_name(&name);
                Ok(())
            }
            Undo::Prctl { option, value } => host::prctl(option, value)
                .map(drop)
                .map_err(|e| io::Error::from_raw_os_error(e.raw())),
            Undo::DescriptorLimit { limit } => {
                state.descriptor_limit = limit;
                Ok(())
            }
        };
        if let Err(error) = outcome {
            log::error!("an effect of an abandoned request could not be undone: {error}");
            self.undo_failures += 1;
        }
    }

    /// Lets go of what was kept to undo an effect, since the domain has committed.
    pub fn release_undo(&mut self, state: &mut State, inverse: Undo) {
        if let Undo::Remap { stash, pages, .. } = inverse {
            AddressSpace::drop_stash(stash);
            for saved in pages {
                state.tracker.drop_saved(saved);
            }
        }
    }
}
