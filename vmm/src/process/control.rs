//! What other threads and signal handlers may do to a guest thread: make it stop and look.
//!
//! A guest thread is either in the guest (`KVM_RUN`), in a blocking host call, or in between. A kick must
//! end the first two at once and must not be lost in between. Each thread has an *attention* flag; `KVM_RUN`
//! does not enter the guest while `immediate_exit` is set, and [`blocking_syscall`] does not enter the host
//! kernel while the flag is set: the signal handler moves a thread that is about to do so past it.

use std::cell::Cell;
use std::ptr;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError};

use guest_agentless::coredump::ThreadState;
use guest_agentless::{Errno, SignalSet};

use super::image::Parked;
use super::limits::RequestNumber;
use super::signals::SignalInfo;
use crate::kvm::Kicker;

/// Sent between threads of the monitor; the guest's own use of it is emulated.
pub const KICK_SIGNAL: i32 = 64;

/// The part of a guest thread that others may touch.
pub struct ThreadControl {
    /// The thread's ID: the host's is the guest's.
    pub tid: AtomicI32,
    /// Something wants the thread's attention: a signal, a request to yield, the end of the process.
    attention: AtomicU8,
    /// Another thread waits for the run token.
    pub yield_requested: AtomicBool,
    /// Signals that the guest has sent to this thread, of those that the host does not keep, and that are not
    /// delivered yet.
    pub pending: Mutex<Vec<SignalInfo>>,
    /// Where the thread ID is cleared when the thread ends (`set_tid_address`), or 0.
    pub clear_tid: AtomicU64,
    /// The request that the thread is in.
    pub request: RequestNumber,
    /// Where the thread stands with a host call.
    phase: AtomicU8,
    /// A connection that the thread has accepted and the guest does not know of yet, or -1.
    accepted: AtomicI32,
    /// Where the thread would go on from, while no image of the process has been taken.
    pub parked: Mutex<Option<Arc<Parked>>>,
    /// The thread's registers when it last gave the run token up.
    shown: Mutex<Option<ThreadState>>,
    kicker: Kicker,
    /// The control that was made before.
    older: AtomicPtr<ThreadControl>,
}

/// The control that was made last: where signal handlers find all of them.
static NEWEST: AtomicPtr<ThreadControl> = AtomicPtr::new(ptr::null_mut());

/// The guest thread needs the run token for whatever it does next.
const AT_TOKEN: u8 = 0;
/// It may be in a host call that was made without the token.
const IN_HOST: u8 = 1;
/// Such a call has done something that the guest has not been told.
const RETURNED: u8 = 2;

thread_local! {
    static CURRENT: Cell<*const ThreadControl> = const { Cell::new(ptr::null()) };
}

impl ThreadControl {
    /// A control for the thread that runs the vCPU behind `kicker`. It is never freed: signal handlers of
    /// other threads may hold on to it.
    pub fn leak(kicker: Kicker) -> &'static ThreadControl {
        let control: &ThreadControl = Box::leak(Box::new(ThreadControl {
            tid: AtomicI32::new(0),
            attention: AtomicU8::new(0),
            yield_requested: AtomicBool::new(false),
            pending: Mutex::new(Vec::new()),
            clear_tid: AtomicU64::new(0),
            request: RequestNumber::default(),
            phase: AtomicU8::new(AT_TOKEN),
            accepted: AtomicI32::new(-1),
            parked: Mutex::new(None),
            shown: Mutex::new(None),
            kicker,
            older: AtomicPtr::new(ptr::null_mut()),
        }));
        let new = ptr::from_ref(control).cast_mut();
        let mut newest = NEWEST.load(Ordering::Acquire);
        loop {
            control.older.store(newest, Ordering::Relaxed);
            let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
            match NEWEST.compare_exchange_weak(newest, new, success, failure) {
                Ok(_) => return control,
                Err(now) => newest = now,
            }
        }
    }

    /// Makes this control that of the calling thread.
    pub fn adopt(&'static self) {
        // SAFETY: gettid has no preconditions.
        self.tid.store(unsafe { libc::gettid() }, Ordering::SeqCst);
        CURRENT.set(self);
    }

    /// The thread has ended.
    pub fn leave(&self) {
        self.tid.store(0, Ordering::Release);
    }

    /// Ends the guest or a blocking call of this thread, now or the next time it enters one.
    pub fn kick(&self) {
        self.mark();
        let tid = self.tid.load(Ordering::Acquire);
        if tid != 0 {
            // SAFETY: signals a thread of this process by number; a thread that has ended is an error.
            unsafe { libc::syscall(libc::SYS_tgkill, libc::getpid(), tid, KICK_SIGNAL) };
        }
    }

    /// The part of a kick that a signal handler may do on its own thread.
    fn mark(&self) {
        self.attention.store(1, Ordering::SeqCst);
        // SAFETY: vCPUs are never dropped: an ended thread's goes to a pool.
        unsafe { self.kicker.kick() };
    }

    /// Makes the thread look for what to attend to before it enters the guest again.
    pub fn request_attention(&self) {
        self.attention.store(1, Ordering::SeqCst);
    }

    /// The thread is about to give the run token up for a host call.
    pub fn enter_host(&self) {
        self.phase.store(IN_HOST, Ordering::SeqCst);
    }

    /// The host call is over, with that result.
    pub fn leave_host(&self, number: i64, result: Result<u64, Errno>) -> Result<u64, Errno> {
        let phase = match result {
            Err(Errno::EINTR) => AT_TOKEN,
            _ => RETURNED,
        };
        if let (libc::SYS_accept4, Ok(connection)) = (number, result) {
            self.accepted.store(connection as i32, Ordering::SeqCst);
        }
        self.phase.store(phase, Ordering::SeqCst);
        result
    }

    /// The thread has the run token again.
    pub fn go_on(&self) {
        self.phase.store(AT_TOKEN, Ordering::SeqCst);
        self.accepted.store(-1, Ordering::SeqCst);
    }

    /// Takes a connection of which the guest does not know yet; for the holder of the run token.
    pub fn take_accepted(&self) -> Option<i32> {
        let connection = self.accepted.swap(-1, Ordering::SeqCst);
        (connection >= 0).then_some(connection)
    }

    /// Whether the thread may be in a host call, seen by the holder of the run token.
    pub fn is_in_host(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == IN_HOST
    }

    /// Whether a host call of the thread has had an effect of which the guest does not know yet.
    pub fn has_returned(&self) -> bool {
        self.phase.load(Ordering::SeqCst) == RETURNED
    }

    /// Whether something has asked for attention since the last call.
    pub fn take_attention(&self) -> bool {
        self.attention.swap(0, Ordering::SeqCst) != 0
    }

    /// Leaves word of the registers, for cores.
    pub fn show(&self, state: ThreadState) {
        *self.shown.lock().unwrap_or_else(PoisonError::into_inner) = Some(state);
    }

    /// The registers of a thread that does not hold the run token.
    pub fn shown(&self) -> Option<ThreadState> {
        let shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        shown.clone()
    }

    /// The signals that were sent to this thread and not delivered yet.
    pub fn pending_set(&self) -> SignalSet {
        let pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        pending.iter().map(|info| info.signal).collect()
    }

    /// Takes a signal of `wanted` that was sent to this thread.
    pub fn take_pending(&self, wanted: SignalSet) -> Option<SignalInfo> {
        let mut pending = self.pending.lock().unwrap_or_else(PoisonError::into_inner);
        let at = pending
            .iter()
            .position(|info| wanted.contains(info.signal))?;
        Some(pending.remove(at))
    }

    /// Adds a signal for this thread and kicks it.
    pub fn send(&self, info: SignalInfo) {
        self.pending
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(info);
        self.kick();
    }
}

/// In a forked child: the parent's threads are not the child's.
pub fn forget_after_fork() {
    CURRENT.set(ptr::null());
    NEWEST.store(ptr::null_mut(), Ordering::Release);
}

/// Kicks all guest threads but the calling one; async-signal-safe.
pub fn kick_others() {
    let current = CURRENT.get();
    let mut next = NEWEST.load(Ordering::Acquire).cast_const();
    // SAFETY: controls are never freed, and nobody has one exclusively.
    while let Some(control) = unsafe { next.as_ref() } {
        if !ptr::eq(control, current) && control.tid.load(Ordering::SeqCst) != 0 {
            control.kick();
        }
        next = control.older.load(Ordering::Acquire);
    }
}

/// For the handler of a signal: the calling thread has been interrupted at `context`. If it was about to enter the host
/// kernel for a blocking call, it is moved past it.
pub fn interrupt_current(context: &mut libc::ucontext_t) {
    let current = CURRENT.get();
    if current.is_null() {
        return;
    }
    // SAFETY: controls are never freed; `mark` only stores to atomics.
    unsafe { (*current).mark() };
    let rip = &mut context.uc_mcontext.gregs[libc::REG_RIP as usize];
    let start = &raw const vmsrs_blocking_check as i64;
    let end = &raw const vmsrs_blocking_done as i64;
    if (start..end).contains(rip) {
        *rip = &raw const vmsrs_blocking_interrupted as i64;
    }
}

core::arch::global_asm!(
    ".globl vmsrs_blocking",
    ".hidden vmsrs_blocking",
    ".globl vmsrs_blocking_check",
    ".hidden vmsrs_blocking_check",
    ".globl vmsrs_blocking_done",
    ".hidden vmsrs_blocking_done",
    ".globl vmsrs_blocking_interrupted",
    ".hidden vmsrs_blocking_interrupted",
    // rdi = flag, rsi = number, rdx = six arguments; returns what the kernel does.
    "vmsrs_blocking:",
    "push rbx",
    "mov rbx, rdi",
    "mov rax, rsi",
    "mov r11, rdx",
    "mov rdi, [r11]",
    "mov rsi, [r11 + 8]",
    "mov rdx, [r11 + 16]",
    "mov r10, [r11 + 24]",
    "mov r8, [r11 + 32]",
    "mov r9, [r11 + 40]",
    "vmsrs_blocking_check:",
    "cmp byte ptr [rbx], 0",
    "jne vmsrs_blocking_interrupted",
    "syscall",
    "vmsrs_blocking_done:",
    "pop rbx",
    "ret",
    "vmsrs_blocking_interrupted:",
    "mov rax, -4",
    "pop rbx",
    "ret",
);

unsafe extern "C" {
    fn vmsrs_blocking(flag: *const u8, number: i64, args: *const u64) -> i64;
    static vmsrs_blocking_check: u8;
    static vmsrs_blocking_done: u8;
    static vmsrs_blocking_interrupted: u8;
}

/// A host system call that a kick of `control`, the calling thread's, ends with EINTR, even if the kick
/// comes just before it.
///
/// # Safety
///
/// As for the system call itself: the host kernel may write wherever its arguments point.
pub unsafe fn blocking_syscall(
    control: &ThreadControl,
    number: i64,
    args: [u64; 6],
) -> Result<u64, Errno> {
    // SAFETY: the flag is a byte that lives forever; the caller answers for the arguments.
    let result = unsafe { vmsrs_blocking(control.attention.as_ptr(), number, args.as_ptr()) };
    match result {
        -4095..=-1 => Err(Errno::from_raw(-result as i32)),
        value => Ok(value as u64),
    }
}
