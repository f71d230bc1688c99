//! Asynchronous I/O (`io_setup` and its kin, io_submit(2)): operations are done when they are submitted, as Linux
//! does them for all files that know nothing else.
//!
//! A context is the ring that the kernel maps into the process (`struct aio_ring` of Linux' `fs/aio.c`), and nothing
//! but that: what waits to be fetched is in guest memory, and undone with it.

use guest_agentless::{Errno, PAGE_SIZE, syscall};

use super::wait::For;
use super::{Call, Handler};
use crate::host;
use crate::memory::window;
use crate::process::files::Kind;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_io_setup => setup,
        libc::SYS_io_destroy => destroy,
        libc::SYS_io_submit => submit,
        libc::SYS_io_cancel => cancel,
        libc::SYS_io_getevents => get_events,
        _ => return None,
    })
}

/// What `/proc/sys/fs/aio-max-nr` is by default.
const MOST_EVENTS: u32 = 1 << 16;
const MAGIC: u32 = 0xa10a_10a1;
/// Bytes of the ring's header, and of `struct io_event`.
const HEADER: u64 = 32;
const EVENT: u64 = 32;
/// Where the header has its members.
const HEAD: u64 = 8;
const TAIL: u64 = 12;

/// `struct iocb`.
const CONTROL_BLOCK: usize = 64;
const NOTIFIES: u32 = 1;
const WITH_PRIORITY: u32 = 2;
/// Its operations (`IOCB_CMD_*`).
const PREAD: u16 = 0;
const PWRITE: u16 = 1;
const FSYNC: u16 = 2;
const FDSYNC: u16 = 3;
const PREADV: u16 = 7;
const PWRITEV: u16 = 8;

/// A ring, as its header was read once.
struct Ring {
    address: u64,
    slots: u32,
    head: u32,
    tail: u32,
}

impl Ring {
    fn slot(&self, index: u32) -> u64 {
        self.address + HEADER + u64::from(index) * EVENT
    }

    fn after(&self, index: u32) -> u32 {
        (index + 1) % self.slots
    }

    fn len(slots: u32) -> u64 {
        HEADER + u64::from(slots) * EVENT
    }
}

/// A `struct iocb`.
struct Operation {
    data: u64,
    flags: u32,
    code: u16,
    fd: i32,
    buffer: u64,
    len: u64,
    offset: u64,
    notified: Option<i32>,
}

impl Operation {
    fn parse(block: &[u8; CONTROL_BLOCK]) -> Result<Operation, Errno> {
        let (words, _) = block.as_chunks::<8>();
        let (halves, _) = block.as_chunks::<4>();
        let word = |at: usize| words.get(at).map_or(0, |bytes| u64::from_ne_bytes(*bytes));
        let half = |at: usize| halves.get(at).map_or(0, |bytes| u32::from_ne_bytes(*bytes));
        let (reserved, flags) = (word(6), half(14));
        if reserved != 0 || flags & !(NOTIFIES | WITH_PRIORITY) != 0 || word(4) > i64::MAX as u64 {
            return Err(Errno::EINVAL);
        }
        Ok(Operation {
            data: word(0),
            flags: half(3),
            code: half(4) as u16,
            fd: half(5) as i32,
            buffer: word(3),
            len: word(4),
            offset: word(5),
            notified: (flags & NOTIFIES != 0).then_some(half(15) as i32),
        })
    }

    /// The system call that does the same, and its arguments.
    fn call(&self) -> Result<(i64, [u64; 6]), Errno> {
        let fd = self.fd as u64;
        let (number, args) = match self.code {
            FSYNC | FDSYNC if self.buffer != 0 || self.offset != 0 || self.len != 0 => {
                return Err(Errno::EINVAL);
            }
            PREAD | PWRITE | FSYNC | FDSYNC if self.flags != 0 => return Err(Errno::EOPNOTSUPP),
            FSYNC => (libc::SYS_fsync, [fd, 0, 0, 0, 0, 0]),
            FDSYNC => (libc::SYS_fdatasync, [fd, 0, 0, 0, 0, 0]),
            PREAD | PWRITE => {
                let number = match self.code {
                    PREAD => libc::SYS_pread64,
                    _ => libc::SYS_pwrite64,
                };
                (number, [fd, self.buffer, self.len, self.offset, 0, 0])
            }
            PREADV | PWRITEV => {
                let number = match self.code {
                    PREADV => libc::SYS_preadv2,
                    _ => libc::SYS_pwritev2,
                };
                let flags = u64::from(self.flags);
                (number, [fd, self.buffer, self.len, self.offset, 0, flags])
            }
            _ => return Err(Errno::EINVAL),
        };
        Ok((number, args))
    }

    /// Whether a descriptor with these flags is open for it.
    fn is_allowed_by(&self, flags: i32) -> bool {
        let mode = flags & libc::O_ACCMODE;
        match self.code {
            PREAD | PREADV => mode != libc::O_WRONLY,
            PWRITE | PWRITEV => mode != libc::O_RDONLY,
            _ => true,
        }
    }
}

impl Call<'_, '_> {
    /// Does another call as a part of this one.
    fn make(&mut self, number: i64, args: [u64; 6]) -> Result<u64, Errno> {
        let row = syscall::lookup(number as u64).ok_or(Errno::ENOSYS)?;
        let own = (self.row, self.args);
        (self.row, self.args) = (row, args);
        let result = self.handle();
        (self.row, self.args) = own;
        result
    }

    /// The ring at `address`; EINVAL if there is none.
    fn ring(&mut self, address: u64) -> Result<Ring, Errno> {
        if !address.is_multiple_of(PAGE_SIZE) {
            return Err(Errno::EINVAL);
        }
        let header = self.read::<{ HEADER as usize }>(address);
        let header = header.map_err(|_| Errno::EINVAL)?;
        let (members, _) = header.as_chunks::<4>();
        let member = |at: usize| members.get(at).map_or(0, |m| u32::from_ne_bytes(*m));
        let (slots, head, tail) = (member(1), member(2), member(3));
        let is_there = (2..=2 * MOST_EVENTS).contains(&slots)
            && window::checked(address, Ring::len(slots)).is_some();
        if member(4) != MAGIC || !is_there {
            return Err(Errno::EINVAL);
        }
        Ok(Ring {
            address,
            slots,
            head: head % slots,
            tail: tail % slots,
        })
    }

    /// Does what one control block says.
    fn submit_one(&mut self, ring: &mut Ring, block: u64) -> Result<(), Errno> {
        let operation = Operation::parse(&self.read(block)?)?;
        if ring.after(ring.tail) == ring.head {
            return Err(Errno::EAGAIN);
        }
        self.check_descriptor(operation.fd)?;
        let flags = host::fcntl(operation.fd, libc::F_GETFL, 0).map_err(|_| Errno::EBADF)?;
        if let Some(fd) = operation.notified {
            self.check_descriptor(fd)?;
            match self.state.files.kind(fd) {
                Kind::Closed => return Err(Errno::EBADF),
                Kind::Anonymous => {}
                _ => return Err(Errno::EINVAL),
            }
        }
        // The key, which only `io_cancel` looks at.
        self.write(block.wrapping_add(8), &0u32.to_ne_bytes())?;
        let (number, args) = operation.call()?;
        if !operation.is_allowed_by(flags) {
            return Err(Errno::EBADF);
        }
        let result = self.make(number, args);
        if self.done.is_some() || self.is_outdated() {
            return Err(Errno::EINTR);
        }
        // What was interrupted has ended with that.
        self.thread.restart = None;
        let event = [operation.data, block, guest_agentless::to_rax(result), 0];
        let bytes: Vec<u8> = event.iter().flat_map(|word| word.to_ne_bytes()).collect();
        self.write(ring.slot(ring.tail), &bytes)?;
        ring.tail = ring.after(ring.tail);
        self.write(ring.address + TAIL, &ring.tail.to_ne_bytes())?;
        if let Some(fd) = operation.notified {
            let _ = self.write_later(fd, 1u64.to_ne_bytes().to_vec(), None);
        }
        Ok(())
    }

    /// Wakes the threads that wait for events.
    fn wake_waiting(&mut self, ring: &Ring) {
        let wake = (libc::FUTEX_WAKE | libc::FUTEX_PRIVATE_FLAG) as u64;
        let all = i32::MAX as u64;
        let _ = self.make(libc::SYS_futex, [ring.address + TAIL, wake, all, 0, 0, 0]);
    }

    /// Takes up to `most` events off the ring, to `into`; returns how many.
    fn take_events(&mut self, ring: &mut Ring, most: u32, into: u64) -> Result<u32, Errno> {
        let mut taken = 0;
        while taken < most && ring.head != ring.tail {
            let event: [u8; EVENT as usize] = self.read(ring.slot(ring.head))?;
            let to = into.checked_add(u64::from(taken) * EVENT);
            self.write(to.ok_or(Errno::EFAULT)?, &event)?;
            ring.head = ring.after(ring.head);
            taken += 1;
        }
        if taken > 0 {
            self.write(ring.address + HEAD, &ring.head.to_ne_bytes())?;
        }
        Ok(taken)
    }
}

fn setup(call: &mut Call) -> Result<u64, Errno> {
    let [events, result, ..] = call.args;
    let current: [u8; 8] = call.read(result)?;
    let events = events as u32;
    if u64::from_ne_bytes(current) != 0 || events == 0 || events > i32::MAX as u32 / EVENT as u32 {
        return Err(Errno::EINVAL);
    }
    if events > MOST_EVENTS {
        return Err(Errno::EAGAIN);
    }
    // One slot stays empty, and one more is for those who count badly, as on Linux.
    let len = Ring::len(events + 2).next_multiple_of(PAGE_SIZE);
    let slots = ((len - HEADER) / EVENT) as u32;
    let protection = (libc::PROT_READ | libc::PROT_WRITE) as u64;
    let flags = (libc::MAP_PRIVATE | libc::MAP_ANONYMOUS) as u64;
    let address = call.make(libc::SYS_mmap, [0, len, protection, flags, u64::MAX, 0])?;
    let header = [0, slots, 0, 0, MAGIC, 1, 0, HEADER as u32];
    let bytes: Vec<u8> = header.iter().flat_map(|word| word.to_ne_bytes()).collect();
    call.write(address, &bytes)?;
    call.write(result, &address.to_ne_bytes())?;
    Ok(0)
}

fn destroy(call: &mut Call) -> Result<u64, Errno> {
    let ring = call.ring(call.args[0])?;
    let len = Ring::len(ring.slots).next_multiple_of(PAGE_SIZE);
    // Who waits for events is to see that there will be none; with the run token, after this.
    call.wake_waiting(&ring);
    call.make(libc::SYS_munmap, [ring.address, len, 0, 0, 0, 0])
}

fn submit(call: &mut Call) -> Result<u64, Errno> {
    let [context, count, blocks, ..] = call.args;
    if (count as i64) < 0 {
        return Err(Errno::EINVAL);
    }
    let mut ring = call.ring(context)?;
    let mut done = 0;
    let mut result = Ok(());
    while done < count.min(u64::from(ring.slots)) {
        let block = blocks
            .checked_add(done * 8)
            .ok_or(Errno::EFAULT)
            .and_then(|at| call.read(at))
            .map(u64::from_ne_bytes);
        result = block.and_then(|block| call.submit_one(&mut ring, block));
        if result.is_err() {
            break;
        }
        done += 1;
    }
    if done > 0 && call.done.is_none() {
        call.wake_waiting(&ring);
        return Ok(done);
    }
    result.map(|()| done)
}

/// What was submitted is done.
fn cancel(call: &mut Call) -> Result<u64, Errno> {
    let _: [u8; CONTROL_BLOCK] = call.read(call.args[1])?;
    Err(Errno::EINVAL)
}

fn get_events(call: &mut Call) -> Result<u64, Errno> {
    let [context, least, most, into, timeout, _] = call.args;
    let timeout = call.read_timespec(timeout)?;
    let mut ring = call.ring(context)?;
    if (least as i64) < 0 || (most as i64) < least as i64 {
        return Err(Errno::EINVAL);
    }
    let mut taken = 0;
    loop {
        let room = most.min(u64::from(u32::MAX)) as u32 - taken;
        let to = into.checked_add(u64::from(taken) * EVENT);
        taken += call.take_events(&mut ring, room, to.ok_or(Errno::EFAULT)?)?;
        if u64::from(taken) >= least || timeout == Some([0; 16]) {
            return Ok(u64::from(taken));
        }
        // Until another thread submits something.
        let wait = (libc::FUTEX_WAIT | libc::FUTEX_PRIVATE_FLAG) as u64;
        let until = super::wait::pointer_to(&timeout);
        let tail = u64::from(ring.tail);
        let args = [ring.address + TAIL, wait, tail, until, 0, 0];
        // SAFETY: the host reads the word, which is in a guest window, and the monitor's copy of the time.
        let waited = unsafe { call.block(libc::SYS_futex, args, For::Work) };
        if call.done.is_some() || call.is_outdated() {
            return Err(Errno::EINTR);
        }
        // A signal ends the wait for good.
        call.thread.restart = None;
        match waited {
            Err(Errno::ETIMEDOUT) => return Ok(u64::from(taken)),
            Err(Errno::EINTR) if taken > 0 => return Ok(u64::from(taken)),
            Ok(_) | Err(Errno::EAGAIN) => ring = call.ring(context)?,
            Err(error) => return Err(error),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A block whose words count from 1.
    fn block(change: impl Fn(&mut [u8; CONTROL_BLOCK])) -> [u8; CONTROL_BLOCK] {
        let mut bytes = [0; CONTROL_BLOCK];
        bytes[0..8].copy_from_slice(&7u64.to_ne_bytes());
        bytes[20..24].copy_from_slice(&5u32.to_ne_bytes());
        bytes[24..32].copy_from_slice(&0x1000u64.to_ne_bytes());
        bytes[32..40].copy_from_slice(&512u64.to_ne_bytes());
        bytes[40..48].copy_from_slice(&4096u64.to_ne_bytes());
        change(&mut bytes);
        bytes
    }

    #[test]
    fn a_control_block_is_the_call_that_it_stands_for() {
        let operation = Operation::parse(&block(|bytes| bytes[16] = 1)).unwrap();
        assert_eq!(operation.data, 7);
        assert_eq!(
            operation.call(),
            Ok((libc::SYS_pwrite64, [5, 0x1000, 512, 4096, 0, 0]))
        );
        let operation = Operation::parse(&block(|bytes| {
            bytes[16] = 7;
            bytes[12] = 8;
        }));
        assert_eq!(
            operation.unwrap().call(),
            Ok((libc::SYS_preadv2, [5, 0x1000, 512, 4096, 0, 8]))
        );
    }

    #[test]
    fn what_linux_refuses_is_refused() {
        let refused =
            |change: &dyn Fn(&mut [u8; CONTROL_BLOCK])| Operation::parse(&block(change)).is_err();
        assert!(refused(&|bytes| bytes[48] = 1));
        assert!(refused(&|bytes| bytes[56] = 4));
        assert!(refused(&|bytes| bytes[39] = 0x80));
        // A poll, and a `fsync` of a part.
        for code in [5, 2] {
            let operation = Operation::parse(&block(|bytes| bytes[16] = code)).unwrap();
            assert_eq!(operation.call(), Err(Errno::EINVAL));
        }
    }

    #[test]
    fn slots_follow_each_other_around() {
        let ring = Ring {
            address: 0x1000,
            slots: 3,
            head: 2,
            tail: 2,
        };
        assert_eq!((ring.slot(0), ring.slot(2)), (0x1020, 0x1060));
        assert_eq!((ring.after(1), ring.after(2)), (2, 0));
    }
}
