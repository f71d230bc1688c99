//! Walks over stacks made up for the purpose. Real ones are walked by the crate that has threads to take
//! them from.

use std::sync::LazyLock;

use proptest::prelude::*;

use super::*;
use crate::{Elf, GuestRange, Protection, SymbolTable};

const BASE: u64 = 0x5555_0000_0000;
const STACK: u64 = 0x7fff_0000_1000;
/// Code without a file, and so without unwind information.
const ANONYMOUS: u64 = 0x10_0000;

/// The program that runs this test has functions, unwind information and lines.
static OWN: LazyLock<Vec<u8>> = LazyLock::new(|| std::fs::read("/proc/self/exe").unwrap());
static INFO: LazyLock<Arc<UnwindInfo>> =
    LazyLock::new(|| Arc::new(UnwindInfo::load(&OWN).unwrap()));
static SYMBOLS: LazyLock<SymbolTable> = LazyLock::new(|| SymbolTable::load(&OWN).unwrap());

/// The mappings of this program at `BASE`, and of some anonymous code.
fn mappings() -> Vec<Vma> {
    let segments = Elf::parse(&OWN).unwrap().segments.into_iter();
    let code = segments.filter(|segment| segment.protection.is_executable());
    let file = code.map(|segment| {
        let pages = segment.pages();
        Vma::new(
            GuestRange::from_bounds(BASE + pages.start(), BASE + pages.end()),
            segment.protection,
            false,
            Backing::File(FileBacking {
                path: Arc::from("/own"),
                offset: segment.offset & !4095,
                device: (0, 0),
                inode: 1,
            }),
        )
    });
    let range = GuestRange::from_bounds(ANONYMOUS, ANONYMOUS + 4096);
    file.chain([Vma::anonymous(range, Protection::READ | Protection::EXEC)])
        .collect()
}

/// The address of a function of this program.
fn function(name: &str) -> u64 {
    BASE + SYMBOLS.address_of(name).unwrap()
}

fn walk(rip: u64, rbp: u64, stack: &[u64]) -> Vec<u64> {
    let stack: Vec<u8> = stack.iter().flat_map(|word| word.to_le_bytes()).collect();
    let from = Registers {
        rip,
        rsp: STACK,
        rbp,
    };
    unwind(from, &stack, &mappings(), &mut |_| Some(Arc::clone(&INFO)))
}

#[test]
fn at_the_start_of_a_function_its_return_address_is_on_top() {
    let (main, caller) = (function("main"), ANONYMOUS + 9);
    assert_eq!(walk(main, 0, &[caller, 7]), [main, caller]);
}

#[test]
fn the_entry_point_has_no_caller() {
    let start = function("_start");
    assert_eq!(walk(start, 0, &[ANONYMOUS + 9]), [start]);
}

#[test]
fn a_jump_to_nowhere_is_charged_to_who_called() {
    let (main, caller) = (function("main"), ANONYMOUS + 9);
    // The call from `main` was its first instruction, so its own return address is next.
    for nowhere in [0, 0xdead_beef, u64::MAX, STACK] {
        let frames = walk(nowhere, 0, &[main + 1, caller]);
        assert_eq!(frames[..2], [nowhere, main + 1]);
    }
    assert_eq!(walk(0, 0, &[0x1234]), [0]);
    assert_eq!(walk(0, 0, &[]), [0]);
}

#[test]
fn without_unwind_information_frame_pointers_are_followed() {
    let [a, b, c] = [1, 2, 3].map(|i| ANONYMOUS + i);
    let stack = [7, STACK + 24, b, STACK + 40, c, 0, 0];
    assert_eq!(walk(a, STACK + 8, &stack), [a, b, c]);
    assert_eq!(walk(a, STACK - 8, &stack), [a]);
    assert_eq!(walk(a, u64::MAX, &stack), [a]);
}

#[test]
fn a_walk_is_bounded() {
    let chain = |i: u64| match i % 2 {
        0 => STACK + 8 * (i + 2),
        _ => ANONYMOUS + i,
    };
    let stack: Vec<u64> = (0..1000).map(chain).collect();
    assert_eq!(walk(ANONYMOUS, STACK, &stack).len(), MAX_FRAMES);
    // A frame that points at itself.
    let circle = [STACK, ANONYMOUS + 1, STACK, ANONYMOUS + 1];
    assert!(walk(ANONYMOUS, STACK, &circle).len() <= 2);
}

#[test]
fn a_caller_has_the_stack_pointer_of_after_the_return() {
    let (main, caller) = (function("main"), ANONYMOUS + 9);
    let stack: Vec<u8> = [caller, 7].iter().flat_map(|w| w.to_le_bytes()).collect();
    let from = Registers {
        rip: main,
        rsp: STACK,
        rbp: 0,
    };
    let frames = frames(from, &stack, &mappings(), &mut |_| Some(Arc::clone(&INFO)));
    let expected = [(main, STACK), (caller, STACK + 8)];
    let expected = expected.map(|(address, rsp)| StackFrame { address, rsp });
    assert_eq!(frames, expected);
}

#[test]
fn the_start_of_a_function_is_found_from_its_middle() {
    let main = function("main");
    let mappings = mappings();
    let vma = executable(&mappings, main).unwrap();
    assert_eq!(INFO.function_start(vma, main + 1), Some(main));
    assert_eq!(INFO.function_start(vma, main), Some(main));
    assert_eq!(INFO.function_start(&mappings[1], ANONYMOUS), None);
    let mut unindexed = (**INFO).clone();
    unindexed.forget_index();
    assert_eq!(unindexed.function_start(vma, main + 1), Some(main));
}

#[test]
fn lines_are_found() {
    let lines = LineTable::load(&OWN).unwrap();
    // The program is mapped first, and from its beginning.
    let maps = std::fs::read_to_string("/proc/self/maps").unwrap();
    let base = u64::from_str_radix(maps.split('-').next().unwrap(), 16).unwrap();
    let here = lines
        .lookup(lines_are_found as fn() as usize as u64 - base)
        .unwrap();
    assert!(here.file.ends_with("unwind/tests.rs"), "{here:?}");
    assert!(here.line.unwrap().abs_diff(line!()) < 20, "{here:?}");
    assert_eq!(lines.lookup(u64::MAX), None);
    assert!(lines.size() > 0);
}

#[test]
fn what_has_nothing_to_say() {
    assert!(UnwindInfo::load(b"#!/bin/sh\n").is_none());
    assert!(LineTable::load(b"#!/bin/sh\n").is_none());
    let stripped = std::fs::read("/bin/true").unwrap();
    assert!(UnwindInfo::load(&stripped).is_some());
    assert!(LineTable::load(&stripped).is_none());
}

proptest! {
    #[test]
    fn any_stack_can_be_walked(
        rip in prop_oneof![any::<u64>(), 0..4096u64],
        rbp in prop_oneof![any::<u64>(), STACK..STACK + 256],
        words in prop::collection::vec(
            prop_oneof![any::<u64>(), STACK..STACK + 256, 0..4096u64], 0..40),
        in_main in any::<bool>(),
    ) {
        // Small numbers are offsets into code.
        let code = |n: u64| if n < 4096 && in_main { function("main") + n } else { n };
        let words: Vec<u64> = words.into_iter().map(code).collect();
        prop_assert!(walk(code(rip), rbp, &words).len() <= MAX_FRAMES);
    }
}
