//! What is in memory after a program was loaded.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;

use guest_agentless::{Backing, Elf, PAGE_SIZE, Protection};

use super::*;
use crate::memory::{PROGRAM_BASE, STACK_TOP};

/// Compares all mappings with what the host says of them.
///
/// The host joins neighbours that differ in execution only, which the host does not need, so every mapping
/// has to be a part of one of the host's.
fn assert_host_agrees(space: &AddressSpace) {
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let hex = |text: &str| u64::from_str_radix(text, 16).unwrap();
    for vma in space.vmas().iter() {
        let line = maps
            .lines()
            .map(|line| line.split_whitespace().collect::<Vec<_>>())
            .find(|fields| {
                let (start, end) = fields[0].split_once('-').unwrap();
                (hex(start)..hex(end)).contains(&vma.range.start())
            })
            .unwrap();
        let (start, end) = line[0].split_once('-').unwrap();
        assert!(hex(end) >= vma.range.end(), "{vma:?} {line:?}");
        let flag = |set, letter| if set { letter } else { '-' };
        let expected: String = [
            flag(vma.protection != Protection::NONE, 'r'),
            flag(vma.protection.is_writable(), 'w'),
            '-',
            if vma.shared { 's' } else { 'p' },
        ]
        .iter()
        .collect();
        assert_eq!(line[1], expected, "{vma:?}");
        if let Backing::File(file) = &vma.backing {
            assert_eq!(
                hex(line[2]) + vma.range.start() - hex(start),
                file.offset,
                "{vma:?}"
            );
            assert_eq!(line[5], &*file.path, "{vma:?}");
        }
    }
}

/// Compares the program's segments with its file, given what was added to its addresses.
fn assert_image(guest: &Guest, path: &Path, bias: u64) -> Elf {
    let file = std::fs::File::open(path).unwrap();
    let elf = Elf::parse(&std::fs::read(path).unwrap()).unwrap();
    for segment in &elf.segments {
        let pages = segment.pages().pages().map(|page| page.address().0 + bias);
        assert!(
            pages
                .clone()
                .all(|page| guest.vma(page).protection == segment.protection)
        );
        let mut expected = vec![0; segment.filesz as usize];
        file.read_exact_at(&mut expected, segment.offset).unwrap();
        if segment.protection.is_writable() {
            // The program is one that needs zeros behind what is in the file, up to its last page's end.
            let end = segment.pages().end() - segment.vaddr;
            assert!(end > segment.filesz);
            expected.resize(end as usize, 0);
        }
        let mut found = vec![1; expected.len()];
        copy::read(segment.vaddr + bias, &mut found).unwrap();
        assert!(found == expected, "segment {}", segment.index);
    }
    let bss_end = elf.span().end() + bias;
    assert_eq!(guest.space.heap(), (bss_end, bss_end));
    elf
}

fn auxv(guest: &Guest, at: u64) -> BTreeMap<u64, u64> {
    (0..)
        .map(|index| at + 16 * index)
        .map(|at| (guest.word(at), guest.word(at + 8)))
        .take_while(|(kind, _)| *kind != libc::AT_NULL)
        .collect()
}

/// Arguments, environment and auxiliary vector.
fn stack(guest: &Guest, loaded: &Loaded) -> (Vec<String>, Vec<String>, BTreeMap<u64, u64>) {
    assert!(loaded.shown.stack_pointer.is_multiple_of(16));
    let (args, environment) = guest.strings(loaded.shown.stack_pointer + 8);
    assert_eq!(guest.word(loaded.shown.stack_pointer), args.len() as u64);
    let (environment, auxv_at) = guest.strings(environment);
    (args, environment, auxv(guest, auxv_at))
}

#[test]
fn a_dynamic_program() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(&directory, &["-fPIE", "-pie"]);
    let mut guest = Guest::new();
    let loaded = guest.load(&path, &["name", "x"]).unwrap();
    assert_host_agrees(&guest.space);
    let elf = assert_image(&guest, &path, PROGRAM_BASE);

    let (args, environment, auxv) = stack(&guest, &loaded);
    assert_eq!(args, ["name", "x"]);
    assert_eq!(environment, ["NAME=value"]);
    assert_eq!(guest.string(auxv[&libc::AT_EXECFN]), path.to_str().unwrap());
    assert_eq!(guest.string(auxv[&libc::AT_PLATFORM]), "x86_64");
    assert_eq!(auxv[&libc::AT_ENTRY], elf.entry + PROGRAM_BASE);
    let mut headers = vec![0; 56 * elf.program_headers.count as usize];
    copy::read(auxv[&libc::AT_PHDR], &mut headers).unwrap();
    let in_file = &std::fs::read(&path).unwrap()[64..][..headers.len()];
    assert_eq!((headers.as_slice(), auxv[&libc::AT_PHENT]), (in_file, 56));

    // The dynamic loader starts, and it finds itself at AT_BASE.
    let interpreter = guest.vma(auxv[&libc::AT_BASE]);
    let Backing::File(file) = &interpreter.backing else {
        panic!("{interpreter:?}")
    };
    let named = std::fs::canonicalize(elf.interpreter.unwrap()).unwrap();
    assert_eq!((file.offset, &*file.path), (0, named.to_str().unwrap()));
    let linker = Elf::parse(&std::fs::read(named).unwrap()).unwrap();
    assert_eq!(loaded.entry, linker.entry + auxv[&libc::AT_BASE]);

    assert_eq!(loaded.executable, std::fs::canonicalize(&path).unwrap());
    assert_eq!(loaded.name.as_c_str(), c"program");
    let stack = guest.vma(STACK_TOP - 1);
    assert_eq!(stack.protection, Protection::READ | Protection::WRITE);
    assert_eq!(stack.backing, Backing::Stack);
    let open = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    assert!(
        open.flat_map(|entry| std::fs::read_link(entry.path()))
            .all(|file| file != path)
    );
}

#[test]
fn the_auxiliary_vector_is_complete() {
    // AT_RSEQ_FEATURE_SIZE and AT_RSEQ_ALIGN, which are left out: without them a program takes restartable
    // sequences as they were at first.
    const AT_RSEQ: [u64; 2] = [27, 28];
    let mut guest = Guest::new();
    let loaded = guest.load(Path::new("/bin/true"), &["true"]).unwrap();
    let (_, _, found) = stack(&guest, &loaded);
    let native = std::fs::read("/proc/self/auxv").unwrap();
    let native: BTreeMap<u64, u64> = native
        .chunks_exact(16)
        .map(|entry| {
            let word = |at: usize| u64::from_le_bytes(*entry[at..].first_chunk().unwrap());
            (word(0), word(8))
        })
        .filter(|(kind, _)| *kind != libc::AT_NULL && !AT_RSEQ.contains(kind))
        .collect();
    assert!(found.keys().eq(native.keys()), "{found:?} {native:?}");
    const AT_MINSIGSTKSZ: u64 = 51;
    for kind in [
        libc::AT_CLKTCK,
        libc::AT_PAGESZ,
        libc::AT_UID,
        libc::AT_EGID,
        AT_MINSIGSTKSZ,
    ] {
        assert_eq!(found.get(&kind), native.get(&kind), "{kind}");
    }
    const SSE2: u64 = 1 << 26;
    assert_eq!(
        found[&libc::AT_HWCAP] & native[&libc::AT_HWCAP] & SSE2,
        SSE2
    );
}

#[test]
fn static_programs_at_any_and_at_a_fixed_address() {
    let directory = tempfile::tempdir().unwrap();
    for (flags, bias) in [
        (&["-static-pie"][..], PROGRAM_BASE),
        (&["-static", "-no-pie"], 0),
        (
            &[
                "-static",
                "-no-pie",
                "-Wl,-z,noseparate-code",
                "-Wl,-z,norelro",
            ],
            0,
        ),
        // Its alignment moves it up.
        (
            &["-static-pie", "-Wl,-z,max-page-size=0x200000"],
            PROGRAM_BASE.next_multiple_of(0x20_0000),
        ),
    ] {
        let path = compile(&directory, flags);
        let mut guest = Guest::new();
        let loaded = guest.load(&path, &[]).unwrap();
        assert_host_agrees(&guest.space);
        let elf = assert_image(&guest, &path, bias);
        let (args, _, auxv) = stack(&guest, &loaded);
        assert_eq!(args, [""]);
        assert_eq!(auxv[&libc::AT_BASE], 0);
        assert_eq!(
            (loaded.entry, auxv[&libc::AT_ENTRY]),
            (elf.entry + bias, elf.entry + bias)
        );
    }
}

#[test]
fn a_stack_that_code_runs_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(&directory, &["-Wl,-z,execstack"]);
    let mut guest = Guest::new();
    guest.load(&path, &["x"]).unwrap();
    assert!(guest.vma(STACK_TOP - 1).protection.is_executable());
    assert_host_agrees(&guest.space);
}

#[test]
fn the_vdso_lies_behind_its_page() {
    let mut guest = Guest::new();
    let loaded = guest.load(Path::new("/bin/true"), &["true"]).unwrap();
    let (_, _, auxv) = stack(&guest, &loaded);
    let vdso = auxv[&libc::AT_SYSINFO_EHDR];
    let mut image = vec![0; VDSO_IMAGE.len()];
    copy::read(vdso, &mut image).unwrap();
    assert!(image == VDSO_IMAGE);
    let code = guest.vma(vdso);
    assert_eq!((code.range.start(), &code.backing), (vdso, &Backing::Vdso));
    assert_eq!(code.protection, Protection::READ | Protection::EXEC);
    let page = guest.vma(vdso - PAGE_SIZE);
    assert_eq!((page.protection, page.shared), (Protection::READ, true));
}

#[test]
fn what_the_loader_wrote_is_told() {
    let directory = tempfile::tempdir().unwrap();
    let path = compile(&directory, &["-static-pie"]);
    let mut guest = Guest::new();
    let loaded = guest.load(&path, &["x"]).unwrap();
    let told = |address: u64| loaded.written.iter().any(|range| range.contains(address));
    assert!(told(loaded.shown.stack_pointer) && !told(loaded.shown.stack_pointer - 1));
    // Anonymous memory is zero unless the loader has written it.
    for vma in guest.space.vmas().iter().filter(|vma| {
        matches!(
            vma.backing,
            Backing::Anonymous | Backing::Stack | Backing::Vdso
        )
    }) {
        let mut bytes = vec![0; vma.range.len() as usize];
        copy::read(vma.range.start(), &mut bytes).unwrap();
        let mut written = (vma.range.start()..)
            .zip(bytes)
            .filter(|(_, byte)| *byte != 0);
        assert!(written.all(|(address, _)| told(address)), "{vma:?}");
    }
}

#[test]
fn a_script_is_run_by_its_interpreter() {
    let directory = tempfile::tempdir().unwrap();
    let script = executable(&directory, "a-script-with-a-long-name", "#!/bin/sh -e -x\n");
    let mut guest = Guest::new();
    let loaded = guest.load(&script, &["dropped", "1"]).unwrap();
    let (args, _, auxv) = stack(&guest, &loaded);
    let script = script.to_str().unwrap();
    assert_eq!(args, ["/bin/sh", "-e -x", script, "1"]);
    assert_eq!(guest.string(auxv[&libc::AT_EXECFN]), script);
    assert_eq!(loaded.executable, std::fs::canonicalize("/bin/sh").unwrap());
    assert_eq!(loaded.name.as_c_str(), c"a-script-with-a");
}
