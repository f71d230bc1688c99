//! The shared-memory token: one process of a server at a time may touch memory that its processes share.
//!
//! The token is a lock in memory common to all monitors of the server. A process takes it when its running domain first
//! touches shared memory, and gives it back when the domain has committed or has been undone, so no other process ever
//! sees a word that may still be undone, or one that is ahead of a file write that waits for the commit.
//!
//! A holder that was killed is found by its process ID. A process that waits leaves a time stamp, so that the holder knows
//! that it should commit soon ([`Token::is_wanted`]); nothing has to be taken back if the waiter is killed.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use crate::host;

/// How long a process may keep the token while another one waits for it.
pub const HOLD_MOST: Duration = Duration::from_millis(10);
/// How long a waiter sleeps before it looks whether the holder is alive, and renews its request.
const LOOK: Duration = Duration::from_millis(1);
/// How long a request for the token stands. Longer than [`LOOK`], for waiters that wait for a processor.
const REQUEST_STANDS: Duration = Duration::from_millis(10);
/// How long the last holder steps back while others wait.
const STEP_BACK: Duration = Duration::from_micros(200);

/// The token. All zero is a valid and free one.
#[derive(Debug, Default)]
#[repr(C, align(64))]
pub struct Token {
    /// The process ID of the holder, or 0. A futex.
    holder: AtomicU32,
    /// The process ID of the last holder. A futex for those who step back.
    last: AtomicU32,
    /// The monotonic clock, in nanoseconds, until which somebody wants it.
    wanted_until: AtomicU64,
    /// How often somebody has waited for longer than [`HOLD_MOST`]. A futex.
    pressed: AtomicU32,
}

/// What a process had to do for the token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// It was free.
    AtOnce,
    /// Another process had it.
    Waited,
}

impl Token {
    /// Takes the token for process `pid`, which does not hold it; waits for it if need be. `has_ended` says whether a process
    /// will never run again.
    pub fn take(&self, pid: u32, has_ended: impl Fn(u32) -> bool) -> Taken {
        if self.last.load(Ordering::Relaxed) == pid && self.is_wanted() {
            // The others would hardly ever get it from a process that takes it again at once.
            host::futex_wait(&self.last, pid, STEP_BACK);
        }
        let mut taken = Taken::AtOnce;
        let mut begun = None;
        loop {
            let free = self
                .holder
                .compare_exchange(0, pid, Ordering::Acquire, Ordering::Relaxed);
            let Err(holder) = free else { break };
            // An earlier program of the same process, or an earlier process of the same ID, has left it.
            if holder == pid {
                break;
            }
            taken = Taken::Waited;
            self.want();
            let begun = begun.get_or_insert_with(host::monotonic_time);
            if host::futex_wait(&self.holder, holder, LOOK) {
                continue;
            }
            if has_ended(holder) {
                let _ =
                    self.holder
                        .compare_exchange(holder, 0, Ordering::Acquire, Ordering::Relaxed);
            }
            if host::monotonic_time().saturating_sub(*begun) >= HOLD_MOST {
                self.pressed.fetch_add(1, Ordering::Relaxed);
                host::futex_wake(&self.pressed, i32::MAX);
            }
        }
        if self.last.swap(pid, Ordering::Relaxed) != pid && taken == Taken::Waited {
            host::futex_wake(&self.last, 1);
        }
        taken
    }

    /// Gives the token of process `pid` back. All that it has written is visible to the next holder.
    pub fn give_back(&self, pid: u32) {
        let given = self
            .holder
            .compare_exchange(pid, 0, Ordering::Release, Ordering::Relaxed);
        if given.is_ok() && self.is_wanted() {
            host::futex_wake(&self.holder, 1);
        }
    }

    /// Whether another process waits for it, or did a moment ago.
    pub fn is_wanted(&self) -> bool {
        let until = self.wanted_until.load(Ordering::Relaxed);
        until != 0 && host::monotonic_time() < Duration::from_nanos(until)
    }

    /// Waits until somebody has waited for it for too long, or `most`.
    pub fn await_pressure(&self, most: Duration) {
        let pressed = self.pressed.load(Ordering::Relaxed);
        host::futex_wait(&self.pressed, pressed, most);
    }

    fn want(&self) {
        let until = host::monotonic_time() + REQUEST_STANDS;
        self.wanted_until
            .store(until.as_nanos() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::cell::UnsafeCell;
    use std::thread;
    use std::time::Instant;

    use super::*;

    struct Guarded(Token, UnsafeCell<u64>);
    // SAFETY: the cell is only touched by whoever holds the token.
    unsafe impl Sync for Guarded {}

    #[test]
    fn one_at_a_time_holds_it() {
        let guarded = Guarded(Token::default(), UnsafeCell::new(0));
        thread::scope(|scope| {
            for pid in 1..=4 {
                let guarded = &guarded;
                scope.spawn(move || {
                    for _ in 0..2_000 {
                        guarded.0.take(pid, |_| false);
                        // SAFETY: this thread holds the token.
                        unsafe { *guarded.1.get() += 1 };
                        guarded.0.give_back(pid);
                    }
                });
            }
        });
        assert_eq!(guarded.1.into_inner(), 8_000);
    }

    #[test]
    fn the_token_of_a_process_that_has_ended_is_taken() {
        let token = Token::default();
        assert_eq!(token.take(1, |_| false), Taken::AtOnce);
        assert_eq!(token.take(2, |pid| pid == 1), Taken::Waited);
        // What the first one gives back late is not the second one's.
        token.give_back(1);
        assert_eq!(token.holder.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_new_program_of_the_same_process_takes_what_the_old_one_left() {
        let token = Token::default();
        token.take(7, |_| false);
        let begun = Instant::now();
        token.take(7, |_| false);
        assert!(begun.elapsed() < Duration::from_secs(1));
    }

    #[test]
    fn a_request_lapses() {
        let token = Token::default();
        token.take(1, |_| false);
        assert!(!token.is_wanted());
        token.want();
        assert!(token.is_wanted());
        thread::sleep(REQUEST_STANDS);
        assert!(!token.is_wanted());
    }
}
