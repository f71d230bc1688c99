//! Locks of files: taken at once, released at commit, so that nobody can take what an abandon would have to
//! take back.

use std::sync::atomic::Ordering;

use guest_agentless::Errno;

use super::wait::For;
use super::{Call, Handler};
use crate::host;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, HostCall};

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_flock).then_some(flock as Handler)
}

/// What a descriptor's fdinfo says of a lock that is held through it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Held {
    kind: Kind,
    exclusive: bool,
    start: i64,
    /// The last byte.
    end: i64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Flock,
    Process,
    Description,
}

fn held(fd: i32) -> Vec<Held> {
    let text = crate::host::handles::fdinfo(fd).unwrap_or_default();
    text.lines().filter_map(held_of).collect()
}

/// From a line such as `lock: 1: POSIX ADVISORY WRITE 17 00:1b:42 0 EOF`.
fn held_of(line: &str) -> Option<Held> {
    let mut words = line.strip_prefix("lock:")?.split_whitespace().skip(1);
    let kind = match words.next()? {
        "FLOCK" => Kind::Flock,
        "POSIX" => Kind::Process,
        "OFDLCK" => Kind::Description,
        _ => return None,
    };
    let exclusive = words.nth(1)? == "WRITE";
    let start = words.nth(2)?.parse().ok()?;
    let end = match words.next()? {
        "EOF" => i64::MAX,
        end => end.parse().ok()?,
    };
    Some(Held {
        kind,
        exclusive,
        start,
        end,
    })
}

impl Call<'_, '_> {
    fn deferred(&self) -> impl Iterator<Item = &Deferred> {
        let domain = self.state.domain.iter();
        domain.flat_map(|domain| domain.journal.deferred())
    }

    /// Whether a lock of this kind on the descriptor waits to be released.
    fn releases(&self, number: i64, fd: i32) -> bool {
        self.deferred().any(|effect| match effect {
            Deferred::Later { call, .. } => call.number() == number && call.args()[0] as i32 == fd,
            _ => false,
        })
    }

    /// Whether any lock waits to be released.
    fn releases_any(&self) -> bool {
        self.deferred().any(|effect| match effect {
            Deferred::Later { call, .. } => {
                matches!(call.number(), libc::SYS_flock | libc::SYS_fcntl)
            }
            _ => false,
        })
    }

    /// A `close` drops all record locks of the process on the file: one that is deferred takes place before a new lock is
    /// taken.
    fn settle_closes(&mut self, fd: i32) -> Result<(), Errno> {
        let file = host::identity(fd).ok();
        let closes = |effect: &Deferred| match effect {
            Deferred::Close { fd } => host::identity(*fd).ok() == file,
            _ => false,
        };
        match file.is_some() && self.deferred().any(closes) {
            true => self.commit_early(Early::External),
            false => Ok(()),
        }
    }

    /// Another process may see the lock that is about to be taken: what this one has done before that takes place first.
    fn settle_for_others(&mut self) -> Result<(), Errno> {
        let common = self.thread.process.common;
        let is_seen = |effect: &Deferred| {
            matches!(
                effect,
                Deferred::Write { .. }
                    | Deferred::Sync(_)
                    | Deferred::Later { .. }
                    | Deferred::SignalProcess { .. }
            )
        };
        match common.has_forked.load(Ordering::Acquire) && self.deferred().any(is_seen) {
            true => self.commit_early(Early::External),
            false => Ok(()),
        }
    }

    /// Takes a lock without waiting. A lock that waits to be released may be in the way.
    fn try_lock(&mut self, call: &HostCall) -> Result<u64, Errno> {
        match call.make() {
            Err(Errno::EAGAIN | Errno::EACCES) if self.releases_any() => {
                self.commit_early(Early::External)?;
                call.make()
            }
            other => other,
        }
    }
}

fn flock(call: &mut Call) -> Result<u64, Errno> {
    let (fd, operation) = (call.int(0), call.int(1));
    let number = libc::SYS_flock;
    if call.releases(number, fd) {
        call.commit_early(Early::External)?;
    }
    let old = held(fd).into_iter().find(|lock| lock.kind == Kind::Flock);
    let wanted = operation & !libc::LOCK_NB;
    let plain =
        |operation: i32| HostCall::numbers(number, [fd as u64, operation as u64, 0, 0, 0, 0]);
    let releases = match old {
        Some(lock) => wanted == libc::LOCK_UN || lock.exclusive && wanted == libc::LOCK_SH,
        None => false,
    };
    if releases && call.in_domain() {
        call.defer(Deferred::Later {
            call: plain(operation),
            what: "release of a lock",
        });
        return Ok(0);
    }
    call.settle_for_others()?;
    let taken = match call.try_lock(&plain(operation | libc::LOCK_NB)) {
        Err(Errno::EAGAIN) if operation & libc::LOCK_NB == 0 => {
            call.let_output_go()?;
            let args = [fd as u64, operation as u64, 0, 0, 0, 0];
            // SAFETY: takes numbers only.
            unsafe { call.block(number, args, For::Midway) }
        }
        other => other,
    };
    match taken {
        Err(error) => Err(error),
        Ok(result) => {
            let back = match old {
                None => libc::LOCK_UN,
                Some(lock) if lock.exclusive => libc::LOCK_EX | libc::LOCK_NB,
                Some(_) => libc::LOCK_SH | libc::LOCK_NB,
            };
            call.compensate_by(plain(back), "a file was locked");
            Ok(result)
        }
    }
}

const LOCK_SIZE: usize = size_of::<libc::flock>();

/// `struct flock` as bytes.
fn to_bytes(kind: i16, whence: i16, start: i64, len: i64) -> Vec<u8> {
    let mut bytes = vec![0u8; LOCK_SIZE];
    bytes[..2].copy_from_slice(&kind.to_ne_bytes());
    bytes[2..4].copy_from_slice(&whence.to_ne_bytes());
    bytes[8..16].copy_from_slice(&start.to_ne_bytes());
    bytes[16..24].copy_from_slice(&len.to_ne_bytes());
    bytes
}

/// The bytes of the file that a `struct flock` is about, first and last.
fn extent(fd: i32, lock: &[u8; LOCK_SIZE]) -> Option<(i64, i64)> {
    let word = |i: usize| i64::from_ne_bytes(lock[i..i + 8].try_into().unwrap_or([0; 8]));
    let base = match i32::from(i16::from_ne_bytes([lock[2], lock[3]])) {
        libc::SEEK_SET => 0,
        libc::SEEK_CUR => host::offset(fd)?,
        libc::SEEK_END => i64::try_from(host::size(fd).ok()?).ok()?,
        _ => return None,
    };
    let start = base.checked_add(word(8))?;
    match word(16) {
        0 => Some((start, i64::MAX)),
        len if len > 0 => Some((start, start.checked_add(len - 1)?)),
        len => Some((start.checked_add(len)?, start - 1)),
    }
}

/// `F_GETLK` and its kin.
pub fn record_lock(call: &mut Call) -> Result<u64, Errno> {
    let (fd, command, address) = (call.int(0), call.int(1), call.args[2]);
    let mut lock: [u8; LOCK_SIZE] = call.read(address)?;
    if i32::from(i16::from_ne_bytes([lock[2], lock[3]])) != libc::SEEK_SET {
        // It counts from the offset or the end of the file.
        call.settle_writes(fd)?;
    }
    let (kind, set, waits) = match command {
        libc::F_SETLK => (Kind::Process, libc::F_SETLK, false),
        libc::F_SETLKW => (Kind::Process, libc::F_SETLK, true),
        libc::F_OFD_SETLK => (Kind::Description, libc::F_OFD_SETLK, false),
        libc::F_OFD_SETLKW => (Kind::Description, libc::F_OFD_SETLK, true),
        _ => {
            if call.releases_any() {
                call.commit_early(Early::External)?;
            }
            let args = [fd as u64, command as u64, lock.as_mut_ptr() as u64, 0, 0, 0];
            // SAFETY: the structure is a copy of that size in the monitor.
            let result = unsafe { host::syscall(libc::SYS_fcntl as u64, args) }?;
            call.write(address, &lock)?;
            return Ok(result);
        }
    };
    if call.releases(libc::SYS_fcntl, fd) {
        call.commit_early(Early::External)?;
    }
    call.settle_closes(fd)?;
    let wanted = i16::from_ne_bytes([lock[0], lock[1]]);
    let set_to = |bytes: Vec<u8>| {
        HostCall::with(libc::SYS_fcntl, [fd as u64, set as u64, 0, 0, 0, 0], bytes)
    };
    let Some((start, end)) = extent(fd, &lock) else {
        return Err(Errno::EINVAL);
    };
    let touched: Vec<Held> = held(fd)
        .into_iter()
        .filter(|held| held.kind == kind && held.start <= end && held.end >= start)
        .collect();
    let weaker = |held: &Held| i32::from(wanted) == libc::F_UNLCK || held.exclusive;
    let releases = i32::from(wanted) != libc::F_WRLCK && touched.iter().any(weaker);
    if releases && call.in_domain() {
        call.defer(Deferred::Later {
            // Where the file ends may change until then.
            call: set_to(range_bytes(wanted, start, end)),
            what: "release of a record lock",
        });
        return Ok(0);
    }
    call.settle_for_others()?;
    let taken = match call.try_lock(&set_to(lock.to_vec())) {
        Err(Errno::EAGAIN | Errno::EACCES) if waits => {
            call.let_output_go()?;
            let args = [fd as u64, command as u64, lock.as_ptr() as u64, 0, 0, 0];
            // SAFETY: the structure is a copy in the monitor; the kernel only reads it.
            unsafe { call.block(libc::SYS_fcntl, args, For::Midway) }
        }
        other => other,
    };
    match taken {
        Err(error) => Err(error),
        Ok(result) => {
            // In reverse: the range is freed, and what was held in it is taken again.
            for held in touched {
                let kind = match held.exclusive {
                    true => libc::F_WRLCK as i16,
                    false => libc::F_RDLCK as i16,
                };
                let part = range_bytes(kind, held.start.max(start), held.end.min(end));
                call.compensate_by(set_to(part), "a record lock was changed");
            }
            let free = range_bytes(libc::F_UNLCK as i16, start, end);
            call.compensate_by(set_to(free), "a record was locked");
            Ok(result)
        }
    }
}

fn range_bytes(kind: i16, start: i64, end: i64) -> Vec<u8> {
    let len = match end {
        i64::MAX => 0,
        end => end - start + 1,
    };
    to_bytes(kind, libc::SEEK_SET as i16, start, len)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn locks_are_read_from_the_kernels_text() {
        let lock = |line| held_of(line).unwrap();
        assert_eq!(
            lock("lock:\t1: POSIX  ADVISORY  WRITE 17 00:1b:42 10 EOF"),
            Held {
                kind: Kind::Process,
                exclusive: true,
                start: 10,
                end: i64::MAX
            }
        );
        let shared = lock("lock:\t2: FLOCK  ADVISORY  READ 17 00:1b:42 0 EOF");
        assert_eq!((shared.kind, shared.exclusive), (Kind::Flock, false));
        assert_eq!(
            lock("lock:\t1: OFDLCK ADVISORY  READ -1 00:1b:42 5 9").end,
            9
        );
        assert_eq!(held_of("pos:\t0"), None);
        assert_eq!(held_of("lock:\t1: LEASE"), None);
    }

    #[test]
    fn lengths_go_both_ways() {
        let lock = |start, len| -> [u8; LOCK_SIZE] {
            to_bytes(0, libc::SEEK_SET as i16, start, len)
                .try_into()
                .unwrap()
        };
        assert_eq!(extent(0, &lock(10, 5)), Some((10, 14)));
        assert_eq!(extent(0, &lock(10, 0)), Some((10, i64::MAX)));
        assert_eq!(extent(0, &lock(10, -4)), Some((6, 9)));
        assert_eq!(extent(0, &lock(i64::MAX, 2)), None);
        assert_eq!(range_bytes(0, 3, 7), to_bytes(0, 0, 3, 5));
    }
}
