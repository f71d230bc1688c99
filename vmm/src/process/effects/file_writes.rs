//! The deferred writes to regular files, at commit: all of them, or none.

use std::io;
use std::os::fd::RawFd;

use guest_agentless::Errno;

use super::{Deferred, State, Thread};
use crate::host;
use crate::process::files::Kind;

/// What undoes one step.
enum Done {
    Written(Written),
    Moved { fd: RawFd, offset: i64 },
}

/// What undoes one write.
struct Written {
    fd: RawFd,
    /// Where it began.
    at: u64,
    /// What was there.
    old: Vec<u8>,
    /// Size of the file before and after.
    sizes: (u64, u64),
    /// The file's offset, if it moved.
    offset: Option<i64>,
}

/// Writes while `fd` appends or not, as it did when the guest wrote; it may have changed that since.
fn appending(fd: RawFd, appends: bool, write: impl FnOnce() -> io::Result<()>) -> io::Result<()> {
    let flags = host::fcntl(fd, libc::F_GETFL, 0)?;
    if (flags & libc::O_APPEND != 0) == appends {
        return write();
    }
    host::fcntl(fd, libc::F_SETFL, flags ^ libc::O_APPEND)?;
    let done = write();
    host::fcntl(fd, libc::F_SETFL, flags)?;
    done
}

impl Thread {
    /// Does the deferred writes and syncs of the running domain that go to files, in order, and takes them
    /// out of the journal. If one fails, those before it are undone, and all of them come back with the error.
    pub fn write_files(&mut self, state: &mut State) -> Result<(), (Errno, Vec<Deferred>)> {
        let Some(domain) = &mut state.domain else {
            return Ok(());
        };
        let files = &mut state.files;
        let effects = domain.journal.take_deferred(|effect| match effect {
            Deferred::Write { fd, .. } => files.kind(*fd) == Kind::File,
            Deferred::Seek { .. } | Deferred::Stamp { .. } | Deferred::Sync(_) => true,
            _ => false,
        });
        let mut done = Vec::with_capacity(effects.len());
        for effect in &effects {
            let outcome = match effect {
                Deferred::Write {
                    fd,
                    bytes,
                    offset,
                    appends,
                } => write(*fd, bytes, *offset, *appends, &mut done),
                Deferred::Seek { fd, at } => seek(*fd, *at, &mut done),
                Deferred::Stamp { fd, time } => {
                    // Only its owner may set a file's time; the difference is that of one request.
                    let _ = host::set_changed(*fd, *time);
                    Ok(())
                }
                Deferred::Sync(call) => call.make().map(drop),
                _ => Ok(()),
            };
            if let Err(error) = outcome {
                log::warn!("{} failed with {}", effect.describe(), error.name());
                self.process.stats.deferred.failed.inc();
                if let Err(error) = done.into_iter().rev().try_for_each(take_back) {
                    log::error!("a deferred write could not be undone: {error}");
                    self.undo_failures += 1;
                }
                return Err((error, effects));
            }
        }
        self.process.stats.deferred.done.add(effects.len() as u64);
        for effect in &effects {
            if let Deferred::Write { fd, .. } = effect {
                state.note_file_write(*fd);
            }
        }
        Ok(())
    }
}

fn write(
    fd: RawFd,
    bytes: &[u8],
    offset: Option<u64>,
    appends: bool,
    done: &mut Vec<Done>,
) -> Result<(), Errno> {
    let failed = |error: io::Error| host::errno_of(&error);
    let size = host::size(fd).map_err(failed)?;
    let position = host::offset(fd);
    let at = match offset {
        _ if appends => size,
        Some(at) => at,
        None => position
            .and_then(|at| u64::try_from(at).ok())
            .unwrap_or(size),
    };
    // Only a file that can be read can be put back; one that only grows can always.
    let covered = size.saturating_sub(at).min(bytes.len() as u64);
    let mut old = vec![0u8; covered as usize];
    if covered > 0 {
        let n = host::read_at(fd, &mut old, at).unwrap_or(0);
        old.truncate(n);
    }
    let end = at.saturating_add(bytes.len() as u64);
    done.push(Done::Written(Written {
        fd,
        at,
        old,
        sizes: (size, size.max(end)),
        offset: position.filter(|_| offset.is_none()),
    }));
    appending(fd, appends, || host::write_all(fd, bytes, offset)).map_err(failed)
}

fn seek(fd: RawFd, at: u64, done: &mut Vec<Done>) -> Result<(), Errno> {
    if let Some(offset) = host::offset(fd) {
        done.push(Done::Moved { fd, offset });
    }
    host::seek(fd, at as i64).map_err(|error| host::errno_of(&error))
}

/// Puts a file back, as long as nobody else has made it longer.
fn take_back(done: Done) -> io::Result<()> {
    let written = match done {
        Done::Written(written) => written,
        Done::Moved { fd, offset } => return host::seek(fd, offset),
    };
    let (before, after) = written.sizes;
    let size = host::size(written.fd)?;
    if size > after {
        return Err(io::Error::other("somebody else has written to the file"));
    }
    if size > before {
        host::truncate(written.fd, before)?;
    }
    if !written.old.is_empty() {
        appending(written.fd, false, || {
            host::write_at(written.fd, &written.old, written.at).map(drop)
        })?;
    }
    match written.offset {
        Some(offset) => host::seek(written.fd, offset),
        None => Ok(()),
    }
}
