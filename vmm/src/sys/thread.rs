//! Threads.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

use guest_agentless::{Errno, GuestRange, GuestVa};

use super::{Call, Handler};
use crate::kvm::Registers;
use crate::memory::{OwnLimits, copy, window};
use crate::process::State;
use crate::process::domain::Early;
use crate::process::thread::{Flow, Thread};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_clone => clone,
        libc::SYS_clone3 => clone3,
        libc::SYS_exit => exit,
        libc::SYS_set_tid_address => set_tid_address,
        libc::SYS_set_robust_list => set_robust_list,
        libc::SYS_get_robust_list => get_robust_list,
        _ => return None,
    })
}

/// Stack of a host thread that runs a guest thread.
const HOST_STACK: usize = 512 << 10;

const THREAD_FLAGS: u64 = (libc::CLONE_VM
    | libc::CLONE_FS
    | libc::CLONE_FILES
    | libc::CLONE_SIGHAND
    | libc::CLONE_THREAD) as u64;

fn clone(call: &mut Call) -> Result<u64, Errno> {
    let [flags, _, parent_tid, ..] = call.args;
    call.args[5] = match flags & libc::CLONE_PIDFD as u64 {
        0 => 0,
        // One place for two results.
        _ if flags & libc::CLONE_PARENT_SETTID as u64 != 0 => return Err(Errno::EINVAL),
        _ => parent_tid,
    };
    make_task(call)
}

/// `clone`, with where the descriptor of a new process goes to as the last argument.
fn make_task(call: &mut Call) -> Result<u64, Errno> {
    let [flags, stack, parent_tid, child_tid, tls, _] = call.args;
    check_tid_pointers(flags, parent_tid, child_tid)?;
    if flags & libc::CLONE_SETTLS as u64 != 0 {
        super::process::segment_base(tls)?;
    }
    if flags & libc::CLONE_THREAD as u64 == 0 {
        return super::fork::clone_process(call);
    }
    if flags & THREAD_FLAGS != THREAD_FLAGS || flags & libc::CLONE_PIDFD as u64 != 0 {
        return Err(Errno::EINVAL);
    }
    call.commit_early(Early::External)?;
    let process = Arc::clone(&call.thread.process);
    let mut vcpu = process.take_vcpu().map_err(|error| {
        log::error!("{error}");
        Errno::EAGAIN
    })?;
    let (registers, fs) = call.child_registers(flags, stack, tls);
    *vcpu.registers() = registers;
    vcpu.set_segment_bases(fs, call.thread.vcpu.gs_base());
    let extended = call.thread.vcpu.extended_state();
    let prepared = extended.and_then(|extended| vcpu.set_extended_state(&extended));
    if let Err(error) = prepared {
        log::error!("{error}");
        process.give_vcpu(vcpu);
        return Err(Errno::EAGAIN);
    }
    let mut child = Thread::new(process, vcpu, call.thread.blocked);
    child.epoch = call.thread.epoch;
    if flags & libc::CLONE_CHILD_CLEARTID as u64 != 0 {
        child.control.clear_tid.store(child_tid, Ordering::Relaxed);
    }
    let limits = call.state.own_limits;
    let tid = start(child, &limits).ok_or(Errno::EAGAIN)?;
    if let Some(filters) = call.state.filters.get(&call.thread.tid()) {
        let filters = filters.clone();
        call.state.filters.insert(tid, filters);
    }
    // It may be given work before it has run, and before anybody has had to wake it.
    call.thread.note_handoff(call.state);
    if flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
        call.write(parent_tid, &tid.to_ne_bytes())?;
    }
    if flags & libc::CLONE_CHILD_SETTID as u64 != 0 {
        call.write(child_tid, &tid.to_ne_bytes())?;
    }
    Ok(tid as u64)
}

/// `clone3`, whose arguments are a `struct clone_args` (clone(2)).
fn clone3(call: &mut Call) -> Result<u64, Errno> {
    /// Bytes of the structure as it was at first, and the most that the kernel takes.
    const SIZES: std::ops::RangeInclusive<u64> = 64..=4096;
    let [address, size, ..] = call.args;
    match size {
        size if size < *SIZES.start() => return Err(Errno::EINVAL),
        size if size > *SIZES.end() => return Err(Errno::E2BIG),
        _ => {}
    }
    let range = window::checked(address, size).ok_or(Errno::EFAULT)?;
    call.thread.touch(call.state, range);
    let mut given = vec![0; size as usize];
    copy::read(address, &mut given).map_err(|_| Errno::EFAULT)?;
    let (fields, rest) = given.split_at(*SIZES.start() as usize);
    let (fields, _) = fields.as_chunks::<8>();
    let [
        flags,
        pidfd,
        child_tid,
        parent_tid,
        signal,
        stack,
        stack_size,
        tls,
    ] = fields
    else {
        return Err(Errno::EINVAL);
    };
    let number = |field: &[u8; 8]| u64::from_ne_bytes(*field);
    let (flags, signal) = (number(flags), number(signal));
    let (stack, stack_size) = (number(stack), number(stack_size));
    let asks_for_more = rest.iter().any(|byte| *byte != 0);
    if asks_for_more || flags & 0xff != 0 || signal > 64 || (stack == 0) != (stack_size == 0) {
        return Err(Errno::EINVAL);
    }
    let top = stack.checked_add(stack_size).ok_or(Errno::EINVAL)?;
    let (parent_tid, child_tid, tls) = (number(parent_tid), number(child_tid), number(tls));
    let pidfd = match flags & libc::CLONE_PIDFD as u64 {
        0 => 0,
        _ => number(pidfd),
    };
    call.args = [flags | signal, top, parent_tid, child_tid, tls, pidfd];
    make_task(call)
}

impl Call<'_, '_> {
    /// The registers and the FS base with which a `clone` child begins.
    pub(super) fn child_registers(&mut self, flags: u64, stack: u64, tls: u64) -> (Registers, u64) {
        let mut registers = *self.thread.vcpu.registers();
        registers.rax = 0;
        if stack != 0 {
            registers.rsp = stack;
        }
        let fs = match flags & libc::CLONE_SETTLS as u64 {
            0 => self.thread.vcpu.fs_base(),
            _ => tls,
        };
        (registers, fs)
    }
}

/// The words that a new thread's or process' ID goes to have to be in guest memory.
fn check_tid_pointers(flags: u64, parent_tid: u64, child_tid: u64) -> Result<(), Errno> {
    for (flag, address) in [
        (libc::CLONE_PARENT_SETTID, parent_tid),
        (libc::CLONE_CHILD_SETTID, child_tid),
        (libc::CLONE_CHILD_CLEARTID, child_tid),
    ] {
        if flags & flag as u64 != 0 {
            window::checked(address, 4).ok_or(Errno::EFAULT)?;
        }
    }
    Ok(())
}

/// Starts the host thread; it waits for the run token, which the caller holds.
fn start(child: Thread, limits: &OwnLimits) -> Option<i32> {
    let (send, receive) = mpsc::sync_channel(1);
    let builder = std::thread::Builder::new().stack_size(HOST_STACK);
    let run = move || {
        child.run(|tid| {
            let _ = send.send(tid);
        });
    };
    let started = limits.while_making_a_task(|| builder.spawn(run));
    match started {
        Ok(_) => receive.recv().ok(),
        Err(error) => {
            log::debug!("cannot start a thread: {error}");
            None
        }
    }
}

pub(super) fn exit(call: &mut Call) -> Result<u64, Errno> {
    let last = call.thread.process.threads().len() <= 1;
    if last {
        return super::end::exit_group(call);
    }
    call.commit()?;
    call.thread.clear_tid(call.state);
    call.done = Some(Ok(Flow::ThreadEnded));
    Ok(0)
}

impl Thread {
    /// Clears the thread's ID where it asked for that, and wakes who waits for it.
    fn clear_tid(&mut self, state: &mut State) {
        let address = self.control.clear_tid.load(Ordering::Relaxed);
        let Some(range) = GuestRange::new(GuestVa(address), 4).filter(|_| address != 0) else {
            return;
        };
        self.mark_written(state, range);
        if copy::write(address, &0u32.to_ne_bytes()).is_ok() {
            let args = [address, libc::FUTEX_WAKE as u64, 1, 0, 0, 0];
            // SAFETY: the word lies in a guest window; nothing is written.
            let _ = unsafe { crate::host::syscall(libc::SYS_futex as u64, args) };
        }
        // What the host has just written belongs to the base of whatever runs next.
        let (tracker, mut memory) = state.tracking(&self.process, &mut self.vcpu);
        tracker.settle(&mut memory);
    }
}

fn set_tid_address(call: &mut Call) -> Result<u64, Errno> {
    call.thread
        .control
        .clear_tid
        .store(call.args[0], Ordering::Relaxed);
    Ok(call.thread.tid() as u64)
}

/// The host kernel walks the list when the host thread ends: its thread ID is the one in the guest's
/// mutexes.
fn set_robust_list(call: &mut Call) -> Result<u64, Errno> {
    window::checked(call.args[0], call.args[1]).ok_or(Errno::EFAULT)?;
    call.pass()
}

fn get_robust_list(call: &mut Call) -> Result<u64, Errno> {
    if call.args[0] != 0 && !call.thread.process.threads().contains_key(&call.int(0)) {
        return Err(Errno::ESRCH);
    }
    call.pass()
}
