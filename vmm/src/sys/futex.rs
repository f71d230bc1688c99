//! `futex`: waits give up the run token, everything else is done at once.
//!
//! A wake-up is not undone: to the thread that was woken it is a spurious one, which every user of futexes
//! has to expect. The woken thread runs only after the domain has ended, because it needs the run token.

use guest_agentless::Errno;

use super::wait::{For, OUTPUT_PATIENCE};
use super::{Call, Handler};
use crate::memory::window;
use crate::process::domain::Early;
use crate::process::fault::Fault;

/// How long what a request has to say waits while the request waits for a lock, as a `timespec`.
static PATIENCE: [i64; 2] = [0, OUTPUT_PATIENCE.subsec_nanos() as i64];

/// The value of a mutex of glibc for which a thread waits.
const LOCKED_AND_WAITED_FOR: u32 = 2;

/// Futexes of which the process remembers that somebody has waited for them.
const WAIT_WORDS_LIMIT: usize = 4096;

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_futex).then_some(futex as Handler)
}

fn futex(call: &mut Call) -> Result<u64, Errno> {
    let [word, operation, value, fourth, word2, value3] = call.args;
    if !word.is_multiple_of(4) {
        return Err(Errno::EINVAL);
    }
    window::checked(word, 4).ok_or(Errno::EFAULT)?;
    let command = operation as i32 & !(libc::FUTEX_PRIVATE_FLAG | libc::FUTEX_CLOCK_REALTIME);
    let mut args = [word, operation, value, fourth, 0, value3];
    match command {
        libc::FUTEX_WAIT | libc::FUTEX_WAIT_BITSET => {}
        libc::FUTEX_WAKE | libc::FUTEX_WAKE_BITSET => {
            let woken = host_futex(args)?;
            if woken > 0 {
                call.thread.note_handoff(call.state);
            }
            return Ok(woken);
        }
        libc::FUTEX_REQUEUE | libc::FUTEX_CMP_REQUEUE => {
            // A requeued waiter could not be put back, so all are woken.
            window::checked(word2, 4).ok_or(Errno::EFAULT)?;
            if command == libc::FUTEX_CMP_REQUEUE && current(call, word)? != value3 as u32 {
                return Err(Errno::EAGAIN);
            }
            let wake = (operation as i32 & libc::FUTEX_PRIVATE_FLAG) | libc::FUTEX_WAKE;
            return host_futex([word, wake as u64, i32::MAX as u64, 0, 0, 0]);
        }
        libc::FUTEX_WAKE_OP => {
            let range = window::checked(word2, 4).ok_or(Errno::EFAULT)?;
            call.thread.mark_written(call.state, range);
            args[4] = word2;
            return host_futex(args);
        }
        libc::FUTEX_UNLOCK_PI | libc::FUTEX_TRYLOCK_PI => {
            call.commit_early(Early::External)?;
            let range = window::checked(word, 4).ok_or(Errno::EFAULT)?;
            call.thread.mark_written(call.state, range);
            return host_futex(args);
        }
        // FUTEX_LOCK_PI writes the word while others run; see docs/syscalls.md.
        _ => return Err(Errno::ENOSYS),
    }
    let timeout: [u8; 16];
    if fourth != 0 {
        timeout = call.read(fourth)?;
        args[3] = timeout.as_ptr() as u64;
    }
    // Without giving up the token if there is nothing to wait for.
    if current(call, word)? != value as u32 {
        return Err(Errno::EAGAIN);
    }
    if fourth == 0 && call.waits_for_own_effect(word) {
        if !call.is_ending() {
            return call.fault(Fault::crash_path());
        }
        // It stops its threads because it ends, not because it crashes.
        call.commit_early(Early::Suspended)?;
    }
    let plain = command == libc::FUTEX_WAIT;
    if !plain && call.state.wait_words.len() < WAIT_WORDS_LIMIT {
        call.state.wait_words.insert(word);
    }
    // A single thread waits for itself, and for ever, unless another process or the time ends that.
    let is_private = operation as i32 & libc::FUTEX_PRIVATE_FLAG != 0;
    let waits_for_itself = is_private && fourth == 0 && call.thread.process.threads().len() <= 1;
    if call.has_effects() && !waits_for_itself {
        // Only the mutexes of glibc wait like this.
        let is_mutex = plain && value as u32 == LOCKED_AND_WAITED_FOR;
        if fourth == 0 && (plain || !call.has_answered() && value3 as u32 == u32::MAX) {
            // Most locks are free soon.
            let private = operation & libc::FUTEX_PRIVATE_FLAG as u64;
            let wait = libc::FUTEX_WAIT as u64 | private;
            let patience = PATIENCE.as_ptr() as u64;
            match wait_for(call, [word, wait, value, patience, 0, 0], plain) {
                Err(Errno::ETIMEDOUT) => {}
                other => return other,
            }
        }
        // Somebody may wait for them, maybe the one who is to wake this thread.
        call.let_go(!is_mutex)?;
    }
    let result = wait_for(call, args, plain);
    if fourth != 0 {
        // With a limit it is not restarted after a handler (signal(7)).
        call.thread.restart = None;
    }
    result
}

fn wait_for(call: &mut Call, args: [u64; 6], plain: bool) -> Result<u64, Errno> {
    if let Some(domain) = &mut call.state.domain {
        domain.waits.begin(args[0], plain);
    }
    // SAFETY: the word is in a guest window, of which the host reads it; the timeout is the monitor's.
    let result = unsafe { call.block(libc::SYS_futex, args, For::Midway) };
    if let Some(domain) = &mut call.state.domain {
        domain.waits.end();
    }
    result
}

fn current(call: &mut Call, word: u64) -> Result<u32, Errno> {
    Ok(u32::from_ne_bytes(call.read(word)?))
}

fn host_futex(args: [u64; 6]) -> Result<u64, Errno> {
    // SAFETY: the words lie in guest windows; the operations that come here do not block and write at most
    // the second word, which has been marked.
    unsafe { crate::host::syscall(libc::SYS_futex as u64, args) }
}
