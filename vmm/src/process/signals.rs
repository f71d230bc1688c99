//! Signals of the guest: dispositions, and the frame that a handler runs on.
//!
//! The frame is the kernel's `rt_sigframe` (Linux `arch/x86/include/asm/sigframe.h`), so that handlers,
//! unwinders and `rt_sigreturn` of any libc work on it. It is built below the red zone.

use guest_agentless::seccomp::ARCHITECTURE;
use guest_agentless::{DefaultAction, GuestRange, GuestVa, Signal, SignalSet};
use kvm_bindings::kvm_xsave;

use crate::kvm::Registers;
use crate::memory::copy;

/// The `si_code` of a SIGSYS that a filter has sent, of `asm-generic/siginfo.h`.
pub const SYS_SECCOMP: i32 = 1;

/// A signal to be delivered: a `siginfo_t`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SignalInfo {
    /// Which.
    pub signal: Signal,
    /// As the kernel has it; the number is that of `signal`.
    bytes: [u8; SignalInfo::SIZE],
}

impl SignalInfo {
    /// Bytes of a `siginfo_t`.
    pub const SIZE: usize = 128;

    /// Sent by a process.
    pub fn from_process(signal: Signal, pid: i32, uid: u32) -> SignalInfo {
        SignalInfo::new(signal, libc::SI_USER)
            .with(16, &pid.to_ne_bytes())
            .with(20, &uid.to_ne_bytes())
    }

    /// Sent by a thread of the guest.
    pub fn from_thread(signal: Signal, pid: i32, uid: u32) -> SignalInfo {
        SignalInfo::from_process(signal, pid, uid).with_code(libc::SI_TKILL)
    }

    /// Raised by a fault at `address`.
    pub fn of_fault(signal: Signal, code: i32, address: u64) -> SignalInfo {
        SignalInfo::new(signal, code).with(16, &address.to_ne_bytes())
    }

    /// SIGSYS: a filter has forbidden the system call `number` before `address`, and gives `error`.
    pub fn of_forbidden_call(address: u64, number: u32, error: u16) -> SignalInfo {
        SignalInfo::of_fault(Signal::SIGSYS, SYS_SECCOMP, address)
            .with(4, &i32::from(error).to_ne_bytes())
            .with(24, &number.to_ne_bytes())
            .with(28, &ARCHITECTURE.to_ne_bytes())
    }

    /// From what the guest passes to `rt_sigqueueinfo`.
    pub fn from_bytes(signal: Signal, bytes: &[u8; Self::SIZE]) -> SignalInfo {
        let number = signal.raw().to_ne_bytes();
        SignalInfo {
            signal,
            bytes: *bytes,
        }
        .with(0, &number)
    }

    /// From the kernel; none if there is no such signal.
    pub fn from_host(bytes: &[u8; Self::SIZE]) -> Option<SignalInfo> {
        let number = u32::from_ne_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
        Signal::new(number).map(|signal| SignalInfo::from_bytes(signal, bytes))
    }

    /// As `siginfo_t`.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        self.bytes
    }

    /// `si_code`.
    pub fn code(&self) -> i32 {
        let bytes = &self.bytes;
        i32::from_ne_bytes([bytes[8], bytes[9], bytes[10], bytes[11]])
    }

    /// The same with another `si_code`.
    pub fn with_code(self, code: i32) -> SignalInfo {
        self.with(8, &code.to_ne_bytes())
    }

    fn new(signal: Signal, code: i32) -> SignalInfo {
        SignalInfo::from_bytes(signal, &[0; Self::SIZE]).with_code(code)
    }

    fn with(mut self, at: usize, bytes: &[u8]) -> SignalInfo {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
        self
    }
}

/// The kernel's `struct sigaction`, as `rt_sigaction` passes it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Action {
    /// `SIG_DFL`, `SIG_IGN` or the handler's address.
    pub handler: u64,
    /// `SA_*`.
    pub flags: u64,
    /// Where the handler returns to.
    pub restorer: u64,
    /// Blocked while the handler runs.
    pub mask: SignalSet,
}

impl Action {
    /// Bytes of the kernel's structure.
    pub const SIZE: usize = 32;

    /// From the kernel's layout.
    pub fn from_bytes(bytes: &[u8; Self::SIZE]) -> Action {
        let word = |i: usize| {
            let mut word = [0; 8];
            word.copy_from_slice(&bytes[i * 8..i * 8 + 8]);
            u64::from_ne_bytes(word)
        };
        Action {
            handler: word(0),
            flags: word(1),
            restorer: word(2),
            mask: SignalSet(word(3)),
        }
    }

    /// To the kernel's layout.
    pub fn to_bytes(self) -> [u8; Self::SIZE] {
        let mut bytes = [0; Self::SIZE];
        for (i, word) in [self.handler, self.flags, self.restorer, self.mask.0]
            .into_iter()
            .enumerate()
        {
            bytes[i * 8..i * 8 + 8].copy_from_slice(&word.to_ne_bytes());
        }
        bytes
    }

    /// Whether it is the default action again as soon as it has been taken.
    pub fn is_one_shot(self) -> bool {
        self.has(libc::SA_RESETHAND)
    }

    fn has(self, flag: i32) -> bool {
        self.flags & flag as u32 as u64 != 0
    }
}

/// What happens when a signal is delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivery {
    /// Nothing.
    Ignore,
    /// The process ends.
    End,
    /// The process stops.
    Stop,
    /// The handler runs.
    Handle(Action),
}

/// The dispositions of a process.
#[derive(Clone)]
pub struct Dispositions {
    actions: [Action; 65],
}

impl Default for Dispositions {
    fn default() -> Self {
        Dispositions {
            actions: [Action::default(); 65],
        }
    }
}

impl Dispositions {
    /// The action for `signal`.
    pub fn get(&self, signal: Signal) -> Action {
        self.actions[signal.number() as usize]
    }

    /// Sets it.
    pub fn set(&mut self, signal: Signal, action: Action) {
        self.actions[signal.number() as usize] = action;
    }

    /// What a delivery of `signal` does.
    pub fn delivery(&self, signal: Signal) -> Delivery {
        let action = self.get(signal);
        match action.handler as usize {
            libc::SIG_IGN => Delivery::Ignore,
            libc::SIG_DFL => match signal.default_action() {
                DefaultAction::Terminate | DefaultAction::Core => Delivery::End,
                DefaultAction::Ignore | DefaultAction::Continue => Delivery::Ignore,
                DefaultAction::Stop => Delivery::Stop,
            },
            _ => Delivery::Handle(action),
        }
    }

    /// Whether a handler of the guest takes `signal`.
    pub fn is_handled(&self, signal: Signal) -> bool {
        matches!(self.delivery(signal), Delivery::Handle(_))
    }

    /// Whether a delivery of `signal` does nothing.
    pub fn ignores(&self, signal: Signal) -> bool {
        self.delivery(signal) == Delivery::Ignore
    }

    /// After a delivery to a one-shot handler.
    pub fn delivered(&mut self, signal: Signal) {
        let action = &mut self.actions[signal.number() as usize];
        if action.is_one_shot() {
            action.handler = libc::SIG_DFL as u64;
        }
    }
}

/// `sigaltstack`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AlternateStack {
    /// Lowest address.
    pub base: u64,
    /// Bytes.
    pub size: u64,
    /// `SS_DISABLE`, `SS_AUTODISARM`.
    pub flags: i32,
}

impl Default for AlternateStack {
    fn default() -> Self {
        AlternateStack {
            base: 0,
            size: 0,
            flags: libc::SS_DISABLE,
        }
    }
}

impl AlternateStack {
    /// Whether `stack_pointer` is on it.
    pub fn holds(self, stack_pointer: u64) -> bool {
        self.flags & libc::SS_DISABLE == 0
            && stack_pointer.wrapping_sub(self.base) <= self.size
            && stack_pointer > self.base
    }
}

/// The thread's state that a frame saves and a return restores.
pub struct Interrupted<'a> {
    pub registers: &'a Registers,
    pub extended: &'a kvm_xsave,
    pub blocked: SignalSet,
    pub alternate_stack: AlternateStack,
    /// Trap number, error code and CR2, for signals that a fault raises.
    pub trap: (u64, u64, u64),
}

/// A frame ready to be written.
pub struct Frame {
    /// Where it goes, from the stack pointer at the handler's first instruction.
    pub range: GuestRange,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// The registers at the handler's first instruction.
    pub registers: Registers,
}

const RED_ZONE: u64 = 128;
/// Bytes of extended state in a frame: everything up to the AMX tiles, which the guest does not have.
const EXTENDED_SIZE: usize = 2816;
const UCONTEXT: usize = 8;
const MCONTEXT: usize = UCONTEXT + 40;
const SIGMASK: usize = MCONTEXT + 256;
const SIGINFO: usize = SIGMASK + 8;
const FRAME_SIZE: usize = SIGINFO + 128;
/// `FP_XSTATE_MAGIC1` and `FP_XSTATE_MAGIC2`.
const MAGIC: (u32, u32) = (0x4650_5853, 0x4650_5845);
/// Flags that user code may set (`FIX_EFLAGS` in the kernel).
const USER_FLAGS: u64 = 0x0004_0dd5 | 0x0001_0000;

/// The frame for `info` and `action`; none if there is no room on the stack.
pub fn build_frame(info: SignalInfo, action: Action, state: &Interrupted) -> Option<Frame> {
    let stack = state.alternate_stack;
    let on_alternate = stack.holds(state.registers.rsp);
    let switch =
        action.has(libc::SA_ONSTACK) && stack.flags & libc::SS_DISABLE == 0 && !on_alternate;
    let top = match switch {
        true => stack.base.checked_add(stack.size)?,
        false => state.registers.rsp.checked_sub(RED_ZONE)?,
    };
    let extended = top.checked_sub(EXTENDED_SIZE as u64 + 4)? & !63;
    let frame = (extended.checked_sub(FRAME_SIZE as u64)? & !15).checked_sub(8)?;
    let range = GuestRange::new(GuestVa(frame), extended + EXTENDED_SIZE as u64 + 4 - frame)?;
    let mut bytes = vec![0u8; range.len() as usize];
    let mut put = |offset: usize, value: u64| {
        bytes[offset..offset + 8].copy_from_slice(&value.to_ne_bytes());
    };
    put(0, action.restorer);
    // uc_flags: UC_FP_XSTATE | UC_SIGCONTEXT_SS | UC_STRICT_RESTORE_SS.
    put(UCONTEXT, 7);
    put(UCONTEXT + 16, stack.base);
    let stack_flags = if on_alternate {
        libc::SS_ONSTACK
    } else {
        stack.flags
    };
    put(UCONTEXT + 24, u64::from(stack_flags as u32));
    put(UCONTEXT + 32, stack.size);
    for (i, value) in to_context(state.registers).into_iter().enumerate() {
        put(MCONTEXT + i * 8, value);
    }
    put(MCONTEXT + 18 * 8, 0x002b_0000_0000_0033);
    let (trap, error, address) = state.trap;
    put(MCONTEXT + 19 * 8, error);
    put(MCONTEXT + 20 * 8, trap);
    put(MCONTEXT + 21 * 8, state.blocked.0);
    put(MCONTEXT + 22 * 8, address);
    put(MCONTEXT + 23 * 8, extended);
    put(SIGMASK, state.blocked.0);
    bytes[SIGINFO..SIGINFO + 128].copy_from_slice(&info.to_bytes());
    put_extended(&mut bytes[(extended - frame) as usize..], state.extended);

    let mut registers = *state.registers;
    registers.rip = action.handler;
    registers.rsp = frame;
    registers.rax = 0;
    registers.rdi = u64::from(info.signal.number());
    registers.rsi = frame + SIGINFO as u64;
    registers.rdx = frame + UCONTEXT as u64;
    const DIRECTION_TRAP: u64 = 0x500;
    registers.rflags &= !DIRECTION_TRAP;
    Some(Frame {
        range,
        bytes,
        registers,
    })
}

fn put_extended(area: &mut [u8], state: &kvm_xsave) {
    for (chunk, word) in area[..EXTENDED_SIZE].chunks_exact_mut(4).zip(state.region) {
        chunk.copy_from_slice(&word.to_ne_bytes());
    }
    let features = u64::from(state.region[128]) | u64::from(state.region[129]) << 32;
    // The software-reserved bytes: magic, size with the trailing magic, features, size without.
    area[464..468].copy_from_slice(&MAGIC.0.to_ne_bytes());
    area[468..472].copy_from_slice(&(EXTENDED_SIZE as u32 + 4).to_ne_bytes());
    area[472..480].copy_from_slice(&(features | 3).to_ne_bytes());
    area[480..484].copy_from_slice(&(EXTENDED_SIZE as u32).to_ne_bytes());
    area[EXTENDED_SIZE..EXTENDED_SIZE + 4].copy_from_slice(&MAGIC.1.to_ne_bytes());
}

/// What `rt_sigreturn` restores.
pub struct Restored {
    pub registers: Registers,
    pub extended: Option<Box<kvm_xsave>>,
    pub blocked: SignalSet,
    pub alternate_stack: AlternateStack,
}

/// Reads back the frame whose `ucontext` is at `stack_pointer`; none if it is not readable.
pub fn read_frame(stack_pointer: u64, current: &Registers) -> Option<Restored> {
    let mut context = [0u8; SIGINFO - UCONTEXT];
    copy::read(stack_pointer, &mut context).ok()?;
    let word = |offset: usize| {
        let mut word = [0; 8];
        word.copy_from_slice(&context[offset - UCONTEXT..offset - UCONTEXT + 8]);
        u64::from_ne_bytes(word)
    };
    let mut values = [0; 18];
    for (i, value) in values.iter_mut().enumerate() {
        *value = word(MCONTEXT + i * 8);
    }
    let mut registers = from_context(&values);
    registers.rflags = (registers.rflags & USER_FLAGS) | (current.rflags & !USER_FLAGS) | 0x202;
    let mut blocked = SignalSet(word(SIGMASK));
    blocked.remove(Signal::SIGKILL);
    blocked.remove(Signal::SIGSTOP);
    let flags = word(UCONTEXT + 24) as u32 as i32 & !libc::SS_ONSTACK;
    let extended = match word(MCONTEXT + 23 * 8) {
        0 => None,
        address => Some(read_extended(address)?),
    };
    Some(Restored {
        registers,
        extended,
        blocked,
        alternate_stack: AlternateStack {
            base: word(UCONTEXT + 16),
            size: word(UCONTEXT + 32),
            flags,
        },
    })
}

fn read_extended(address: u64) -> Option<Box<kvm_xsave>> {
    let mut area = [0u8; EXTENDED_SIZE];
    copy::read(address, &mut area).ok()?;
    // The software-reserved bytes are not part of the state.
    area[464..512].fill(0);
    let mut state = Box::<kvm_xsave>::default();
    for (word, chunk) in state.region.iter_mut().zip(area.chunks_exact(4)) {
        *word = u32::from_ne_bytes([chunk[0], chunk[1], chunk[2], chunk[3]]);
    }
    Some(state)
}

/// Registers in the order of `struct sigcontext`.
fn to_context(r: &Registers) -> [u64; 18] {
    [
        r.r8, r.r9, r.r10, r.r11, r.r12, r.r13, r.r14, r.r15, r.rdi, r.rsi, r.rbp, r.rbx, r.rdx,
        r.rax, r.rcx, r.rsp, r.rip, r.rflags,
    ]
}

fn from_context(values: &[u64; 18]) -> Registers {
    let [
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rdi,
        rsi,
        rbp,
        rbx,
        rdx,
        rax,
        rcx,
        rsp,
        rip,
        rflags,
    ] = *values;
    Registers {
        r8,
        r9,
        r10,
        r11,
        r12,
        r13,
        r14,
        r15,
        rdi,
        rsi,
        rbp,
        rbx,
        rdx,
        rax,
        rcx,
        rsp,
        rip,
        rflags,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_leaves_the_red_zone_alone_and_is_aligned_like_a_call() {
        let registers = Registers {
            rsp: 0x10_0001_0000,
            rip: 5,
            rflags: 0x602,
            ..Default::default()
        };
        let state = Interrupted {
            registers: &registers,
            extended: &kvm_xsave::default(),
            blocked: SignalSet::EMPTY,
            alternate_stack: AlternateStack::default(),
            trap: (14, 6, 0x1234),
        };
        let action = Action {
            handler: 0x1000,
            restorer: 0x2000,
            ..Default::default()
        };
        let info = SignalInfo::from_process(Signal::SIGTERM, 7, 8);
        let frame = build_frame(info, action, &state).unwrap();
        assert!(frame.range.end() <= registers.rsp - RED_ZONE);
        assert_eq!(frame.registers.rsp % 16, 8);
        assert_eq!(frame.registers.rip, 0x1000);
        assert_eq!(
            frame.registers.rflags & 0x400,
            0,
            "the direction flag is clear"
        );
        assert_eq!(frame.bytes[..8], 0x2000u64.to_ne_bytes());
    }

    #[test]
    fn registers_survive_the_way_through_a_context() {
        let values: [u64; 18] = std::array::from_fn(|i| i as u64 + 1);
        assert_eq!(to_context(&from_context(&values)), values);
    }
}
