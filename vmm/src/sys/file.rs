//! Files and descriptors.

use guest_agentless::{Errno, GuestRange, PAGE_SIZE};

use super::buffer::buffer;
use super::net::Datagram;
use super::{Call, Handler, errno_of};
use crate::host::{self, Envelope};
use crate::memory::first_reserved;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, HostCall, Undo};
use crate::process::files::Kind;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_read => read,
        libc::SYS_readv => readv,
        libc::SYS_pread64 | libc::SYS_preadv => read_at,
        libc::SYS_write => write,
        libc::SYS_writev => writev,
        libc::SYS_pwrite64 => pwrite,
        libc::SYS_lseek => lseek,
        libc::SYS_fstat
        | libc::SYS_stat
        | libc::SYS_lstat
        | libc::SYS_newfstatat
        | libc::SYS_statx => stat,
        libc::SYS_close => close,
        libc::SYS_close_range => close_range,
        libc::SYS_open | libc::SYS_openat | libc::SYS_openat2 => open,
        libc::SYS_getdents | libc::SYS_getdents64 => list_directory,
        libc::SYS_creat => creates_descriptor,
        libc::SYS_dup => creates_descriptor,
        libc::SYS_dup2 | libc::SYS_dup3 => dup_to,
        libc::SYS_epoll_create
        | libc::SYS_epoll_create1
        | libc::SYS_eventfd
        | libc::SYS_eventfd2
        | libc::SYS_timerfd_create
        | libc::SYS_inotify_init
        | libc::SYS_inotify_init1
        | libc::SYS_memfd_create
        | libc::SYS_pidfd_open => creates_descriptor,
        libc::SYS_pipe | libc::SYS_pipe2 => pipe,
        libc::SYS_fcntl => fcntl,
        libc::SYS_readlink | libc::SYS_readlinkat => readlink,
        _ => return None,
    })
}

/// Bytes of a transfer that are taken at a time.
pub(super) const TRANSFER: u64 = 1 << 20;

/// Bytes of one call, at most; Linux ends just above.
const TRANSFER_MOST: u64 = 2047 * TRANSFER;

impl Call<'_, '_> {
    /// The bytes of `parts` from `done` on, at most one transfer.
    pub(super) fn gather(&mut self, parts: &[GuestRange], done: u64) -> Result<Vec<u8>, Errno> {
        let mut bytes = Vec::new();
        let mut skipped = done;
        for part in parts {
            let skip = skipped.min(part.len());
            skipped -= skip;
            let room = TRANSFER - bytes.len() as u64;
            let len = (part.len() - skip).min(room) as usize;
            bytes.extend(self.read_vec(part.start() + skip, len)?);
            if len as u64 == room {
                break;
            }
        }
        Ok(bytes)
    }

    /// Hands the bytes of `parts` to `piece`, a transfer at a time, with how many there were before. All of them, since
    /// programs rely on what Linux does: a file takes all, and so does whatever the caller waits for.
    pub(super) fn in_pieces(
        &mut self,
        parts: &[GuestRange],
        mut piece: impl FnMut(&mut Self, Vec<u8>, u64) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let total: u64 = parts.iter().map(|part| part.len()).sum();
        let mut done = 0;
        loop {
            let bytes = self.gather(parts, done);
            let result = bytes.and_then(|bytes| piece(self, bytes, done));
            let before = done;
            done = self.with_part_done(before, result)?;
            let is_whole = done == before + TRANSFER && self.done.is_none();
            if !is_whole || done >= total.min(TRANSFER_MOST) {
                return Ok(done);
            }
        }
    }

    /// The result of a call that had transferred `before` bytes when the rest came to `result`.
    pub(super) fn with_part_done(
        &mut self,
        before: u64,
        result: Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        match result {
            Ok(n) => Ok(before + n),
            Err(error) if before == 0 => Err(error),
            Err(_) => {
                self.thread.restart = None;
                Ok(before)
            }
        }
    }

    fn write_parts(&mut self, fd: i32, parts: &[GuestRange]) -> Result<u64, Errno> {
        match self.state.files.kind(fd) {
            Kind::Datagram => {
                let bytes = self.gather(parts, 0)?;
                self.write_bytes(fd, bytes)
            }
            _ => self.in_pieces(parts, |call, bytes, _| call.write_bytes(fd, bytes)),
        }
    }

    /// Writes to where the file is, or to `at`.
    pub(super) fn write_parts_at(
        &mut self,
        fd: i32,
        parts: &[GuestRange],
        at: Option<u64>,
    ) -> Result<u64, Errno> {
        let Some(at) = at else {
            return self.write_parts(fd, parts);
        };
        i64::try_from(at).map_err(|_| Errno::EINVAL)?;
        match self.state.files.kind(fd) {
            Kind::Closed => Err(Errno::EBADF),
            Kind::File => self.in_pieces(parts, |call, bytes, done| {
                call.write_later(fd, bytes, Some(at.saturating_add(done)))
            }),
            _ => Err(Errno::ESPIPE),
        }
    }

    pub(super) fn read_parts(&mut self, fd: i32, parts: &[GuestRange]) -> Result<u64, Errno> {
        match self.state.files.kind(fd) {
            Kind::Closed => Err(Errno::EBADF),
            Kind::Stream | Kind::Listening => {
                self.receive_stream(fd, parts, 0, &mut Envelope::none())
            }
            Kind::Datagram => self.receive_datagram(fd, parts, 0, &mut Envelope::none()),
            Kind::Pipe | Kind::Anonymous => self.read_event(fd, parts, 0, &mut Envelope::none()),
            Kind::File => self.read_file(fd, parts),
        }
    }

    fn write_bytes(&mut self, fd: i32, bytes: Vec<u8>) -> Result<u64, Errno> {
        match self.state.files.kind(fd) {
            Kind::Closed => Err(Errno::EBADF),
            Kind::Stream => {
                let wait = !self.is_nonblocking(fd)?;
                self.send_stream(fd, bytes, wait)
            }
            Kind::Datagram => self.send_datagram(fd, Datagram::plain(bytes)),
            Kind::Listening => {
                self.commit_early(Early::External)?;
                self.send_at_once(fd, &Datagram::plain(bytes))
            }
            Kind::File | Kind::Pipe | Kind::Anonymous => self.write_later(fd, bytes, None),
        }
    }

    /// The offset of `fd` is about to be moved.
    pub(super) fn note_offset(&mut self, fd: i32) {
        if let (true, Some(offset)) = (self.in_domain(), host::offset(fd)) {
            self.compensate(Undo::Offset { fd, offset });
        }
    }

    /// A buffer for a `pread` may be far larger than the file: only what is read of it is to be marked as written.
    fn limit_to_file(&mut self, fd: i32) {
        const LARGE: u64 = 1 << 20;
        if self.args[2] > LARGE
            && let Some(size) = host::file_size(fd)
        {
            let rest = size.saturating_sub(self.args[3]);
            // By the page, for the sake of `O_DIRECT`.
            self.args[2] = self.args[2].min(rest.max(1).next_multiple_of(PAGE_SIZE));
        }
    }

    /// A call that makes a descriptor, or fails.
    pub(super) fn made_descriptor(&mut self, result: Result<u64, Errno>) -> Result<u64, Errno> {
        let fd = result? as i32;
        self.state.files.forget(fd);
        if fd as u64 >= self.state.own_limits.descriptors.0 || fd >= first_reserved() {
            self.state.files.close(fd);
            return Err(Errno::EMFILE);
        }
        self.compensate(Undo::Close { fd });
        Ok(fd as u64)
    }
}

fn read(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let range = buffer(call.args[1], call.args[2])?;
    call.read_parts(call.int(0), &[range])
}

fn readv(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let parts = call.vector(call.args[1], call.args[2])?;
    call.read_parts(call.int(0), &parts)
}

fn read_at(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let Some(foretold) = call.foretold(fd)? else {
        if i64::from(call.row.number) == libc::SYS_pread64 {
            call.limit_to_file(fd);
        }
        return call.pass();
    };
    let parts = match i64::from(call.row.number) {
        libc::SYS_pread64 => {
            vec![buffer(call.args[1], call.args[2])?]
        }
        _ => call.vector(call.args[1], call.args[2])?,
    };
    let at = call.args[3];
    i64::try_from(at).map_err(|_| Errno::EINVAL)?;
    call.read_foretold(fd, &parts, Some(at), &foretold)
}

fn write(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let range = buffer(call.args[1], call.args[2])?;
    call.write_parts(call.int(0), &[range])
}

fn writev(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() {
        return call.pass_untracked();
    }
    let parts = call.vector(call.args[1], call.args[2])?;
    call.write_parts(call.int(0), &parts)
}

fn pwrite(call: &mut Call) -> Result<u64, Errno> {
    let range = buffer(call.args[1], call.args[2])?;
    call.write_parts_at(call.int(0), &[range], Some(call.args[3]))
}

fn lseek(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    if let Some(at) = call.seek_foretold(fd, call.args[1] as i64, call.int(2))? {
        return Ok(at);
    }
    call.note_offset(fd);
    call.pass()
}

fn stat(call: &mut Call) -> Result<u64, Errno> {
    let result = match i64::from(call.row.number) {
        libc::SYS_statx => 4,
        libc::SYS_newfstatat => 2,
        _ => 1,
    };
    call.stat_foretold(result)
}

fn close(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    if call.state.files.kind(fd) == Kind::Closed {
        return Err(Errno::EBADF);
    }
    if call.close_at_once(fd) {
        return Ok(0);
    }
    if call.in_domain() {
        call.state.files.set_closing(fd, true);
        call.compensate(Undo::Reopen { fd });
    }
    call.defer(Deferred::Close { fd });
    Ok(0)
}

impl Call<'_, '_> {
    /// Closes what the running domain has opened itself, where nobody can see the difference. A request that
    /// reads a thousand files must not hold a thousand descriptors.
    fn close_at_once(&mut self, fd: i32) -> bool {
        if !matches!(self.state.files.kind(fd), Kind::File | Kind::Anonymous)
            || self.has_output_for(fd)
        {
            return false;
        }
        let Some(domain) = &mut self.state.domain else {
            return false;
        };
        let about = |inverse: &Undo| inverse.descriptors().contains(&fd);
        let mut inverses = domain.journal.inverses().iter().filter(|u| about(u));
        let made = matches!(inverses.next(), Some(Undo::Close { .. }));
        if !made || !inverses.all(Undo::ends_with_descriptor) {
            return false;
        }
        domain.journal.take_inverses(about);
        self.state.files.close(fd);
        true
    }
}

/// Closes the guest's descriptors in the range; the monitor's own stay.
fn close_range(call: &mut Call) -> Result<u64, Errno> {
    let (first, last, flags) = (
        call.args[0] as u32,
        call.args[1] as u32,
        call.args[2] as u32,
    );
    if first > last || flags & !libc::CLOSE_RANGE_CLOEXEC != 0 {
        return Err(Errno::EINVAL);
    }
    let last = last.min(first_reserved() as u32 - 1);
    for fd in (first..=last).map(|fd| fd as i32) {
        if host::fcntl(fd, libc::F_GETFD, 0).is_err() || call.state.files.is_closing(fd) {
            continue;
        }
        if flags & libc::CLOSE_RANGE_CLOEXEC != 0 {
            call.change_flags(fd, libc::F_GETFD, libc::F_SETFD, libc::FD_CLOEXEC)?;
        } else {
            if call.in_domain() {
                call.state.files.set_closing(fd, true);
                call.compensate(Undo::Reopen { fd });
            }
            call.defer(Deferred::Close { fd });
        }
    }
    Ok(0)
}

fn open(call: &mut Call) -> Result<u64, Errno> {
    let flags = match i64::from(call.row.number) {
        libc::SYS_open => call.args[1],
        libc::SYS_openat => call.args[2],
        _ => u64::from_ne_bytes(call.read(call.args[2])?),
    };
    // What truncates or may create a file changes more than the descriptor table.
    let changes = flags as i32 & libc::O_TRUNC != 0
        || flags as i32 & libc::O_TMPFILE == libc::O_TMPFILE
        || (flags as i32 & libc::O_CREAT != 0 && !call.exists());
    if changes {
        call.commit_early(Early::External)?;
        call.state.restart.files_changed = true;
    }
    let opened = call.pass();
    let checked = call.checked_opening(opened);
    call.made_descriptor(checked)
}

fn list_directory(call: &mut Call) -> Result<u64, Errno> {
    call.note_offset(call.int(0));
    match i64::from(call.row.number) {
        libc::SYS_getdents => call.pass(),
        _ => call.list_directory(),
    }
}

fn creates_descriptor(call: &mut Call) -> Result<u64, Errno> {
    let made = call.pass();
    call.made_descriptor(made)
}

fn dup_to(call: &mut Call) -> Result<u64, Errno> {
    let (old, new) = (call.int(0), call.int(1));
    let limit = call
        .state
        .own_limits
        .descriptors
        .0
        .min(first_reserved() as u64);
    if new < 0 || new as u64 >= limit {
        return Err(Errno::EBADF);
    }
    if old == new {
        return call.pass();
    }
    let is_open = call.state.files.kind(new) != Kind::Closed;
    if is_open {
        call.state.files.leave(new);
    }
    if is_open && call.in_domain() && call.has_output_for(new) {
        // It would go to what the descriptor is from now on.
        call.commit_early(Early::External)?;
    }
    let replaced = match is_open && call.in_domain() {
        true => Some(call.state.files.replace(new).map_err(|e| errno_of(&e))?),
        false => None,
    };
    let result = call.pass();
    match (replaced, result) {
        (None, result) => {
            let result = result?;
            call.state.files.forget(new);
            if !is_open {
                call.compensate(Undo::Close { fd: new });
            }
            Ok(result)
        }
        (Some(replaced), Ok(result)) => {
            // What the domain has closed here is gone with what keeps it.
            if let Some(domain) = &mut call.state.domain {
                domain
                    .journal
                    .take_deferred(|effect| matches!(effect, Deferred::Close { fd } if *fd == new));
            }
            call.compensate(Undo::Replaced(replaced));
            Ok(result)
        }
        (Some(replaced), Err(error)) => {
            // Nothing was replaced; what is known of the descriptor comes back.
            let _ = call.state.files.put_back(replaced);
            Err(error)
        }
    }
}

fn pipe(call: &mut Call) -> Result<u64, Errno> {
    call.pass()?;
    call.made_pair(call.args[0])
}

impl Call<'_, '_> {
    /// Two descriptors have been made and written to `address`.
    pub(super) fn made_pair(&mut self, address: u64) -> Result<u64, Errno> {
        let pair: [u8; 8] = self.read(address)?;
        for fd in [&pair[..4], &pair[4..]] {
            let fd = i32::from_ne_bytes(fd.try_into().unwrap_or([0xff; 4]));
            self.made_descriptor(Ok(fd as u64))?;
            self.state.files.set_kind(fd, Kind::Pipe);
        }
        Ok(0)
    }

    pub(super) fn change_flags(
        &mut self,
        fd: i32,
        get: i32,
        set: i32,
        value: i32,
    ) -> Result<u64, Errno> {
        let old = host::fcntl(fd, get, 0).map_err(|e| errno_of(&e))?;
        let result = host::fcntl(fd, set, value).map_err(|e| errno_of(&e))?;
        self.compensate(Undo::Fcntl {
            fd,
            command: set,
            value: old,
        });
        Ok(result as u64)
    }
}

fn fcntl(call: &mut Call) -> Result<u64, Errno> {
    let (fd, command, value) = (call.int(0), call.int(1), call.int(2));
    match command {
        libc::F_GETFD | libc::F_GETFL | libc::F_GETOWN | libc::F_GETPIPE_SZ | libc::F_GET_SEALS => {
            host::fcntl(fd, command, value)
                .map(|v| v as u64)
                .map_err(|e| errno_of(&e))
        }
        libc::F_SETFD => call.change_flags(fd, libc::F_GETFD, command, value),
        libc::F_SETFL => call.change_flags(fd, libc::F_GETFL, command, value),
        libc::F_DUPFD | libc::F_DUPFD_CLOEXEC => {
            if value as u64 >= call.state.own_limits.descriptors.0 {
                return Err(Errno::EINVAL);
            }
            let made = host::fcntl(fd, command, value)
                .map(|v| v as u64)
                .map_err(|e| errno_of(&e));
            call.made_descriptor(made)
        }
        libc::F_SETPIPE_SZ => call.change_flags(fd, libc::F_GETPIPE_SZ, command, value),
        libc::F_SETOWN | F_SETOWN_EX | F_SETSIG => set_owner(call),
        F_GETOWN_EX => {
            let owner = owner(fd)?;
            call.write(call.args[2], &owner).map(|()| 0)
        }
        F_GETSIG => host::fcntl(fd, command, 0)
            .map(|v| v as u64)
            .map_err(|e| errno_of(&e)),
        libc::F_ADD_SEALS => {
            // No seal is ever taken off.
            call.commit_early(Early::External)?;
            host::fcntl(fd, command, value)
                .map(|v| v as u64)
                .map_err(|e| errno_of(&e))
        }
        libc::F_GETLK
        | libc::F_SETLK
        | libc::F_SETLKW
        | libc::F_OFD_GETLK
        | libc::F_OFD_SETLK
        | libc::F_OFD_SETLKW => super::lock::record_lock(call),
        _ => Err(Errno::EINVAL),
    }
}

// Commands and a structure of `asm-generic/fcntl.h` that the libc crate leaves out.
const F_SETSIG: i32 = 10;
const F_GETSIG: i32 = 11;
const F_SETOWN_EX: i32 = 15;
const F_GETOWN_EX: i32 = 16;

/// Who gets the signals of a descriptor, and which.
fn set_owner(call: &mut Call) -> Result<u64, Errno> {
    let (fd, command, value) = (call.int(0), call.int(1), call.int(2));
    if command == F_SETSIG {
        return call.change_flags(fd, F_GETSIG, F_SETSIG, value);
    }
    call.set_owner_by(|call| match command {
        F_SETOWN_EX => owner_set_to(fd, call.read_vec(call.args[2], OWNER)?).make(),
        _ => (host::fcntl(fd, command, value).map(|_| 0)).map_err(|e| errno_of(&e)),
    })
}

impl Call<'_, '_> {
    /// Does what changes the owner of the descriptor.
    pub(super) fn set_owner_by(
        &mut self,
        set: impl FnOnce(&mut Self) -> Result<u64, Errno>,
    ) -> Result<u64, Errno> {
        let fd = self.int(0);
        let old = owner(fd)?;
        set(self)?;
        let back = owner_set_to(fd, old);
        self.compensate_by(back, "the owner of a descriptor was changed");
        Ok(0)
    }
}

fn owner_set_to(fd: i32, owner: Vec<u8>) -> HostCall {
    let args = [fd as u64, F_SETOWN_EX as u64, 0, 0, 0, 0];
    HostCall::with(libc::SYS_fcntl, args, owner)
}

/// Bytes of `struct f_owner_ex`.
const OWNER: usize = 8;

fn owner(fd: i32) -> Result<Vec<u8>, Errno> {
    let mut owner = vec![0u8; OWNER];
    let args = [
        fd as u64,
        F_GETOWN_EX as u64,
        owner.as_mut_ptr() as u64,
        0,
        0,
        0,
    ];
    // SAFETY: the owner is 8 bytes.
    unsafe { host::syscall(libc::SYS_fcntl as u64, args) }?;
    Ok(owner)
}

fn readlink(call: &mut Call) -> Result<u64, Errno> {
    let (path, buffer, size) = match i64::from(call.row.number) {
        libc::SYS_readlink => (call.args[0], 1, call.row.count(2, &call.args)),
        _ => (call.args[1], 2, call.row.count(3, &call.args)),
    };
    let path = call.read_path(path)?;
    if !super::own_files::is_executable_link(&path) {
        return call.pass();
    }
    let program = call.thread.process.executable.clone().into_bytes();
    let len = program.len().min(size as usize);
    call.write(call.args[buffer], &program[..len])?;
    Ok(len as u64)
}
