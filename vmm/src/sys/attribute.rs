//! Attributes of the process and its threads that a domain may change and an abandon puts back.

use std::os::fd::{FromRawFd, OwnedFd};

use guest_agentless::Errno;

use super::{Call, Handler};
use crate::host;
use crate::memory::reserved_fd;
use crate::process::domain::Early;
use crate::process::effects::{HostCall, Undo};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_umask => umask,
        libc::SYS_chdir | libc::SYS_fchdir => change_directory,
        libc::SYS_setpriority => setpriority,
        libc::SYS_ioprio_set => ioprio_set,
        libc::SYS_sched_setaffinity => sched_setaffinity,
        libc::SYS_sched_setparam | libc::SYS_sched_setscheduler => set_scheduling,
        libc::SYS_sched_setattr => sched_setattr,
        libc::SYS_mq_getsetattr => mq_getsetattr,
        _ => return None,
    })
}

const CAP_SYS_NICE: u32 = 23;
/// `SCHED_ATTR_SIZE_VER0`.
const SCHED_ATTR: usize = 48;
/// More than any kernel's `struct sched_attr`.
const SCHED_ATTR_MOST: usize = 4096;
/// Bytes of the largest set of CPUs.
const AFFINITY: usize = 1024;

fn umask(call: &mut Call) -> Result<u64, Errno> {
    let old = call.pass()?;
    let back = HostCall::numbers(libc::SYS_umask, [old, 0, 0, 0, 0, 0]);
    call.compensate_by(back, "the file mode mask was changed");
    Ok(old)
}

fn change_directory(call: &mut Call) -> Result<u64, Errno> {
    let old = call.in_domain().then(working_directory).flatten();
    if old.is_none() {
        call.commit_early(Early::External)?;
    }
    let result = call.pass()?;
    if let Some(old) = old {
        call.compensate(Undo::Directory { old });
    }
    Ok(result)
}

fn working_directory() -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC;
    // SAFETY: a NUL-terminated path.
    let fd = unsafe { libc::open(c".".as_ptr(), flags) };
    if fd < 0 {
        return None;
    }
    // SAFETY: a new descriptor that nobody else owns.
    reserved_fd(unsafe { OwnedFd::from_raw_fd(fd) }).ok()
}

impl Call<'_, '_> {
    /// Whether `tid` means a thread of the guest: what it is set to can be set back.
    fn is_own_thread(&self, tid: i32) -> bool {
        tid == 0 || self.thread.process.threads().contains_key(&tid)
    }

    /// A number as the ID of a thread, where 0 is the calling one: an abandon may happen on another.
    fn thread_id(&self, tid: i32) -> u64 {
        match tid {
            0 => self.thread.tid() as u64,
            tid => tid as u64,
        }
    }
}

fn setpriority(call: &mut Call) -> Result<u64, Errno> {
    let (which, who, wanted) = (call.int(0), call.int(1), call.int(2));
    let own = which == libc::PRIO_PROCESS as i32 && call.is_own_thread(who);
    let id = call.thread_id(who);
    // SAFETY: takes numbers only.
    let old =
        unsafe { host::syscall(libc::SYS_getpriority as u64, [which as u64, id, 0, 0, 0, 0]) };
    // The kernel returns 20 less the nice value.
    let old = old.ok().map(|raw| 20 - raw as i32).filter(|_| own);
    let Some(old) =
        old.filter(|old| wanted.clamp(-20, 19) <= *old || host::is_capable(CAP_SYS_NICE))
    else {
        // Without privileges a thread cannot be made less nice again.
        call.commit_early(Early::External)?;
        return call.pass();
    };
    let result = call.pass()?;
    let back = HostCall::numbers(
        libc::SYS_setpriority,
        [which as u64, id, old as i64 as u64, 0, 0, 0],
    );
    call.compensate_by(back, "a priority was changed");
    Ok(result)
}

fn ioprio_set(call: &mut Call) -> Result<u64, Errno> {
    const IOPRIO_WHO_PROCESS: i32 = 1;
    let (which, who) = (call.int(0), call.int(1));
    let id = call.thread_id(who);
    let args = [which as u64, id, 0, 0, 0, 0];
    // SAFETY: takes numbers only.
    let old = unsafe { host::syscall(libc::SYS_ioprio_get as u64, args) };
    let Some(old) = old
        .ok()
        .filter(|_| which == IOPRIO_WHO_PROCESS && call.is_own_thread(who))
    else {
        call.commit_early(Early::External)?;
        return call.pass();
    };
    let result = call.pass()?;
    let back = HostCall::numbers(libc::SYS_ioprio_set, [which as u64, id, old, 0, 0, 0]);
    call.compensate_by(back, "an I/O priority was changed");
    Ok(result)
}

fn sched_setaffinity(call: &mut Call) -> Result<u64, Errno> {
    let who = call.int(0);
    let id = call.thread_id(who);
    let mut old = vec![0u8; AFFINITY];
    let args = [id, old.len() as u64, old.as_mut_ptr() as u64, 0, 0, 0];
    // SAFETY: the set is in the monitor and has that length.
    let len = unsafe { host::syscall(libc::SYS_sched_getaffinity as u64, args) };
    let Some(len) = len.ok().filter(|_| call.is_own_thread(who)) else {
        call.commit_early(Early::External)?;
        return call.pass();
    };
    let result = call.pass()?;
    old.truncate(len as usize);
    let back = HostCall::with(libc::SYS_sched_setaffinity, [id, len, 0, 0, 0, 0], old);
    call.compensate_by(back, "the CPUs of a thread were changed");
    Ok(result)
}

impl Call<'_, '_> {
    /// The call that sets the scheduling of thread `who` back to what it is now.
    fn scheduling_back(&self, who: i32) -> Option<HostCall> {
        let id = self.thread_id(who);
        let mut old = vec![0u8; SCHED_ATTR];
        let args = [id, old.as_mut_ptr() as u64, old.len() as u64, 0, 0, 0];
        // SAFETY: the structure is in the monitor and has that length.
        let known = unsafe { host::syscall(libc::SYS_sched_getattr as u64, args) };
        known.ok().filter(|_| self.is_own_thread(who))?;
        let back = HostCall::with(libc::SYS_sched_setattr, [id, 0, 0, 0, 0, 0], old);
        // What may not be set now may not be set then.
        back.make().is_ok().then_some(back)
    }
}

const SCHEDULING: &str = "the scheduling of a thread was changed";

fn set_scheduling(call: &mut Call) -> Result<u64, Errno> {
    let Some(back) = call.scheduling_back(call.int(0)) else {
        call.commit_early(Early::External)?;
        return call.pass();
    };
    let result = call.pass()?;
    call.compensate_by(back, SCHEDULING);
    Ok(result)
}

fn sched_setattr(call: &mut Call) -> Result<u64, Errno> {
    let address = call.args[1];
    let size = u32::from_ne_bytes(call.read(address)?) as usize;
    let wanted = match size {
        0 => SCHED_ATTR,
        n if (SCHED_ATTR..=SCHED_ATTR_MOST).contains(&n) => n,
        _ => {
            call.write(address, &(SCHED_ATTR as u32).to_ne_bytes())?;
            return Err(Errno::E2BIG);
        }
    };
    let mut attributes = call.read_vec(address, wanted)?;
    let back = call.scheduling_back(call.int(0));
    if back.is_none() {
        call.commit_early(Early::External)?;
    }
    let args = [
        call.args[0],
        attributes.as_mut_ptr() as u64,
        call.args[2],
        0,
        0,
        0,
    ];
    // SAFETY: the structure is a copy in the monitor, of the size that it begins with.
    let result = unsafe { host::syscall(libc::SYS_sched_setattr as u64, args) };
    if result == Err(Errno::E2BIG) {
        call.write(address, &attributes[..4])?;
    }
    let result = result?;
    if let Some(back) = back {
        call.compensate_by(back, SCHEDULING);
    }
    Ok(result)
}

fn mq_getsetattr(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.args[0];
    let mut old = vec![0u8; 64];
    let args = [fd, 0, old.as_mut_ptr() as u64, 0, 0, 0];
    // SAFETY: the old attributes are 64 bytes.
    let known = unsafe { host::syscall(libc::SYS_mq_getsetattr as u64, args) };
    let result = call.pass()?;
    if known.is_ok() && call.args[1] != 0 {
        // Only the flags can be set; the kernel wants to see no others.
        old[8..].fill(0);
        let back = HostCall::with(libc::SYS_mq_getsetattr, [fd, 0, 0, 0, 0, 0], old);
        call.compensate_by(back, "the flags of a message queue were changed");
    }
    Ok(result)
}
