//! Tests that load real programs into the guest windows of the test process.

mod images;
mod refusals;

use std::ffi::OsString;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use guest_agentless::Vma;
use tempfile::TempDir;

use super::{LoadError, Loaded, Program, load};
use crate::clock::{ClockPage, VDSO_IMAGE};
use crate::kvm::Vm;
use crate::memory::{AddressSpace, copy, window};
use crate::process::fault_signals;

/// The guest windows exist once in a process, so the tests take turns.
static WINDOWS: Mutex<()> = Mutex::new(());

/// An address space to load programs into.
struct Guest {
    space: AddressSpace,
    clock: ClockPage,
    _vm: Vm,
    _turn: MutexGuard<'static, ()>,
}

impl Guest {
    fn new() -> Guest {
        static RESERVED: OnceLock<()> = OnceLock::new();
        let turn = WINDOWS.lock().unwrap_or_else(PoisonError::into_inner);
        RESERVED.get_or_init(|| {
            fault_signals::install_handler().unwrap();
            window::reserve().unwrap();
        });
        let vm = Vm::create(false).unwrap();
        Guest {
            space: AddressSpace::new(&vm).unwrap(),
            clock: ClockPage::create().unwrap(),
            _vm: vm,
            _turn: turn,
        }
    }

    fn load(&mut self, path: &Path, args: &[&str]) -> Result<Loaded, LoadError> {
        let args: Vec<OsString> = args.iter().map(OsString::from).collect();
        let program = Program {
            path,
            args: &args,
            environment: &["NAME=value".into()],
        };
        load(&mut self.space, &program, self.clock.as_fd(), VDSO_IMAGE)
    }

    fn clear(&mut self) {
        for window in window::windows() {
            self.space.unmap(window).unwrap();
        }
    }

    /// The mapping that holds `address`.
    fn vma(&self, address: u64) -> &Vma {
        self.space.vmas().find(address).unwrap()
    }

    fn word(&self, address: u64) -> u64 {
        let mut bytes = [0; 8];
        copy::read(address, &mut bytes).unwrap();
        u64::from_le_bytes(bytes)
    }

    fn string(&self, address: u64) -> String {
        let byte = |address| {
            let mut byte = [0];
            copy::read(address, &mut byte).unwrap();
            byte[0]
        };
        let bytes = (address..)
            .map(byte)
            .take_while(|byte| *byte != 0)
            .collect();
        String::from_utf8(bytes).unwrap()
    }

    /// The strings whose addresses stand at `address` up to a zero; also where that ends.
    fn strings(&self, address: u64) -> (Vec<String>, u64) {
        let pointers = (0..).map(|index| self.word(address + 8 * index));
        let strings: Vec<String> = pointers
            .take_while(|pointer| *pointer != 0)
            .map(|pointer| self.string(pointer))
            .collect();
        let end = address + 8 * (strings.len() as u64 + 1);
        (strings, end)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        self.clear();
    }
}

/// A file to be run.
fn executable(directory: &TempDir, name: &str, contents: impl AsRef<[u8]>) -> PathBuf {
    let path = directory.path().join(name);
    std::fs::write(&path, contents).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path
}

/// A program with segments of every kind, built with these flags.
fn compile(directory: &TempDir, flags: &[&str]) -> PathBuf {
    const SOURCE: &str = "int data[3000] = {7}; int bss[70000]; const char text[] = \"text\";\n\
        int main(int argc, char **argv) { bss[argc] = data[argc]; return !argv[0] || !text[0]; }\n";
    cc(directory, SOURCE, flags)
}

/// The smallest static program, built with these flags more.
fn compile_tiny(directory: &TempDir, flags: &[&str]) -> PathBuf {
    const SOURCE: &str =
        "int data = 1; int bss[3000]; void _start(void) { for (;;) bss[0] = data; }\n";
    cc(
        directory,
        SOURCE,
        &[&["-static", "-nostdlib", "-no-pie"], flags].concat(),
    )
}

fn cc(directory: &TempDir, source: &str, flags: &[&str]) -> PathBuf {
    let (source_path, path) = (
        directory.path().join("program.c"),
        directory.path().join("program"),
    );
    std::fs::write(&source_path, source).unwrap();
    let status = Command::new("cc")
        .args(flags)
        .arg("-o")
        .arg(&path)
        .arg(&source_path)
        .status();
    assert!(status.unwrap().success(), "cc {flags:?}");
    path
}
