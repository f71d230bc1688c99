//! What the monitor must say of each fault.

/// What the event of a fault says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Its kind.
    pub kind: &'static str,
    /// Whether its signal is the one of bare Linux.
    pub native_signal: bool,
}

/// Instructions whose fate depends on what bare Linux runs on: a hypervisor answers its calls, a kernel may have
/// 32-bit system calls, and KVM's emulator may be asked about `vmrun`, for which it has another answer than a processor
/// that does not know it (seen on one machine of two, on the first virtual processor).
const LIKE_NO_OTHER: [&str; 6] = [
    "vmcall", "vmmcall", "sysenter", "sysexit", "int-0x80", "vmrun",
];

/// What is expected of `fault`; none for those that only a limit ends.
pub fn expected(fault: &str) -> Option<Expected> {
    let kind = match fault {
        "null-read" | "lose-segments" => "null-read",
        "null-write" | "stack-lost" | "cxx-caught" => "null-write",
        "handler-faults" | "handler-once" | "handler-faults-on-other-stack" => "null-write",
        "wild-read" | "monitor-read" | "kernel-read" => "invalid-read",
        "wild-write" | "monitor-write" | "kernel-write" => "invalid-write",
        "write-protected" => "write-protected",
        "iret-nowhere" => "execute",
        "execute-noncanonical" => "general-protection",
        "bus-error"
        | "bus-error-write"
        | "stack-noncanonical"
        | "alignment"
        | "noncanonical-stack-base" => "bus-error",
        "stack-smash" => "abort",
        "divide" | "divide-overflow" => "divide-error",
        "vector-exception" | "x87-exception" => "fpu",
        "ud0" | "ud2" | "bad-lock" | "invalid-opcode" | "into" | "f00f" | "rsm" | "load-cs" => {
            "illegal-instruction"
        }
        "direction" | "all-flags" | "handler-ran" | "handler-jumps" => "illegal-instruction",
        "int1" | "int3" | "trap-flag" | "trap-flag-syscall" => "trap",
        "lose-segments-and-abort" | "raise-abrt" | "kill-self" | "sigqueue-self" => "abort",
        "assert" | "double-free" | "double-free-large" | "free-invalid" => "abort",
        "heap-overflow" | "corrupt-top" | "fortify" | "fortify-string" => "abort",
        "bad-sigreturn" => "general-protection",
        "exit-after-unlink" => return None,
        name if name.starts_with("execute-") => "execute",
        name if name.starts_with("stack-") => "stack-overflow",
        name if name.starts_with("abort") || name.starts_with("cxx-") => "abort",
        name if name.starts_with("exit") => "exit",
        name if ["raise-", "tkill-", "tgkill-", "pthread-"]
            .iter()
            .any(|p| name.starts_with(p)) =>
        {
            "signal"
        }
        name if ["spin", "sleep", "wait-", "lock-", "eat-"]
            .iter()
            .any(|p| name.starts_with(p)) =>
        {
            return None;
        }
        // Whether the processor knows them decides.
        "vmxon" => "",
        name if LIKE_NO_OTHER.contains(&name) => "",
        _ => "general-protection",
    };
    Some(Expected {
        kind,
        native_signal: !LIKE_NO_OTHER.contains(&fault),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_with_a_common_start_are_told_apart() {
        let kind = |fault| expected(fault).map(|expected| expected.kind);
        assert_eq!(kind("stack-smash"), Some("abort"));
        assert_eq!(kind("stack-calls"), Some("stack-overflow"));
        assert_eq!(kind("cxx-caught"), Some("null-write"));
        assert_eq!(kind("hlt"), Some("general-protection"));
        assert_eq!(kind("spin-calls"), None);
    }
}
