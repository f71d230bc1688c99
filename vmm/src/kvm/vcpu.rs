//! One vCPU: enters ring 3 with a thread's registers and comes back with the reason.
//!
//! Between two runs [`Vcpu::registers`] always holds the ring-3 registers of the guest thread, whatever
//! path it left the guest by: after a system call RIP and RFLAGS are already those to return to (and
//! RCX and R11 hold them too, as on Linux), after an exception they are those of the instruction that
//! faulted.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_bindings::{
    CpuId, KVM_VCPU_TSC_CTRL, KVM_VCPU_TSC_OFFSET, KVMIO, Msrs, kvm_device_attr, kvm_dtable,
    kvm_msr_entry, kvm_regs, kvm_segment, kvm_signal_mask, kvm_sregs, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::{SyncReg, VcpuExit, VcpuFd};

use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl_iow_nr;

use super::dirty_ring::{DirtyPage, DirtyRing};
use super::{KvmError, ioctl_error, layout};
use crate::memory::MonitorRegion;

/// `struct kvm_signal_mask`, with the set that follows it.
#[repr(C)]
struct SignalMask {
    len: u32,
    set: [u8; size_of::<u64>()],
}

ioctl_iow_nr!(KVM_SET_SIGNAL_MASK, KVMIO, 0x8b, kvm_signal_mask);
// kvm-ioctls has it for vCPUs of other architectures only.
ioctl_iow_nr!(KVM_SET_DEVICE_ATTR, KVMIO, 0xe1, kvm_device_attr);

/// Vectors of exceptions (SDM volume 3, table 6-1).
const BREAKPOINT: u8 = 3;
const PAGE_FAULT: u8 = 14;

/// The general registers of a guest thread.
pub type Registers = kvm_regs;

/// How this KVM enters the `syscall` stub, found out by the start-up probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EntryPath {
    /// `syscall` stays in ring 3 (PVM): to return is to set RIP.
    Ring3,
    /// `syscall` enters ring 0 (VMX, SVM): the stub's `sysretq` returns to RCX.
    Ring0,
}

/// Why the guest stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It made a system call.
    Syscall,
    /// It raised a CPU exception.
    Exception {
        /// 0 to 31 (SDM volume 3, table 6-1).
        vector: u8,
        /// What the CPU pushed, or 0.
        error_code: u64,
        /// CR2; it means something for a page fault (vector 14) only.
        address: u64,
    },
    /// A kick or a signal of the host.
    Interrupted,
    /// The dirty ring is full: harvest and reset before going on.
    RingFull,
    /// The host could not back an access of the guest, as after a mapped file was truncated.
    HostFault,
    /// The guest did what only a hostile one does (a triple fault, an access outside its memory).
    Invalid(&'static str),
}

/// Makes a vCPU leave the guest, from any thread or signal handler.
#[derive(Clone, Copy)]
pub struct Kicker(*const AtomicU8);

// SAFETY: the byte is only accessed atomically.
unsafe impl Send for Kicker {}
// SAFETY: as above.
unsafe impl Sync for Kicker {}

impl Kicker {
    /// The next or current `KVM_RUN` returns at once. To end a current one, the thread that runs it has
    /// to be signalled too, with a handler that calls this.
    ///
    /// # Safety
    ///
    /// The vCPU must not have been dropped.
    pub unsafe fn kick(self) {
        // SAFETY: points to `immediate_exit` in the mapped `kvm_run` page of a living vCPU.
        unsafe { (*self.0).store(1, Ordering::Release) }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Position {
    /// In ring 3, or nowhere yet.
    User,
    /// In the `syscall` stub in ring 0, in front of `sysretq`.
    Stub,
    /// In an exception stub in ring 0.
    Exception,
}

/// A vCPU of a [`super::Vm`].
pub struct Vcpu {
    fd: VcpuFd,
    index: u64,
    ring: Option<DirtyRing>,
    path: EntryPath,
    position: Position,
    /// The host's signal mask during `KVM_RUN`, once it was set.
    signal_mask: Option<u64>,
    monitor: Arc<MonitorRegion>,
    registers: Registers,
    user_sregs: kvm_sregs,
}

impl Vcpu {
    pub(super) fn new(
        fd: VcpuFd,
        index: u64,
        ring: Option<DirtyRing>,
        monitor: Arc<MonitorRegion>,
        cpuid: &CpuId,
    ) -> Result<Vcpu, KvmError> {
        fd.set_cpuid2(cpuid)
            .map_err(ioctl_error("KVM_SET_CPUID2"))?;
        let mut vcpu = Vcpu {
            fd,
            index,
            ring,
            path: EntryPath::Ring0,
            position: Position::User,
            signal_mask: None,
            monitor,
            registers: Registers {
                rflags: 0x202,
                ..Default::default()
            },
            user_sregs: kvm_sregs::default(),
        };
        vcpu.set_system_state(cpuid)?;
        vcpu.fd.set_sync_valid_reg(SyncReg::Register);
        vcpu.fd.set_sync_valid_reg(SyncReg::SystemRegister);
        Ok(vcpu)
    }

    /// Long mode, ring 3, all of the monitor's tables.
    fn set_system_state(&mut self, cpuid: &CpuId) -> Result<(), KvmError> {
        let mut sregs = self.fd.get_sregs().map_err(ioctl_error("KVM_GET_SREGS"))?;
        let segment = |selector: u16, type_: u8, dpl: u8, long: bool| kvm_segment {
            base: 0,
            limit: 0xffff_ffff,
            selector,
            type_,
            present: 1,
            dpl,
            db: u8::from(!long),
            s: 1,
            l: u8::from(long),
            g: 1,
            ..Default::default()
        };
        sregs.cs = segment(layout::USER_CODE, 0xb, 3, true);
        sregs.ss = segment(layout::USER_DATA, 0x3, 3, false);
        // As under Linux, which keeps null selectors in them; the bases of FS and GS work all the same.
        sregs.ds = kvm_segment {
            unusable: 1,
            ..Default::default()
        };
        sregs.es = sregs.ds;
        sregs.fs = sregs.ds;
        sregs.gs = sregs.ds;
        sregs.tr = kvm_segment {
            base: layout::vcpu_page(self.index),
            limit: layout::TASK_STATE_LIMIT,
            selector: layout::TASK_STATE,
            type_: 0xb,
            present: 1,
            ..Default::default()
        };
        sregs.gdt = kvm_dtable {
            base: layout::GDT,
            limit: 8 * 8 - 1,
            ..Default::default()
        };
        sregs.idt = kvm_dtable {
            base: layout::IDT,
            limit: 0xfff,
            ..Default::default()
        };
        // With AM, as under Linux: a program may ask for alignment checks.
        const PE_MP_ET_NE_WP_AM_PG: u64 = 0x8005_0033;
        const PAE_OSFXSR_OSXMMEXCPT: u64 = 0x620;
        const OSXSAVE: u64 = 1 << 18;
        const SCE_LME_LMA_NXE: u64 = 0xd01;
        let xsave = has_xsave(cpuid);
        sregs.cr0 = PE_MP_ET_NE_WP_AM_PG;
        sregs.cr3 = layout::PAGE_TABLES;
        sregs.cr4 = PAE_OSFXSR_OSXMMEXCPT | if xsave { OSXSAVE } else { 0 };
        sregs.efer = SCE_LME_LMA_NXE;
        self.fd
            .set_sregs(&sregs)
            .map_err(ioctl_error("KVM_SET_SREGS"))?;
        self.user_sregs = sregs;
        if xsave {
            self.set_xcr0(cpuid)?;
        }
        const MSR_STAR: u32 = 0xc000_0081;
        const MSR_LSTAR: u32 = 0xc000_0082;
        const MSR_SYSCALL_MASK: u32 = 0xc000_0084;
        // The trap flag must not follow the guest into the stub.
        const TRAP_DIRECTION_AC: u64 = 0x100 | 0x400 | 0x4_0000;
        let msr = |index, data| kvm_msr_entry {
            index,
            data,
            ..Default::default()
        };
        let msrs = Msrs::from_entries(&[
            msr(MSR_STAR, layout::STAR),
            msr(MSR_LSTAR, layout::SYSCALL_STUB),
            msr(MSR_SYSCALL_MASK, TRAP_DIRECTION_AC),
        ])
        .map_err(|e| KvmError::Probe(format!("{e:?}")))?;
        match self.fd.set_msrs(&msrs) {
            Ok(3) => {}
            Ok(n) => return Err(KvmError::Probe(format!("only {n} of 3 MSRs can be set"))),
            Err(e) => return Err(ioctl_error("KVM_SET_MSRS")(e)),
        }
        // So that the guest's time-stamp counter is the host's. Where the attribute is missing the probe
        // finds the two different, and clocks become system calls.
        let offset = 0u64;
        let attribute = kvm_device_attr {
            group: KVM_VCPU_TSC_CTRL,
            attr: u64::from(KVM_VCPU_TSC_OFFSET),
            addr: &raw const offset as u64,
            flags: 0,
        };
        // SAFETY: `attribute` and the offset that it points to live until the call is over.
        let _ = unsafe { ioctl_with_ref(&self.fd, KVM_SET_DEVICE_ATTR(), &attribute) };
        Ok(())
    }

    fn set_xcr0(&mut self, cpuid: &CpuId) -> Result<(), KvmError> {
        let supported = cpuid
            .as_slice()
            .iter()
            .find(|e| e.function == 0xd && e.index == 0)
            .map_or(3, |e| u64::from(e.eax) | u64::from(e.edx) << 32);
        const AMX: u64 = 0x6_0000;
        let mut xcrs = kvm_xcrs {
            nr_xcrs: 1,
            ..Default::default()
        };
        xcrs.xcrs[0].xcr = 0;
        xcrs.xcrs[0].value = (supported & !AMX) | 1;
        self.fd.set_xcrs(&xcrs).map_err(ioctl_error("KVM_SET_XCRS"))
    }

    /// Sets the path that the probe has found.
    pub fn set_entry_path(&mut self, path: EntryPath) {
        self.path = path;
        if path == EntryPath::Ring3 && self.position == Position::Stub {
            self.position = Position::User;
        }
    }

    /// The privilege level that KVM reports now: after a system call it tells the entry path.
    pub(super) fn privilege_level(&self) -> Result<u16, KvmError> {
        let sregs = self.fd.get_sregs().map_err(ioctl_error("KVM_GET_SREGS"))?;
        Ok(sregs.cs.selector & 3)
    }

    /// The ring-3 registers of the guest thread.
    pub fn registers(&mut self) -> &mut Registers {
        &mut self.registers
    }

    /// Base of FS: the thread pointer.
    pub fn fs_base(&self) -> u64 {
        self.user_sregs.fs.base
    }

    /// Base of GS.
    pub fn gs_base(&self) -> u64 {
        self.user_sregs.gs.base
    }

    /// Sets the bases of FS and GS.
    pub fn set_segment_bases(&mut self, fs: u64, gs: u64) {
        self.user_sregs.fs.base = fs;
        self.user_sregs.gs.base = gs;
        self.enter_user_mode();
    }

    /// Sets the first-level page table. A change drops the translations that the vCPU has cached.
    pub fn set_root(&mut self, root: u64) {
        if self.user_sregs.cr3 != root {
            self.user_sregs.cr3 = root;
            self.enter_user_mode();
        }
    }

    /// The extended state (x87, SSE, AVX ...) in the XSAVE format.
    pub fn extended_state(&self) -> Result<Box<kvm_xsave>, KvmError> {
        self.fd
            .get_xsave()
            .map(Box::new)
            .map_err(ioctl_error("KVM_GET_XSAVE"))
    }

    /// Sets the extended state.
    pub fn set_extended_state(&self, state: &kvm_xsave) -> Result<(), KvmError> {
        // SAFETY: XCR0 leaves out the features (AMX) whose state exceeds the 4096 bytes of `kvm_xsave`.
        unsafe { self.fd.set_xsave(state) }.map_err(ioctl_error("KVM_SET_XSAVE"))
    }

    /// Sets the signal mask that the host's thread has while it is in the guest (a set in the kernel's layout). A signal that
    /// is not in it ends the run, and stays pending.
    pub fn set_signal_mask(&mut self, blocked: u64) -> Result<(), KvmError> {
        if self.signal_mask == Some(blocked) {
            return Ok(());
        }
        let mask = SignalMask {
            len: size_of::<u64>() as u32,
            set: blocked.to_ne_bytes(),
        };
        // SAFETY: `mask` has the layout of `struct kvm_signal_mask`, and outlives the call.
        let result = unsafe { ioctl_with_ref(&self.fd, KVM_SET_SIGNAL_MASK(), &mask) };
        if result != 0 {
            let error = io::Error::last_os_error();
            return Err(KvmError::Ioctl("KVM_SET_SIGNAL_MASK", error));
        }
        self.signal_mask = Some(blocked);
        Ok(())
    }

    /// What makes this vCPU leave the guest.
    pub fn kicker(&mut self) -> Kicker {
        Kicker((&raw const self.fd.get_kvm_run().immediate_exit).cast())
    }

    /// Forgets kicks that came in before now. The caller looks at what the kick was for afterwards.
    pub fn clear_kick(&mut self) {
        self.fd.set_kvm_immediate_exit(0);
        std::sync::atomic::fence(Ordering::SeqCst);
    }

    pub(super) fn harvest(&mut self, each: impl FnMut(DirtyPage)) {
        if let Some(ring) = &mut self.ring {
            ring.harvest(each);
        }
    }

    /// Runs the guest in ring 3 from [`Vcpu::registers`] until it leaves.
    pub fn run(&mut self) -> Result<Exit, KvmError> {
        self.load_registers();
        let exit = match self.fd.run() {
            Ok(VcpuExit::IoOut(layout::SYSCALL_PORT, _)) => return Ok(self.leave_by_syscall()),
            Ok(VcpuExit::Hlt) => return self.leave_by_exception(),
            Ok(VcpuExit::Intr) => Exit::Interrupted,
            Ok(VcpuExit::Unsupported(kvm_bindings::KVM_EXIT_DIRTY_RING_FULL)) => Exit::RingFull,
            Ok(VcpuExit::MemoryFault { .. }) => Exit::HostFault,
            Ok(VcpuExit::Shutdown) => Exit::Invalid("triple fault"),
            Ok(VcpuExit::MmioRead(..) | VcpuExit::MmioWrite(..)) => {
                Exit::Invalid("access outside guest memory")
            }
            Ok(VcpuExit::IoIn(..) | VcpuExit::IoOut(..)) => Exit::Invalid("port access"),
            Ok(VcpuExit::InternalError) => Exit::Invalid("an instruction that KVM cannot emulate"),
            Ok(VcpuExit::FailEntry(..)) => Exit::Invalid("KVM refused to enter the guest"),
            Ok(_) => Exit::Invalid("an exit that KVM never makes for such a guest"),
            Err(e) => match e.errno() {
                libc::EINTR | libc::EAGAIN => Exit::Interrupted,
                libc::EFAULT => Exit::HostFault,
                errno => {
                    return Err(KvmError::Ioctl(
                        "KVM_RUN",
                        io::Error::from_raw_os_error(errno),
                    ));
                }
            },
        };
        let regs = self.fd.sync_regs().regs;
        match regs.rip {
            // About to leave the guest on its own account: that is the exit to report.
            layout::SYSCALL_STUB => return Ok(self.leave_by_syscall()),
            rip if layout::is_exception_stub(rip) => return self.leave_by_exception(),
            // On the way back from a system call; the thread's registers are those that it was given.
            layout::SYSCALL_RETURN => {}
            _ => {
                self.registers = regs;
                self.position = Position::User;
                if matches!(exit, Exit::Interrupted | Exit::RingFull)
                    && let Some(exception) = self.take_undelivered()?
                {
                    return Ok(exception);
                }
            }
        }
        Ok(exit)
    }

    /// The exception that the guest was about to be given when something else made it leave. KVM forgets one
    /// that it has not begun to deliver when the registers are set, as they are before each run; a fault would
    /// come again with its instruction, a trap (`int1`, the trap flag) would not. And one that it has
    /// begun to deliver it would deliver to wherever the registers point by then.
    fn take_undelivered(&mut self) -> Result<Option<Exit>, KvmError> {
        let mut events = self
            .fd
            .get_vcpu_events()
            .map_err(ioctl_error("KVM_GET_VCPU_EVENTS"))?;
        // `pending` is only told apart with KVM_CAP_EXCEPTION_PAYLOAD, which is off.
        if events.exception.injected == 0 {
            return Ok(None);
        }
        let exception = Exit::Exception {
            vector: events.exception.nr,
            error_code: match events.exception.has_error_code {
                0 => 0,
                _ => u64::from(events.exception.error_code),
            },
            address: self.fault_address(events.exception.nr),
        };
        events.exception = Default::default();
        self.fd
            .set_vcpu_events(&events)
            .map_err(ioctl_error("KVM_SET_VCPU_EVENTS"))?;
        Ok(Some(exception))
    }

    /// After [`Exit::Interrupted`] behind an `int3`: its exception, if that is still to come. On the PVM path KVM
    /// has advanced RIP by then, forgets the exception when it is given registers, and does not tell of it in the
    /// events. So the vCPU is let go on, as KVM has it, in `bare_root`, where the guest has no memory: either the
    /// exception comes, or a page fault as the guest's next instruction is fetched.
    ///
    /// Kicks are cleared, so the caller has to look at what they were for.
    pub fn deliver_breakpoint(&mut self, bare_root: u64) -> Result<Option<Exit>, KvmError> {
        if self.path != EntryPath::Ring3 {
            return Ok(None);
        }
        let registers = self.registers;
        self.set_root(bare_root);
        const TRIES: usize = 1000;
        for _ in 0..TRIES {
            self.clear_kick();
            match self.fd.run() {
                Ok(VcpuExit::Hlt) => {
                    return match self.leave_by_exception()? {
                        exit @ Exit::Exception {
                            vector: BREAKPOINT, ..
                        } => Ok(Some(exit)),
                        _ => {
                            self.registers = registers;
                            Ok(None)
                        }
                    };
                }
                Ok(VcpuExit::Intr) => {}
                Err(e) if matches!(e.errno(), libc::EINTR | libc::EAGAIN) => {}
                _ => break,
            }
        }
        Ok(None)
    }

    /// CR2 for a page fault, otherwise 0.
    fn fault_address(&self, vector: u8) -> u64 {
        match vector {
            PAGE_FAULT => self.fd.sync_regs().sregs.cr2,
            _ => 0,
        }
    }

    fn load_registers(&mut self) {
        let mut regs = self.registers;
        match self.position {
            Position::Stub if regs.rip == regs.rcx && regs.rflags == regs.r11 => {
                regs.rip = layout::SYSCALL_RETURN;
                regs.rflags = 2;
            }
            Position::User => {}
            _ => self.enter_user_mode(),
        }
        self.fd.sync_regs_mut().regs = regs;
        self.fd.set_sync_dirty_reg(SyncReg::Register);
    }

    /// The next run starts at `registers`, with the segments of ring 3.
    fn enter_user_mode(&mut self) {
        self.fd.sync_regs_mut().sregs = self.user_sregs;
        self.fd.set_sync_dirty_reg(SyncReg::SystemRegister);
        self.position = Position::User;
    }

    fn leave_by_syscall(&mut self) -> Exit {
        let mut regs = self.fd.sync_regs().regs;
        if !(layout::SYSCALL_STUB..=layout::SYSCALL_RETURN).contains(&regs.rip) {
            self.registers = regs;
            return Exit::Invalid("port access");
        }
        self.position = match self.path {
            EntryPath::Ring0 => Position::Stub,
            EntryPath::Ring3 => Position::User,
        };
        regs.rip = regs.rcx;
        regs.rflags = regs.r11;
        self.registers = regs;
        Exit::Syscall
    }

    fn leave_by_exception(&mut self) -> Result<Exit, KvmError> {
        self.position = Position::Exception;
        let regs = self.fd.sync_regs().regs;
        self.registers = regs;
        let Some(vector) = layout::vector_of_stub(regs.rip) else {
            return Ok(Exit::Invalid("a halt outside the exception stubs"));
        };
        let Some(frame) = self.monitor.exception_frame(self.index, regs.rsp, vector) else {
            return Ok(Exit::Invalid("an exception without a frame"));
        };
        self.registers.rip = frame.rip;
        self.registers.rsp = frame.rsp;
        self.registers.rflags = frame.rflags;
        Ok(Exit::Exception {
            vector,
            error_code: frame.error_code,
            address: self.fault_address(vector),
        })
    }
}

fn has_xsave(cpuid: &CpuId) -> bool {
    cpuid
        .as_slice()
        .iter()
        .any(|e| e.function == 1 && e.ecx & (1 << 26) != 0)
}
