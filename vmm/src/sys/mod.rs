//! System calls: from the registers of a guest thread to the host kernel and back.
//!
//! [`serve`] looks the call up in the table, checks its descriptors and pointers, and hands it to its
//! handler. Calls without one are passed through as the table describes them. Handlers return a result; one
//! function turns it into RAX.

mod aio;
mod attribute;
mod buffer;
pub mod end;
mod event;
mod event_read;
mod exec;
mod file;
mod foretell;
mod fork;
mod futex;
mod io;
mod ioctl;
mod ipc;
mod lock;
mod memory;
mod net;
mod own_files;
mod own_writes;
mod process;
mod receive;
pub mod seccomp;
mod signal;
mod stat_buffer;
mod thread;
mod timer;
mod transfer;
mod verify;
pub mod vfork;
mod wait;
mod watch;

use guest_agentless::syscall::{self, ArgKind, Effect, Size, Support, Syscall};
use guest_agentless::{Errno, GuestRange, to_rax};
use recovery::Origin;

use crate::host;
pub use crate::host::errno_of;
use crate::kvm::KvmError;
use crate::memory::{copy, first_reserved, window};
use crate::process::Turn;
use crate::process::domain::{Domain, Early};
use crate::process::effects::{Deferred, HostCall, Undo};
use crate::process::fault::Fault;
use crate::process::rerun::Committed;
use crate::process::strike::Struck;
use crate::process::thread::{Flow, Thread};

/// Bytes on the way between host and guest for which there is always room. A read of a socket that takes more makes room
/// for as long as it lasts.
pub const BOUNCE: usize = 64 << 10;
/// Elements of an `iovec` array, as in Linux (`UIO_MAXIOV`).
const IOV_MAX: u64 = 1024;
/// What the kernel reads or writes with one call at most (`MAX_RW_COUNT`).
const TRANSFERRED_MOST: u64 = 0x7fff_f000;

/// A system call in progress.
pub struct Call<'a, 'p> {
    thread: &'a mut Thread,
    state: &'a mut Turn<'p>,
    row: &'static Syscall,
    args: [u64; 6],
    /// The registers are set already: there is no result to put into RAX.
    done: Option<Result<Flow, KvmError>>,
}

type Handler = fn(&mut Call<'_, '_>) -> Result<u64, Errno>;

/// Serves the system call that `thread` has left the guest for.
pub fn serve(thread: &mut Thread, state: &mut Turn<'_>) -> Result<Flow, KvmError> {
    let regs = *thread.vcpu.registers();
    let args = [regs.rdi, regs.rsi, regs.rdx, regs.r10, regs.r8, regs.r9];
    thread.process.stats.syscalls.inc(regs.rax);
    thread.restart = None;
    match thread.strike_at_call(state, regs.rax) {
        Struck::GoOn => {}
        Struck::Diverted => return Ok(Flow::Continue),
        Struck::Fault(fault) => return thread.fault(state, fault),
        Struck::Fails(error) => {
            thread.vcpu.registers().rax = to_rax(Err(error));
            return Ok(Flow::Continue);
        }
    }
    if let Some(domain) = &mut state.domain {
        domain.calls += 1;
    }
    let number = match state.filters.is_empty() {
        true => regs.rax,
        false => match seccomp::judge(thread, state, args) {
            seccomp::Judged::Allowed => regs.rax,
            seccomp::Judged::EndsThread => libc::SYS_exit as u64,
            seccomp::Judged::Done(flow) => return flow,
        },
    };
    let Some(row) = syscall::lookup(number) else {
        thread.vcpu.registers().rax = unsupported(thread, regs.rax, Errno::ENOSYS);
        return Ok(Flow::Continue);
    };
    if row.support == Support::Refused {
        let error = row.refusal().unwrap_or(Errno::ENOSYS);
        thread.vcpu.registers().rax = unsupported(thread, regs.rax, error);
        return Ok(Flow::Continue);
    }
    let mut call = Call {
        thread,
        state,
        row,
        args,
        done: None,
    };
    let result = match call.check_descriptors().and_then(|()| call.verify_heap()) {
        Ok(()) => call.handle(),
        Err(error) => Err(error),
    };
    call.heap_unverified();
    log::trace!("{} = {result:?}", syscall::fmt_call(row, args));
    if result == Err(Errno::EPIPE)
        && call.done.is_none()
        && call.raises_sigpipe()
        && !call.is_outdated()
    {
        call.raise_sigpipe();
    }
    if call.is_outdated() {
        // The process was restarted while the call waited: the thread goes on elsewhere.
        return Ok(Flow::Continue);
    }
    match call.done.take() {
        Some(flow) => flow,
        None => {
            thread.vcpu.registers().rax = to_rax(result);
            Ok(Flow::Continue)
        }
    }
}

fn unsupported(thread: &Thread, number: u64, error: Errno) -> u64 {
    let stats = &thread.process.stats;
    if stats.unsupported.get(number) == 0 {
        let name = syscall::lookup(number).map_or("unknown", |row| row.name);
        log::info!(
            "the guest's system call {number} ({name}) is refused with {}",
            error.name()
        );
    }
    stats.unsupported.inc(number);
    to_rax(Err(error))
}

/// As much of `range` as one call may write.
fn most_of(range: GuestRange) -> GuestRange {
    let len = range.len().min(TRANSFERRED_MOST);
    GuestRange::from_bounds(range.start(), range.start().saturating_add(len))
}

impl Call<'_, '_> {
    fn handle(&mut self) -> Result<u64, Errno> {
        match self.handler() {
            Some(handler) => handler(self),
            None => self.pass_by_class(),
        }
    }

    fn handler(&self) -> Option<Handler> {
        let number = i64::from(self.row.number);
        memory::handler(number)
            .or_else(|| process::handler(number))
            .or_else(|| exec::handler(number))
            .or_else(|| fork::handler(number))
            .or_else(|| signal::handler(number))
            .or_else(|| thread::handler(number))
            .or_else(|| futex::handler(number))
            .or_else(|| attribute::handler(number))
            .or_else(|| timer::handler(number))
            .or_else(|| lock::handler(number))
            .or_else(|| watch::handler(number))
            .or_else(|| transfer::handler(number))
            .or_else(|| aio::handler(number))
            .or_else(|| seccomp::handler(number))
            .or_else(|| receive::handler(number))
            .or_else(|| file::handler(number))
            .or_else(|| ioctl::handler(number))
            .or_else(|| net::handler(number))
            .or_else(|| event::handler(number))
            .or_else(|| ipc::handler(number))
            .or_else(|| wait::handler(number))
    }

    /// Descriptors that are the monitor's own, or that this domain has closed, are not open.
    fn check_descriptors(&mut self) -> Result<(), Errno> {
        for (arg, value) in self.row.args.iter().zip(self.args) {
            let fd = value as i32;
            match arg.kind {
                ArgKind::Fd => self.check_descriptor(fd)?,
                ArgKind::DirFd if fd >= first_reserved() => return Err(Errno::EBADF),
                _ => {}
            }
        }
        Ok(())
    }

    /// The monitor's own descriptors and those that the domain has closed are none of the guest's.
    fn check_descriptor(&self, fd: i32) -> Result<(), Errno> {
        match fd >= first_reserved() || self.state.files.is_closing(fd) {
            true => Err(Errno::EBADF),
            false => Ok(()),
        }
    }

    /// Whether a broken pipe is told by a signal too: the monitor's own writes never raise it.
    fn raises_sigpipe(&self) -> bool {
        match i64::from(self.row.number) {
            libc::SYS_sendto | libc::SYS_sendmmsg => self.int(3) & libc::MSG_NOSIGNAL == 0,
            libc::SYS_sendmsg => self.int(2) & libc::MSG_NOSIGNAL == 0,
            _ => true,
        }
    }

    /// Argument `index` as a descriptor or other `int`.
    fn int(&self, index: usize) -> i32 {
        self.args[index] as i32
    }

    /// Whether faults are recovered from.
    fn protected(&self) -> bool {
        self.thread.process.options.protect
    }

    /// Whether the running domain is a client's request: what it does must be undone if it faults.
    fn in_domain(&self) -> bool {
        self.state.domain.is_some()
    }

    /// Whether the running domain does its effects at once.
    fn in_pass_through(&self) -> bool {
        self.state.domain.as_ref().is_some_and(|d| d.pass_through)
    }

    /// Whether the running domain is charged to a client.
    fn in_request(&self) -> bool {
        self.state.domain.as_ref().is_some_and(Domain::is_request)
    }

    /// A call without a handler of its own: it is done at once, after a commit if it cannot be undone.
    fn pass_by_class(&mut self) -> Result<u64, Errno> {
        match self.row.effect {
            Effect::Pure => {}
            _ => self.commit_early(Early::External)?,
        }
        self.pass()
    }

    /// Takes note of a call that changes files: a restart in place would not undo it.
    fn note_file_change(&mut self) {
        const CHANGES: [i64; 14] = [
            libc::SYS_truncate,
            libc::SYS_rename,
            libc::SYS_renameat,
            libc::SYS_renameat2,
            libc::SYS_unlink,
            libc::SYS_unlinkat,
            libc::SYS_link,
            libc::SYS_linkat,
            libc::SYS_symlink,
            libc::SYS_symlinkat,
            libc::SYS_mkdir,
            libc::SYS_mkdirat,
            libc::SYS_rmdir,
            libc::SYS_creat,
        ];
        let number = i64::from(self.row.number);
        if CHANGES.contains(&number) {
            self.state.restart.files_changed = true;
        }
        match number {
            libc::SYS_pwritev
            | libc::SYS_pwritev2
            | libc::SYS_ftruncate
            | libc::SYS_fallocate
            | libc::SYS_sendfile => {
                let to = self.int(0);
                self.state.note_file_write(to);
            }
            libc::SYS_copy_file_range | libc::SYS_splice => {
                let to = self.int(2);
                self.state.note_file_write(to);
            }
            _ => {}
        }
    }

    /// Passes the call to the host as it is, with checked pointers and marked pages.
    fn pass(&mut self) -> Result<u64, Errno> {
        self.note_file_change();
        let args = self.checked_args()?;
        // SAFETY: every pointer argument lies in a guest window with its whole extent, or is a vector of
        // the monitor whose elements do.
        unsafe { host::syscall(u64::from(self.row.number), args.values) }
    }

    /// Passes a call that may block to the host without the run token. Only where guest memory is not
    /// tracked: the host kernel writes to it while others run.
    fn pass_untracked(&mut self) -> Result<u64, Errno> {
        debug_assert!(!self.protected());
        let args = self.checked_args()?;
        // SAFETY: as in `pass`.
        unsafe { self.block(i64::from(self.row.number), args.values, wait::For::Work) }
    }

    /// Checks the pointers among the arguments and marks what the host is going to write.
    fn checked_args(&mut self) -> Result<CheckedArgs, Errno> {
        let mut args = CheckedArgs {
            values: self.args,
            _vectors: Vec::new(),
        };
        self.touch_lengths();
        for span in self.row.spans(self.args, copy_u32) {
            let span = span?;
            if span.len == 0 {
                buffer::user_range(span.address, 0)?;
                continue;
            }
            let range = window::checked(span.address, span.len).ok_or(Errno::EFAULT)?;
            match span.access.writes() {
                true => self.thread.mark_written(self.state, most_of(range)),
                false => self.thread.touch(self.state, range),
            }
        }
        for (i, arg) in self.row.args.iter().enumerate() {
            let address = self.args[i];
            match arg.kind {
                ArgKind::Path | ArgKind::Strings if address != 0 => {
                    window::checked(address, 1).ok_or(Errno::EFAULT)?;
                    self.thread.touch_string(self.state, address);
                }
                ArgKind::IovecIn { count } | ArgKind::IovecOut { count } => {
                    let vector = self.vector(address, self.args[usize::from(count)])?;
                    if !vector.iter().all(|part| window::contains(*part)) {
                        return Err(Errno::EFAULT);
                    }
                    for part in &vector {
                        match arg.kind {
                            ArgKind::IovecOut { .. } => {
                                self.thread.mark_written(self.state, most_of(*part));
                            }
                            _ => self.thread.touch(self.state, *part),
                        }
                    }
                    let host: Vec<libc::iovec> = vector
                        .iter()
                        .map(|part| libc::iovec {
                            iov_base: part.start() as *mut libc::c_void,
                            iov_len: part.len() as usize,
                        })
                        .collect();
                    args.values[i] = host.as_ptr() as u64;
                    // Elements without bytes are left out.
                    args.values[usize::from(count)] = host.len() as u64;
                    args._vectors.push(host);
                }
                // Only the call's own handler knows what to check.
                ArgKind::MsgIn | ArgKind::MsgOut | ArgKind::Custom if address != 0 => {
                    return Err(Errno::ENOSYS);
                }
                _ => {}
            }
        }
        Ok(args)
    }

    /// The lengths that a pointer leads to (`socklen_t *`) are read before the spans are known.
    fn touch_lengths(&mut self) {
        for arg in self.row.args {
            if let ArgKind::Out(Size::Pointee(at)) | ArgKind::InOut(Size::Pointee(at)) = arg.kind
                && let Some(address) = self.args.get(usize::from(at))
                && let Some(range) = window::checked(*address, 4)
            {
                self.thread.touch(self.state, range);
            }
        }
    }

    /// Reads an array of `struct iovec` and checks its elements.
    fn vector(&mut self, address: u64, count: u64) -> Result<Vec<GuestRange>, Errno> {
        if count > IOV_MAX {
            return Err(Errno::EINVAL);
        }
        let bytes = self.read_vec(address, count as usize * 16)?;
        let mut total = 0u64;
        let mut parts = Vec::with_capacity(count as usize);
        for element in bytes.chunks_exact(16) {
            let word =
                |i: usize| u64::from_ne_bytes(element[i..i + 8].try_into().unwrap_or([0; 8]));
            let (base, len) = (word(0), word(8));
            if i64::try_from(len).is_err() {
                return Err(Errno::EINVAL);
            }
            let len = len.min(TRANSFERRED_MOST - total);
            total += len;
            let part = buffer::buffer(base, len)?;
            if len > 0 {
                parts.push(part);
            }
        }
        Ok(parts)
    }

    /// Reads `N` bytes of guest memory.
    fn read<const N: usize>(&mut self, address: u64) -> Result<[u8; N], Errno> {
        let mut bytes = [0u8; N];
        self.read_into(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Fills `into` from guest memory.
    fn read_into(&mut self, address: u64, into: &mut [u8]) -> Result<(), Errno> {
        let range = window::checked(address, into.len() as u64).ok_or(Errno::EFAULT)?;
        self.thread.touch(self.state, range);
        copy::read(address, into).map_err(|_| Errno::EFAULT)
    }

    /// Reads `len` bytes of guest memory; the caller has bounded `len`.
    /// No bytes are read from nowhere: `poll(NULL, 0, ...)` is a way to sleep.
    fn read_vec(&mut self, address: u64, len: usize) -> Result<Vec<u8>, Errno> {
        if len == 0 {
            return Ok(Vec::new());
        }
        let mut bytes = vec![0u8; len];
        self.read_into(address, &mut bytes)?;
        Ok(bytes)
    }

    /// Reads a path.
    fn read_path(&mut self, address: u64) -> Result<Vec<u8>, Errno> {
        self.read_string(address, libc::PATH_MAX as usize)
    }

    /// Reads a NUL-terminated string of less than `limit` bytes; ENAMETOOLONG if it is longer.
    fn read_string(&mut self, address: u64, limit: usize) -> Result<Vec<u8>, Errno> {
        let mut string = Vec::new();
        let mut at = address;
        while string.len() < limit {
            // Up to the end of the page, which is as far as one can see.
            let len = (4096 - at % 4096).min((limit - string.len()) as u64);
            let part = self.read_vec(at, len as usize)?;
            if let Some(end) = part.iter().position(|b| *b == 0) {
                string.extend_from_slice(&part[..end]);
                return Ok(string);
            }
            string.extend_from_slice(&part);
            at = at.checked_add(len).ok_or(Errno::EFAULT)?;
        }
        Err(Errno::ENAMETOOLONG)
    }

    /// Writes to guest memory, as a result of the call.
    fn write(&mut self, address: u64, bytes: &[u8]) -> Result<(), Errno> {
        if bytes.is_empty() {
            return Ok(());
        }
        if self.is_outdated() {
            return Err(Errno::EINTR);
        }
        let range = window::checked(address, bytes.len() as u64).ok_or(Errno::EFAULT)?;
        self.thread.mark_written(self.state, range);
        copy::write(address, bytes).map_err(|_| Errno::EFAULT)
    }

    /// Fills the parts of a vector one after the other.
    fn scatter(&mut self, parts: &[GuestRange], mut bytes: &[u8]) -> Result<(), Errno> {
        for part in parts {
            let len = bytes.len().min(part.len() as usize);
            self.write(part.start(), &bytes[..len])?;
            bytes = &bytes[len..];
            if bytes.is_empty() {
                break;
            }
        }
        Ok(())
    }

    /// Ends the running domain well. An error means that the domain runs again instead, and that this call
    /// does not take place.
    fn commit(&mut self) -> Result<(), Errno> {
        self.unless_it_crashes()?;
        let committed = self.thread.commit(self.state);
        self.unless_put_back(committed)
    }

    /// Commits what the running domain has done so far. An error is as for `commit`.
    fn commit_early(&mut self, why: Early) -> Result<(), Errno> {
        self.unless_it_crashes()?;
        let committed = self.thread.commit_early(self.state, why);
        self.unless_put_back(committed)
    }

    /// A request that has faulted, and whose handler waits or does what cannot be undone, has crashed.
    fn unless_it_crashes(&mut self) -> Result<(), Errno> {
        if !self.in_request() || !self.thread.is_in_handler() {
            return Ok(());
        }
        self.fault(Fault::crash_path())?;
        Err(Errno::EINTR)
    }

    fn unless_put_back(&mut self, committed: Committed) -> Result<(), Errno> {
        match committed {
            Committed::Done => Ok(()),
            Committed::PutBack => {
                self.done = Some(Ok(Flow::Continue));
                Err(Errno::EINTR)
            }
        }
    }

    /// Begins a domain at this call, which is completed again with an error if the domain is abandoned.
    /// The first one starts the tracking.
    fn begin(&mut self, origin: Origin) -> Result<(), Errno> {
        if !self.protected() {
            return Ok(());
        }
        self.thread.begin_serving(self.state);
        if self.is_outdated() {
            return Err(Errno::EINTR);
        }
        self.thread.continues = None;
        self.thread.interrupted = None;
        self.thread.begin_limits();
        self.thread.begin(self.state, origin).map_err(|error| {
            log::error!("{error}");
            Errno::ENOMEM
        })
    }

    /// Puts an effect off until the commit; does it at once where nothing is to be undone.
    fn defer(&mut self, effect: Deferred) {
        match &mut self.state.domain {
            Some(domain) => domain.journal.defer(effect),
            None => self.thread.perform(self.state, effect),
        }
    }

    /// Notes that another call undoes what has just been done.
    fn compensate_by(&mut self, call: HostCall, what: &'static str) {
        self.compensate(Undo::Call { call, what });
    }

    /// Notes how to undo what has just been done.
    fn compensate(&mut self, inverse: Undo) {
        match &mut self.state.domain {
            Some(domain) => domain.journal.compensate(inverse),
            None => self.thread.release_undo(self.state, inverse),
        }
    }
}

/// Arguments that the host may be given.
struct CheckedArgs {
    values: [u64; 6],
    /// What some of the values point to.
    _vectors: Vec<Vec<libc::iovec>>,
}

fn copy_u32(address: u64) -> Result<u32, Errno> {
    let mut bytes = [0u8; 4];
    copy::read(address, &mut bytes).map_err(|_| Errno::EFAULT)?;
    Ok(u32::from_ne_bytes(bytes))
}
