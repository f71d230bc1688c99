//! SIGSEGV and SIGBUS as the host has them: faults of the monitor's copies of guest memory, and what others send.
//!
//! They are never blocked where guest memory is copied, so the kernel cannot keep them for the guest as it keeps other
//! signals ([`super::host_signals`]). What the kernel has not made of a fault is kept here until a thread that does not
//! block it takes it, one of each as for any standard signal. Which thread it was sent to is not kept.

use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::{io, ptr};

use guest_agentless::{Signal, SignalSet};

use super::control;
use super::signals::SignalInfo;
use crate::host;
use crate::memory::copy;

/// The signals that are handled here.
pub const SET: SignalSet = SignalSet(1 << (libc::SIGSEGV - 1) | 1 << (libc::SIGBUS - 1));

static SLOTS: [Slot; 2] = [Slot::new(libc::SIGBUS), Slot::new(libc::SIGSEGV)];

/// Whether a signal is pending, and its `siginfo_t`. Handlers fill it on any thread; the holder of the run token empties it.
struct Slot {
    number: i32,
    state: AtomicU8,
    info: [AtomicU64; SignalInfo::SIZE / 8],
}

const EMPTY: u8 = 0;
/// Being filled or emptied. What comes meanwhile is one with what is there.
const BUSY: u8 = 1;
const FULL: u8 = 2;

impl Slot {
    const fn new(number: i32) -> Slot {
        Slot {
            number,
            state: AtomicU8::new(EMPTY),
            info: [const { AtomicU64::new(0) }; SignalInfo::SIZE / 8],
        }
    }

    /// Async-signal-safe.
    fn fill(&self, bytes: &[u8; SignalInfo::SIZE]) {
        if !self.passes(EMPTY, BUSY) {
            return;
        }
        let (words, _) = bytes.as_chunks::<8>();
        for (kept, word) in self.info.iter().zip(words) {
            kept.store(u64::from_ne_bytes(*word), Ordering::Relaxed);
        }
        self.state.store(FULL, Ordering::SeqCst);
    }

    fn take(&self) -> Option<SignalInfo> {
        if !self.passes(FULL, BUSY) {
            return None;
        }
        let mut bytes = [0; SignalInfo::SIZE];
        let (words, _) = bytes.as_chunks_mut::<8>();
        for (kept, word) in self.info.iter().zip(words) {
            *word = kept.load(Ordering::Relaxed).to_ne_bytes();
        }
        self.state.store(EMPTY, Ordering::Release);
        SignalInfo::from_host(&bytes)
    }

    fn passes(&self, from: u8, to: u8) -> bool {
        let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
        let passed = self.state.compare_exchange(from, to, success, failure);
        passed.is_ok()
    }

    fn signal(&self) -> Option<Signal> {
        Signal::new(self.number as u32)
    }
}

/// Those that wait for a thread to take them.
pub fn pending() -> SignalSet {
    let full = SLOTS
        .iter()
        .filter(|slot| slot.state.load(Ordering::SeqCst) == FULL);
    full.filter_map(Slot::signal).collect()
}

/// Takes one of `wanted`.
pub fn take(wanted: SignalSet) -> Option<SignalInfo> {
    let is_wanted = |slot: &&Slot| slot.signal().is_some_and(|s| wanted.contains(s));
    SLOTS.iter().filter(is_wanted).find_map(Slot::take)
}

/// Keeps one for whichever thread takes it. Async-signal-safe.
pub fn keep(number: i32, bytes: &[u8; SignalInfo::SIZE]) {
    if let Some(slot) = SLOTS.iter().find(|slot| slot.number == number) {
        slot.fill(bytes);
        control::kick_others();
    }
}

/// Runs `action` while they wait with the host's kernel. Guest memory must not be copied meanwhile.
pub fn while_blocked<R>(action: impl FnOnce() -> R) -> R {
    let before = host::block_signals(SET.0);
    let result = action();
    host::set_signal_mask(before);
    result
}

/// In a forked child, before any can come: what is pending is its parent's.
pub fn forget() {
    for slot in &SLOTS {
        slot.state.store(EMPTY, Ordering::Release);
    }
}

/// Gives what is pending to the host's kernel, which keeps it for the next program.
pub fn hand_on() {
    host::block_signals(SET.0);
    while let Some(info) = take(SET) {
        host::queue_to_own_thread(info.signal.raw(), &info.to_bytes());
    }
}

/// Installs the handler. Faults elsewhere than in the copies kill the monitor.
pub fn install_handler() -> io::Result<()> {
    // SAFETY: an all-zero `sigaction` is a valid value.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_fault_signal as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
    action.sa_mask = host::all_signals();
    for signal in [libc::SIGSEGV, libc::SIGBUS] {
        // SAFETY: `action` is initialised and its handler is async-signal-safe.
        if unsafe { libc::sigaction(signal, &action, ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fault_signal(number: i32, info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: the kernel passes a valid `ucontext_t` to an SA_SIGINFO handler.
    let context = unsafe { &mut *context.cast::<libc::ucontext_t>() };
    // SAFETY: the kernel passes a valid `siginfo_t`, which has this size.
    let (code, bytes) = unsafe { ((*info).si_code, &*info.cast::<[u8; SignalInfo::SIZE]>()) };
    if code <= 0 {
        // SAFETY: `errno` is the thread's own.
        let errno = unsafe { *libc::__errno_location() };
        keep(number, bytes);
        // SAFETY: as above.
        unsafe { *libc::__errno_location() = errno };
        control::interrupt_current(context);
        return;
    }
    if !copy::mend(context) {
        // A bug of the monitor itself: die of it, with a core, at the instruction that faulted.
        // SAFETY: restores the default disposition; the instruction runs again when the handler returns.
        unsafe { libc::signal(number, libc::SIG_DFL) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_keeps_the_first_until_it_is_taken() {
        let slot = Slot::new(libc::SIGBUS);
        let from = |pid| SignalInfo::from_process(Signal::SIGBUS, pid, 7);
        assert_eq!(slot.take(), None);
        slot.fill(&from(1).to_bytes());
        slot.fill(&from(2).to_bytes());
        assert_eq!(slot.take(), Some(from(1)));
        assert_eq!(slot.take(), None);
        slot.fill(&from(2).to_bytes());
        assert_eq!(slot.take(), Some(from(2)));
    }
}
