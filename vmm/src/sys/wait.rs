//! Calls that wait: how a thread gives up the run token and comes back.

use std::sync::atomic::Ordering;
use std::time::Duration;

use guest_agentless::{Errno, sync, to_rax};
use recovery::Origin;

use super::{Call, Handler, copy_u32};
use crate::host;
use crate::process::State;
use crate::process::control::blocking_syscall;
use crate::process::domain::{Domain, Early};
use crate::process::effects::Deferred;
use crate::process::fault::Fault;
use crate::process::files::Kind;
use crate::process::host_signals;

/// How long what a request has to say waits while the request waits.
pub const OUTPUT_PATIENCE: Duration = Duration::from_millis(20);

/// What a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum For {
    /// More work: the domain has ended.
    Work,
    /// Something in the middle of the domain: a lock, a time, a disk.
    Midway,
}

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_nanosleep => nanosleep,
        libc::SYS_clock_nanosleep => clock_nanosleep,
        libc::SYS_pause => pause,
        libc::SYS_sched_yield => sched_yield,
        libc::SYS_connect => slow_external,
        _ => return None,
    })
}

/// For the kernel: where a `timespec` is, or 0.
pub fn pointer_to(time: &Option<[u8; 16]>) -> u64 {
    time.as_ref().map_or(0, |bytes| bytes.as_ptr() as u64)
}

impl Call<'_, '_> {
    /// The `timespec` at `address`, if there is one.
    pub(super) fn read_timespec(&mut self, address: u64) -> Result<Option<[u8; 16]>, Errno> {
        (address != 0).then(|| self.read(address)).transpose()
    }

    /// Ends or suspends the domain, and makes a host call without the run token. EINTR if a signal is to be
    /// delivered; other kicks do not end it.
    ///
    /// # Safety
    ///
    /// The arguments must be valid for the host call, and the host must not write guest memory through
    /// them while faults are recovered from: other threads run meanwhile.
    pub(super) unsafe fn block(
        &mut self,
        number: i64,
        args: [u64; 6],
        what: For,
    ) -> Result<u64, Errno> {
        match what {
            For::Work => self.commit()?,
            For::Midway => {
                self.unless_it_crashes()?;
                let suspended = self.thread.suspend(self.state);
                self.unless_put_back(suspended)?;
            }
        }
        // SAFETY: the caller answers for the arguments.
        let result = unsafe { self.wait_released(number, args) };
        self.thread.resume(self.state);
        match result {
            Some(result) => result,
            None if self.thread.overdue() => {
                // What the thread sees if the request goes on all the same.
                self.thread.vcpu.registers().rax = to_rax(Err(Errno::EINTR));
                self.fault(Fault::timeout())
            }
            None => self.interrupted(),
        }
    }

    /// As [`Call::block`], for a call that SA_RESTART does not restart (signal(7)).
    ///
    /// # Safety
    ///
    /// As for [`Call::block`].
    pub(super) unsafe fn block_once(
        &mut self,
        number: i64,
        args: [u64; 6],
        what: For,
    ) -> Result<u64, Errno> {
        // SAFETY: the caller answers for the arguments.
        let result = unsafe { self.block(number, args, what) };
        self.thread.restart = None;
        result
    }

    /// The host call without the run token; none if a signal is to be delivered first, if the request's time is
    /// up, or if the result is no longer wanted.
    ///
    /// # Safety
    ///
    /// As for [`Call::block`].
    unsafe fn wait_released(&mut self, number: i64, args: [u64; 6]) -> Option<Result<u64, Errno>> {
        let control = self.thread.control;
        self.thread.park(true);
        let mut has_blamed = false;
        loop {
            if control.take_attention() {
                self.thread.vcpu.clear_kick();
            }
            // Once: those who wait for each other would blame each other for ever.
            if self.thread.overdue() && !has_blamed {
                has_blamed = true;
                if self.blame_holder(number, args) {
                    control.request.spare();
                }
            }
            if self.thread.overdue() || self.thread.has_deliverable(self.state) {
                return None;
            }
            control.enter_host();
            let blocked = self.thread.blocked;
            let result = self.state.released(|| {
                // SAFETY: the caller answers for the arguments.
                let wait = || unsafe { blocking_syscall(control, number, args) };
                let result = host_signals::while_open(blocked, wait);
                control.leave_host(number, result)
            });
            control.go_on();
            if self.is_outdated() {
                return None;
            }
            match result {
                Err(Errno::EINTR) if self.thread.has_deliverable(self.state) => return None,
                Err(Errno::EINTR) => {}
                other => return Some(other),
            }
        }
    }

    /// If the thread waits for a mutex that another request holds, in a wait of its own, it is that one which takes too
    /// long.
    fn blame_holder(&self, number: i64, args: [u64; 6]) -> bool {
        let operation = args[1] as i32 & !libc::FUTEX_PRIVATE_FLAG;
        if number != libc::SYS_futex || operation != libc::FUTEX_WAIT {
            return false;
        }
        let word = |address| copy_u32(address).ok();
        let Some(owner) = sync::mutex_owner(&word, args[0]) else {
            return false;
        };
        let is_request = |domain: &Domain| domain.is_request();
        if !self.state.suspended.get(&owner).is_some_and(is_request) {
            return false;
        }
        let threads = self.thread.process.threads();
        let Some((control, running)) = threads
            .get(&owner)
            .and_then(|control| Some((control, control.request.running()?)))
        else {
            return false;
        };
        control.request.set_overdue(running);
        control.kick();
        true
    }

    /// Whether the process was restarted while this call waited: whatever comes of it is no longer wanted.
    pub(super) fn is_outdated(&self) -> bool {
        self.thread.is_outdated(self.state)
    }

    /// Whether the running request has effects that wait for its end.
    pub(super) fn has_effects(&self) -> bool {
        self.in_request() && self.state.domain.as_ref().is_some_and(Domain::has_deferred)
    }

    /// Whether the running request has answered its client, or hung up.
    pub(super) fn has_answered(&self) -> bool {
        self.state.domain.as_ref().is_some_and(Domain::has_answered)
    }

    /// The effects of the running request take place. If it has answered and now waits for what may be its next
    /// task, it has ended; otherwise it goes on.
    pub(super) fn let_go(&mut self, maybe_for_work: bool) -> Result<(), Errno> {
        if maybe_for_work && self.has_answered() {
            // What comes is not about the events that it was woken for.
            self.thread.wakeup = None;
            return self.commit();
        }
        self.commit_early(Early::Suspended)
    }

    /// What the running request has sent leaves, since it waits now: its peers may wait for that.
    pub(super) fn let_output_go(&mut self) -> Result<(), Errno> {
        let state: &mut State = self.state;
        let is_output = |effect: &Deferred| match effect {
            Deferred::Send { .. } | Deferred::SendTo { .. } | Deferred::Shutdown { .. } => true,
            Deferred::Write { fd, .. } | Deferred::Close { fd } => {
                state.files.kind(*fd) != Kind::File
            }
            _ => false,
        };
        let has_output = state
            .domain
            .as_ref()
            .is_some_and(|domain| domain.journal.deferred().iter().any(is_output));
        match has_output {
            true => self.commit_early(Early::Suspended),
            false => Ok(()),
        }
    }

    /// The running request is about to sleep for so long: what it has sent does not wait longer than the
    /// patience, however the sleep is cut up.
    fn let_output_go_before(&mut self, sleep: Duration) -> Result<(), Errno> {
        let Some(domain) = &mut self.state.domain else {
            return Ok(());
        };
        domain.slept = domain.slept.saturating_add(sleep);
        match domain.slept > OUTPUT_PATIENCE {
            true => self.let_output_go(),
            false => Ok(()),
        }
    }

    /// The client of the running request has taken some of its answer: the request's time begins anew, so that an answer
    /// may take as long as its client likes.
    pub(super) fn note_progress(&self, fd: i32) {
        let domain = self.state.domain.as_ref().map(|domain| domain.origin);
        let continues = self.thread.continues.as_ref().map(|rest| rest.origin);
        if domain.or(continues) == Some(Origin::Stream(fd)) {
            self.thread.limits_anew();
        }
    }

    /// A signal is delivered before the guest goes on.
    pub(super) fn interrupted(&mut self) -> Result<u64, Errno> {
        // The request may well wait for what the handler does, so it cannot be put off until its end.
        self.commit_early(Early::Suspended)?;
        self.thread.restart = Some(u64::from(self.row.number));
        self.thread.control.request_attention();
        Err(Errno::EINTR)
    }

    /// Says what the domain that begins when this call returns is charged to.
    pub(super) fn next_is(&mut self, origin: Origin) {
        if self.state.domain.is_none() {
            self.thread.next_origin = origin;
        }
    }

    /// Whether a request that is about to wait for `word`, without a limit, would wait for an effect of its
    /// own that only its commit makes real, and so can never go on: it has sent a signal to another
    /// thread, or it waits for the end of a thread that is older than itself. Servers do this on their crash
    /// path: they cancel their threads and join them (`docs/decisions/0004`).
    pub(super) fn waits_for_own_effect(&self, word: u64) -> bool {
        let Some(domain) = self
            .state
            .domain
            .as_ref()
            .filter(|domain| domain.is_request())
        else {
            return false;
        };
        let mut effects = domain.journal.deferred().iter();
        let threads = self.thread.process.threads();
        let own = self.thread.tid();
        effects.any(|effect| matches!(effect, Deferred::SignalThread { tid, .. } if *tid != own))
            // A request that has made a thread has been committed for that.
            || domain.committed_early.is_none()
                && threads.values().any(|t| t.clear_tid.load(Ordering::Relaxed) == word)
    }

    /// Whether a domain that has left a fault behind, and is about to sleep for `time`, is going to end the process. Go's runtime
    /// stops its other threads before it does, and sleeps for that; otherwise it sleeps for less, or waits for a futex.
    fn is_dying(&self, time: &[u8; 16]) -> bool {
        const SHORTEST: u64 = 1_000_000;
        let word = |i: usize| u64::from_ne_bytes(time[i..i + 8].try_into().unwrap_or([0; 8]));
        let is_long = word(0) > 0 || word(8) >= SHORTEST;
        is_long && self.thread.has_left_fault() && !self.has_answered()
    }

    /// Ends the request as faulted.
    pub(super) fn fault(&mut self, fault: Fault) -> Result<u64, Errno> {
        self.done = Some(self.thread.fault(self.state, fault));
        Ok(0)
    }
}

fn nanosleep(call: &mut Call) -> Result<u64, Errno> {
    let request: [u8; 16] = call.read(call.args[0])?;
    sleep(call, libc::CLOCK_MONOTONIC, 0, request, call.args[1])
}

fn clock_nanosleep(call: &mut Call) -> Result<u64, Errno> {
    let request: [u8; 16] = call.read(call.args[2])?;
    sleep(call, call.int(0), call.args[1], request, call.args[3])
}

fn sleep(
    call: &mut Call,
    clock: i32,
    flags: u64,
    request: [u8; 16],
    remaining: u64,
) -> Result<u64, Errno> {
    if flags == 0 && call.is_dying(&request) {
        return call.fault(Fault::crash_path());
    }
    call.let_output_go_before(duration(clock, flags, &request))?;
    let mut rest = [0u8; 16];
    let args = [
        clock as u64,
        flags,
        request.as_ptr() as u64,
        rest.as_mut_ptr() as u64,
        0,
        0,
    ];
    // SAFETY: both pointers are to arrays of the size of a `timespec` that live until the call is over.
    let result = unsafe { call.block_once(libc::SYS_clock_nanosleep, args, For::Midway) };
    call.next_is(Origin::Timer);
    if result == Err(Errno::EINTR) && remaining != 0 && flags & libc::TIMER_ABSTIME as u64 == 0 {
        call.write(remaining, &rest)?;
    }
    result
}

/// How long a sleep is.
fn duration(clock: i32, flags: u64, request: &[u8; 16]) -> Duration {
    let word = |i: usize| u64::from_ne_bytes(request[i..i + 8].try_into().unwrap_or([0; 8]));
    let time = Duration::from_secs(word(0)).saturating_add(Duration::from_nanos(word(8)));
    match flags & libc::TIMER_ABSTIME as u64 {
        0 => time,
        _ => time.saturating_sub(host::clock_time(clock)),
    }
}

fn pause(call: &mut Call) -> Result<u64, Errno> {
    // SAFETY: the call has no arguments.
    unsafe { call.block_once(libc::SYS_pause, [0; 6], For::Work) }
}

fn sched_yield(call: &mut Call) -> Result<u64, Errno> {
    // What it spins on may be in memory that it keeps from other processes.
    let committed = call.thread.leave_shared_midway(call.state);
    call.unless_put_back(committed)?;
    // A request keeps the token: nothing that it could wait for is held by a thread that may run.
    if !call.in_request() {
        call.commit()?;
        call.thread.park(true);
        call.state.released(|| ());
    }
    Ok(0)
}

/// Calls with effects that cannot be undone, which may take long, and write no guest memory.
fn slow_external(call: &mut Call) -> Result<u64, Errno> {
    call.commit_early(Early::External)?;
    let mut args = call.checked_args()?.values;
    // The address must not change under the call.
    let mut address = [0u8; 128];
    if i64::from(call.row.number) == libc::SYS_connect {
        let len = call.row.count(2, &call.args).min(address.len() as u64) as usize;
        let bytes = call.read_vec(call.args[1], len)?;
        address[..len].copy_from_slice(&bytes);
        args[1] = address.as_ptr() as u64;
        args[2] = len as u64;
    }
    // SAFETY: `connect` is given a copy of the address.
    let result = unsafe { call.block(i64::from(call.row.number), args, For::Midway) };
    let fd = call.int(0);
    call.state.files.forget(fd);
    result
}
