//! The emulated machine: QEMU with TCG, two processors with SVM, two serial ports.

use std::{
    fs, io,
    path::Path,
    process::{Command, ExitStatus, Stdio},
    time::Duration,
};

use crate::process::Bounded;

/// How the machine ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// It powered off, or its kernel panicked: with `panic=-1` both end QEMU.
    PoweredOff,
    /// QEMU failed.
    Failed(ExitStatus),
    /// It was killed at the deadline.
    Deadline,
}

/// What the machine printed.
#[derive(Clone, Debug)]
pub struct Output {
    /// The first serial port: the kernel's console, and what QEMU said.
    pub console: String,
    /// The second serial port: the init script's report.
    pub report: String,
}

/// Boots `kernel` with `initrd`, keeping the serial ports' output in `dir`, and waits for the
/// machine to end; it is killed after `deadline`. The report has a port of its own, so that
/// kernel messages cannot tear its lines.
pub fn run(
    kernel: &Path,
    initrd: &Path,
    dir: &Path,
    deadline: Duration,
) -> io::Result<(Output, End)> {
    let (console, report, errors) = (dir.join("console"), dir.join("report"), dir.join("qemu"));
    let mut qemu = Command::new("qemu-system-x86_64");
    // With a thread for each processor, the machine hangs now and then, both processors in endless exceptions (QEMU
    // 7.2; 3 of 10 runs of the `durable` tests). One thread for both is not slower.
    qemu.args(["-accel", "tcg,thread=single", "-cpu", "max"])
        .args(["-m", "2048", "-smp", "2"])
        .args(["-nodefaults", "-display", "none", "-no-reboot"])
        .arg("-kernel")
        .arg(kernel)
        .arg("-initrd")
        .arg(initrd)
        .args(["-append", "console=ttyS0 panic=-1 quiet"])
        .args(["-serial", &serial(&console), "-serial", &serial(&report)])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&errors)?);
    let mut machine = Bounded::spawn(&mut qemu)?;
    let end = match machine.wait_for(deadline)? {
        Some(status) if status.success() => End::PoweredOff,
        Some(status) => End::Failed(status),
        None => End::Deadline,
    };
    machine.kill();
    let console = [read(&console), read(&errors)].concat();
    Ok((
        Output {
            console,
            report: read(&report),
        },
        end,
    ))
}

fn serial(file: &Path) -> String {
    // In QEMU's option syntax a comma ends the value, and two stand for one.
    format!("file:{}", file.display().to_string().replace(',', ",,"))
}

/// The text of a serial port; empty if the machine did not get as far as to write any.
fn read(path: &Path) -> String {
    let bytes = fs::read(path).unwrap_or_default();
    String::from_utf8_lossy(&bytes).replace("\r\n", "\n")
}
