//! seccomp(2): the guest's filters of its own system calls. The monitor executes them ([`guest_agentless::seccomp`]): the
//! host's would bind its own calls, too.

use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use guest_agentless::seccomp::{Filter, Filters, INSTRUCTION, MOST_INSTRUCTIONS, Request, Verdict};
use guest_agentless::{Errno, Signal, to_rax};

use super::{Call, Handler};
use crate::host;
use crate::kvm::KvmError;
use crate::memory::reserved_fd;
use crate::process::Turn;
use crate::process::domain::{Domain, Early};
use crate::process::fault::Fault;
use crate::process::thread::{Flow, Thread};

pub fn handler(number: i64) -> Option<Handler> {
    (number == libc::SYS_seccomp).then_some(seccomp as Handler)
}

const MOST_ERROR: u16 = 4095;
const CAP_SYS_ADMIN: u32 = 21;

/// What comes of a system call that the thread's filters have looked at.
pub(super) enum Judged {
    /// It takes place.
    Allowed,
    /// It is over.
    Done(Result<Flow, KvmError>),
    /// The thread exits instead.
    EndsThread,
}

/// Asks the filters of `thread` about the call that it makes.
pub(super) fn judge(thread: &mut Thread, turn: &mut Turn<'_>, args: [u64; 6]) -> Judged {
    let Some(filters) = turn.filters.get(&thread.tid()) else {
        return Judged::Allowed;
    };
    let registers = *thread.vcpu.registers();
    let request = Request {
        number: registers.rax as u32,
        address: registers.rip,
        args,
    };
    let rax = match filters.verdict(&request) {
        Verdict::Allow | Verdict::Log => return Judged::Allowed,
        Verdict::Fail(error) => u64::from(error.min(MOST_ERROR)).wrapping_neg(),
        // Nobody is there to decide.
        Verdict::Notify | Verdict::Trace => to_rax(Err(Errno::ENOSYS)),
        Verdict::Trap(error) => {
            let fault = Fault::forbidden_call(registers.rip, request.number, error);
            return Judged::Done(thread.fault(turn, fault));
        }
        verdict @ (Verdict::KillProcess | Verdict::KillThread) => {
            let signal = match filters.is_strict() {
                true => Signal::SIGKILL,
                false => Signal::SIGSYS,
            };
            let in_request = turn.domain.as_ref().is_some_and(Domain::is_request);
            let has_others = thread.process.threads().len() > 1;
            if verdict == Verdict::KillThread && has_others && !in_request {
                return Judged::EndsThread;
            }
            let fault = Fault::killed(signal, registers.rip);
            return Judged::Done(thread.fault(turn, fault));
        }
    };
    thread.vcpu.registers().rax = rax;
    Judged::Done(Ok(Flow::Continue))
}

fn seccomp(call: &mut Call) -> Result<u64, Errno> {
    let [operation, flags, address, ..] = call.args;
    match operation as u32 {
        libc::SECCOMP_SET_MODE_STRICT if flags == 0 && address == 0 => call.be_strict(),
        libc::SECCOMP_SET_MODE_FILTER => call.add_filter(address, flags),
        libc::SECCOMP_GET_ACTION_AVAIL if flags == 0 => {
            let action = u32::from_ne_bytes(call.read(address)?);
            match Verdict::is_known(action) {
                true => Ok(0),
                false => Err(Errno::EOPNOTSUPP),
            }
        }
        _ => Err(Errno::EINVAL),
    }
}

impl Call<'_, '_> {
    /// `PR_GET_SECCOMP`.
    pub(super) fn seccomp_mode(&self) -> u64 {
        match self.state.filters.contains_key(&self.thread.tid()) {
            true => u64::from(libc::SECCOMP_MODE_FILTER),
            false => u64::from(libc::SECCOMP_MODE_DISABLED),
        }
    }

    /// `PR_SET_SECCOMP`.
    pub(super) fn set_seccomp_mode(&mut self, mode: u64, address: u64) -> Result<u64, Errno> {
        match mode as u32 {
            libc::SECCOMP_MODE_STRICT => self.be_strict(),
            libc::SECCOMP_MODE_FILTER => self.add_filter(address, 0),
            _ => Err(Errno::EINVAL),
        }
    }

    fn be_strict(&mut self) -> Result<u64, Errno> {
        if self.state.filters.contains_key(&self.thread.tid()) {
            return Err(Errno::EINVAL);
        }
        self.set_filters(Filters::strict(), &[])
    }

    fn add_filter(&mut self, address: u64, flags: u64) -> Result<u64, Errno> {
        const KNOWN: u64 = libc::SECCOMP_FILTER_FLAG_TSYNC
            | libc::SECCOMP_FILTER_FLAG_LOG
            | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW
            | libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH;
        if flags & !KNOWN != 0 {
            return Err(Errno::EINVAL);
        }
        // `struct sock_fprog`.
        let count = usize::from(u16::from_ne_bytes(self.read(address)?));
        let program = address.checked_add(8).ok_or(Errno::EFAULT)?;
        let program = u64::from_ne_bytes(self.read(program)?);
        if !(1..=MOST_INSTRUCTIONS).contains(&count) {
            return Err(Errno::EINVAL);
        }
        if host::prctl(libc::PR_GET_NO_NEW_PRIVS, 0)? == 0 && !host::is_capable(CAP_SYS_ADMIN) {
            return Err(Errno::EACCES);
        }
        let bytes = self.read_vec(program, count * INSTRUCTION)?;
        let filter = Filter::parse(&bytes)?;
        let own = self.state.filters.get(&self.thread.tid());
        let before = own.cloned().unwrap_or_default();
        let mut filters = before.clone();
        filters.add(filter)?;
        let mut others = Vec::new();
        if flags & libc::SECCOMP_FILTER_FLAG_TSYNC != 0 {
            others.extend(self.thread.process.threads().keys().copied());
            let none = Filters::default();
            let diverges = |tid: &&i32| {
                let theirs = self.state.filters.get(*tid).unwrap_or(&none);
                !theirs.is_base_of(&before)
            };
            if let Some(tid) = others.iter().find(diverges) {
                return match flags & libc::SECCOMP_FILTER_FLAG_TSYNC_ESRCH {
                    0 => Ok(*tid as u64),
                    _ => Err(Errno::ESRCH),
                };
            }
        }
        self.set_filters(filters, &others)
    }

    /// They are never taken off again.
    fn set_filters(&mut self, filters: Filters, others: &[i32]) -> Result<u64, Errno> {
        self.commit_early(Early::External)?;
        // The image of before is of a process without.
        self.state.restart.files_changed = true;
        for tid in others {
            self.state.filters.insert(*tid, filters.clone());
        }
        self.state.filters.insert(self.thread.tid(), filters);
        Ok(0)
    }

    /// For the program that is executed next: a file with this thread's filters, if it has some.
    pub(super) fn filters_for_exec(&self) -> io::Result<Option<OwnedFd>> {
        let filters = self.state.filters.get(&self.thread.tid());
        filters.map(write_filters).transpose()
    }
}

/// A file in memory that is open in what is executed next: of each filter the length, and its instructions.
fn write_filters(filters: &Filters) -> io::Result<OwnedFd> {
    let mut file = std::fs::File::from(host::memory_file(c"seccomp", 0)?);
    for filter in filters.iter() {
        file.write_all(&(filter.bytes().len() as u32).to_ne_bytes())?;
        file.write_all(filter.bytes())?;
    }
    file.rewind()?;
    let fd = reserved_fd(file.into())?;
    host::fcntl(fd.as_raw_fd(), libc::F_SETFD, 0)?;
    Ok(fd)
}

/// What [`Call::filters_for_exec`] has handed on as `fd`, which is closed.
pub fn read_filters(fd: RawFd) -> io::Result<Filters> {
    // SAFETY: the number was handed on for this, and nobody else knows it.
    let mut file = std::fs::File::from(unsafe { OwnedFd::from_raw_fd(fd) });
    let mut bytes = Vec::new();
    file.read_to_end(&mut bytes)?;
    let mut filters = Filters::default();
    let mut rest = &bytes[..];
    while let Some((len, after)) = rest.split_first_chunk() {
        let filter = after.split_at_checked(u32::from_ne_bytes(*len) as usize);
        let (filter, after) = filter.ok_or(io::ErrorKind::UnexpectedEof)?;
        let added = Filter::parse(filter).and_then(|filter| filters.add(filter));
        added.map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.name()))?;
        rest = after;
    }
    Ok(filters)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::IntoRawFd;

    #[test]
    fn filters_go_through_an_exec() {
        let fails = [0x06, 0, 0, 0, 7, 0, 5, 0];
        let mut filters = Filters::default();
        for _ in 0..3 {
            filters.add(Filter::parse(&fails).unwrap()).unwrap();
        }
        let fd = write_filters(&filters).unwrap().into_raw_fd();
        let read = read_filters(fd).unwrap();
        assert_eq!(read.iter().count(), 3);
        assert!(read.iter().all(|filter| filter.bytes() == fails));
    }
}
