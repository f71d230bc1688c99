//! Transfers between a file and something else, and writes that are made durable.

use guest_agentless::Errno;

use super::file::TRANSFER;
use super::{Call, Handler, errno_of};
use crate::host;
use crate::memory::window;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, HostCall, Undo};
use crate::process::files::Kind;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_sendfile => sendfile,
        libc::SYS_pwritev | libc::SYS_pwritev2 => pwritev,
        libc::SYS_preadv2 => preadv2,
        libc::SYS_fsync
        | libc::SYS_fdatasync
        | libc::SYS_sync
        | libc::SYS_syncfs
        | libc::SYS_sync_file_range => sync,
        libc::SYS_msync => msync,
        _ => return None,
    })
}

/// From a file to a socket: the bytes are read now and held like any other output.
fn sendfile(call: &mut Call) -> Result<u64, Errno> {
    let (to, from, offset_at) = (call.int(0), call.int(1), call.args[2]);
    let holdable = call.state.files.kind(to) == Kind::Stream
        && call.state.files.kind(from) == Kind::File
        && call.protected();
    if !holdable {
        call.commit_early(Early::External)?;
        return call.pass();
    }
    let foretold = call.foretold(from)?;
    let offset = match (offset_at, &foretold) {
        (0, Some(foretold)) => foretold.position as i64,
        (0, None) => host::offset(from).ok_or(Errno::ESPIPE)?,
        (at, _) => i64::from_ne_bytes(call.read(at)?),
    };
    let at = u64::try_from(offset).map_err(|_| Errno::EINVAL)?;
    let mut bytes = vec![0u8; call.args[3].min(TRANSFER) as usize];
    let n = match &foretold {
        Some(foretold) => call.fill_foretold(from, &mut bytes, at, foretold)?,
        None => host::read_at(from, &mut bytes, at).map_err(|e| errno_of(&e))?,
    };
    bytes.truncate(n);
    if n == 0 {
        return Ok(0);
    }
    let wait = !call.is_nonblocking(to)?;
    let sent = call.send_stream(to, bytes, wait)?;
    let end = offset.saturating_add(sent as i64);
    if offset_at != 0 {
        call.write(offset_at, &end.to_ne_bytes())?;
    } else if let Some(foretold) = &foretold {
        call.move_offset(from, foretold, end as u64)?;
    } else {
        call.compensate(Undo::Offset { fd: from, offset });
        host::seek(from, end).map_err(|e| errno_of(&e))?;
    }
    Ok(sent)
}

/// The position argument of `pwritev` and its kin; none if it is where the file is.
fn position(call: &Call) -> Option<u64> {
    let current = i64::from(call.row.number) != libc::SYS_pwritev && call.args[3] == u64::MAX;
    (!current).then_some(call.args[3])
}

fn pwritev(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let flags = match i64::from(call.row.number) {
        libc::SYS_pwritev2 => call.int(5),
        _ => 0,
    };
    // RWF_HIPRI and RWF_NOWAIT change nothing that anyone sees; the others do.
    if flags != 0 {
        call.commit_early(Early::External)?;
        return call.pass();
    }
    let parts = call.vector(call.args[1], call.args[2])?;
    call.write_parts_at(fd, &parts, position(call))
}

fn preadv2(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    if let Some(at) = position(call) {
        if call.int(5) == 0
            && i64::try_from(at).is_ok()
            && let Some(foretold) = call.foretold(fd)?
        {
            let parts = call.vector(call.args[1], call.args[2])?;
            return call.read_foretold(fd, &parts, Some(at), &foretold);
        }
        call.settle_writes(fd)?;
        return call.pass();
    }
    if call.int(5) != 0 {
        return Err(Errno::EOPNOTSUPP);
    }
    let parts = call.vector(call.args[1], call.args[2])?;
    call.read_parts(fd, &parts)
}

fn sync(call: &mut Call) -> Result<u64, Errno> {
    let number = i64::from(call.row.number);
    let fd = call.int(0);
    let of_file = number == libc::SYS_sync || call.state.files.kind(fd) == Kind::File;
    if !of_file || !call.in_domain() {
        return call.pass();
    }
    call.sync_later(HostCall::numbers(number, call.args))
}

fn msync(call: &mut Call) -> Result<u64, Errno> {
    const FLAGS: i32 = libc::MS_ASYNC | libc::MS_SYNC | libc::MS_INVALIDATE;
    let [address, len, ..] = call.args;
    let flags = call.int(2);
    let both = libc::MS_ASYNC | libc::MS_SYNC;
    if !address.is_multiple_of(4096) || flags & !FLAGS != 0 || flags & both == both {
        return Err(Errno::EINVAL);
    }
    let len = len.checked_next_multiple_of(4096).ok_or(Errno::ENOMEM)?;
    if len == 0 {
        return Ok(0);
    }
    let range = window::checked(address, len).ok_or(Errno::ENOMEM)?;
    if !call.state.space.vmas().is_covered(range) {
        return Err(Errno::ENOMEM);
    }
    call.sync_later(HostCall::numbers(
        libc::SYS_msync,
        [address, len, flags as u64, 0, 0, 0],
    ))
}

impl Call<'_, '_> {
    /// Makes what has been written durable, when it has been written.
    fn sync_later(&mut self, sync: HostCall) -> Result<u64, Errno> {
        if self.in_pass_through() {
            self.commit_early(Early::PassThrough)?;
        }
        if !self.in_domain() {
            return sync.make();
        }
        self.defer(Deferred::Sync(sync));
        Ok(0)
    }
}
