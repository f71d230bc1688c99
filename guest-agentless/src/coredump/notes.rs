//! The notes of a core: registers, signal, process, mapped files (Linux `elfcore.h`, `fs/binfmt_elf.c`).

use object::elf::{
    ELF_NOTE_CORE, NT_AUXV, NT_FILE, NT_PRFPREG, NT_PRPSINFO, NT_PRSTATUS, NT_SIGINFO,
    NoteHeader64, NoteType,
};
use object::pod::bytes_of;
use object::{LittleEndian, U32};

use super::{CoreDump, ProcessState, ThreadState};
use crate::PAGE_SIZE;

/// Mapped files that are told at most.
const FILES_LIMIT: usize = 1 << 14;

/// All notes. Those of a thread follow its `NT_PRSTATUS`.
pub(super) fn notes(core: &CoreDump<'_>) -> Vec<u8> {
    let mut notes = Notes::default();
    let number = core.signal.map_or(0, |(number, _)| number);
    for (i, thread) in core.threads.iter().enumerate() {
        let first = i == 0;
        // As Linux has it: every thread has the signal of the core.
        notes.add(NT_PRSTATUS, &status(core.process, thread, number).0);
        if first {
            notes.add(NT_PRPSINFO, &process(core.process).0);
            if let Some((_, info)) = core.signal {
                notes.add(NT_SIGINFO, info);
            }
            notes.add(NT_AUXV, &auxv(core.process).0);
            notes.add(NT_FILE, &files(core).0);
        }
        if let Some(vector) = &thread.vector {
            notes.add(NT_PRFPREG, &vector[..]);
        }
    }
    notes.0
}

#[derive(Default)]
struct Notes(Vec<u8>);

impl Notes {
    fn add(&mut self, kind: NoteType, content: &[u8]) {
        let size = |len: usize| U32::new(LittleEndian, len as u32);
        let header = NoteHeader64 {
            n_namesz: size(ELF_NOTE_CORE.len() + 1),
            n_descsz: size(content.len()),
            n_type: U32::new(LittleEndian, kind),
        };
        self.0.extend_from_slice(bytes_of(&header));
        for part in [&[ELF_NOTE_CORE, b"\0"].concat(), content] {
            self.0.extend_from_slice(part);
            self.0.resize(self.0.len().next_multiple_of(4), 0);
        }
    }
}

/// A structure of the kernel, field by field.
#[derive(Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn zeros(&mut self, bytes: usize) {
        self.0.resize(self.0.len() + bytes, 0);
    }

    fn ints(&mut self, values: &[i32]) {
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
    }

    fn longs(&mut self, values: &[u64]) {
        values.iter().for_each(|v| self.0.extend(v.to_le_bytes()));
    }

    /// A string in a field of `size` bytes, with a NUL at its end.
    fn text(&mut self, text: &str, size: usize) {
        let kept = text.len().min(size - 1);
        self.0.extend_from_slice(&text.as_bytes()[..kept]);
        self.zeros(size - kept);
    }
}

/// `struct elf_prstatus`.
fn status(process: &ProcessState, thread: &ThreadState, signal: i32) -> Fields {
    let mut fields = Fields::default();
    // pr_info: si_signo, si_code, si_errno; pr_cursig, 16 bits and as many of padding.
    fields.ints(&[signal, 0, 0, signal]);
    // pr_sigpend, pr_sighold.
    fields.longs(&[0, 0]);
    // pr_pid, which is the thread's; pr_ppid, pr_pgrp, pr_sid.
    fields.ints(&[thread.tid, 0, process.pid, process.pid]);
    // pr_utime, pr_stime, pr_cutime, pr_cstime.
    fields.longs(&[0; 8]);
    let r = &thread.registers;
    fields.longs(&[r.r15, r.r14, r.r13, r.r12, r.rbp, r.rbx, r.r11, r.r10, r.r9]);
    fields.longs(&[r.r8, r.rax, r.rcx, r.rdx, r.rsi, r.rdi, r.orig_rax, r.rip]);
    fields.longs(&[r.cs, r.eflags, r.rsp, r.ss, r.fs_base, r.gs_base]);
    fields.longs(&[r.ds, r.es, r.fs, r.gs]);
    // pr_fpvalid.
    fields.ints(&[i32::from(thread.vector.is_some()), 0]);
    fields
}

/// `struct elf_prpsinfo`.
fn process(process: &ProcessState) -> Fields {
    let mut fields = Fields::default();
    // pr_state, pr_sname, pr_zomb, pr_nice, padding, pr_flag.
    fields.0.extend_from_slice(b"\0R\0\0");
    fields.zeros(4 + 8);
    fields.ints(&[process.user.0 as i32, process.user.1 as i32]);
    // pr_pid, pr_ppid, pr_pgrp, pr_sid.
    fields.ints(&[process.pid, 0, process.pid, process.pid]);
    let name = process.program.rsplit('/').next().unwrap_or_default();
    fields.text(name, 16);
    fields.text(&process.program, 80);
    fields
}

fn auxv(process: &ProcessState) -> Fields {
    let mut fields = Fields::default();
    for (kind, value) in process.auxv.iter().chain([&(0, 0)]) {
        fields.longs(&[*kind, *value]);
    }
    fields
}

/// `NT_FILE`: count, page size; start, end and offset in pages of each; names.
fn files(core: &CoreDump<'_>) -> Fields {
    let files: Vec<_> = core.files().take(FILES_LIMIT).collect();
    let mut fields = Fields::default();
    fields.longs(&[files.len() as u64, PAGE_SIZE]);
    for (vma, file) in &files {
        let range = vma.range;
        fields.longs(&[range.start(), range.end(), file.offset / PAGE_SIZE]);
    }
    for (_, file) in &files {
        fields.0.extend_from_slice(file.path.as_bytes());
        fields.zeros(1);
    }
    fields
}
