//! System V shared memory, semaphores and message queues (sysvipc(7)), and POSIX message queues (mq_overview(7)). They
//! outlive the process and belong to others as well, so that a request that uses them is committed first.
//!
//! An attached segment is a shared mapping like that of a file, and undone like one.

use guest_agentless::vma::FileBacking;
use guest_agentless::{Backing, Errno, GuestRange, GuestVa, PAGE_SIZE, Protection, Vma};

use super::wait::{For, pointer_to};
use super::{Call, Handler};
use crate::host;
use crate::memory::{Source, window};
use crate::process::domain::Early;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_shmat => shmat,
        libc::SYS_shmdt => shmdt,
        libc::SYS_shmctl => shmctl,
        libc::SYS_semop | libc::SYS_semtimedop => semop,
        libc::SYS_semctl => semctl,
        libc::SYS_msgsnd => msgsnd,
        libc::SYS_msgrcv => msgrcv,
        libc::SYS_msgctl => msgctl,
        libc::SYS_mq_timedsend => mq_send,
        libc::SYS_mq_timedreceive => mq_receive,
        libc::SYS_mq_notify => mq_notify,
        _ => return None,
    })
}

// Commands and sizes of `linux/shm.h`, `linux/sem.h` and `linux/msg.h`, as the x86-64 kernel has them.
const IPC_RMID: i32 = 0;
const IPC_SET: i32 = 1;
const IPC_STAT: i32 = 2;
const IPC_INFO: i32 = 3;
const SHM_LOCK: i32 = 11;
const SHM_UNLOCK: i32 = 12;
const SHM_STAT: i32 = 13;
const SHM_INFO: i32 = 14;
const SHM_STAT_ANY: i32 = 15;
const GETPID: i32 = 11;
const GETVAL: i32 = 12;
const GETALL: i32 = 13;
const GETNCNT: i32 = 14;
const GETZCNT: i32 = 15;
const SETVAL: i32 = 16;
const SETALL: i32 = 17;
const SEM_STAT: i32 = 18;
const SEM_INFO: i32 = 19;
const SEM_STAT_ANY: i32 = 20;
const MSG_STAT: i32 = 11;
const MSG_INFO: i32 = 12;
const MSG_STAT_ANY: i32 = 13;
const SHMID_DS: usize = 112;
const SEMID_DS: usize = 104;
const MSQID_DS: usize = 120;
/// `struct sembuf`, and as many of them as a call may have.
const SEMBUF: usize = 6;
const SEMBUFS_MAX: u64 = 32_000;
/// Bytes of a message that are carried; the kernel's own limit is 8 KiB unless it was raised.
const MESSAGE_MAX: u64 = 1 << 20;

/// What a command does with the memory that its argument points to.
enum Argument {
    /// It is a number, or ignored.
    Number,
    /// So many bytes are read.
    Reads(usize),
    /// So many bytes are written.
    Writes(usize),
}

impl Call<'_, '_> {
    /// A `*ctl` call whose last argument, number `at`, is as `argument` says.
    fn control(&mut self, at: usize, argument: Argument) -> Result<u64, Errno> {
        self.commit_early(Early::External)?;
        let (mut args, address) = (self.args, self.args[at]);
        let mut buffer = match argument {
            Argument::Number => Vec::new(),
            Argument::Reads(len) => self.read_vec(address, len)?,
            Argument::Writes(len) => {
                window::checked(address, len as u64).ok_or(Errno::EFAULT)?;
                vec![0; len]
            }
        };
        if !buffer.is_empty() {
            args[at] = buffer.as_mut_ptr() as u64;
        }
        // SAFETY: the argument is a number, or a buffer of the size that the kernel reads or writes.
        let result = unsafe { host::syscall(u64::from(self.row.number), args) }?;
        if let Argument::Writes(_) = argument {
            self.write(address, &buffer)?;
        }
        Ok(result)
    }
}

fn shmctl(call: &mut Call) -> Result<u64, Errno> {
    let argument = match call.int(1) {
        IPC_STAT | SHM_STAT | SHM_STAT_ANY => Argument::Writes(SHMID_DS),
        IPC_SET => Argument::Reads(SHMID_DS),
        IPC_INFO => Argument::Writes(72),
        SHM_INFO => Argument::Writes(48),
        IPC_RMID | SHM_LOCK | SHM_UNLOCK => Argument::Number,
        _ => return Err(Errno::EINVAL),
    };
    call.control(2, argument)
}

/// What `IPC_STAT` says of segment or set `id`.
fn stat<const N: usize>(number: i64, id: u64) -> Result<[u8; N], Errno> {
    let mut buffer = [0u8; N];
    let at = buffer.as_mut_ptr() as u64;
    let args = match number {
        libc::SYS_semctl => [id, 0, IPC_STAT as u64, at, 0, 0],
        _ => [id, IPC_STAT as u64, at, 0, 0, 0],
    };
    // SAFETY: the callers give the size of what the kernel writes.
    unsafe { host::syscall(number as u64, args) }?;
    Ok(buffer)
}

fn number_at(bytes: &[u8], at: usize) -> u64 {
    let chunk = bytes.get(at..).and_then(|rest| rest.first_chunk());
    chunk.map_or(0, |bytes| u64::from_ne_bytes(*bytes))
}

/// Bytes of the pages of a segment of which this is `struct shmid_ds`.
fn segment_len(status: &[u8; SHMID_DS]) -> Option<u64> {
    // Behind `struct ipc64_perm`.
    let len = number_at(status, 48).checked_next_multiple_of(PAGE_SIZE)?;
    (len > 0).then_some(len)
}

fn shmat(call: &mut Call) -> Result<u64, Errno> {
    let [id, address, flags, ..] = call.args;
    let flags = flags as i32;
    let status = stat(libc::SYS_shmctl, id)?;
    let len = segment_len(&status).ok_or(Errno::EINVAL)?;
    call.commit_early(Early::External)?;
    call.share_with_others()?;
    let range = match address {
        0 => call
            .state
            .space
            .find_free(0, len, false)
            .ok_or(Errno::ENOMEM)?,
        _ => {
            let start = match flags & libc::SHM_RND {
                0 if !address.is_multiple_of(PAGE_SIZE) => return Err(Errno::EINVAL),
                _ => address & !(PAGE_SIZE - 1),
            };
            let range = window::checked(start, len).ok_or(Errno::EINVAL)?;
            if flags & libc::SHM_REMAP != 0 {
                call.make_free(range)?;
            } else if call.state.space.vmas().overlapping(range).next().is_some() {
                return Err(Errno::EINVAL);
            }
            range
        }
    };
    let mut protection = Protection::READ;
    if flags & libc::SHM_RDONLY == 0 {
        protection = protection.union(Protection::WRITE);
    }
    if flags & libc::SHM_EXEC != 0 {
        protection = protection.union(Protection::EXEC);
    }
    let vma = Vma::new(
        range,
        protection,
        true,
        Backing::File(FileBacking::segment(id, number_at(&status, 0) as u32)),
    );
    call.map_new(vma, Source::Segment(id as i32), 0)?;
    Ok(range.start())
}

fn shmdt(call: &mut Call) -> Result<u64, Errno> {
    let start = call.args[0];
    let vmas = call.state.space.vmas();
    let segment = |vma: &Vma| match &vma.backing {
        Backing::File(file) if file.is_segment() => Some(file.inode),
        _ => None,
    };
    let at_start = vmas.find(start).filter(|vma| vma.range.start() == start);
    let id = at_start.and_then(segment).ok_or(Errno::EINVAL)?;
    // One that cannot be asked any more gives up what is mapped at its start.
    let status = stat(libc::SYS_shmctl, id).ok();
    let len = status.as_ref().and_then(segment_len).unwrap_or(PAGE_SIZE);
    let range = GuestRange::new(GuestVa(start), len).ok_or(Errno::EINVAL)?;
    let parts: Vec<GuestRange> = vmas
        .overlapping(range)
        .filter(|vma| segment(vma) == Some(id))
        .map(|vma| vma.range)
        .collect();
    call.commit_early(Early::External)?;
    for part in parts {
        call.make_free(part)?;
    }
    Ok(0)
}

fn semctl(call: &mut Call) -> Result<u64, Errno> {
    let argument = match call.int(2) {
        IPC_STAT | SEM_STAT | SEM_STAT_ANY => Argument::Writes(SEMID_DS),
        IPC_SET => Argument::Reads(SEMID_DS),
        IPC_INFO | SEM_INFO => Argument::Writes(40),
        command @ (GETALL | SETALL) => {
            // Behind `struct ipc64_perm` and two times: the number of semaphores.
            let status = stat::<SEMID_DS>(libc::SYS_semctl, call.args[0])?;
            let len = number_at(&status, 80).min(u64::from(u16::MAX)) as usize * 2;
            match command {
                GETALL => Argument::Writes(len),
                _ => Argument::Reads(len),
            }
        }
        IPC_RMID | GETPID | GETVAL | GETNCNT | GETZCNT | SETVAL => Argument::Number,
        _ => return Err(Errno::EINVAL),
    };
    call.control(3, argument)
}

fn semop(call: &mut Call) -> Result<u64, Errno> {
    let [id, operations, count, timeout, ..] = call.args;
    if count == 0 {
        return Err(Errno::EINVAL);
    }
    if count > SEMBUFS_MAX {
        return Err(Errno::E2BIG);
    }
    let operations = call.read_vec(operations, count as usize * SEMBUF)?;
    let timeout = match i64::from(call.row.number) {
        libc::SYS_semtimedop => call.read_timespec(timeout)?,
        _ => None,
    };
    call.commit_early(Early::External)?;
    let at = operations.as_ptr() as u64;
    let args = [id, at, count, pointer_to(&timeout), 0, 0];
    // SAFETY: the kernel reads `count` operations and the timeout, both the monitor's.
    unsafe { call.block_once(libc::SYS_semtimedop, args, For::Midway) }
}

fn msgsnd(call: &mut Call) -> Result<u64, Errno> {
    let [id, message, len, flags, ..] = call.args;
    if len > MESSAGE_MAX {
        return Err(Errno::EINVAL);
    }
    let message = call.read_vec(message, 8 + len as usize)?;
    call.commit_early(Early::External)?;
    let args = [id, message.as_ptr() as u64, len, flags, 0, 0];
    // SAFETY: the kernel reads the type and `len` bytes.
    unsafe { call.block_once(libc::SYS_msgsnd, args, For::Midway) }
}

fn msgrcv(call: &mut Call) -> Result<u64, Errno> {
    let [id, message, len, kind, flags, _] = call.args;
    // No message is longer, so that more room makes no difference.
    let len = len.min(MESSAGE_MAX);
    window::checked(message, 8 + len).ok_or(Errno::EFAULT)?;
    call.commit_early(Early::External)?;
    let mut buffer = vec![0u8; 8 + len as usize];
    let args = [id, buffer.as_mut_ptr() as u64, len, kind, flags, 0];
    // SAFETY: the kernel writes the type and up to `len` bytes.
    let received = unsafe { call.block_once(libc::SYS_msgrcv, args, For::Midway) }?;
    call.write(
        message,
        &buffer[..(8 + received as usize).min(8 + len as usize)],
    )?;
    Ok(received)
}

fn msgctl(call: &mut Call) -> Result<u64, Errno> {
    let argument = match call.int(1) {
        IPC_STAT | MSG_STAT | MSG_STAT_ANY => Argument::Writes(MSQID_DS),
        IPC_SET => Argument::Reads(MSQID_DS),
        IPC_INFO | MSG_INFO => Argument::Writes(32),
        IPC_RMID => Argument::Number,
        _ => return Err(Errno::EINVAL),
    };
    call.control(2, argument)
}

/// Bytes of the message of a POSIX queue; the kernel allows no more (`HARD_MSGSIZEMAX`).
const POSIX_MESSAGE_MAX: u64 = 16 << 20;

fn mq_send(call: &mut Call) -> Result<u64, Errno> {
    let [queue, message, len, priority, deadline, _] = call.args;
    if len > POSIX_MESSAGE_MAX {
        return Err(Errno::EMSGSIZE);
    }
    let message = call.read_vec(message, len as usize)?;
    let deadline = call.read_timespec(deadline)?;
    call.commit_early(Early::External)?;
    let (at, until) = (message.as_ptr() as u64, pointer_to(&deadline));
    // SAFETY: the kernel reads `len` bytes and the time, both the monitor's.
    unsafe {
        call.block(
            libc::SYS_mq_timedsend,
            [queue, at, len, priority, until, 0],
            For::Midway,
        )
    }
}

fn mq_receive(call: &mut Call) -> Result<u64, Errno> {
    let [queue, message, len, priority, deadline, _] = call.args;
    let len = len.min(POSIX_MESSAGE_MAX);
    if len > 0 {
        window::checked(message, len).ok_or(Errno::EFAULT)?;
    }
    let deadline = call.read_timespec(deadline)?;
    call.commit_early(Early::External)?;
    let mut buffer = vec![0u8; len as usize];
    let mut found = 0u32;
    let (at, until) = (buffer.as_mut_ptr() as u64, pointer_to(&deadline));
    let args = [queue, at, len, &raw mut found as u64, until, 0];
    // SAFETY: the kernel writes up to `len` bytes and the priority, and reads the time, all the monitor's.
    let received = unsafe { call.block(libc::SYS_mq_timedreceive, args, For::Midway) }?;
    call.write(message, &buffer[..(received as usize).min(buffer.len())])?;
    if priority != 0 {
        call.write(priority, &found.to_ne_bytes())?;
    }
    Ok(received)
}

/// Bytes of a `struct sigevent`, and of the message that the C library has sent to itself to start a thread.
const SIGEVENT: usize = 64;
const COOKIE: usize = 32;

fn mq_notify(call: &mut Call) -> Result<u64, Errno> {
    let [queue, event, ..] = call.args;
    call.commit_early(Early::External)?;
    // It has to outlive the call.
    let cookie: [u8; COOKIE];
    let event = match event {
        0 => None,
        at => {
            let mut event: [u8; SIGEVENT] = call.read(at)?;
            // sigev_value, sigev_signo, sigev_notify.
            if event[12..16] == libc::SIGEV_THREAD.to_ne_bytes() {
                let pointer = event.first_chunk().map_or(0, |at| u64::from_ne_bytes(*at));
                cookie = call.read(pointer)?;
                event[..8].copy_from_slice(&(cookie.as_ptr() as u64).to_ne_bytes());
            }
            Some(event)
        }
    };
    let at = event.as_ref().map_or(0, |event| event.as_ptr() as u64);
    // SAFETY: the kernel reads the event and the bytes that it points to, both the monitor's.
    unsafe { host::syscall(libc::SYS_mq_notify as u64, [queue, at, 0, 0, 0, 0]) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_those_of_the_kernel() {
        assert_eq!(SHMID_DS, size_of::<libc::shmid_ds>());
        assert_eq!(SEMID_DS, size_of::<libc::semid_ds>());
        assert_eq!(MSQID_DS, size_of::<libc::msqid_ds>());
        assert_eq!(SEMBUF, size_of::<libc::sembuf>());
        assert_eq!(48, std::mem::offset_of!(libc::shmid_ds, shm_segsz));
        assert_eq!(80, std::mem::offset_of!(libc::semid_ds, sem_nsems));
    }
}
