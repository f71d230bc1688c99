//! Signals: the guest's own dispositions and masks; what it sends to itself never reaches the host.

use guest_agentless::{Errno, Signal, SignalSet};

use super::event::sanitized;
use super::wait::For;
use super::{Call, Handler, errno_of};
use crate::host;
use crate::process::control::{self, HostAction, ThreadControl};
use crate::process::effects::{Deferred, Undo};
use crate::process::recover::Fault;
use crate::process::signals::{Action, AlternateStack, Delivery, SignalInfo};

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_rt_sigaction => sigaction,
        libc::SYS_rt_sigprocmask => sigprocmask,
        libc::SYS_rt_sigpending => sigpending,
        libc::SYS_rt_sigreturn => sigreturn,
        libc::SYS_rt_sigsuspend => sigsuspend,
        libc::SYS_rt_sigtimedwait => sigtimedwait,
        libc::SYS_sigaltstack => sigaltstack,
        libc::SYS_kill => kill,
        libc::SYS_tkill | libc::SYS_tgkill => tgkill,
        libc::SYS_rt_sigqueueinfo | libc::SYS_rt_tgsigqueueinfo => queue_info,
        _ => return None,
    })
}

fn sigaction(call: &mut Call) -> Result<u64, Errno> {
    let [number, new, old, size, ..] = call.args;
    let signal = Signal::new(number as u32).ok_or(Errno::EINVAL)?;
    if size != 8 || (new != 0 && !signal.is_catchable()) {
        return Err(Errno::EINVAL);
    }
    let current = call.state.dispositions.get(signal);
    let wanted = match new {
        0 => None,
        at => Some(Action::from_bytes(&call.read(at)?)),
    };
    if old != 0 {
        call.write(old, &current.to_bytes())?;
    }
    if let Some(mut action) = wanted {
        action.mask = sanitized(action.mask);
        call.state.dispositions.set(signal, action);
        mirror(signal, call.state.dispositions.delivery(signal));
        call.compensate(Undo::Disposition {
            signal,
            action: current,
        });
    }
    Ok(0)
}

/// Stop signals keep the host's default unless the guest handles or ignores them; all others are caught
/// from the start.
pub fn mirror(signal: Signal, delivery: Delivery) {
    if !matches!(
        signal,
        Signal::SIGTSTP | Signal::SIGTTIN | Signal::SIGTTOU | Signal::SIGCONT
    ) {
        return;
    }
    let action = match delivery {
        Delivery::Handle(_) => HostAction::Catch,
        Delivery::Stop => HostAction::Default,
        _ if signal == Signal::SIGCONT => HostAction::Default,
        _ => HostAction::Ignore,
    };
    if let Err(error) = control::set_host_action(signal, action) {
        log::error!("cannot set the host's action for {signal:?}: {error}");
    }
}

fn sigprocmask(call: &mut Call) -> Result<u64, Errno> {
    let [how, new, old, size, ..] = call.args;
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let current = call.thread.blocked;
    let wanted = match new {
        0 => None,
        at => {
            let set = SignalSet(u64::from_ne_bytes(call.read(at)?));
            Some(match how as i32 {
                libc::SIG_BLOCK => current.union(set),
                libc::SIG_UNBLOCK => current.difference(set),
                libc::SIG_SETMASK => set,
                _ => return Err(Errno::EINVAL),
            })
        }
    };
    if old != 0 {
        call.write(old, &current.0.to_ne_bytes())?;
    }
    if let Some(blocked) = wanted {
        call.thread.set_blocked(blocked);
    }
    Ok(0)
}

fn sigpending(call: &mut Call) -> Result<u64, Errno> {
    let pending = control::arrived().union(call.thread.control.pending_set());
    let pending = pending.intersection(call.thread.blocked);
    call.write(call.args[0], &pending.0.to_ne_bytes())?;
    Ok(0)
}

fn sigreturn(call: &mut Call) -> Result<u64, Errno> {
    // What the handler did is done: the thread goes on elsewhere.
    if !call.in_request() {
        call.commit();
    }
    match call.thread.return_from_handler(call.state) {
        Ok(()) => {
            call.done = Some(Ok(crate::process::thread::Flow::Continue));
            Ok(0)
        }
        // As on Linux: a frame that cannot be read is a segmentation fault.
        Err(_) => call.fault(Fault::invalid()),
    }
}

fn sigsuspend(call: &mut Call) -> Result<u64, Errno> {
    if call.args[1] != 8 {
        return Err(Errno::EINVAL);
    }
    let mask = SignalSet(u64::from_ne_bytes(call.read(call.args[0])?));
    call.wait_with_mask(mask);
    // SAFETY: the call has no arguments.
    let result = unsafe { call.block(libc::SYS_pause, [0; 6], For::Work) };
    call.thread.restart = None;
    result
}

fn sigtimedwait(call: &mut Call) -> Result<u64, Errno> {
    let [set, info, timeout, size, ..] = call.args;
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let wanted = sanitized(SignalSet(u64::from_ne_bytes(call.read(set)?)));
    let limit: Option<[u8; 16]> = match timeout {
        0 => None,
        at => Some(call.read(at)?),
    };
    // The wanted signals are blocked in the guest; to be woken by them they are opened while it waits.
    call.wait_with_mask(call.thread.blocked.difference(wanted));
    let pointer = limit.as_ref().map_or(0, |limit| limit.as_ptr() as u64);
    let args = [0, 0, pointer, 0, 8, 0];
    // SAFETY: the timeout is in the monitor; there are no descriptors and no mask.
    let result = unsafe { call.block(libc::SYS_ppoll, args, For::Work) };
    if let Some(mask) = call.thread.mask_after_handler.take() {
        call.thread.set_blocked(mask);
    }
    call.thread.restart = None;
    if call.is_outdated() {
        return Err(Errno::EINTR);
    }
    let taken = call
        .thread
        .control
        .take_pending(wanted)
        .or_else(|| control::take_arrived_one(wanted));
    match (taken, result) {
        (Some(taken), _) => {
            if info != 0 {
                call.write(info, &taken.to_bytes())?;
            }
            Ok(u64::from(taken.signal.number()))
        }
        (None, Ok(_)) => Err(Errno::EAGAIN),
        (None, Err(error)) => Err(error),
    }
}

fn sigaltstack(call: &mut Call) -> Result<u64, Errno> {
    let [new, old, ..] = call.args;
    let current = call.thread.alternate_stack;
    let on_it = current.holds(call.thread.vcpu.registers().rsp);
    let wanted = match new {
        0 => None,
        at => {
            let bytes: [u8; 24] = call.read(at)?;
            let word = |i: usize| u64::from_ne_bytes(bytes[i..i + 8].try_into().unwrap_or([0; 8]));
            let flags = word(8) as i32;
            if on_it {
                return Err(Errno::EPERM);
            }
            if flags & libc::SS_DISABLE == 0 && word(16) < libc::MINSIGSTKSZ as u64 {
                return Err(Errno::ENOMEM);
            }
            let flags = flags & libc::SS_DISABLE;
            Some(AlternateStack {
                base: word(0),
                size: word(16),
                flags,
            })
        }
    };
    if old != 0 {
        let mut bytes = [0u8; 24];
        bytes[..8].copy_from_slice(&current.base.to_ne_bytes());
        let flags = if on_it {
            libc::SS_ONSTACK
        } else {
            current.flags
        };
        bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
        bytes[16..].copy_from_slice(&current.size.to_ne_bytes());
        call.write(old, &bytes)?;
    }
    if let Some(stack) = wanted {
        call.thread.alternate_stack = stack;
    }
    Ok(0)
}

/// Signals that end a process which sends them to itself: `abort`, and what a crash handler raises again.
fn is_fatal(signal: Signal) -> bool {
    matches!(
        signal.raw(),
        libc::SIGABRT
            | libc::SIGSEGV
            | libc::SIGBUS
            | libc::SIGFPE
            | libc::SIGILL
            | libc::SIGTRAP
            | libc::SIGSYS
    )
}

fn kill(call: &mut Call) -> Result<u64, Errno> {
    let (pid, number) = (call.int(0), call.int(1));
    let own = std::process::id() as i32;
    if pid != own {
        if pid <= 0 || number == 0 || !call.in_domain() {
            if number != 0 {
                call.commit_early(crate::process::domain::Early::External);
            }
            return call.pass();
        }
        // Whether it may be sent is known now; it is sent at the commit.
        host::kill(pid, 0).map_err(|e| errno_of(&e))?;
        call.defer(Deferred::SignalProcess {
            pid,
            signal: number,
        });
        return Ok(0);
    }
    if number == 0 {
        return Ok(0);
    }
    let signal = Signal::new(number as u32).ok_or(Errno::EINVAL)?;
    if is_fatal(signal) && call.in_domain() {
        return call.fault(Fault::raised(signal));
    }
    if !signal.is_catchable() {
        return call.pass();
    }
    call.defer(Deferred::SignalSelf {
        info: SignalInfo::from_process(signal, own, host::user()),
    });
    call.settle_signals();
    Ok(0)
}

fn tgkill(call: &mut Call) -> Result<u64, Errno> {
    let at = if i64::from(call.row.number) == libc::SYS_tgkill {
        1
    } else {
        0
    };
    if at == 1 && call.int(0) != std::process::id() as i32 {
        return Err(Errno::ESRCH);
    }
    send_to_thread(call, call.int(at), call.int(at + 1))
}

fn send_to_thread(call: &mut Call, tid: i32, number: i32) -> Result<u64, Errno> {
    if number == 0 {
        return control_of(call, tid).map(|_| 0);
    }
    let signal = Signal::new(number as u32).ok_or(Errno::EINVAL)?;
    let info = SignalInfo::from_thread(signal, std::process::id() as i32, host::user());
    send_info(call, tid, info)
}

fn control_of(call: &Call, tid: i32) -> Result<&'static ThreadControl, Errno> {
    call.thread
        .process
        .threads()
        .get(&tid)
        .copied()
        .ok_or(Errno::ESRCH)
}

fn send_info(call: &mut Call, tid: i32, info: SignalInfo) -> Result<u64, Errno> {
    control_of(call, tid)?;
    let own = tid == call.thread.tid();
    if own && is_fatal(info.signal) && call.in_domain() {
        return call.fault(Fault::raised(info.signal));
    }
    call.defer(Deferred::SignalThread { tid, info });
    if own {
        call.settle_signals();
    }
    Ok(0)
}

fn queue_info(call: &mut Call) -> Result<u64, Errno> {
    let to_thread = i64::from(call.row.number) == libc::SYS_rt_tgsigqueueinfo;
    let at = if to_thread { 2 } else { 1 };
    if call.int(0) != std::process::id() as i32 {
        return Err(Errno::ESRCH);
    }
    let signal = Signal::new(call.args[at] as u32).ok_or(Errno::EINVAL)?;
    let info = SignalInfo::from_bytes(signal, &call.read(call.args[at + 1])?);
    if to_thread {
        return send_info(call, call.int(1), info);
    }
    call.defer(Deferred::SignalSelf { info });
    call.settle_signals();
    Ok(0)
}

impl Call<'_, '_> {
    /// A signal that the thread has sent to itself is delivered before its call returns, unless it is part of
    /// a client's request: then when that has ended.
    fn settle_signals(&mut self) {
        if !self.in_request() {
            self.commit();
            self.thread.control.request_attention();
        }
    }
}
