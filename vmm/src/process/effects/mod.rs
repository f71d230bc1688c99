//! The effects of a domain outside guest memory: what waits for its commit and what undoes it.

mod deferred;
mod file_writes;
mod give_back;
mod host_call;
mod undo;

use std::io;

use guest_agentless::{GuestRange, SignalSet};
use recovery::SuspendedPages;

use super::State;
use super::host_signals;
use super::signals::SignalInfo;
use super::thread::Thread;
use crate::host;
use crate::memory::AddressSpace;

pub use deferred::Deferred;
pub use host_call::HostCall;
pub use undo::Undo;

impl Thread {
    /// Does an effect that waited for the commit.
    pub fn perform(&mut self, state: &mut State, effect: Deferred) {
        self.process.stats.deferred.done.inc();
        match effect {
            Deferred::Send { fd, bytes } => {
                self.process.stats.held.bytes_sent.add(bytes.len() as u64);
                state.files.send(fd, bytes);
            }
            Deferred::SendTo {
                fd,
                bytes,
                flags,
                address,
                ancillary,
            } => {
                self.process.stats.held.bytes_sent.add(bytes.len() as u64);
                state.files.note_sent(fd);
                // As on the wire, a datagram may get lost.
                let _ = host::send_message(fd, &bytes, flags, &address, &ancillary);
            }
            Deferred::Write {
                fd, bytes, offset, ..
            } => {
                state.note_file_write(fd);
                if let Err(error) = host::write_all(fd, &bytes, offset) {
                    // The guest was told that the write had succeeded.
                    log::error!(
                        "a deferred write of {} bytes to {fd} failed: {error}",
                        bytes.len()
                    );
                    self.process.stats.deferred.failed.inc();
                }
            }
            Deferred::Seek { fd, at } => drop(host::seek(fd, at as i64)),
            Deferred::Stamp { fd, time } => drop(host::set_changed(fd, time)),
            Deferred::Sync(call) | Deferred::Later { call, .. } => {
                if let Err(error) = call.make() {
                    log::error!("a deferred call ({}) failed: {error:?}", call.number());
                    self.process.stats.deferred.failed.inc();
                }
            }
            Deferred::Take { fd, len } => host::take_peeked(fd, len),
            Deferred::Close { fd } => {
                state.files.close(fd);
            }
            Deferred::Shutdown { fd, how } => state.files.shutdown(fd, how),
            Deferred::SignalSelf { info } => {
                self.send_signal(info, None);
            }
            Deferred::SignalThread { tid, info } => {
                self.send_signal(info, Some(tid));
            }
            Deferred::SignalProcess { pid, signal } => {
                let _ = host::kill(pid, signal);
            }
            Deferred::Discard { range } => self.discard_if_zero(state, range),
        }
    }

    /// Sends a signal of the guest's to its process or one of its threads.
    fn send_signal(&self, info: SignalInfo, thread: Option<i32>) {
        if host_signals::is_hosts(info.signal) {
            if let Err(error) = host_signals::send(info, thread) {
                // The queue of real-time signals may be full, or the thread has ended.
                log::debug!("a signal was not sent: {error}");
            }
            return;
        }
        let threads = self.process.threads();
        if let Some(control) = threads.get(&thread.unwrap_or(self.tid())) {
            control.send(info);
        }
    }

    /// Undoes an effect.
    ///
    /// `suspended` is what the domain had written when it was suspended.
    pub fn undo(&mut self, state: &mut State, suspended: &mut SuspendedPages, inverse: Undo) {
        let outcome: io::Result<()> = match inverse {
            Undo::Close { fd } | Undo::Received { fd } => {
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
            Undo::SocketError { fd, error } => {
                state.files.set_error(fd, error);
                Ok(())
            }
            Undo::Offset { fd, offset } => host::seek(fd, offset),
            Undo::EventCount { fd, count } => host::write_all(fd, &count.to_ne_bytes(), None),
            Undo::Expirations { fd, count } => give_back::expirations(fd, count),
            Undo::Unread { fd, bytes } => give_back::bytes(fd, &bytes),
            Undo::PeekOffset { fd } => host::peek_from(fd, -1),
            Undo::Replaced(replaced) => state.files.put_back(replaced),
            Undo::Directory { old } => host::change_directory(&old),
            Undo::Watch { fd, watch } => give_back::watch(fd, watch),
            Undo::IntervalTimer { call, signal } => {
                if let Some(signal) = signal {
                    let _ = host_signals::take(SignalSet::of(signal));
                }
                made(call)
            }
            Undo::Locked { range, before } => {
                state.locked.put_back(range, &before);
                let unlock =
                    HostCall::numbers(libc::SYS_munlock, [range.start(), range.len(), 0, 0, 0, 0]);
                let lock = |part: &GuestRange| {
                    HostCall::numbers(libc::SYS_mlock, [part.start(), part.len(), 0, 0, 0, 0])
                };
                std::iter::once(unlock)
                    .chain(before.iter().map(lock))
                    .try_for_each(made)
            }
            Undo::Call { call, .. } => made(call),
            Undo::Unmap { range } => {
                self.touch(state, range);
                drop(suspended.take(range));
                if state.is_shared_in(range) {
                    let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
                    let done = tracker.restore_shared(&mut memory, range);
                    self.restored_early += done.restored.len() as u64;
                    self.undo_failures += done.lost.len() as u32;
                }
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
                host_signals::mirror(signal, &state.dispositions);
                Ok(())
            }
            Undo::ThreadName { name } => {
                host::set_thread_name(&name);
                Ok(())
            }
            Undo::Prctl { option, value } => host::prctl(option, value)
                .map(drop)
                .map_err(|e| io::Error::from_raw_os_error(e.raw())),
            Undo::OwnLimit { resource, limit } => {
                state.own_limits.set(resource, limit);
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
        match inverse {
            Undo::Remap { stash, pages, .. } => {
                let Some((stash, pages)) = state.keep_for_image(stash, pages) else {
                    return;
                };
                AddressSpace::drop_stash(stash);
                for saved in pages {
                    state.tracker.drop_saved(saved);
                }
            }
            // From now on reads look at the start of the queue again.
            Undo::PeekOffset { fd } => drop(host::peek_from(fd, -1)),
            _ => {}
        }
    }
}

fn made(call: HostCall) -> io::Result<()> {
    call.make()
        .map(drop)
        .map_err(|error| io::Error::from_raw_os_error(error.raw()))
}
