//! Signals: the guest's own dispositions and masks; what it sends to itself never reaches the host.

use guest_agentless::{Errno, Signal, SignalSet, to_rax};

use super::event::sanitized;
use super::wait::{For, pointer_to};
use super::{Call, Handler, errno_of};
use crate::host;
use crate::process::control::ThreadControl;
use crate::process::domain::Early;
use crate::process::effects::{Deferred, HostCall, Undo};
use crate::process::fault::Fault;
use crate::process::host_signals;
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
        libc::SYS_signalfd | libc::SYS_signalfd4 => signalfd,
        libc::SYS_kill => kill,
        libc::SYS_tkill | libc::SYS_tgkill => tgkill,
        libc::SYS_pidfd_send_signal => pidfd_send_signal,
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
        host_signals::mirror(signal, &call.state.dispositions);
        call.compensate(Undo::Disposition {
            signal,
            action: current,
        });
    }
    Ok(0)
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
        // A fatal signal that the request has sent to itself while it was blocked takes its effect now.
        if let Some(signal) = call.fatal_signal_opened() {
            return call.fault(Fault::raised(signal));
        }
    }
    Ok(0)
}

fn sigpending(call: &mut Call) -> Result<u64, Errno> {
    let pending = host_signals::pending()
        .union(call.thread.control.pending_set())
        .union(call.sent_to_itself())
        .intersection(call.thread.blocked);
    call.write(call.args[0], &pending.0.to_ne_bytes())?;
    Ok(0)
}

fn sigreturn(call: &mut Call) -> Result<u64, Errno> {
    // What the handler did is done: the thread goes on elsewhere. That of a fault is part of the work.
    if !call.in_request() && !call.thread.is_in_handler() {
        call.commit()?;
        call.thread.continues = call.thread.interrupted.take();
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
    let limit = call.read_timespec(timeout)?;
    // What does not go through the host wakes the thread like a signal that it does not block.
    let threads_own = |signal: &Signal| !host_signals::is_hosts(*signal);
    let threads_own: SignalSet = wanted.iter().filter(threads_own).collect();
    call.wait_with_mask(call.thread.blocked.difference(threads_own));
    let mut bytes = [0u8; SignalInfo::SIZE];
    // The monitor's kick must not be taken for one of the guest's.
    let set = wanted.difference(threads_own).0;
    let args = [
        &raw const set as u64,
        bytes.as_mut_ptr() as u64,
        pointer_to(&limit),
        8,
        0,
        0,
    ];
    // SAFETY: set, result and timeout are in the monitor, and of the sizes that the kernel takes them to be.
    let result = unsafe { call.block(libc::SYS_rt_sigtimedwait, args, For::Work) };
    if let Some(mask) = call.thread.mask_after_handler.take() {
        call.thread.set_blocked(mask);
    }
    call.thread.restart = None;
    if call.is_outdated() {
        return Err(Errno::EINTR);
    }
    let taken = match result {
        Ok(_) => SignalInfo::from_host(&bytes),
        Err(_) => {
            let sent = call.thread.control.take_pending(wanted);
            sent.or_else(|| host_signals::take(threads_own))
        }
    };
    let taken = match (taken, result) {
        (Some(taken), _) => taken,
        (None, Ok(_)) => return Err(Errno::EINTR),
        (None, Err(error)) => return Err(error),
    };
    call.state.is_stopping |= taken.signal.asks_to_end();
    if info != 0 {
        call.write(info, &taken.to_bytes())?;
    }
    Ok(u64::from(taken.signal.number()))
}

/// The signals themselves stay with the host's kernel; see [`host_signals`].
fn signalfd(call: &mut Call) -> Result<u64, Errno> {
    let [_, mask, size, flags, ..] = call.args;
    let fd = call.int(0);
    let flags = match i64::from(call.row.number) {
        libc::SYS_signalfd => 0,
        _ => flags,
    };
    if size != 8 {
        return Err(Errno::EINVAL);
    }
    let mask = SignalSet(u64::from_ne_bytes(call.read(mask)?));
    if fd != -1 {
        call.check_descriptor(fd)?;
    }
    let before = host::signals_of(fd);
    let set = host_signals::without_kick(mask).0;
    let args = [fd as u64, &raw const set as u64, size, flags, 0, 0];
    // SAFETY: the kernel reads the set, which is the monitor's.
    let result = unsafe { host::syscall(libc::SYS_signalfd4 as u64, args) };
    if fd == -1 {
        return call.made_descriptor(result);
    }
    let result = result?;
    let before = before.map_err(|e| errno_of(&e))?;
    let args = [fd as u64, 0, size, 0, 0, 0];
    let back = HostCall::with(libc::SYS_signalfd4, args, before.to_ne_bytes().to_vec());
    call.compensate_by(back, "the signals of a signalfd were changed");
    Ok(result)
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
                call.commit_early(crate::process::domain::Early::External)?;
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
    if call.ends_process(signal) {
        return call.fault(Fault::raised(signal));
    }
    if !signal.is_catchable() {
        return call.pass();
    }
    call.signal_self(SignalInfo::from_process(signal, own, host::user()))
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
    if own && call.ends_process(info.signal) {
        return call.fault(Fault::raised(info.signal));
    }
    if own && call.handle_at_once(info, Ok(0)) {
        return Ok(0);
    }
    call.defer(Deferred::SignalThread { tid, info });
    if own {
        call.settle_signals()?;
    }
    Ok(0)
}

fn queue_info(call: &mut Call) -> Result<u64, Errno> {
    let to_thread = i64::from(call.row.number) == libc::SYS_rt_tgsigqueueinfo;
    let at = if to_thread { 2 } else { 1 };
    let (own, receiver) = (std::process::id() as i32, call.int(at - 1));
    let bytes = call.read(call.args[at + 1])?;
    if call.args[at] == 0 || call.int(0) != own {
        return call.queue_elsewhere(&bytes, to_thread);
    }
    let signal = Signal::new(call.args[at] as u32).ok_or(Errno::EINVAL)?;
    let info = SignalInfo::from_bytes(signal, &bytes);
    // Nobody but the receiver itself may say that the kernel or `kill` has sent it.
    if (info.code() >= 0 || info.code() == libc::SI_TKILL) && receiver != call.thread.tid() {
        return Err(Errno::EPERM);
    }
    if to_thread {
        return send_info(call, receiver, info);
    }
    if call.ends_process(signal) {
        return call.fault(Fault::raised(signal));
    }
    call.signal_self(info)
}

fn pidfd_send_signal(call: &mut Call) -> Result<u64, Errno> {
    let (pidfd, number, address) = (call.int(0), call.int(1), call.args[2]);
    let pid = host::pid_of(pidfd).ok_or(Errno::EBADF)?;
    let own = std::process::id() as i32;
    let signal = Signal::new(number as u32);
    let given = match (address, signal) {
        (0, _) | (_, None) => None,
        (at, Some(signal)) => Some(SignalInfo::from_bytes(signal, &call.read(at)?)),
    };
    if let (true, Some(signal)) = (pid == own, signal) {
        if call.ends_process(signal) {
            return call.fault(Fault::raised(signal));
        }
        if !signal.is_catchable() {
            return call.pass();
        }
        let info = given.unwrap_or(SignalInfo::from_process(signal, own, host::user()));
        return call.signal_self(info);
    }
    if number == 0 || !call.in_domain() {
        return call.pass();
    }
    // Whether it may be sent is known now; it is sent at the commit.
    host::kill(pid, 0).map_err(|e| errno_of(&e))?;
    Signal::new(number as u32).ok_or(Errno::EINVAL)?;
    call.defer(Deferred::SignalProcess {
        pid,
        signal: number,
    });
    Ok(0)
}

impl Call<'_, '_> {
    /// Sends a signal that does not end it to the process itself.
    fn signal_self(&mut self, info: SignalInfo) -> Result<u64, Errno> {
        if !self.handle_at_once(info, Ok(0)) {
            self.defer(Deferred::SignalSelf { info });
            self.settle_signals()?;
        }
        Ok(0)
    }

    /// `rt_sigqueueinfo` to another process, or with no signal.
    fn queue_elsewhere(
        &mut self,
        bytes: &[u8; SignalInfo::SIZE],
        to_thread: bool,
    ) -> Result<u64, Errno> {
        let at = if to_thread { 3 } else { 2 };
        let mut args = self.args;
        args[at] = bytes.as_ptr() as u64;
        self.commit_early(Early::External)?;
        // SAFETY: the kernel reads the `siginfo_t`, which is in the monitor.
        unsafe { host::syscall(u64::from(self.row.number), args) }
    }

    /// Whether `signal`, sent by the running domain to its own thread or process, is a fault of it: it would
    /// end the process. A crash is one even if the guest has a handler for it. Any other signal is treated
    /// like `exit`.
    fn ends_process(&self, signal: Signal) -> bool {
        if !self.in_domain() || self.thread.blocked.contains(signal) {
            return false;
        }
        let delivery = self.state.dispositions.delivery(signal);
        match is_fatal(signal) {
            true => delivery != Delivery::Ignore,
            false => {
                let exits = delivery == Delivery::End && self.in_request();
                let allowed = self.thread.process.options.limits.allow_exit;
                exits && !allowed && !self.is_ending()
            }
        }
    }

    /// The call has written to a peer that has gone, which this tells the thread. If that would end the process, the request
    /// has crashed.
    pub(super) fn raise_sigpipe(&mut self) {
        let info =
            SignalInfo::from_thread(Signal::SIGPIPE, std::process::id() as i32, host::user());
        if self.in_request() && self.ends_process(Signal::SIGPIPE) {
            self.thread.vcpu.registers().rax = to_rax(Err(Errno::EPIPE));
            let _ = self.fault(Fault::raised(Signal::SIGPIPE));
        } else if !self.handle_at_once(info, Err(Errno::EPIPE)) {
            match self.in_request() {
                true => {
                    let tid = self.thread.tid();
                    self.defer(Deferred::SignalThread { tid, info });
                }
                false => self.thread.control.send(info),
            }
        }
    }

    /// The signals that the running domain has sent to its own thread or process, and that wait for its commit.
    fn sent_to_itself(&self) -> SignalSet {
        let own = self.thread.tid();
        let domain = self.state.domain.iter();
        let sent = domain.flat_map(|domain| domain.journal.deferred().iter());
        sent.filter_map(|effect| match effect {
            Deferred::SignalSelf { info } => Some(info.signal),
            Deferred::SignalThread { tid, info } if *tid == own => Some(info.signal),
            _ => None,
        })
        .collect()
    }

    /// The fatal signal that the running request has sent to itself, and that is not blocked any more.
    fn fatal_signal_opened(&self) -> Option<Signal> {
        let sent = self.sent_to_itself();
        sent.iter().find(|signal| self.ends_process(*signal))
    }

    /// Runs the handler of a signal that a request sends to itself before the call returns, as Linux does: the
    /// handler is part of the request, and the call's `result` what it returns to. False if there is none to run now.
    fn handle_at_once(&mut self, info: SignalInfo, result: Result<u64, Errno>) -> bool {
        let signal = info.signal;
        let Delivery::Handle(action) = self.state.dispositions.delivery(signal) else {
            return false;
        };
        if !self.in_request() || self.thread.blocked.contains(signal) {
            return false;
        }
        if action.is_one_shot() {
            self.compensate(Undo::Disposition { signal, action });
        }
        self.thread.vcpu.registers().rax = to_rax(result);
        self.thread.run_handler(self.state, info, action, (0, 0, 0));
        self.done = Some(Ok(crate::process::thread::Flow::Continue));
        true
    }

    /// A signal that the thread has sent to itself is delivered before its call returns, unless it is part of
    /// a client's request: then when that has ended.
    fn settle_signals(&mut self) -> Result<(), Errno> {
        if !self.in_request() {
            self.commit()?;
            self.thread.control.request_attention();
        }
        Ok(())
    }
}
