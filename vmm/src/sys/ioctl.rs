//! `ioctl`: each request as its row of the table describes it.

use guest_agentless::Errno;
use guest_agentless::ioctl::{self, Argument, Inverse, Ioctl, On};
use guest_agentless::syscall::Effect;

use super::wait::For;
use super::{Call, Handler, errno_of};
use crate::host;
use crate::process::domain::Early;
use crate::process::effects::HostCall;
use crate::process::files::Kind;

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_ioctl).then_some(ioctl as Handler)
}

/// Requests that set flags and owners of descriptors, as `fcntl` does; the libc crate leaves some of them out.
const FIOASYNC: u32 = 0x5452;
const FIOSETOWN: u32 = 0x8901;
const SIOCSPGRP: u32 = 0x8902;
const FIONBIO: u32 = libc::FIONBIO as u32;
const FIOCLEX: u32 = libc::FIOCLEX as u32;
const FIONCLEX: u32 = libc::FIONCLEX as u32;
const FIONREAD: u32 = libc::FIONREAD as u32;

/// Bytes of the monitor that the kernel is given at least, larger than any structure of the table.
const ROOM: usize = 128;

fn ioctl(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.int(0);
    let flags = host::fcntl(fd, libc::F_GETFL, 0).map_err(|e| errno_of(&e))?;
    if flags & libc::O_PATH != 0 {
        return Err(Errno::EBADF);
    }
    let row = ioctl::lookup(call.args[1]).filter(|row| call.answers(fd, row.on));
    let Some(row) = row else {
        log::debug!("ioctl {:#x} is refused", call.args[1]);
        return Err(Errno::ENOTTY);
    };
    match row.request {
        FIONBIO => call.set_flag(fd, flags, libc::O_NONBLOCK),
        FIOASYNC => call.set_flag(fd, flags, libc::O_ASYNC),
        FIOCLEX => call.change_flags(fd, libc::F_GETFD, libc::F_SETFD, libc::FD_CLOEXEC),
        FIONCLEX => call.change_flags(fd, libc::F_GETFD, libc::F_SETFD, 0),
        FIOSETOWN | SIOCSPGRP => call.set_owner_by(|call| call.request(fd, row)),
        _ => {
            call.prepare(fd, row)?;
            match row.inverse {
                Inverse::None => call.request(fd, row),
                Inverse::Setting { get, set } => call.change_setting(fd, row, get, set),
                Inverse::Descriptor => {
                    let made = call.request(fd, row);
                    call.made_descriptor(made)
                }
            }
        }
    }
}

impl Call<'_, '_> {
    /// Whether `fd` is one of those that answer a request.
    fn answers(&mut self, fd: i32, on: On) -> bool {
        let is_socket = || host::mode(fd).is_ok_and(|mode| mode & libc::S_IFMT == libc::S_IFSOCK);
        match on {
            On::Any => true,
            On::File => self.state.files.kind(fd) == Kind::File,
            On::Terminal => host::is_terminal(fd),
            On::Socket => is_socket(),
            On::TerminalOrSocket => host::is_terminal(fd) || is_socket(),
        }
    }

    /// Sets or clears a flag as the `int` at the argument says.
    fn set_flag(&mut self, fd: i32, flags: i32, flag: i32) -> Result<u64, Errno> {
        let on = i32::from_ne_bytes(self.read(self.args[2])?) != 0;
        let new = if on { flags | flag } else { flags & !flag };
        self.change_flags(fd, libc::F_GETFL, libc::F_SETFL, new)
    }

    /// What has to be done before the request: output that waits comes first, where the request would see the difference.
    fn prepare(&mut self, fd: i32, row: &Ioctl) -> Result<(), Errno> {
        match row.effect {
            Effect::Pure => self.settle_event(fd),
            Effect::Compensated if !self.has_pending_writes() => Ok(()),
            _ => {
                self.commit_early(Early::External)?;
                self.state.restart.files_changed |= row.on == On::File;
                Ok(())
            }
        }
    }

    /// A request that changes what `get` tells and `set` sets.
    fn change_setting(&mut self, fd: i32, row: &Ioctl, get: u32, set: u32) -> Result<u64, Errno> {
        let old = match self.in_domain() {
            true => setting(fd, get),
            false => None,
        };
        if old.is_none() {
            self.commit_early(Early::External)?;
        }
        let result = self.request(fd, row)?;
        if let Some(old) = old {
            let back = HostCall::with(libc::SYS_ioctl, [fd as u64, set.into(), 0, 0, 0, 0], old);
            self.compensate_by(back, "a setting was changed");
        }
        Ok(result)
    }

    /// Makes the request, with a buffer of the monitor's in the place of the guest's.
    fn request(&mut self, fd: i32, row: &Ioctl) -> Result<u64, Errno> {
        let address = self.args[2];
        let (read, written) = (row.argument.read(), row.argument.written());
        let mut buffer = self.read_vec(address, read)?;
        if written > read {
            // What the kernel leaves alone stays as it is. A bad address is its business first.
            buffer = self.read_vec(address, written).unwrap_or_default();
        }
        buffer.resize(ROOM, 0);
        let result = match row.argument {
            Argument::Unused => self.make_request(fd, row, 0),
            Argument::Value => self.make_request(fd, row, address),
            Argument::Fd => {
                self.check_descriptor(address as i32)?;
                self.make_request(fd, row, address)
            }
            Argument::Leading {
                len_at, address_at, ..
            } => self.request_array(fd, row, &mut buffer, len_at as usize, address_at as usize),
            Argument::In(_) | Argument::Out(_) | Argument::InOut(_) => {
                self.make_request(fd, row, buffer.as_mut_ptr() as u64)
            }
        }?;
        if row.request == FIONREAD
            && let Some(count) = buffer.first_chunk::<4>()
        {
            let count = i32::from_ne_bytes(*count).saturating_sub(self.looked_at(fd) as i32);
            buffer[..4].copy_from_slice(&count.to_ne_bytes());
        }
        self.write(address, &buffer[..written])?;
        Ok(result)
    }

    /// The host's call; `argument` is a number, or the address of a buffer of the monitor's.
    fn make_request(&mut self, fd: i32, row: &Ioctl, argument: u64) -> Result<u64, Errno> {
        let args = [fd as u64, row.request.into(), argument, 0, 0, 0];
        // SAFETY: the row says what the kernel reads and writes through the argument; the caller has as many bytes there.
        unsafe {
            match row.waits {
                true => self.block(libc::SYS_ioctl, args, For::Midway),
                false => host::syscall(libc::SYS_ioctl as u64, args),
            }
        }
    }

    /// A request whose structure, in `buffer`, holds a length and the address of what the kernel writes.
    fn request_array(
        &mut self,
        fd: i32,
        row: &Ioctl,
        buffer: &mut [u8],
        len_at: usize,
        address_at: usize,
    ) -> Result<u64, Errno> {
        let (len_at, address_at) = (len_at..len_at + 4, address_at..address_at + 8);
        let len_in = |buffer: &[u8]| {
            let bytes = buffer[len_at.clone()].first_chunk::<4>();
            bytes.map_or(0, |bytes| i32::from_ne_bytes(*bytes))
        };
        let address = buffer[address_at.clone()].first_chunk::<8>();
        let address = address.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let wanted = len_in(buffer);
        // Without an address the kernel tells how much there is: the guest's length may be anything.
        buffer[address_at.clone()].fill(0);
        let result = self.make_request(fd, row, buffer.as_mut_ptr() as u64)?;
        if address == 0 {
            return Ok(result);
        }
        let mut array = vec![0u8; wanted.min(len_in(buffer)).max(0) as usize];
        buffer[len_at.clone()].copy_from_slice(&(array.len() as i32).to_ne_bytes());
        buffer[address_at.clone()].copy_from_slice(&(array.as_mut_ptr() as u64).to_ne_bytes());
        let result = self.make_request(fd, row, buffer.as_mut_ptr() as u64)?;
        buffer[address_at].copy_from_slice(&address.to_ne_bytes());
        array.truncate(len_in(buffer).max(0) as usize);
        self.write(address, &array)?;
        Ok(result)
    }
}

/// What a request that tells a setting says of `fd`; none if it fails.
fn setting(fd: i32, get: u32) -> Option<Vec<u8>> {
    let row = ioctl::lookup(get.into())?;
    let mut value = vec![0u8; ROOM];
    let address = value.as_mut_ptr() as u64;
    let args = [fd as u64, get.into(), address, 0, 0, 0];
    // SAFETY: the row says what the kernel writes; the value has as many bytes.
    unsafe { host::syscall(libc::SYS_ioctl as u64, args) }.ok()?;
    value.truncate(row.argument.written());
    Some(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_structure_has_room() {
        let mut rows = ioctl::GROUPS.iter().flat_map(|group| group.rows);
        let most = |row: &Ioctl| row.argument.read().max(row.argument.written());
        assert!(rows.all(|row| most(row) < ROOM));
    }
}
