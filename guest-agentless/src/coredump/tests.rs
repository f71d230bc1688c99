//! Cores as another reader of ELF sees them.

use object::elf::{FileHeader64, NoteType, PT_LOAD};
use object::read::elf::{ElfFile64, FileHeader, ProgramHeader};
use object::{LittleEndian, Object};

use super::*;
use crate::vma::FileBacking;

const E: LittleEndian = LittleEndian;

fn registers() -> libc::user_regs_struct {
    libc::user_regs_struct {
        r15: 15,
        r14: 14,
        r13: 13,
        r12: 12,
        rbp: 1,
        rbx: 2,
        r11: 11,
        r10: 10,
        r9: 9,
        r8: 8,
        rax: 3,
        rcx: 4,
        rdx: 5,
        rsi: 6,
        rdi: 7,
        orig_rax: u64::MAX,
        rip: 0x40_1234,
        cs: 0x33,
        eflags: 0x202,
        rsp: 0x7000_0010,
        ss: 0x2b,
        fs_base: 0x7fff_0000,
        gs_base: 0,
        ds: 0,
        es: 0,
        fs: 0,
        gs: 0,
    }
}

fn range(first: u64, pages: u64) -> GuestRange {
    GuestRange::from_bounds(first * PAGE_SIZE, (first + pages) * PAGE_SIZE)
}

fn mappings() -> Vec<Vma> {
    let file = FileBacking {
        path: "/usr/bin/server".into(),
        offset: 2 * PAGE_SIZE,
        device: (8, 1),
        inode: 7,
    };
    let text = Vma {
        backing: Backing::File(file),
        ..Vma::anonymous(range(16, 4), Protection::READ | Protection::EXEC)
    };
    let shared = Vma {
        shared: true,
        backing: Backing::File(FileBacking::shared_anonymous(3)),
        ..Vma::anonymous(range(40, 1), Protection::READ | Protection::WRITE)
    };
    vec![
        text,
        Vma::anonymous(range(20, 8), Protection::READ | Protection::WRITE),
        Vma::anonymous(range(28, 4), Protection::READ),
        shared,
    ]
}

/// The bytes of a core with these pages and unchanged ranges.
fn core(pages: &[u64], unchanged: Vec<GuestRange>) -> Vec<u8> {
    let contents: Vec<[u8; 4096]> = pages.iter().map(|page| [*page as u8; 4096]).collect();
    let process = ProcessState {
        pid: 4242,
        user: (1000, 100),
        program: "/usr/bin/server-with-a-long-name".into(),
        auxv: vec![(libc::AT_PHDR, 0x40_0040), (libc::AT_PHNUM, 9)],
    };
    let thread = |tid| ThreadState {
        tid,
        registers: registers(),
        vector: (tid == 4243).then(|| Box::new([9; 512])),
    };
    let dump = CoreDump {
        process: &process,
        threads: &[thread(4243), thread(4242)],
        signal: Some((11, &[5; 128])),
        mappings: &mappings(),
        pages: pages
            .iter()
            .zip(&contents)
            .map(|(page, content)| (PageNumber(*page), &content[..]))
            .collect(),
        unchanged,
    };
    let mut bytes = Vec::new();
    let size = dump.write(&mut bytes).unwrap();
    assert_eq!(size, bytes.len() as u64);
    bytes
}

/// Address and size in pages, protection, and first byte of the content of each segment.
fn loads(bytes: &[u8]) -> Vec<(u64, u64, u32, Option<u8>)> {
    let file = ElfFile64::<LittleEndian>::parse(bytes).unwrap();
    assert_eq!(file.kind(), object::ObjectKind::Core);
    let headers = file.elf_program_headers().iter();
    headers
        .filter(|header| header.p_type(E) == PT_LOAD)
        .map(|header| {
            let data = header.data(E, bytes).unwrap();
            assert!(data.is_empty() || data.len() as u64 == header.p_memsz(E));
            assert_eq!(header.p_offset(E) % PAGE_SIZE, 0);
            let page = header.p_vaddr(E) / PAGE_SIZE;
            let size = header.p_memsz(E) / PAGE_SIZE;
            (page, size, header.p_flags(E).0, data.first().copied())
        })
        .collect()
}

fn notes(bytes: &[u8]) -> Vec<(NoteType, Vec<u8>)> {
    let header = FileHeader64::<LittleEndian>::parse(bytes).unwrap();
    let mut notes = Vec::new();
    for segment in header.program_headers(E, bytes).unwrap() {
        if let Some(mut iterator) = segment.notes(E, bytes).unwrap() {
            while let Some(note) = iterator.next().unwrap() {
                assert_eq!(note.name(), b"CORE");
                notes.push((note.n_type(E), note.desc().to_vec()));
            }
        }
    }
    notes
}

#[test]
fn pages_become_segments() {
    let bytes = core(&[17, 21, 22, 27, 28, 90], Vec::new());
    let (read, write, execute) = (4, 2, 1);
    let expected = [
        (17, 1, read | execute, Some(17)),
        (21, 2, read | write, Some(21)),
        // Not one with the next: another mapping, with another protection.
        (27, 1, read | write, Some(27)),
        (28, 1, read, Some(28)),
        // Not mapped any more.
        (90, 1, read | write, Some(90)),
    ];
    assert_eq!(loads(&bytes), expected);
    assert!(bytes.len() as u64 <= 7 * PAGE_SIZE);
}

#[test]
fn unchanged_memory_takes_no_room_and_content_comes_first() {
    let bytes = core(&[17, 25], vec![range(16, 4), range(20, 8)]);
    let loads: Vec<_> = loads(&bytes)
        .into_iter()
        .map(|(page, pages, _, content)| (page, pages, content))
        .collect();
    let expected = [
        (16, 1, None),
        (17, 1, Some(17)),
        (18, 2, None),
        (20, 5, None),
        (25, 1, Some(25)),
        (26, 2, None),
    ];
    assert_eq!(loads, expected);
    assert_eq!(bytes.len() as u64, 3 * PAGE_SIZE);
}

#[test]
fn the_number_of_segments_is_bounded() {
    let pages: Vec<u64> = (0..3 * SEGMENTS_LIMIT as u64).step_by(2).collect();
    let bytes = core(&pages[..SEGMENTS_LIMIT + 10], vec![range(1 << 30, 1)]);
    assert_eq!(loads(&bytes).len(), SEGMENTS_LIMIT);
}

#[test]
fn the_notes_say_who_and_where() {
    let notes = notes(&core(&[], Vec::new()));
    let kinds: Vec<NoteType> = notes.iter().map(|(kind, _)| *kind).collect();
    use elf::*;
    let expected = [
        NT_PRSTATUS,
        NT_PRPSINFO,
        NT_SIGINFO,
        NT_AUXV,
        NT_FILE,
        NT_PRFPREG,
        NT_PRSTATUS,
    ];
    assert_eq!(kinds, expected);
    let word = |note: &[u8], at: usize| u64::from_le_bytes(note[at..at + 8].try_into().unwrap());
    let half = |note: &[u8], at: usize| u32::from_le_bytes(note[at..at + 4].try_into().unwrap());

    // The sizes of the kernel's structures and the places of their fields, as gdb knows them.
    let status = &notes[0].1;
    assert_eq!(status.len(), 336);
    assert_eq!(
        (half(status, 0), half(status, 12), half(status, 32)),
        (11, 11, 4243)
    );
    let register = |index: usize| word(status, 112 + 8 * index);
    assert_eq!((register(0), register(4), register(5)), (15, 1, 2));
    assert_eq!((register(10), register(15)), (3, u64::MAX));
    assert_eq!(
        (register(16), register(17), register(18)),
        (0x40_1234, 0x33, 0x202)
    );
    assert_eq!((register(19), register(21)), (0x7000_0010, 0x7fff_0000));
    assert_eq!(half(status, 328), 1);
    assert_eq!((half(&notes[6].1, 12), half(&notes[6].1, 32)), (11, 4242));

    let process = &notes[1].1;
    assert_eq!(process.len(), 136);
    assert_eq!(
        (half(process, 16), half(process, 20), half(process, 24)),
        (1000, 100, 4242)
    );
    assert_eq!(&process[40..56], b"server-with-a-l\0");
    assert!(process[56..].starts_with(b"/usr/bin/server-with-a-long-name\0"));
    assert_eq!(notes[2].1, [5; 128]);
    let auxv: Vec<u64> = (0..6).map(|i| word(&notes[3].1, 8 * i)).collect();
    assert_eq!(auxv, [libc::AT_PHDR, 0x40_0040, libc::AT_PHNUM, 9, 0, 0]);
    let files = &notes[4].1;
    let words: Vec<u64> = (0..5).map(|i| word(files, 8 * i)).collect();
    assert_eq!(words, [1, PAGE_SIZE, 16 * PAGE_SIZE, 20 * PAGE_SIZE, 2]);
    assert_eq!(&files[40..], b"/usr/bin/server\0");
    assert_eq!(notes[5].1, [9; 512]);
}
