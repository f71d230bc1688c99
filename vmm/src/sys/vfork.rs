//! `vfork`, and `clone` with CLONE_VFORK: the parent waits until its child executes a program or ends.
//!
//! The child has a copy of the memory that Linux would let it share with its parent. What it writes to the stack of the
//! thread that made it is what parents look at afterwards: why a program could not be executed (`posix_spawn`). That is
//! told through a pipe when the child lets go of its parent.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use guest_agentless::{DefaultAction, Errno, GuestRange, Signal, SignalSet};

use super::Call;
use crate::memory::{copy, kept_copy, window};
use crate::process::control::blocking_syscall;
use crate::process::host_signals;
use crate::process::signals::Delivery;

/// Bytes of the parent's stack, from its stack pointer on, whose changes it is told.
const STACK: u64 = 64 << 10;

/// What a child owes its parent.
pub struct Debt {
    pipe: File,
    stack: GuestRange,
    before: Vec<u8>,
}

/// What a parent waits for.
pub struct Claim(File);

/// Before the fork: both ends. `stack` is the parent's stack pointer.
pub fn prepare(stack: u64) -> io::Result<(Claim, Debt)> {
    let (reader, writer) = pipe()?;
    let window = window::windows().find(|w| w.contains(stack));
    let len = window.map_or(0, |window| (window.end() - stack).min(STACK));
    let mut before = vec![0; len as usize];
    let readable = match window::checked(stack, len) {
        Some(range) => copy::read_partial(range, &mut before),
        None => 0,
    };
    before.truncate(readable);
    let debt = Debt {
        pipe: File::from(kept_copy(writer.as_raw_fd())?),
        stack: GuestRange::from_bounds(stack, stack.saturating_add(readable as u64)),
        before,
    };
    Ok((Claim(File::from(kept_copy(reader.as_raw_fd())?)), debt))
}

fn pipe() -> io::Result<(OwnedFd, OwnedFd)> {
    let mut ends = [0; 2];
    // SAFETY: room for two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: new descriptors that nobody else owns.
    Ok(unsafe { (OwnedFd::from_raw_fd(ends[0]), OwnedFd::from_raw_fd(ends[1])) })
}

impl Debt {
    /// The descriptor that keeps the parent waiting.
    pub fn fd(&self) -> RawFd {
        self.pipe.as_raw_fd()
    }

    /// In the child, before it executes a program or ends: the parent goes on.
    pub fn pay(mut self) {
        let mut now = vec![0; self.before.len()];
        let len = copy::read_partial(self.stack, &mut now);
        let told = changes(self.stack.start(), &self.before[..len], &now[..len]);
        // A parent that has died does not mind.
        let _ = self.pipe.write_all(&told);
    }
}

/// The bytes that differ, in runs: the address, the length and the bytes of each.
fn changes(start: u64, before: &[u8], now: &[u8]) -> Vec<u8> {
    let mut told = Vec::new();
    let mut at = start;
    let both: Vec<(u8, u8)> = before.iter().copied().zip(now.iter().copied()).collect();
    for run in both.chunk_by(|a, b| (a.0 == a.1) == (b.0 == b.1)) {
        if run.first().is_some_and(|(before, now)| before != now) {
            told.extend(at.to_ne_bytes());
            told.extend((run.len() as u32).to_ne_bytes());
            told.extend(run.iter().map(|(_, now)| now));
        }
        at += run.len() as u64;
    }
    told
}

/// The first of `told`, and the rest; none if it is not whole.
fn split(told: &[u8]) -> Option<(u64, &[u8], &[u8])> {
    let (address, rest) = told.split_first_chunk()?;
    let (len, rest) = rest.split_first_chunk()?;
    let (bytes, rest) = rest.split_at_checked(u32::from_ne_bytes(*len) as usize)?;
    Some((u64::from_ne_bytes(*address), bytes, rest))
}

impl Call<'_, '_> {
    /// In the parent: waits for the child, whatever signals come meanwhile but those that end the process at once.
    pub(super) fn await_child(&mut self, claim: Claim) -> Result<(), Errno> {
        self.thread.park(false);
        let told = self.listen(&claim);
        host_signals::close(self.thread.blocked);
        // Who has kicked meanwhile was not attended to.
        self.thread.control.request_attention();
        if self.is_outdated() {
            return Err(Errno::EINTR);
        }
        let mut rest = &told[..];
        while let Some((address, bytes, after)) = split(rest) {
            // What the parent may not write it has not been told.
            let _ = self.write(address, bytes);
            rest = after;
        }
        Ok(())
    }

    /// Everything that the child says until it lets go, or until this is no longer wanted.
    fn listen(&mut self, claim: &Claim) -> Vec<u8> {
        /// What a child can say of its parent's stack, at most.
        const LIMIT: usize = STACK as usize * 16;
        let control = self.thread.control;
        let (mut told, mut part) = (Vec::new(), [0u8; 4096]);
        while told.len() < LIMIT {
            if control.take_attention() {
                self.thread.vcpu.clear_kick();
            }
            let ending = self.ending_signals();
            let sent = control.take_pending(ending);
            if let Some(info) = sent.or_else(|| host_signals::take(ending)) {
                self.thread.deliver(self.state, info, (0, 0, 0));
            }
            let (fd, at, len) = (claim.0.as_raw_fd(), part.as_mut_ptr(), part.len());
            let args = [fd as u64, at as u64, len as u64, 0, 0, 0];
            let read = self.state.released(|| {
                // SAFETY: the kernel writes at most `len` bytes to `part`, which nobody else uses.
                let wait = || unsafe { blocking_syscall(control, libc::SYS_read, args) };
                host_signals::while_open(SignalSet::ALL.difference(ending), wait)
            });
            if self.is_outdated() {
                break;
            }
            match read {
                Ok(0) => break,
                Ok(n) => told.extend_from_slice(&part[..n as usize]),
                Err(Errno::EINTR) => {}
                Err(error) => {
                    log::warn!("a child's end could not be awaited: {error}");
                    break;
                }
            }
        }
        told
    }

    /// The signals that end the process at once: Linux makes a SIGKILL of them, but not of those that dump a core.
    fn ending_signals(&self) -> SignalSet {
        let ends = |signal: &Signal| {
            signal.default_action() == DefaultAction::Terminate
                && self.state.dispositions.delivery(*signal) == Delivery::End
        };
        let open = SignalSet::ALL.difference(self.thread.blocked);
        open.iter().filter(ends).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn changes_are_told_in_runs() {
        let told = changes(0x1000, b"abcdefgh", b"abXYefgZ");
        let (address, bytes, rest) = split(&told).unwrap();
        assert_eq!((address, bytes), (0x1002, &b"XY"[..]));
        let (address, bytes, rest) = split(rest).unwrap();
        assert_eq!((address, bytes), (0x1007, &b"Z"[..]));
        assert!(split(rest).is_none() && rest.is_empty());
        assert!(changes(0, b"same", b"same").is_empty());
        assert!(split(&told[..13]).is_none());
    }
}
