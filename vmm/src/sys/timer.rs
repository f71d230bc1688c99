//! Timers: set at once, set back at abandon to the time that was left.

use guest_agentless::{Errno, Signal};

use super::{Call, Handler};
use crate::host;
use crate::process::effects::{Deferred, HostCall, Undo};
use crate::process::host_signals;

pub fn handler(number: i64) -> Option<Handler> {
    Some(match number {
        libc::SYS_timerfd_settime => timerfd_settime,
        libc::SYS_setitimer | libc::SYS_alarm => set_interval_timer,
        libc::SYS_timer_create => timer_create,
        libc::SYS_timer_settime => timer_settime,
        libc::SYS_timer_gettime | libc::SYS_timer_getoverrun => ask_timer,
        libc::SYS_timer_delete => timer_delete,
        _ => return None,
    })
}

/// Asks for the setting of a timer (`struct itimerspec` or `itimerval`).
fn setting(number: i64, timer: u64) -> Result<Vec<u8>, Errno> {
    let mut value = vec![0u8; 32];
    let args = [timer, value.as_mut_ptr() as u64, 0, 0, 0, 0];
    // SAFETY: the calls that come here write 32 bytes.
    unsafe { host::syscall(number as u64, args) }?;
    Ok(value)
}

fn timerfd_settime(call: &mut Call) -> Result<u64, Errno> {
    let fd = call.args[0];
    let old = setting(libc::SYS_timerfd_gettime, fd)?;
    // Setting a timer forgets its expirations.
    let expired = host::timer_ticks(fd as i32);
    let result = call.pass()?;
    if expired > 0 {
        call.compensate(Undo::Expirations {
            fd: fd as i32,
            count: expired,
        });
    }
    let back = HostCall::with(libc::SYS_timerfd_settime, [fd, 0, 0, 0, 0, 0], old);
    call.compensate_by(back, "a timer was set");
    Ok(result)
}

fn set_interval_timer(call: &mut Call) -> Result<u64, Errno> {
    let which = match i64::from(call.row.number) {
        libc::SYS_alarm => libc::ITIMER_REAL as u64,
        _ => call.args[0],
    };
    let signal = match which as i32 {
        0 => Signal::SIGALRM,
        1 => Signal::SIGVTALRM,
        2 => Signal::SIGPROF,
        _ => return Err(Errno::EINVAL),
    };
    let old = setting(libc::SYS_getitimer, which)?;
    let result = call.pass()?;
    call.compensate(Undo::IntervalTimer {
        call: HostCall::with(libc::SYS_setitimer, [which, 0, 0, 0, 0, 0], old),
        // One that is there already is not the timer's that is set now.
        signal: Some(signal).filter(|signal| !host_signals::pending().contains(*signal)),
    });
    Ok(result)
}

fn timer_create(call: &mut Call) -> Result<u64, Errno> {
    let result = call.pass()?;
    let timer = i32::from_ne_bytes(call.read(call.args[2])?);
    let back = HostCall::numbers(libc::SYS_timer_delete, [timer as u64, 0, 0, 0, 0, 0]);
    call.compensate_by(back, "a timer was made");
    Ok(result)
}

impl Call<'_, '_> {
    /// A timer that this domain has deleted is not there any more.
    fn check_timer(&self) -> Result<(), Errno> {
        let deleted = |effect: &Deferred| match effect {
            Deferred::Later { call, .. } => {
                call.number() == libc::SYS_timer_delete && call.args()[0] as i32 == self.int(0)
            }
            _ => false,
        };
        let mut domains = self.state.domain.iter();
        match domains.any(|domain| domain.journal.deferred().iter().any(deleted)) {
            true => Err(Errno::EINVAL),
            false => Ok(()),
        }
    }
}

fn timer_settime(call: &mut Call) -> Result<u64, Errno> {
    call.check_timer()?;
    let timer = call.args[0];
    let old = setting(libc::SYS_timer_gettime, timer)?;
    let result = call.pass()?;
    let back = HostCall::with(libc::SYS_timer_settime, [timer, 0, 0, 0, 0, 0], old);
    call.compensate_by(back, "a timer was set");
    Ok(result)
}

fn ask_timer(call: &mut Call) -> Result<u64, Errno> {
    call.check_timer()?;
    call.pass()
}

fn timer_delete(call: &mut Call) -> Result<u64, Errno> {
    call.check_timer()?;
    let timer = call.args[0];
    setting(libc::SYS_timer_gettime, timer)?;
    call.defer(Deferred::Later {
        call: HostCall::numbers(libc::SYS_timer_delete, [timer, 0, 0, 0, 0, 0]),
        what: "a timer was deleted",
    });
    Ok(0)
}
