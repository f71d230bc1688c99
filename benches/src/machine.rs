//! Where and when the figures were measured.

use std::{
    fs,
    process::{Command, Stdio},
    thread,
    time::SystemTime,
};

use serde::Serialize;
use vmsrs_tests::paths;

use crate::Error;

/// Where and when, and of which commit.
#[derive(Clone, Debug, Serialize)]
pub struct Machine {
    /// RFC 3339.
    pub date: String,
    /// The commit of the working tree, with `-dirty` if that differs from it.
    pub commit: Option<String>,
    /// Whether the monitor was built from that working tree; otherwise `VMSRS_BIN` named it, and
    /// the commit says nothing about it.
    pub monitor_built_here: bool,
    /// The processor's name for itself.
    pub cpu: String,
    /// Processors that this process may use.
    pub cores: usize,
    /// The kernel's release.
    pub kernel: String,
    /// The KVM implementations that are loaded, such as `kvm_intel`.
    pub kvm: Vec<String>,
    /// How this KVM enters the `syscall` stub, as the monitor's `started` event says.
    pub entry_path: Option<String>,
    /// `redis-server --version` and `memcached --version`.
    pub servers: Vec<String>,
    /// The load averages before and after: what else the machine had to do.
    pub load_average_before: String,
    /// See `load_average_before`.
    pub load_average_after: String,
}

impl Machine {
    /// Looks at this machine, on which `monitor_built_here` is true or not.
    pub fn look(monitor_built_here: bool) -> Result<Self, Error> {
        let cpus = fs::read_to_string("/proc/cpuinfo")?;
        let load_average_before = load_average();
        Ok(Self {
            date: humantime::format_rfc3339_seconds(SystemTime::now()).to_string(),
            commit: commit(),
            monitor_built_here,
            cpu: cpu_model(&cpus).unwrap_or("unknown").to_owned(),
            cores: thread::available_parallelism()?.get(),
            kernel: fs::read_to_string("/proc/sys/kernel/osrelease")?
                .trim()
                .to_owned(),
            kvm: kvm_modules(),
            entry_path: None,
            servers: ["redis-server", "memcached"]
                .iter()
                .filter_map(|program| first_line(Command::new(program).arg("--version")))
                .collect(),
            load_average_after: load_average_before.clone(),
            load_average_before,
        })
    }
}

/// The load averages over 1, 5 and 15 minutes.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').take(3).collect::<Vec<_>>().join(" ")
}

fn cpu_model(cpuinfo: &str) -> Option<&str> {
    let line = cpuinfo
        .lines()
        .find(|line| line.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim())
}

/// Built in or loaded, an implementation has a directory here.
fn kvm_modules() -> Vec<String> {
    let entries = fs::read_dir("/sys/module").into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("kvm_")).collect();
    names.sort_unstable();
    names
}

/// Nothing where there is no repository, or no git.
fn commit() -> Option<String> {
    let git = || {
        let mut git = Command::new("git");
        git.current_dir(paths::workspace_dir());
        git
    };
    let hash = first_line(git().args(["rev-parse", "HEAD"]))?;
    let changed = first_line(git().args(["status", "--porcelain"])).is_some();
    Some(if changed { hash + "-dirty" } else { hash })
}

/// The first line that a command prints, if it succeeds and prints one.
fn first_line(command: &mut Command) -> Option<String> {
    let output = command
        .stdin(Stdio::null())
        .stderr(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let line = text.lines().next()?.trim().to_owned();
    output.status.success().then_some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_processor_names_the_machine() {
        let text = "processor\t: 0\nmodel name\t: A CPU @ 1 GHz\nmodel name\t: other\n";
        assert_eq!(cpu_model(text), Some("A CPU @ 1 GHz"));
        assert_eq!(cpu_model("processor: 0\n"), None);
    }

    #[test]
    fn this_machine_can_be_looked_at() {
        let machine = Machine::look(true).unwrap();
        assert!(machine.cores > 0 && !machine.kernel.is_empty());
        assert_eq!(machine.load_average_before.split(' ').count(), 3);
    }
}
