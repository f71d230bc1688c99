//! The tests that need KVM: they are counted, so that a run without any of them fails.

use std::{
    collections::BTreeSet,
    env,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

/// Environment variable that names the file in which [`kvm_case`] notes the tests that ran.
pub const RAN_FILE: &str = "VMSRS_KVM_TESTS_RAN";

/// Declares that the running test needs KVM; `name` is noted in the file that
/// `VMSRS_KVM_TESTS_RAN` names.
///
/// # Panics
///
/// Fails the test when `/dev/kvm` cannot be used or the note cannot be written.
pub fn kvm_case(name: &str) {
    if let Err(reason) = usable() {
        panic!("{name} needs KVM: {reason}");
    }
    if let Some(path) = env::var_os(RAN_FILE)
        && let Err(error) = note(Path::new(&path), name)
    {
        panic!(
            "{name}: cannot note the case in {}: {error}",
            path.display()
        );
    }
}

/// Whether this process may use `/dev/kvm`; the error says what to do about it.
pub fn usable() -> Result<(), String> {
    match OpenOptions::new().read(true).write(true).open("/dev/kvm") {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(
            "/dev/kvm does not exist: enable virtualization in the firmware or hypervisor and load \
             the module (`modprobe kvm-intel` or `modprobe kvm-amd`)"
                .to_owned(),
        ),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Err(
            "no permission for /dev/kvm: join its group (`usermod -aG kvm $USER`, then log in again)"
                .to_owned(),
        ),
        Err(error) => Err(format!("/dev/kvm cannot be opened: {error}")),
    }
}

/// The names of the KVM tests that ran, as noted in `path`. No file means that none did.
pub fn ran(path: &Path) -> io::Result<BTreeSet<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(text.lines().map(str::to_owned).collect()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(BTreeSet::new()),
        Err(error) => Err(error),
    }
}

/// One append per case: tests run side by side, in several processes.
fn note(path: &Path, name: &str) -> io::Result<()> {
    let mut file = OpenOptions::new().create(true).append(true).open(path)?;
    file.write_all(format!("{name}\n").as_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cases_are_counted_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ran");
        assert!(ran(&path).unwrap().is_empty());
        for name in ["demo", "redis", "demo"] {
            note(&path, name).unwrap();
        }
        assert_eq!(ran(&path).unwrap().len(), 2);
    }
}
