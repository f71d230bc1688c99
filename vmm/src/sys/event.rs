//! Waiting for descriptors: where domains end.

use std::io;

use guest_agentless::{Errno, Signal, SignalSet};
use recovery::Origin;

use super::wait::For;
use super::{Call, Handler, errno_of};
use crate::process::domain::Delivered;
use crate::process::effects::Undo;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_epoll_wait | libc::SYS_epoll_pwait | libc::SYS_epoll_pwait2 => epoll_wait,
        libc::SYS_epoll_ctl => epoll_ctl,
        libc::SYS_poll | libc::SYS_ppoll => poll,
        libc::SYS_select | libc::SYS_pselect6 => select,
        _ => return None,
    })
}

const EVENT_SIZE: usize = 12;
/// Events delivered at once, at most.
const EVENTS_MAX: u64 = 1024;
/// Descriptors in one `poll`, at most.
const POLL_MAX: u64 = 65_536;

impl Call<'_, '_> {
    /// A signal mask for the duration of the call, as `ppoll` and its kin take it.
    fn swap_mask(&mut self, address: u64, size: u64) -> Result<(), Errno> {
        if address == 0 {
            return Ok(());
        }
        if size != 8 {
            return Err(Errno::EINVAL);
        }
        let mask = SignalSet(u64::from_ne_bytes(self.read(address)?));
        self.wait_with_mask(mask);
        Ok(())
    }

    /// Blocks `mask` until the call is over, and until a handler that ends it has returned.
    pub(super) fn wait_with_mask(&mut self, mask: SignalSet) {
        self.thread.mask_after_handler = Some(self.thread.blocked);
        self.thread.set_blocked(mask);
    }

    /// The call is over: the mask goes back, now or by the handler's frame.
    pub(super) fn unswap_mask(&mut self, result: &Result<u64, Errno>) {
        if *result == Err(Errno::EINTR) {
            return;
        }
        if let Some(mask) = self.thread.mask_after_handler.take() {
            self.thread.set_blocked(mask);
        }
    }

    /// What the next domain is charged to, by how the wait ended. No such call is restarted after a
    /// handler.
    fn woken(&mut self, result: &Result<u64, Errno>) {
        self.thread.restart = None;
        self.thread.wakeup = None;
        self.next_is(match result {
            Ok(0) => Origin::Timer,
            _ => Origin::Internal,
        });
    }
}

fn epoll_wait(call: &mut Call) -> Result<u64, Errno> {
    if !call.protected() && i64::from(call.row.number) == libc::SYS_epoll_wait {
        return call.pass_untracked();
    }
    let max = call.row.count(2, &call.args);
    if max == 0 {
        return Err(Errno::EINVAL);
    }
    let mut events = vec![0u8; max.min(EVENTS_MAX) as usize * EVENT_SIZE];
    let count = (events.len() / EVENT_SIZE) as u64;
    let timeout: [u8; 16];
    let mut args = [
        call.args[0],
        events.as_mut_ptr() as u64,
        count,
        call.args[3],
        0,
        8,
    ];
    let number = match i64::from(call.row.number) {
        libc::SYS_epoll_pwait2 => {
            if call.args[3] != 0 {
                timeout = call.read(call.args[3])?;
                args[3] = timeout.as_ptr() as u64;
            }
            libc::SYS_epoll_pwait2
        }
        _ => libc::SYS_epoll_pwait,
    };
    if i64::from(call.row.number) != libc::SYS_epoll_wait {
        call.swap_mask(call.args[4], call.args[5])?;
    }
    // SAFETY: the events and the timeout are in the monitor; the mask is null.
    let result = unsafe { call.block(number, args, For::Work) };
    call.unswap_mask(&result);
    call.woken(&result);
    let n = result?;
    let events = &events[..n as usize * EVENT_SIZE];
    call.thread.woken_by(Delivered::Events {
        epoll: call.int(0),
        data: data_of(events),
    });
    call.write(call.args[1], events)?;
    Ok(n)
}

/// The `data` members of an array of `struct epoll_event`, which is packed on x86-64.
fn data_of(events: &[u8]) -> Vec<u64> {
    let word = |event: &[u8]| u64::from_ne_bytes(event[4..].try_into().unwrap_or([0; 8]));
    events.chunks_exact(EVENT_SIZE).map(word).collect()
}

fn epoll_ctl(call: &mut Call) -> Result<u64, Errno> {
    let (epoll, operation, fd) = (call.int(0), call.int(1), call.int(2));
    let event = match operation {
        libc::EPOLL_CTL_DEL => None,
        _ => {
            let bytes: [u8; EVENT_SIZE] = call.read(call.args[3])?;
            let word = |i: usize| u32::from_ne_bytes(bytes[i..i + 4].try_into().unwrap_or([0; 4]));
            let data = u64::from(word(4)) | u64::from(word(8)) << 32;
            Some(libc::epoll_event {
                events: word(0),
                u64: data,
            })
        }
    };
    let old = call
        .state
        .files
        .change_interest(epoll, operation, fd, event)
        .map_err(|e: io::Error| errno_of(&e))?;
    call.compensate(Undo::Interest {
        epoll,
        fd,
        event: old,
    });
    Ok(0)
}

fn poll(call: &mut Call) -> Result<u64, Errno> {
    let count = call.row.count(1, &call.args);
    if count > POLL_MAX {
        return Err(Errno::EINVAL);
    }
    super::buffer::user_range(call.args[0], count * 8)?;
    let mut entries = call.read_vec(call.args[0], count as usize * 8)?;
    let mut args = [entries.as_mut_ptr() as u64, count, call.args[2], 0, 8, 0];
    let mut timeout = [0u8; 16];
    let number = i64::from(call.row.number);
    if number == libc::SYS_ppoll {
        args[2] = 0;
        if call.args[2] != 0 {
            timeout = call.read(call.args[2])?;
            args[2] = timeout.as_mut_ptr() as u64;
        }
        call.swap_mask(call.args[3], call.args[4])?;
    }
    // SAFETY: entries and timeout are in the monitor; the mask is null.
    let result = unsafe { call.block(number, args, For::Work) };
    call.unswap_mask(&result);
    call.woken(&result);
    if number == libc::SYS_ppoll && args[2] != 0 {
        call.write(call.args[2], &timeout)?;
    }
    let n = result?;
    call.thread
        .woken_by(Delivered::Descriptors(ready_entries(&entries)));
    call.write(call.args[0], &entries)?;
    Ok(n)
}

/// The descriptors of an array of `struct pollfd` for which something was returned.
fn ready_entries(entries: &[u8]) -> Vec<i32> {
    let ready = entries.chunks_exact(8).filter(|entry| entry[6..] != [0, 0]);
    ready
        .map(|entry| i32::from_ne_bytes(entry[..4].try_into().unwrap_or([0xff; 4])))
        .collect()
}

/// The members of the sets that `select` returned.
fn ready_members(sets: &[Vec<u8>]) -> Vec<i32> {
    let longest = sets.iter().map(Vec::len).max().unwrap_or(0);
    let is_member = |fd: &usize| {
        sets.iter().any(|set| {
            set.get(fd / 8)
                .is_some_and(|byte| byte >> (fd % 8) & 1 != 0)
        })
    };
    (0..longest * 8)
        .filter(is_member)
        .map(|fd| fd as i32)
        .collect()
}

fn select(call: &mut Call) -> Result<u64, Errno> {
    let count = call.int(0);
    if !(0..=POLL_MAX as i32).contains(&count) {
        return Err(Errno::EINVAL);
    }
    let bytes = (count as usize).div_ceil(64) * 8;
    let mut args = call.args;
    args[5] = 0;
    let mut sets = [const { Vec::new() }; 3];
    for (arg, set) in args[1..4].iter_mut().zip(&mut sets) {
        if *arg != 0 {
            *set = call.read_vec(*arg, bytes)?;
            *arg = set.as_mut_ptr() as u64;
        }
    }
    let mut timeout = [0u8; 16];
    if call.args[4] != 0 {
        timeout = call.read(call.args[4])?;
        args[4] = timeout.as_mut_ptr() as u64;
    }
    let number = i64::from(call.row.number);
    if number == libc::SYS_pselect6 && call.args[5] != 0 {
        let pair: [u8; 16] = call.read(call.args[5])?;
        let word = |i: usize| u64::from_ne_bytes(pair[i..i + 8].try_into().unwrap_or([0; 8]));
        call.swap_mask(word(0), word(8))?;
    }
    // SAFETY: sets and timeout are in the monitor; the mask is null.
    let result = unsafe { call.block(number, args, For::Work) };
    call.unswap_mask(&result);
    call.woken(&result);
    if call.args[4] != 0 {
        call.write(call.args[4], &timeout)?;
    }
    let n = result?;
    call.thread
        .woken_by(Delivered::Descriptors(ready_members(&sets)));
    for (i, set) in sets.iter().enumerate() {
        if !set.is_empty() {
            call.write(call.args[i + 1], set)?;
        }
    }
    Ok(n)
}

/// For `rt_sigtimedwait` and `rt_sigsuspend`.
pub fn sanitized(mut mask: SignalSet) -> SignalSet {
    mask.remove(Signal::SIGKILL);
    mask.remove(Signal::SIGSTOP);
    mask
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_descriptors_are_found_in_what_the_kernel_returns() {
        let entry = |fd: i32, revents: u16| {
            [&fd.to_ne_bytes()[..], &[1, 0], &revents.to_ne_bytes()].concat()
        };
        assert_eq!(
            ready_entries(&[entry(7, 0), entry(9, 1), entry(3, 16)].concat()),
            [9, 3]
        );
        let sets = [
            vec![0b10, 0, 0, 0, 0, 0, 0, 0],
            Vec::new(),
            vec![0, 0b1, 0, 0, 0, 0, 0, 0],
        ];
        assert_eq!(ready_members(&sets), [1, 8]);
    }
}
