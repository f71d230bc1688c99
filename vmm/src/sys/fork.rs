//! Processes: `fork` forks the monitor, and the child builds a machine of its own around its copy of the
//! guest's memory.
//!
//! A child recovers from faults as its parent does, but is not restarted in place, and is not reached by `vmsrs control`. A
//! shared address space (`vfork`, `CLONE_VM` without `CLONE_THREAD`) is a copied one: POSIX lets a `vfork` be a `fork`. Of
//! what the child writes its parent is told what it looks at (`sys/vfork.rs`).

use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use guest_agentless::{Errno, GuestRange};
use kvm_bindings::kvm_xsave;
use recovery::ladder::Ladder;

use super::wait::For;
use super::{Call, Handler, errno_of, vfork};
use crate::host::{self, handles};
use crate::inject::Injector;
use crate::kvm::{KvmError, Registers, Vm};
use crate::memory::window;
use crate::process::control;
use crate::process::domain::Early;
use crate::process::fault_signals;
use crate::process::host_signals;
use crate::process::image::RestartMode;
use crate::process::shared::SharedMemory;
use crate::process::thread::Thread;
use crate::process::{Options, Parts, Process, State, Turn};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_fork | libc::SYS_vfork => fork,
        libc::SYS_wait4 => wait4,
        libc::SYS_waitid => waitid,
        _ => return None,
    })
}

fn fork(call: &mut Call) -> Result<u64, Errno> {
    let flags = match i64::from(call.row.number) {
        libc::SYS_vfork => libc::CLONE_VM | libc::CLONE_VFORK,
        _ => 0,
    };
    call.args = [(flags | libc::SIGCHLD) as u64, 0, 0, 0, 0, 0];
    clone_process(call)
}

/// What the child starts with.
struct Start {
    registers: Registers,
    extended: Box<kvm_xsave>,
    bases: (u64, u64),
}

/// `clone` for a new process. The caller has checked the pointers.
pub fn clone_process(call: &mut Call) -> Result<u64, Errno> {
    let [flags, stack, parent_tid, child_tid, tls, pidfd] = call.args;
    const CARRIED: i32 = 0xff
        | libc::CLONE_PIDFD
        | libc::CLONE_VM
        | libc::CLONE_VFORK
        | libc::CLONE_PARENT_SETTID
        | libc::CLONE_CHILD_SETTID
        | libc::CLONE_CHILD_CLEARTID
        | libc::CLONE_SETTLS;
    // The C library's fork knows no other exit signal.
    if flags & !(CARRIED as u64) != 0 || flags & 0xff != libc::SIGCHLD as u64 {
        return Err(Errno::EINVAL);
    }
    if flags & libc::CLONE_PIDFD as u64 != 0 {
        window::checked(pidfd, 4).ok_or(Errno::EFAULT)?;
    }
    call.commit_early(Early::External)?;
    // The child has a copy of everything.
    for window in window::windows() {
        call.thread.touch(call.state, window);
    }
    call.thread.share_with_child(call.state);
    // It may write files, and a restarted parent would not know of it.
    call.state.restart.files_changed = true;
    let (registers, fs) = call.child_registers(flags, stack, tls);
    let extended = call
        .thread
        .vcpu
        .extended_state()
        .map_err(|_| Errno::EAGAIN)?;
    let start = Start {
        registers,
        extended,
        bases: (fs, call.thread.vcpu.gs_base()),
    };
    let stack = call.thread.vcpu.registers().rsp;
    let mut vfork = match flags & libc::CLONE_VFORK as u64 {
        0 => None,
        _ => Some(vfork::prepare(stack).map_err(|e| errno_of(&e))?),
    };
    // The injections must not be locked by another thread at that moment.
    let injector = call.thread.process.injector.clone();
    let injector = injector.map(|injector| Arc::new(injector.for_child()));
    let (tracker, mut memory) = call
        .state
        .tracking(&call.thread.process, &mut call.thread.vcpu);
    tracker.note_written(&mut memory);
    let limits = call.state.own_limits;
    let fork = || {
        // SAFETY: the child goes on with this thread alone. It uses nothing that another thread may have left
        // locked: it makes its own of everything, and libc takes care of its allocator.
        let pid = unsafe { libc::fork() };
        if pid == 0 {
            control::forget_after_fork();
            host_signals::forget();
        }
        pid
    };
    let pid = fault_signals::while_blocked(|| limits.while_making_a_task(fork));
    match pid {
        -1 => Err(errno_of(&std::io::Error::last_os_error())),
        0 => {
            let debt = vfork.take().map(|(_, debt)| debt);
            let child = become_child(call, start, injector, debt);
            match child {
                Ok(thread) => run_child(thread, flags, child_tid),
                Err(error) => {
                    log::error!("a forked child cannot go on: {}", crate::cli::chain(&error));
                    // SAFETY: ends the child without running destructors of what is the parent's.
                    unsafe { libc::_exit(super::end::MONITOR_FAILED) }
                }
            }
        }
        pid => {
            if flags & libc::CLONE_PARENT_SETTID as u64 != 0 {
                call.write(parent_tid, &pid.to_ne_bytes())?;
            }
            if flags & libc::CLONE_PIDFD as u64 != 0 {
                let args = [pid as u64, 0, 0, 0, 0, 0];
                // SAFETY: takes numbers only. The child is not reaped yet, so the number is still its own.
                let made = unsafe { host::syscall(libc::SYS_pidfd_open as u64, args) };
                let fd = call.made_descriptor(made)? as i32;
                call.write(pidfd, &fd.to_ne_bytes())?;
            }
            if let Some((claim, debt)) = vfork.take() {
                drop(debt);
                call.await_child(claim)?;
            }
            Ok(pid as u64)
        }
    }
}

/// The monitor's options for what a child executes: the control socket stays its parent's.
fn without_control(given: &[OsString]) -> Vec<OsString> {
    let mut left = given.to_vec();
    if let Some(at) = left.iter().position(|option| option == "--control") {
        left.drain(at..(at + 2).min(left.len()));
    }
    left
}

fn run_child(mut thread: Thread, flags: u64, child_tid: u64) -> ! {
    let tid = std::process::id() as i32;
    if flags & libc::CLONE_CHILD_SETTID as u64 != 0 {
        thread.mark_loaded(&[GuestRange::from_bounds(child_tid, child_tid + 4)]);
        // The pointer was checked; a page that cannot be written is the guest's loss, as on Linux.
        let _ = crate::memory::copy::write(child_tid, &tid.to_ne_bytes());
    }
    if flags & libc::CLONE_CHILD_CLEARTID as u64 != 0 {
        thread.control.clear_tid.store(child_tid, Ordering::Relaxed);
    }
    thread.run(|_| ());
    loop {
        std::thread::park();
    }
}

/// In the child: a machine, a process and a thread of its own.
fn become_child(
    call: &mut Call,
    start: Start,
    injector: Option<Arc<Injector>>,
    debt: Option<vfork::Debt>,
) -> Result<Thread, KvmError> {
    call.thread.process.stats.processes.inc();
    // The parent's machine, vCPUs and files of the monitor.
    let parent = &call.thread.process;
    handles::close_others(debt.as_ref().map(vfork::Debt::fd));
    let protect = parent.options.protect;
    let vm = Vm::create_for_child(parent.vm.monitor().clone(), protect)?;
    let mut vcpu = vm.create_vcpu()?;
    vcpu.set_entry_path(parent.entry_path);
    vcpu.set_segment_bases(start.bases.0, start.bases.1);
    vcpu.set_extended_state(&start.extended)?;
    *vcpu.registers() = start.registers;
    let own_memory =
        handles::open_own_memory().map_err(|e| KvmError::Ioctl("opening /proc/self/mem", e))?;
    let reporter = parent.reporter.for_child();
    let reporter = reporter.map_err(|e| KvmError::Ioctl("opening the file of events", e))?;
    let own_page_map = protect.then(handles::open_own_page_map).transpose();
    let own_page_map =
        own_page_map.map_err(|e| KvmError::Ioctl("opening /proc/self/pagemap", e))?;
    let state: &mut State = call.state;
    state.files.forget_image();
    let state = State {
        space: state.space.take_over(&vm)?,
        tracker: state.tracker.for_child(),
        shared: state.shared.as_ref().map(|_| SharedMemory::default()),
        files: std::mem::take(&mut state.files).for_child(),
        domain: None,
        suspended: Default::default(),
        wait_words: Default::default(),
        left_reads: Vec::new(),
        dispositions: std::mem::take(&mut state.dispositions),
        debt,
        is_stopping: false,
        filters: (state.filters.remove(&call.thread.tid()).into_iter())
            .map(|filters| (std::process::id() as i32, filters))
            .collect(),
        ladder: Ladder::default(),
        handoffs: Default::default(),
        restart: Default::default(),
        offenders: state.offenders.take(),
        own_limits: state.own_limits,
        heap: state.heap.take().map(|_| Box::default()),
        locked: crate::memory::LockedPages::default(),
        functions: Default::default(),
        strike_points: Default::default(),
    };
    let options = Options {
        is_child: true,
        control: None,
        restart: RestartMode::Off,
        given: without_control(&parent.options.given),
        ..parent.options.clone()
    };
    let process = Process::new(Parts {
        vm,
        entry_path: parent.entry_path,
        options,
        common: parent.common,
        reporter,
        program: parent.program.clone(),
        executable: parent.executable.clone(),
        auxv: parent.auxv.clone(),
        own_memory,
        own_page_map,
        injector,
        state,
    });
    let process = Arc::new(process);
    let mut thread = Thread::new(Arc::clone(&process), vcpu, call.thread.blocked);
    thread.alternate_stack = call.thread.alternate_stack;
    let mut turn = Turn::take(&process, 0);
    thread.inherit_sharing(&mut turn);
    drop(turn);
    Ok(thread)
}

impl Call<'_, '_> {
    /// A host call that takes a child's status, which cannot be given back. The child may be about to end because of a
    /// signal that was put off.
    ///
    /// # Safety
    ///
    /// As for [`Call::block`].
    unsafe fn reap(&mut self, number: i64, args: [u64; 6], options: u64) -> Result<u64, Errno> {
        self.commit_early(Early::External)?;
        if options as i32 & libc::WNOHANG != 0 {
            // It does not wait, so no signal ends it: programs do not expect EINTR.
            // SAFETY: the caller answers for the arguments.
            return unsafe { host::syscall(number as u64, args) };
        }
        // SAFETY: as above.
        unsafe { self.block(number, args, For::Midway) }
    }
}

fn wait4(call: &mut Call) -> Result<u64, Errno> {
    let [pid, status, options, usage, ..] = call.args;
    let mut status_word = 0i32;
    let mut usage_bytes = [0u8; size_of::<libc::rusage>()];
    let args = [
        pid,
        &raw mut status_word as u64,
        options,
        usage_bytes.as_mut_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: both results are in the monitor and have the sizes that the kernel writes.
    let child = unsafe { call.reap(libc::SYS_wait4, args, options) }?;
    if child != 0 {
        if status != 0 {
            call.write(status, &status_word.to_ne_bytes())?;
        }
        if usage != 0 {
            call.write(usage, &usage_bytes)?;
        }
    }
    Ok(child)
}

fn waitid(call: &mut Call) -> Result<u64, Errno> {
    let [kind, id, info, options, usage, _] = call.args;
    let mut info_bytes = [0u8; 128];
    let mut usage_bytes = [0u8; size_of::<libc::rusage>()];
    let args = [
        kind,
        id,
        info_bytes.as_mut_ptr() as u64,
        options,
        usage_bytes.as_mut_ptr() as u64,
        0,
    ];
    // SAFETY: as in `wait4`.
    let result = unsafe { call.reap(libc::SYS_waitid, args, options) }?;
    if info != 0 {
        call.write(info, &info_bytes)?;
    }
    if usage != 0 {
        call.write(usage, &usage_bytes)?;
    }
    Ok(result)
}
