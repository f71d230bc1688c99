//! The program loader: what `execve` does, for a guest.
//!
//! It turns a path, arguments and an environment into an address space that is ready to run: the program's
//! segments, its dynamic loader if it has one, a stack as the x86-64 ABI describes it, and the vDSO.
//!
//! - `resolve`: finding the program in `PATH`, following `#!` lines;
//! - `file`: opening a program file and reading its head;
//! - `image`: mapping the segments of an ELF file;
//! - `stack`, `auxv`: the first thread's stack and the auxiliary vector on it;
//! - `vdso`: the clock page and the code that reads it.
//!
//! Everything in a program file is input that anybody may have made. The descriptors opened here are closed
//! again before `load` returns, so the guest finds the numbers free that it would find free without the
//! monitor.

mod auxv;
mod error;
mod file;
mod image;
mod resolve;
mod stack;
#[cfg(test)]
mod tests;
mod vdso;

use std::ffi::{CString, OsString};
use std::os::fd::BorrowedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use guest_agentless::GuestRange;

use crate::memory::{AddressSpace, PROGRAM_BASE};
use auxv::Auxv;
pub use error::{LoadError, Unusable};
use image::Image;
pub use resolve::find_program;
use stack::Contents;
pub use stack::Shown;

/// Bytes of a thread's name without its NUL (`TASK_COMM_LEN` - 1).
const NAME_BYTES: usize = 15;

/// What is to be run.
#[derive(Debug, Clone, Copy)]
pub struct Program<'a> {
    /// The file, as it is named to `execve`.
    pub path: &'a Path,
    /// The arguments; the first is the name that the user gave.
    pub args: &'a [OsString],
    /// The environment: `NAME=value` each, passed on as it is.
    pub environment: &'a [OsString],
}

/// A program that is ready to run.
#[derive(Debug)]
pub struct Loaded {
    /// Where the first thread starts: in the dynamic loader if the program has one.
    pub entry: u64,
    /// What is on its stack. The stack pointer is a multiple of 16.
    pub shown: Shown,
    /// What `/proc/self/exe` refers to, without symbolic links. For a script it is the interpreter.
    pub executable: PathBuf,
    /// Where the vDSO is.
    pub vdso: u64,
    /// The name of the first thread (`comm`). For a script it is the script's.
    pub name: CString,
    /// Guest memory that the loader wrote or zeroed; everything else is as the files have it, or zero.
    pub written: Vec<GuestRange>,
}

/// Whether `program` can be loaded, as far as its files tell.
pub fn check(program: &Program<'_>) -> Result<(), LoadError> {
    let target = resolve::follow_scripts(program)?;
    let refuse = |source| error::refuse(program.path, &target.path, source);
    target.file.elf().map(drop).map_err(refuse)
}

/// Loads `program` into `space`, which must be empty. `clock` is the memory file of the clock page and
/// `vdso` the image that reads it.
///
/// Set-user-ID and set-group-ID bits and file capabilities have no effect: the guest runs with the monitor's
/// own credentials, as a traced program does. Addresses are not randomized.
///
/// The fault handler of guest memory must be installed. After an error the address space is of no use any
/// more: it may hold a part of the program.
pub fn load(
    space: &mut AddressSpace,
    program: &Program<'_>,
    clock: BorrowedFd<'_>,
    vdso: &[u8],
) -> Result<Loaded, LoadError> {
    let target = resolve::follow_scripts(program)?;
    let refuse = |source| error::refuse(program.path, &target.path, source);
    let elf = target.file.elf().map_err(refuse)?;
    let mut written = Vec::new();

    let image = Image::place(&elf, PROGRAM_BASE).map_err(refuse)?;
    let entry = image.entry(&elf).map_err(refuse)?;
    image
        .map(space, &target.file, &elf, &mut written)
        .map_err(LoadError::monitor("map the program"))?;
    space.set_heap((image.range().end(), image.range().end()));

    let interpreter = match &elf.interpreter {
        Some(path) => Some(image::load_interpreter(
            space,
            &target.path,
            Path::new(path),
            &mut written,
        )?),
        None => None,
    };
    let stack = stack::map(space, elf.executable_stack)
        .map_err(LoadError::monitor("make the program's stack"))?;
    let vdso = vdso::map(space, clock, vdso).map_err(LoadError::monitor("map the vDSO"))?;
    written.push(vdso);

    let auxv = Auxv {
        vdso: vdso.start(),
        program_headers: elf
            .program_headers
            .vaddr
            .map_or(0, |vaddr| image.address(vaddr)),
        program_header_size: elf.program_headers.entry_size,
        program_header_count: elf.program_headers.count,
        base: interpreter
            .as_ref()
            .map_or(0, |interpreter| interpreter.bias),
        entry,
    };
    let auxv = auxv.entries();
    let contents = Contents {
        args: &target.args,
        environment: program.environment,
        file_name: program.path.as_os_str(),
        auxv: &auxv,
        random: stack::random_bytes().map_err(LoadError::monitor("get random bytes"))?,
    };
    let shown = stack::fill(stack, &contents)?;
    written.push(GuestRange::from_bounds(shown.stack_pointer, stack.end()));
    Ok(Loaded {
        entry: interpreter.map_or(entry, |interpreter| interpreter.entry),
        shown,
        executable: target.file.into_path(),
        vdso: vdso.start(),
        name: thread_name(program.path),
        written,
    })
}

/// The name that the kernel gives the first thread.
fn thread_name(path: &Path) -> CString {
    let name = path.file_name().unwrap_or_default().as_bytes();
    // A path that was opened has no NUL.
    CString::new(&name[..name.len().min(NAME_BYTES)]).unwrap_or_default()
}
