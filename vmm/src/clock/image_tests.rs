//! Tests of the vDSO image as a program's dynamic linker sees it; also finds its functions for
//! [`super::vdso_tests`].

use std::collections::BTreeMap;

use super::VDSO_IMAGE;

const NAMES: [&str; 5] = [
    "clock_gettime",
    "gettimeofday",
    "time",
    "clock_getres",
    "getcpu",
];
const PT_LOAD: u64 = 1;
const PT_DYNAMIC: u64 = 2;
const PT_GNU_STACK: u64 = 0x6474_e551;
const PF_X: u64 = 1;
const PF_W: u64 = 2;
const PF_R: u64 = 4;
const DT_HASH: u64 = 4;
const DT_STRTAB: u64 = 5;
const DT_SYMTAB: u64 = 6;
const DT_SONAME: u64 = 14;
const DT_GNU_HASH: u64 = 0x6fff_fef5;
const DT_VERSYM: u64 = 0x6fff_fff0;
const DT_VERDEF: u64 = 0x6fff_fffc;
/// DT_PLTRELSZ, DT_PLTGOT, DT_RELA, DT_RELASZ, DT_REL, DT_TEXTREL, DT_JMPREL, DT_RELR.
const RELOCATION_TAGS: [u64; 8] = [2, 3, 7, 8, 17, 22, 23, 36];

fn number(offset: u64, bytes: usize) -> u64 {
    let offset = offset as usize;
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(&VDSO_IMAGE[offset..offset + bytes]);
    u64::from_le_bytes(value)
}

fn string(offset: u64) -> &'static str {
    let bytes = &VDSO_IMAGE[offset as usize..];
    std::str::from_utf8(bytes.split(|&byte| byte == 0).next().unwrap()).unwrap()
}

struct Segment {
    kind: u64,
    flags: u64,
    offset: u64,
    address: u64,
    file_size: u64,
    memory_size: u64,
}

fn segments() -> Vec<Segment> {
    let (table, entry_size, count) = (number(32, 8), number(54, 2), number(56, 2));
    (0..count)
        .map(|index| table + index * entry_size)
        .map(|at| Segment {
            kind: number(at, 4),
            flags: number(at + 4, 4),
            offset: number(at + 8, 8),
            address: number(at + 16, 8),
            file_size: number(at + 32, 8),
            memory_size: number(at + 40, 8),
        })
        .collect()
}

fn dynamic() -> BTreeMap<u64, u64> {
    let at = segments()
        .iter()
        .find(|segment| segment.kind == PT_DYNAMIC)
        .unwrap()
        .offset;
    (0..)
        .map(|index| at + index * 16)
        .map(|at| (number(at, 8), number(at + 8, 8)))
        .take_while(|&(tag, _)| tag != 0)
        .collect()
}

/// Defined global or weak functions, with their version index.
pub(super) fn functions() -> BTreeMap<&'static str, (u64, u64)> {
    let dynamic = dynamic();
    let count = number(dynamic[&DT_HASH] + 4, 4);
    let mut found = BTreeMap::new();
    for index in 0..count {
        let at = dynamic[&DT_SYMTAB] + index * 24;
        let (info, section) = (number(at + 4, 1), number(at + 6, 2));
        let (binding, kind) = (info >> 4, info & 15);
        if section != 0 && kind == 2 && (binding == 1 || binding == 2) {
            let name = string(dynamic[&DT_STRTAB] + number(at, 4));
            found.insert(
                name,
                (
                    number(at + 8, 8),
                    number(dynamic[&DT_VERSYM] + index * 2, 2),
                ),
            );
        }
    }
    found
}

/// The hash of the SysV ABI, which DT_HASH and the version definitions use.
fn elf_hash(name: &str) -> u64 {
    let mut hash: u32 = 0;
    for byte in name.bytes() {
        hash = (hash << 4).wrapping_add(u32::from(byte));
        hash ^= (hash >> 24) & 0xf0;
        hash &= 0x0fff_ffff;
    }
    u64::from(hash)
}

#[test]
fn image_is_one_read_and_execute_segment() {
    assert_eq!(VDSO_IMAGE[..7], *b"\x7fELF\x02\x01\x01");
    assert_eq!((number(16, 2), number(18, 2)), (3, 62), "ET_DYN, EM_X86_64");
    let segments = segments();
    let loads: Vec<_> = segments
        .iter()
        .filter(|segment| segment.kind == PT_LOAD)
        .collect();
    assert_eq!(loads.len(), 1);
    assert_eq!(
        (loads[0].offset, loads[0].address, loads[0].flags),
        (0, 0, PF_R | PF_X)
    );
    assert_eq!(loads[0].file_size, loads[0].memory_size);
    for segment in &segments {
        assert!(segment.kind == PT_GNU_STACK || segment.flags & PF_W == 0);
    }
}

#[test]
fn image_has_tables_and_no_relocations() {
    let dynamic = dynamic();
    for tag in [
        DT_HASH,
        DT_GNU_HASH,
        DT_STRTAB,
        DT_SYMTAB,
        DT_VERSYM,
        DT_VERDEF,
    ] {
        assert!(dynamic.contains_key(&tag), "dynamic tag {tag:#x}");
    }
    for tag in RELOCATION_TAGS {
        assert!(!dynamic.contains_key(&tag), "dynamic tag {tag:#x}");
    }
    assert_eq!(
        string(dynamic[&DT_STRTAB] + dynamic[&DT_SONAME]),
        "linux-vdso.so.1"
    );
}

#[test]
fn functions_have_the_version_that_libcs_ask_for() {
    let dynamic = dynamic();
    // The second definition: the first names the file.
    let definition = dynamic[&DT_VERDEF] + number(dynamic[&DT_VERDEF] + 16, 4);
    let name = dynamic[&DT_STRTAB] + number(definition + number(definition + 12, 4), 4);
    assert_eq!(string(name), "LINUX_2.6");
    assert_eq!(number(definition + 8, 4), elf_hash("LINUX_2.6"));
    assert_eq!(
        elf_hash("LINUX_2.6"),
        0x3ae_75f6,
        "the constant in Go's runtime"
    );
    let index = number(definition + 4, 2);

    let functions = functions();
    for name in NAMES {
        let vdso = format!("__vdso_{name}");
        assert_eq!(functions[vdso.as_str()].1, index);
        assert_eq!(functions[name], functions[vdso.as_str()]);
    }
    assert_eq!(functions.len(), 2 * NAMES.len());
}

#[test]
fn sysv_hash_finds_the_functions() {
    let dynamic = dynamic();
    let table = dynamic[&DT_HASH];
    let buckets = number(table, 4);
    for (name, (address, _)) in functions() {
        let mut symbol = number(table + 8 + elf_hash(name) % buckets * 4, 4);
        while symbol != 0
            && string(dynamic[&DT_STRTAB] + number(dynamic[&DT_SYMTAB] + symbol * 24, 4)) != name
        {
            symbol = number(table + 8 + (buckets + symbol) * 4, 4);
        }
        assert_eq!(
            number(dynamic[&DT_SYMTAB] + symbol * 24 + 8, 8),
            address,
            "{name}"
        );
    }
}
