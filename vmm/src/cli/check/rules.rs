//! What a guest needs of the machine. Pure: it judges [`Facts`], so every case has a test.

use super::Finding;
use super::facts::{Cpu, Facts, KvmFacts};
use crate::memory::TooFewDescriptors;

/// The first Linux whose KVM has a dirty ring.
const MIN_KERNEL: (u32, u32) = (5, 11);

/// The bit of KVM_CAP_SYNC_REGS for the general registers.
const SYNC_REGS_NEEDED: i32 = 1;

/// The guest windows reach up to 2^39.
const MIN_ADDRESS_BITS: u32 = 39;

/// Guest windows, stubs and the guest's own special mappings take this many memory slots at the least.
const MIN_MEMSLOTS: usize = 32;

/// Descriptors for a handful of vCPUs and a server's usual connections.
const MIN_OPEN_FILES: u64 = 1024;

/// Where the low guest window begins.
const LOW_WINDOW: u64 = 0x1_0000;

/// Address space in bytes: the guest windows, and about as much again for the monitor and the guest's memory.
const MIN_ADDRESS_SPACE: u64 = 1 << 39;

/// The kernel's default of `vm.max_map_count`.
const MIN_MAP_COUNT: u64 = 65_530;

/// All requirements, in the order in which they depend on each other.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let mut findings = vec![cpu(facts), kernel(facts)];
    match &facts.kvm {
        Ok(kvm) => {
            findings.push(Finding::ok("/dev/kvm", "can be read and written"));
            findings.extend(kvm_capabilities(kvm));
        }
        Err(errno) => findings.push(kvm_unavailable(*errno, &facts.cpu)),
    }
    findings.extend([
        match facts.descriptors {
            Ok(()) => open_files(facts.open_files),
            Err(error) => too_few_files(error),
        },
        address_space(facts.address_space),
        overcommit(facts.overcommit),
        mmap_min_addr(facts.mmap_min_addr),
        max_map_count(facts.max_map_count),
        report_dir(&facts.report_dir),
    ]);
    findings
}

fn cpu(facts: &Facts) -> Finding {
    let Cpu { vendor, vmx, svm } = &facts.cpu;
    if facts.arch != "x86_64" {
        return Finding::missing("CPU", facts.arch, "use an x86-64 machine");
    }
    let extension = match (vmx, svm) {
        (true, _) => "VMX",
        (_, true) => "SVM",
        _ => "no VMX or SVM, so KVM must do without",
    };
    Finding::ok("CPU", format!("x86-64, {vendor}, {extension}"))
}

fn kernel(facts: &Facts) -> Finding {
    let (major, minor) = MIN_KERNEL;
    let mend = format!("install Linux {major}.{minor} or newer");
    let Some(release) = &facts.kernel else {
        return Finding::warn("Linux", "its version is not known", mend);
    };
    match version(release) {
        Some(version) if version >= MIN_KERNEL => Finding::ok("Linux", release),
        _ => Finding::warn("Linux", release, mend),
    }
}

/// `(6, 1)` of `6.1.0-18-amd64`.
fn version(release: &str) -> Option<(u32, u32)> {
    let mut parts = release.split(|c: char| !c.is_ascii_digit());
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

fn kvm_unavailable(errno: i32, cpu: &Cpu) -> Finding {
    let modprobe = match cpu {
        Cpu { vmx: true, .. } => "sudo modprobe kvm-intel",
        Cpu { svm: true, .. } => "sudo modprobe kvm-amd",
        _ => {
            "switch on VT-x or AMD-V in the firmware (in a virtual machine: nested virtualization \
             on its host), or `sudo modprobe kvm-pvm` on a kernel with PVM"
        }
    };
    let (found, mend) = match errno {
        libc::ENOENT => (
            "does not exist".to_owned(),
            format!("{modprobe}; in a container: start it with --device /dev/kvm"),
        ),
        libc::ENODEV | libc::ENXIO => ("has no driver".to_owned(), modprobe.to_owned()),
        libc::EACCES | libc::EPERM => (
            "this user may not read and write it".to_owned(),
            "sudo usermod -aG kvm $USER, and log in again; until then: \
             sudo setfacl -m u:$USER:rw /dev/kvm"
                .to_owned(),
        ),
        _ => (
            format!(
                "cannot be opened: {}",
                std::io::Error::from_raw_os_error(errno)
            ),
            "look at `sudo dmesg | grep -i kvm`".to_owned(),
        ),
    };
    Finding::missing("/dev/kvm", found, mend)
}

fn kvm_capabilities(kvm: &KvmFacts) -> Vec<Finding> {
    let (major, minor) = MIN_KERNEL;
    let newer = format!("boot Linux {major}.{minor} or newer");
    let need = |requirement, met: bool, found: String| match met {
        true => Finding::ok(requirement, found),
        false => Finding::missing(requirement, found, &newer),
    };
    let yes = |met: bool| if met { "yes" } else { "no" }.to_owned();
    let ring = match kvm.dirty_ring_bytes {
        0 => "no".to_owned(),
        bytes => format!("{} KiB", bytes / 1024),
    };
    let bits = kvm
        .address_bits
        .map_or_else(|| "not known".to_owned(), |bits| format!("{bits} bits"));
    let wide_enough = kvm
        .address_bits
        .is_some_and(|bits| bits >= MIN_ADDRESS_BITS);
    let sync_regs = kvm.sync_regs & SYNC_REGS_NEEDED == SYNC_REGS_NEEDED;
    vec![
        need(
            "KVM API version",
            kvm.api_version == 12,
            kvm.api_version.to_string(),
        ),
        need("KVM_CAP_USER_MEMORY", kvm.user_memory, yes(kvm.user_memory)),
        need(
            "KVM_CAP_READONLY_MEM",
            kvm.readonly_memory,
            yes(kvm.readonly_memory),
        ),
        need(
            "KVM_CAP_SYNC_REGS",
            sync_regs,
            format!("{:#x}", kvm.sync_regs),
        ),
        need(
            "KVM_CAP_IMMEDIATE_EXIT",
            kvm.immediate_exit,
            yes(kvm.immediate_exit),
        ),
        need("KVM_CAP_DIRTY_LOG_RING", kvm.dirty_ring_bytes > 0, ring),
        need(
            "memory slots",
            kvm.memslots >= MIN_MEMSLOTS,
            kvm.memslots.to_string(),
        ),
        need("vCPUs", kvm.vcpus > 1, format!("up to {}", kvm.vcpus)),
        match wide_enough {
            true => Finding::ok("physical address", bits),
            false => Finding::missing(
                "physical address",
                bits,
                format!(
                    "use a CPU model with at least {MIN_ADDRESS_BITS} bits (QEMU: -cpu host or max)"
                ),
            ),
        },
    ]
}

fn too_few_files(error: TooFewDescriptors) -> Finding {
    let TooFewDescriptors { limit, needed } = error;
    Finding::missing(
        "open files",
        format!("up to {limit}, and this user may not raise it: at least {needed} are needed"),
        "ulimit -n 65536 (of a systemd unit: LimitNOFILE=65536)",
    )
}

fn open_files(limit: Option<u64>) -> Finding {
    let mend = "ulimit -n 65536";
    match limit {
        Some(u64::MAX) => Finding::ok("open files", "no limit"),
        Some(n) if n >= MIN_OPEN_FILES => Finding::ok("open files", format!("up to {n}")),
        Some(n) => Finding::warn("open files", format!("up to {n}, few for a server"), mend),
        None => Finding::warn("open files", "the limit is not known", mend),
    }
}

fn address_space(limit: Option<u64>) -> Finding {
    match limit {
        Some(n) if n < MIN_ADDRESS_SPACE => Finding::missing(
            "address space",
            format!("limited to {n} bytes: the guest windows do not fit"),
            "ulimit -v unlimited",
        ),
        Some(u64::MAX) => Finding::ok("address space", "no limit"),
        Some(n) => Finding::ok("address space", format!("up to {n} bytes")),
        None => Finding::ok("address space", "not known"),
    }
}

fn overcommit(mode: Option<u64>) -> Finding {
    match mode {
        Some(2) => Finding::warn(
            "memory overcommit",
            "vm.overcommit_memory=2: the guest windows may not fit",
            "sudo sysctl -w vm.overcommit_memory=0",
        ),
        Some(mode) => Finding::ok("memory overcommit", format!("vm.overcommit_memory={mode}")),
        None => Finding::ok("memory overcommit", "not known"),
    }
}

fn mmap_min_addr(address: Option<u64>) -> Finding {
    match address {
        Some(a) if a > LOW_WINDOW => Finding::missing(
            "lowest address",
            format!("vm.mmap_min_addr={a}: the low guest window does not fit"),
            "sudo sysctl -w vm.mmap_min_addr=65536",
        ),
        Some(a) => Finding::ok("lowest address", format!("vm.mmap_min_addr={a}")),
        None => Finding::ok("lowest address", "not known"),
    }
}

fn max_map_count(count: Option<u64>) -> Finding {
    match count {
        Some(n) if n < MIN_MAP_COUNT => Finding::warn(
            "mappings",
            format!("vm.max_map_count={n}: few for a large server"),
            "sudo sysctl -w vm.max_map_count=262144",
        ),
        Some(n) => Finding::ok("mappings", format!("vm.max_map_count={n}")),
        None => Finding::ok("mappings", "not known"),
    }
}

fn report_dir(dir: &Result<std::path::PathBuf, String>) -> Finding {
    match dir {
        Ok(dir) => Finding::ok("report directory", dir.display().to_string()),
        Err(error) => Finding::missing(
            "report directory",
            error,
            "make it writable (chmod u+rwx), or name another one with --report-dir DIR",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::Level;
    use super::*;

    fn good() -> Facts {
        Facts {
            arch: "x86_64",
            cpu: Cpu {
                vendor: "AuthenticAMD".into(),
                vmx: false,
                svm: true,
            },
            kernel: Some("6.1.0-18-amd64".into()),
            kvm: Ok(KvmFacts {
                api_version: 12,
                sync_regs: 7,
                immediate_exit: true,
                user_memory: true,
                readonly_memory: true,
                dirty_ring_bytes: 1 << 20,
                memslots: 32_764,
                vcpus: 1024,
                address_bits: Some(48),
            }),
            open_files: Some(20_000),
            descriptors: Ok(()),
            address_space: Some(u64::MAX),
            overcommit: Some(0),
            mmap_min_addr: Some(65_536),
            max_map_count: Some(65_530),
            report_dir: Ok("/state/reports".into()),
        }
    }

    /// A requirement and what makes a machine lack it.
    type Spoiler<T> = (&'static str, fn(&mut T));

    /// The findings that are not ok, after `spoil`.
    fn spoilt(spoil: impl FnOnce(&mut Facts)) -> Vec<Finding> {
        let mut facts = good();
        spoil(&mut facts);
        judge(&facts)
            .into_iter()
            .filter(|f| f.level != Level::Ok)
            .collect()
    }

    /// The one finding that is not ok.
    fn only(spoil: impl FnOnce(&mut Facts)) -> (Level, &'static str, String) {
        let findings = spoilt(spoil);
        assert_eq!(findings.len(), 1, "{findings:?}");
        let finding = &findings[0];
        (
            finding.level,
            finding.requirement,
            finding.mend.clone().unwrap(),
        )
    }

    fn kvm(facts: &mut Facts) -> &mut KvmFacts {
        facts.kvm.as_mut().unwrap()
    }

    #[test]
    fn a_good_machine() {
        assert!(spoilt(|_| ()).is_empty());
    }

    #[test]
    fn no_kvm_device_names_the_module_of_the_vendor() {
        let mend = |cpu: Cpu| {
            let (level, requirement, mend) = only(|f| (f.kvm, f.cpu) = (Err(libc::ENOENT), cpu));
            assert_eq!((level, requirement), (Level::Missing, "/dev/kvm"));
            mend
        };
        assert!(
            mend(Cpu {
                svm: true,
                ..Cpu::default()
            })
            .starts_with("sudo modprobe kvm-amd")
        );
        assert!(
            mend(Cpu {
                vmx: true,
                ..Cpu::default()
            })
            .starts_with("sudo modprobe kvm-intel")
        );
        assert!(mend(Cpu::default()).contains("kvm-pvm"));
    }

    #[test]
    fn no_permission_names_the_group() {
        let (level, _, mend) = only(|f| f.kvm = Err(libc::EACCES));
        assert_eq!(level, Level::Missing);
        assert!(mend.contains("usermod -aG kvm $USER") && mend.contains("setfacl"));
    }

    #[test]
    fn other_errors_of_the_device() {
        assert!(only(|f| f.kvm = Err(libc::ENODEV)).2.contains("modprobe"));
        assert!(only(|f| f.kvm = Err(libc::EBUSY)).2.contains("dmesg"));
    }

    #[test]
    fn each_capability_is_needed() {
        let spoilers: [Spoiler<KvmFacts>; 9] = [
            ("KVM API version", |k| k.api_version = 11),
            ("KVM_CAP_USER_MEMORY", |k| k.user_memory = false),
            ("KVM_CAP_READONLY_MEM", |k| k.readonly_memory = false),
            ("KVM_CAP_SYNC_REGS", |k| k.sync_regs = 6),
            ("KVM_CAP_IMMEDIATE_EXIT", |k| k.immediate_exit = false),
            ("KVM_CAP_DIRTY_LOG_RING", |k| k.dirty_ring_bytes = 0),
            ("memory slots", |k| k.memslots = 8),
            ("vCPUs", |k| k.vcpus = 1),
            ("physical address", |k| k.address_bits = Some(36)),
        ];
        for (requirement, spoil) in spoilers {
            let (level, found, _) = only(|f| spoil(kvm(f)));
            assert_eq!((level, found), (Level::Missing, requirement));
        }
        assert_eq!(only(|f| kvm(f).address_bits = None).0, Level::Missing);
    }

    #[test]
    fn too_few_descriptors_are_refused_with_the_number() {
        let too_few = TooFewDescriptors {
            limit: 64,
            needed: 128,
        };
        let findings = spoilt(|f| f.descriptors = Err(too_few));
        assert_eq!(findings.len(), 1);
        assert_eq!(findings[0].level, Level::Missing);
        assert!(findings[0].found.contains("64") && findings[0].found.contains("128"));
    }

    #[test]
    fn settings_only_warn() {
        let spoilers: [Spoiler<Facts>; 5] = [
            ("Linux", |f| f.kernel = Some("5.10.0-28-amd64".into())),
            ("Linux", |f| f.kernel = None),
            ("open files", |f| f.open_files = Some(256)),
            ("memory overcommit", |f| f.overcommit = Some(2)),
            ("mappings", |f| f.max_map_count = Some(1000)),
        ];
        for (requirement, spoil) in spoilers {
            let (level, found, mend) = only(spoil);
            assert_eq!((level, found), (Level::Warn, requirement));
            assert!(!mend.is_empty());
        }
    }

    #[test]
    fn what_the_windows_and_reports_need() {
        assert_eq!(only(|f| f.arch = "aarch64").0, Level::Missing);
        assert_eq!(only(|f| f.mmap_min_addr = Some(0x2_0000)).0, Level::Missing);
        assert_eq!(
            only(|f| f.address_space = Some(1 << 30)).2,
            "ulimit -v unlimited"
        );
        let (level, _, mend) = only(|f| f.report_dir = Err("cannot write".into()));
        assert!(level == Level::Missing && mend.contains("--report-dir"));
    }

    #[test]
    fn kernel_versions() {
        assert_eq!(version("6.18.44-fc"), Some((6, 18)));
        assert_eq!(version("5.11"), Some((5, 11)));
        assert_eq!(version("6.9-rc1"), Some((6, 9)));
        assert_eq!(version("next"), None);
    }
}
