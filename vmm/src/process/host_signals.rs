//! Signals on their way from the host to the guest.
//!
//! The host kernel keeps what is pending, in its order and with its `siginfo`. While a guest thread is in the guest
//! or waits in a host call, the host's mask of its thread is the guest's; whenever else the monitor's code runs, all
//! signals that can become the guest's are blocked, and the monitor takes them out one by one as it delivers them.
//! So `sigpending`, `sigtimedwait`, `signalfd` and the queues of real-time signals are the kernel's own.
//!
//! `KVM_RUN` leaves a signal that ends it pending. A host call does not: there the handler takes it, closes the mask,
//! and leaves it in the thread's [`Hand`].
//!
//! SIGSEGV and SIGBUS cannot be blocked, and are kept elsewhere ([`fault_signals`]).

use std::cell::{Cell, UnsafeCell};
use std::io;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering, compiler_fence};

use guest_agentless::{Signal, SignalSet};

use super::control::{self, KICK_SIGNAL};
use super::fault_signals;
use super::signals::{Dispositions, SignalInfo};
use crate::host;

/// Bytes of a signal set, as the kernel has it.
const SET_SIZE: usize = size_of::<u64>();

/// The signals whose host action is to catch them for the guest.
static CAUGHT: AtomicU64 = AtomicU64::new(0);

/// Job control: the host's default actions serve the guest as well, so these are not caught unless the guest wants
/// to handle them.
const STOPS: SignalSet = SignalSet(
    1 << (libc::SIGTSTP - 1)
        | 1 << (libc::SIGTTIN - 1)
        | 1 << (libc::SIGTTOU - 1)
        | 1 << (libc::SIGCONT - 1),
);

/// The signal that a thread has taken from the kernel and not delivered yet.
struct Hand {
    full: Cell<bool>,
    info: UnsafeCell<[u8; SignalInfo::SIZE]>,
    /// The thread waits in a host call: the handler may fill the hand.
    is_open: Cell<bool>,
}

thread_local! {
    static HAND: Hand = const {
        Hand { full: Cell::new(false), info: UnsafeCell::new([0; SignalInfo::SIZE]), is_open: Cell::new(false) }
    };
}

impl Hand {
    /// Puts `bytes` in, unless there is one.
    fn fill(&self, bytes: &[u8; SignalInfo::SIZE]) -> bool {
        if self.full.get() {
            return false;
        }
        // SAFETY: only this thread and its signal handler come here; the handler does so only while the hand is open,
        // when the thread does not.
        unsafe { *self.info.get() = *bytes };
        compiler_fence(Ordering::SeqCst);
        self.full.set(true);
        true
    }

    fn look(&self) -> Option<SignalInfo> {
        if !self.full.get() {
            return None;
        }
        compiler_fence(Ordering::SeqCst);
        // SAFETY: as in `fill`; a full hand is not written.
        SignalInfo::from_host(unsafe { &*self.info.get() })
    }

    fn take(&self, wanted: SignalSet) -> Option<SignalInfo> {
        let info = self.look().filter(|info| wanted.contains(info.signal))?;
        self.full.set(false);
        Some(info)
    }
}

/// Whether the monitor catches `signal` for the guest from the start. Others are its own, or the host's default stays.
fn is_caught(signal: Signal) -> bool {
    !STOPS.contains(signal)
        && !matches!(
            signal.raw(),
            libc::SIGKILL
                | libc::SIGSTOP
                | libc::SIGSEGV
                | libc::SIGBUS
                | libc::SIGPIPE
                | 32
                | 33
                | KICK_SIGNAL
        )
}

/// Whether `signal` goes through the host's kernel when the guest sends it to itself. Others go from thread to thread
/// in the monitor.
pub fn is_hosts(signal: Signal) -> bool {
    caught().contains(signal)
}

/// `set` without the monitor's own signal between its threads.
pub fn without_kick(mut set: SignalSet) -> SignalSet {
    if let Some(kick) = Signal::new(KICK_SIGNAL as u32) {
        set.remove(kick);
    }
    set
}

fn caught() -> SignalSet {
    SignalSet(CAUGHT.load(Ordering::Acquire))
}

/// The host's mask while the guest runs that blocks `blocked`.
pub fn open_mask(blocked: SignalSet) -> SignalSet {
    blocked.intersection(caught().union(STOPS))
}

/// The host's mask for everything else.
pub fn closed_mask(blocked: SignalSet) -> SignalSet {
    caught().union(blocked.intersection(STOPS))
}

/// Closes the mask of the calling thread, for a guest that blocks `blocked`; returns what it was.
pub fn close(blocked: SignalSet) -> SignalSet {
    SignalSet(host::set_signal_mask(closed_mask(blocked).0))
}

/// Runs `wait`, which is to be ended by a signal that the guest does not block.
pub fn while_open<R>(blocked: SignalSet, wait: impl FnOnce() -> R) -> R {
    HAND.with(|hand| hand.is_open.set(true));
    compiler_fence(Ordering::SeqCst);
    host::set_signal_mask(open_mask(blocked).0);
    let result = wait();
    close(blocked);
    compiler_fence(Ordering::SeqCst);
    HAND.with(|hand| hand.is_open.set(false));
    result
}

/// The signals that the calling thread or the process could be given, if it blocks none.
pub fn pending() -> SignalSet {
    let mut set = 0u64;
    // SAFETY: the set has the size that is said.
    unsafe { libc::syscall(libc::SYS_rt_sigpending, &raw mut set, SET_SIZE) };
    let in_hand = HAND.with(Hand::look);
    in_hand
        .into_iter()
        .map(|info| info.signal)
        .collect::<SignalSet>()
        .union(SignalSet(set).intersection(caught()))
        .union(fault_signals::pending())
}

/// Takes the signal of `wanted` that is next for the calling thread.
pub fn take(wanted: SignalSet) -> Option<SignalInfo> {
    let kept = HAND.with(|hand| hand.take(wanted));
    if let Some(info) = kept.or_else(|| fault_signals::take(wanted)) {
        return Some(info);
    }
    let wanted = wanted.intersection(caught());
    if wanted == SignalSet::EMPTY {
        return None;
    }
    let mut bytes = [0; SignalInfo::SIZE];
    let now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: the set has the size that is said, and the result that of a `siginfo_t`.
    let taken = unsafe {
        libc::syscall(
            libc::SYS_rt_sigtimedwait,
            &raw const wanted.0,
            &raw mut bytes,
            &raw const now,
            SET_SIZE,
        )
    };
    match taken {
        1.. => SignalInfo::from_host(&bytes),
        _ => None,
    }
}

/// Takes the next signal of `open` and keeps it in hand, so that nobody else gets it; false if there is none. Those
/// that `dispositions` ignore are dropped.
pub fn keep_next(open: SignalSet, dispositions: &Dispositions) -> bool {
    while let Some(info) = take(open) {
        if !dispositions.ignores(info.signal) {
            return HAND.with(|hand| hand.fill(&info.to_bytes()));
        }
    }
    false
}

/// The guest blocks what the calling thread has in hand: it goes back to where it was.
pub fn put_back(blocked: SignalSet) {
    if let Some(info) = HAND.with(|hand| hand.take(blocked)) {
        give_back(info);
    }
}

fn give_back(info: SignalInfo) {
    let (number, bytes) = (info.signal.raw(), info.to_bytes());
    match fault_signals::SET.contains(info.signal) {
        true => fault_signals::keep(number, &bytes),
        false => host::queue_to_own_thread(number, &bytes),
    }
}

/// The calling thread ends: what it has in hand goes to another one.
pub fn pass_on() {
    let Some(info) = HAND.with(|hand| hand.take(SignalSet::ALL)) else {
        return;
    };
    if fault_signals::SET.contains(info.signal) {
        give_back(info);
    } else if send(info, None).is_err() {
        // Only a process' first thread may say that somebody else has sent it.
        let _ = host::kill(std::process::id() as i32, info.signal.raw());
    }
}

/// In a forked child: what the parent has in hand is not the child's.
pub fn forget() {
    fault_signals::forget();
    HAND.with(|hand| {
        hand.full.set(false);
        hand.is_open.set(false);
    });
}

/// Sends a signal of the guest's to its own process, or to one of its threads.
pub fn send(info: SignalInfo, thread: Option<i32>) -> io::Result<()> {
    let (own, number) = (std::process::id() as i32, info.signal.raw());
    let bytes = info.to_bytes();
    // SAFETY: the calls take numbers, and a `siginfo_t` that outlives them.
    let result = unsafe {
        match (thread, info.code()) {
            (None, libc::SI_USER) => libc::syscall(libc::SYS_kill, own, number),
            (None, _) => libc::syscall(libc::SYS_rt_sigqueueinfo, own, number, &raw const bytes),
            (Some(tid), libc::SI_TKILL) => libc::syscall(libc::SYS_tgkill, own, tid, number),
            (Some(tid), _) => {
                let info = &raw const bytes;
                libc::syscall(libc::SYS_rt_tgsigqueueinfo, own, tid, number, info)
            }
        }
    };
    match result {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// What the host does with a signal on behalf of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostAction {
    /// It is caught and becomes the guest's.
    Catch,
    /// It is ignored.
    Ignore,
    /// The host's default: it stops the process, continues it, or does nothing.
    Default,
}

/// Sets what the host does with `signal`. `flags` are those of the guest that mean something whoever handles it.
pub fn set_host_action(signal: Signal, action: HostAction, flags: i32) -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid value.
    let mut wanted: libc::sigaction = unsafe { std::mem::zeroed() };
    wanted.sa_sigaction = match action {
        HostAction::Catch => on_signal as *const () as usize,
        HostAction::Ignore => libc::SIG_IGN,
        HostAction::Default => libc::SIG_DFL,
    };
    // Without SA_RESTART: blocking calls end with EINTR, and the guest's own flag decides.
    wanted.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK | flags;
    // In the handler of one all others wait: the stack has room for few.
    wanted.sa_mask = host::all_signals();
    let bit = SignalSet::of(signal).0;
    let is_guests = signal.raw() != KICK_SIGNAL && action != HostAction::Default;
    // A thread may run its handler before its mask knows of it: then it puts the signal back.
    match is_guests {
        true => CAUGHT.fetch_or(bit, Ordering::AcqRel),
        false => CAUGHT.fetch_and(!bit, Ordering::AcqRel),
    };
    // SAFETY: `wanted` is initialised and the handler async-signal-safe.
    match unsafe { libc::sigaction(signal.raw(), &wanted, ptr::null_mut()) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The guest's action for `signal` has changed: the host's follows.
pub fn mirror(signal: Signal, dispositions: &Dispositions) {
    let is_stop = STOPS.contains(signal);
    if !is_stop && !is_caught(signal) {
        return;
    }
    let action = dispositions.get(signal);
    let host = match action.handler as usize {
        libc::SIG_IGN => HostAction::Ignore,
        libc::SIG_DFL if is_stop => HostAction::Default,
        _ => HostAction::Catch,
    };
    let flags = action.flags as i32 & (libc::SA_NOCLDSTOP | libc::SA_NOCLDWAIT);
    if let Err(error) = set_host_action(signal, host, flags) {
        log::error!("cannot set the host's action for {signal:?}: {error}");
    }
}

/// Catches the signals that the guest may get, and the monitor's own kick.
pub fn install_handlers() -> io::Result<()> {
    for signal in (1..=64).filter_map(Signal::new) {
        let is_kick = signal.raw() == KICK_SIGNAL;
        if !is_kick && !is_caught(signal) {
            continue;
        }
        // Whether the guest starts with it ignored is inherited, as through exec.
        let action = match !is_kick && inherited_ignored(signal) {
            true => HostAction::Ignore,
            false => HostAction::Catch,
        };
        set_host_action(signal, action, 0)?;
    }
    Ok(())
}

/// Whether the monitor was started with `signal` ignored.
pub fn inherited_ignored(signal: Signal) -> bool {
    // SAFETY: an all-zero `sigaction` is valid for the call to fill in.
    unsafe {
        let mut current: libc::sigaction = std::mem::zeroed();
        libc::sigaction(signal.raw(), ptr::null(), &mut current) == 0
            && current.sa_sigaction == libc::SIG_IGN
    }
}

extern "C" fn on_signal(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `ucontext_t` to an SA_SIGINFO handler.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    if number != KICK_SIGNAL {
        // SAFETY: `errno` is the thread's own.
        let errno = unsafe { *libc::__errno_location() };
        // SAFETY: the kernel passes a valid `siginfo_t`, which has this size.
        let bytes = unsafe { &*info.cast::<[u8; SignalInfo::SIZE]>() };
        // SAFETY: the kernel's part of the set are its first eight bytes.
        let mask = unsafe { &mut *(&raw mut context.uc_sigmask).cast::<u64>() };
        *mask |= caught().0;
        if !HAND.with(|hand| hand.is_open.get() && hand.fill(bytes)) {
            host::queue_to_own_thread(number, bytes);
        }
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
    }
    control::interrupt_current(context);
}
