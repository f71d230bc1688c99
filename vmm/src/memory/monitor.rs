//! The monitor's own part of guest-physical memory: stubs, descriptor tables, exception stacks and page
//! tables.
//!
//! Only the two code pages are mapped for ring 3, and they are read-only there; the rest is out of the
//! guest's reach.

use vm_memory::{Address, Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

use crate::kvm::{KvmError, layout};

/// What the CPU pushes when ring 3 raises an exception (SDM volume 3, 7.14.2).
#[derive(Debug, Clone, Copy)]
pub struct ExceptionFrame {
    /// 0 for exceptions without one.
    pub error_code: u64,
    /// The instruction that faulted, or the next one for traps.
    pub rip: u64,
    /// Flags at that point.
    pub rflags: u64,
    /// Stack pointer at that point.
    pub rsp: u64,
}

/// The mapped region; see [`layout`] for what lies where.
pub struct MonitorRegion {
    memory: GuestMemoryMmap<()>,
}

fn region_error(e: impl std::fmt::Display) -> KvmError {
    KvmError::Memory(e.to_string())
}

impl MonitorRegion {
    const SIZE: u64 = layout::CONTROL_SIZE + layout::PAGE_TABLES_SIZE;

    /// Maps the region and writes stubs and tables into it.
    pub fn create() -> Result<MonitorRegion, KvmError> {
        let base = GuestAddress(layout::MONITOR_BASE);
        let memory =
            GuestMemoryMmap::from_ranges(&[(base, Self::SIZE as usize)]).map_err(region_error)?;
        let region = MonitorRegion { memory };
        region.write(layout::SYSCALL_STUB, &layout::SYSCALL_STUB_CODE)?;
        region.write(layout::PROBE_CODE, &layout::PROBE)?;
        const HLT: u8 = 0xf4;
        for vector in 0..256 {
            let stub = layout::EXCEPTION_STUBS + vector * layout::EXCEPTION_STUB_SIZE;
            region.write(stub, &[HLT; layout::EXCEPTION_STUB_SIZE as usize])?;
            for (i, half) in layout::idt_gate(vector).into_iter().enumerate() {
                region.write_u64(layout::IDT + vector * 16 + i as u64 * 8, half)?;
            }
        }
        for (i, descriptor) in layout::gdt().into_iter().enumerate() {
            region.write_u64(layout::GDT + i as u64 * 8, descriptor)?;
        }
        Ok(region)
    }

    /// Host address and size, for the memory slot.
    pub fn host_range(&self) -> (u64, u64) {
        let host = self
            .memory
            .get_host_address(GuestAddress(layout::MONITOR_BASE));
        (host.map_or(0, |p| p as u64), Self::SIZE)
    }

    /// Writes the task-state segment of vCPU `index`.
    pub fn prepare_vcpu(&self, index: u64) -> Result<(), KvmError> {
        let page = layout::vcpu_page(index);
        const RSP0: u64 = 4;
        const IO_MAP_BASE: u64 = 0x66;
        self.write(page + RSP0, &(page + 4096).to_le_bytes())?;
        // Where `syscall` stays in ring 3 the stub's port write needs permission: one bit per port, and
        // the eight from SYSCALL_PORT are open. A port write elsewhere than in the stub is found out by
        // its RIP.
        self.write(page + IO_MAP_BASE, &0x68u16.to_le_bytes())?;
        self.write(page + 0x68, &[0xff, 0xff, 0x00, 0xff])
    }

    /// The frame that the CPU pushed for `vector` on the stack of vCPU `index`; none if `rsp` is not where
    /// such a frame ends.
    pub fn exception_frame(&self, index: u64, rsp: u64, vector: u8) -> Option<ExceptionFrame> {
        let with_code = layout::pushes_error_code(vector);
        let frame = rsp.checked_add(if with_code { 8 } else { 0 })?;
        let top = layout::vcpu_page(index) + 4096;
        if frame.checked_add(5 * 8)? != top {
            return None;
        }
        let word = |i: u64| self.read_u64(frame + i * 8).ok();
        Some(ExceptionFrame {
            error_code: if with_code {
                self.read_u64(rsp).ok()?
            } else {
                0
            },
            rip: word(0)?,
            rflags: word(2)?,
            rsp: word(3)?,
        })
    }

    /// Reads a word of the region.
    pub fn read_u64(&self, address: u64) -> Result<u64, KvmError> {
        self.memory
            .read_obj(GuestAddress(address))
            .map_err(region_error)
    }

    /// Writes a word of the region.
    pub fn write_u64(&self, address: u64, value: u64) -> Result<(), KvmError> {
        self.memory
            .write_obj(value, GuestAddress(address))
            .map_err(region_error)
    }

    /// Reads a page of the region.
    pub fn read_page(&self, address: u64) -> Result<[u8; 4096], KvmError> {
        let mut page = [0; 4096];
        self.memory
            .read_slice(&mut page, GuestAddress(address))
            .map_err(region_error)?;
        Ok(page)
    }

    /// Writes a page of the region.
    pub fn write_page(&self, address: u64, page: &[u8; 4096]) -> Result<(), KvmError> {
        self.write(address, page)
    }

    fn write(&self, address: u64, bytes: &[u8]) -> Result<(), KvmError> {
        self.memory
            .write_slice(bytes, GuestAddress(address))
            .map_err(region_error)
    }

    /// Whether `address` and the `len` bytes behind it lie in the region.
    pub fn contains(&self, address: u64, len: u64) -> bool {
        let start = GuestAddress(address);
        start.checked_add(len).is_some()
            && GuestMemoryBackend::check_range(&self.memory, start, len as usize)
    }
}
