//! What the machine has, as far as running a guest is concerned.

use std::fs;
use std::path::PathBuf;

use kvm_bindings::{KVM_CAP_DIRTY_LOG_RING_ACQ_REL, KVM_MAX_CPUID_ENTRIES};
use kvm_ioctls::{Cap, Kvm};
use recovery::report::ReportStore;

/// What was found; `None` where it could not be found out.
#[derive(Debug)]
pub(super) struct Facts {
    /// The architecture that this program was built for, and so runs on.
    pub arch: &'static str,
    pub cpu: Cpu,
    /// `/proc/sys/kernel/osrelease`.
    pub kernel: Option<String>,
    /// `/dev/kvm`, or the errno of opening it for reading and writing.
    pub kvm: Result<KvmFacts, i32>,
    /// Soft limit of open files; `u64::MAX` is no limit.
    pub open_files: Option<u64>,
    /// Whether the monitor's own fit beside the server's.
    pub(super) descriptors: Result<(), crate::memory::TooFewDescriptors>,
    /// Soft limit of the address space in bytes; `u64::MAX` is no limit.
    pub address_space: Option<u64>,
    /// `vm.overcommit_memory`.
    pub overcommit: Option<u64>,
    /// `vm.mmap_min_addr`.
    pub mmap_min_addr: Option<u64>,
    /// `vm.max_map_count`.
    pub max_map_count: Option<u64>,
    /// The report directory, or why it cannot be used.
    pub report_dir: Result<PathBuf, String>,
}

/// From `/proc/cpuinfo`.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Cpu {
    pub vendor: String,
    pub vmx: bool,
    pub svm: bool,
}

/// What an opened `/dev/kvm` says.
#[derive(Debug, Clone)]
pub(super) struct KvmFacts {
    pub api_version: i32,
    /// Register sets that KVM_CAP_SYNC_REGS can exchange, as bits.
    pub sync_regs: i32,
    pub immediate_exit: bool,
    pub user_memory: bool,
    pub readonly_memory: bool,
    /// Largest dirty ring in bytes, 0 if there is none.
    pub dirty_ring_bytes: i32,
    pub memslots: usize,
    pub vcpus: usize,
    /// Bits of a guest physical address.
    pub address_bits: Option<u32>,
}

impl Facts {
    /// Looks at this machine. To see whether reports can be written, it creates the report directory.
    pub(super) fn gather(report_dir: Option<PathBuf>) -> Self {
        let limits = fs::read_to_string("/proc/self/limits").unwrap_or_default();
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        Self {
            arch: std::env::consts::ARCH,
            cpu: parse_cpu(&cpuinfo),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")
                .ok()
                .map(|s| s.trim().to_owned()),
            kvm: Kvm::new()
                .map(|kvm| KvmFacts::gather(&kvm))
                .map_err(|error| error.errno()),
            open_files: parse_limit(&limits, "Max open files"),
            descriptors: crate::memory::enough_descriptors(),
            address_space: parse_limit(&limits, "Max address space"),
            overcommit: sysctl("vm/overcommit_memory"),
            mmap_min_addr: sysctl("vm/mmap_min_addr"),
            max_map_count: sysctl("vm/max_map_count"),
            report_dir: ReportStore::open(report_dir)
                .map(|store| store.archive().dir().to_owned())
                .map_err(|error| super::super::report::chain(&error)),
        }
    }
}

impl KvmFacts {
    fn gather(kvm: &Kvm) -> Self {
        let acq_rel = kvm.check_extension_raw(KVM_CAP_DIRTY_LOG_RING_ACQ_REL.into());
        Self {
            api_version: kvm.get_api_version(),
            sync_regs: kvm.check_extension_int(Cap::SyncRegs),
            immediate_exit: kvm.check_extension(Cap::ImmediateExit),
            user_memory: kvm.check_extension(Cap::UserMemory),
            readonly_memory: kvm.check_extension(Cap::ReadonlyMem),
            dirty_ring_bytes: acq_rel
                .max(kvm.check_extension_int(Cap::DirtyLogRing))
                .max(0),
            memslots: kvm.get_nr_memslots(),
            vcpus: kvm.get_max_vcpus(),
            address_bits: address_bits(kvm),
        }
    }
}

/// MAXPHYADDR: the low byte of EAX of CPUID leaf 0x8000_0008, as a guest will see it.
fn address_bits(kvm: &Kvm) -> Option<u32> {
    let cpuid = kvm.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES).ok()?;
    let leaf = cpuid
        .as_slice()
        .iter()
        .find(|entry| entry.function == 0x8000_0008)?;
    Some(leaf.eax & 0xff)
}

fn sysctl(name: &str) -> Option<u64> {
    fs::read_to_string(format!("/proc/sys/{name}"))
        .ok()?
        .trim()
        .parse()
        .ok()
}

/// The first processor of `/proc/cpuinfo`.
fn parse_cpu(cpuinfo: &str) -> Cpu {
    let value = |key: &str| {
        let line = cpuinfo
            .lines()
            .find(|line| line.split(':').next().is_some_and(|k| k.trim() == key));
        line.and_then(|line| line.split_once(':'))
            .map_or("", |(_, value)| value.trim())
    };
    let flag = |name: &str| value("flags").split_whitespace().any(|flag| flag == name);
    Cpu {
        vendor: value("vendor_id").to_owned(),
        vmx: flag("vmx"),
        svm: flag("svm"),
    }
}

/// The soft limit called `name` in `/proc/self/limits`.
fn parse_limit(limits: &str, name: &str) -> Option<u64> {
    let rest = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpu_vendor_and_flags() {
        let text = "processor\t: 0\nvendor_id\t: GenuineIntel\nflags\t\t: fpu vmx sse\nvmx flags\t: vnmi\n";
        let cpu = Cpu {
            vendor: "GenuineIntel".into(),
            vmx: true,
            svm: false,
        };
        assert_eq!(parse_cpu(text), cpu);
        assert_eq!(parse_cpu("flags\t: vmxoff svm_lock\n"), Cpu::default());
        assert_eq!(parse_cpu(""), Cpu::default());
    }

    #[test]
    fn limits() {
        let text = "Limit  Soft Limit  Hard Limit  Units\n\
                    Max open files  1024  4096  files\n\
                    Max address space  unlimited  unlimited  bytes\n";
        assert_eq!(parse_limit(text, "Max open files"), Some(1024));
        assert_eq!(parse_limit(text, "Max address space"), Some(u64::MAX));
        assert_eq!(parse_limit("", "Max open files"), None);
    }

    #[test]
    fn this_machine_has_what_every_linux_has() {
        let dir = tempfile::tempdir().unwrap();
        let facts = Facts::gather(Some(dir.path().to_owned()));
        assert!(facts.kernel.is_some() && facts.open_files.is_some());
        assert!(facts.overcommit.is_some() && facts.max_map_count.is_some());
        assert_eq!(facts.report_dir.as_deref(), Ok(dir.path()));
    }
}
