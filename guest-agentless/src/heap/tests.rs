//! Real heaps: those of a C program that allocates and frees as it is told, read from outside.

mod child;

use proptest::prelude::*;

use super::*;
use child::{Child, Linkage};

/// A heap as a server's may look: small and large chunks, some of them free.
const WARM_UP: &str = "m0 1 24\nm0 2 24\nm0 3 200\nm0 4 200\nm0 5 2000\nm0 6 100\nm0 7 3000\nm0 8 40\nm0 9 5000\n\
                       m0 10 24\nm0 11 24\nm0 12 900\nf0 2\nf0 5\nf0 7\nf0 11\n";

fn warm(child: &mut Child) -> Heaps {
    child.run(WARM_UP);
    let snapshot = child.snapshot();
    let main = find(&snapshot, child.data()).unwrap();
    let mut heaps = Heaps::new(main);
    heaps.refresh(&snapshot, child.brk());
    let checked = heaps
        .check(&snapshot, child.thread(0), child.changed())
        .unwrap();
    assert!(checked.chunks > 10, "{checked:?}");
    heaps.committed();
    heaps
}

/// Checks what the child has changed since the last time.
fn check(heaps: &mut Heaps, child: &mut Child, thread: usize) -> Result<Checked, Corruption> {
    let snapshot = child.snapshot();
    heaps.refresh(&snapshot, child.brk());
    heaps.check(&snapshot, child.thread(thread), child.changed())
}

#[test]
fn the_main_arena_is_found_in_every_kind_of_program() {
    for linkage in Linkage::ALL {
        let mut child = Child::start(linkage);
        let mut heaps = warm(&mut child);
        child.run("m0 20 48\nf0 4\nm0 21 100000\n");
        check(&mut heaps, &mut child, 0).unwrap();
        assert!(heaps.caches.linking().is_some(), "{linkage:?}");
        assert!(heaps.heaps.values().all(|heap| !heap.left_out));
    }
}

#[test]
fn an_allocator_that_is_not_used_is_told() {
    let mut child = Child::start(Linkage::Dynamic);
    child.run("");
    let snapshot = child.snapshot();
    assert_eq!(find(&snapshot, child.data()), Err(NotFound::Unused));
    assert_eq!(find(&snapshot, []), Err(NotFound::Unknown));
}

/// What is overwritten, and what it is to be called.
fn finds(poke: impl FnOnce(&mut Child), damage: &[Damage]) -> Corruption {
    let mut child = Child::start(Linkage::Dynamic);
    let mut heaps = warm(&mut child);
    let before = child.snapshot();
    poke(&mut child);
    let mut corruption = check(&mut heaps, &mut child, 0).expect_err("not found");
    assert!(damage.contains(&corruption.damage), "{corruption}");
    let after = child.snapshot();
    let thread = child.thread(0);
    assert!(
        !heaps.was_corrupt(&before, &corruption, thread),
        "{corruption}"
    );
    assert!(
        heaps.was_corrupt(&after, &corruption, thread),
        "{corruption}"
    );
    corruption.explain(&after, &before);
    corruption
}

#[test]
fn an_overflow_into_the_next_header() {
    for len in [1, 2, 7, 8, 9, 16, 64] {
        let mut field = 0;
        let corruption = finds(
            |child| {
                let (address, usable) = child.slot(3);
                field = address + usable;
                child.poke(field, &vec![0x41; len]);
            },
            &[Damage::Size, Damage::PreviousSize],
        );
        assert_eq!(corruption.field, field, "{len}: {corruption}");
        assert_eq!(corruption.committed, Some(0xd1), "{len}: {corruption}");
        assert_eq!(corruption.chunk, field - 8);
    }
}

#[test]
fn an_overflow_by_one_nul() {
    // 0xf8 bytes make a chunk of 0x100: only the flag is cleared.
    finds(
        |child| {
            child.run("m0 30 248\nm0 31 248\nm0 32 248\n");
            let (address, usable) = child.slot(30);
            child.poke(address + usable, &[0]);
        },
        &[Damage::PreviousSize],
    );
}

#[test]
fn links_of_a_free_chunk() {
    for offset in [0, 8] {
        finds(
            |child| {
                let address = child.freed(5);
                child.poke(address + offset, &0x4141_4141_4141u64.to_le_bytes());
            },
            &[Damage::Links, Damage::Bin],
        );
    }
}

#[test]
fn a_link_of_the_cache() {
    let corruption = finds(
        |child| {
            let address = child.freed(2);
            child.poke(address, &0x4141_4141_4141_4141u64.to_le_bytes());
        },
        &[Damage::Tcache],
    );
    assert!(
        corruption.to_string().contains("before the request"),
        "{corruption}"
    );
    finds(
        |child| {
            let address = child.freed(11);
            child.poke(address + 8, &[0; 8]);
        },
        &[Damage::Tcache],
    );
}

#[test]
fn a_chunk_that_is_freed_twice() {
    // Glibc looks at the key, so an ordinary mistake has to overwrite it to be silent.
    finds(
        |child| {
            child.run("m0 40 500\nd0 40\n");
            let (address, _) = child.slot(40);
            child.poke(address + 8, &[0; 8]);
            child.run("d0 40\n");
        },
        &[Damage::Tcache, Damage::Twice],
    );
    // In the cache and in a fastbin.
    finds(
        |child| {
            for slot in 50..60 {
                child.run(&format!("m0 {slot} 56\n"));
            }
            for slot in 50..58 {
                child.run(&format!("d0 {slot}\n"));
            }
            child.run("m0 60 56\nd0 57\n");
        },
        &[Damage::Twice, Damage::Fastbin],
    );
}

#[test]
fn the_size_of_the_top_chunk() {
    for value in [u64::MAX, 0x1001, 0x2_0d50, 0] {
        finds(
            |child| {
                let top = child.top();
                child.poke(top + 8, &value.to_le_bytes());
            },
            &[Damage::Top, Damage::Size, Damage::PreviousSize],
        );
    }
}

#[test]
fn a_fastbin() {
    finds(
        |child| {
            for slot in 50..60 {
                child.run(&format!("m0 {slot} 56\n"));
            }
            for slot in 50..59 {
                child.run(&format!("d0 {slot}\n"));
            }
            let (address, _) = child.slot(58);
            child.poke(address, &0x4242_4242u64.to_le_bytes());
        },
        &[Damage::Fastbin],
    );
}

#[test]
fn the_heap_of_a_thread() {
    let mut child = Child::start(Linkage::Dynamic);
    child.run(&format!("{WARM_UP}{}", WARM_UP.replace("0 ", "1 ")));
    let mut heaps = warm(&mut child);
    child.run("m1 100 200\nm1 101 200\nm1 102 200\n");
    check(&mut heaps, &mut child, 1).unwrap();
    heaps.committed();
    let (address, usable) = child.slot(100);
    child.poke(address + usable, &[0x41]);
    let corruption = check(&mut heaps, &mut child, 1).expect_err("not found");
    assert_eq!(corruption.damage, Damage::Size, "{corruption}");
}

#[test]
fn an_arena_that_is_locked_waits() {
    let mut child = Child::start(Linkage::Dynamic);
    let mut heaps = warm(&mut child);
    let main = heaps.main;
    child.poke(main, &[1]);
    let (address, usable) = child.slot(3);
    let header = child.peek(address + usable);
    child.poke(address + usable, &[0x41; 8]);
    assert_eq!(check(&mut heaps, &mut child, 0).unwrap().locked, 1);
    heaps.committed();
    // Nothing new is written, but the page has not been looked at yet.
    child.poke(main, &[0]);
    assert!(check(&mut heaps, &mut child, 0).is_err());
    // The error has not made it forget.
    assert!(check(&mut heaps, &mut child, 0).is_err());
    child.poke(address + usable, &header.to_le_bytes());
    check(&mut heaps, &mut child, 0).unwrap();
}

#[test]
fn what_is_abandoned_is_forgotten() {
    let mut child = Child::start(Linkage::Dynamic);
    let mut heaps = warm(&mut child);
    let before = child.snapshot();
    let brk = child.brk();
    child.run("f0 3\nf0 4\nm0 60 10000\nf0 6\nm0 61 30\nf0 9\nx0\n");
    check(&mut heaps, &mut child, 0).unwrap();
    let index = |heaps: &Heaps| {
        let heaps = heaps.heaps.values();
        heaps
            .map(|heap| format!("{:?}", heap.chunks))
            .collect::<Vec<_>>()
    };
    let then = index(&heaps);
    heaps.abandoned();
    assert_ne!(index(&heaps), then, "the program has changed nothing");
    let mut fresh = Heaps::new(heaps.main);
    fresh.refresh(&before, brk);
    fresh
        .check(&before, child.thread(0), child.pages(&before))
        .unwrap();
    assert_eq!(index(&heaps), index(&fresh));
}

#[test]
fn a_program_that_moves_the_break_itself_is_left_out() {
    let mut child = Child::start(Linkage::Dynamic);
    let mut heaps = warm(&mut child);
    child.run("k0\nm0 70 100000\nm0 71 100000\nm0 72 50000\nf0 71\n");
    check(&mut heaps, &mut child, 0).unwrap();
    heaps.committed();
    check(&mut heaps, &mut child, 0).unwrap();
}

/// An operation: which, thread, slot, size.
fn operations() -> impl Strategy<Value = Vec<(char, usize, usize, usize)>> {
    let operation = prop::sample::select(vec!['m', 'm', 'm', 'c', 'r', 'a', 'f', 'f', 'f', 'x']);
    let size = prop_oneof![4 => 0..200usize, 3 => 0..3000usize, 1 => 0..60_000usize, 1 => 60_000..300_000usize];
    prop::collection::vec((operation, 0..4usize, 0..96usize, size), 1..250)
}

fn script(operations: &[(char, usize, usize, usize)], threads: usize) -> String {
    let line = |(operation, thread, slot, size): &(char, usize, usize, usize)| {
        // A size of zero would make `realloc` free the slot and leave it dangling.
        format!("{operation}{} {slot} {}\n", thread % threads, size + 1)
    };
    operations.iter().map(line).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 60, max_shrink_iters: 60, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn healthy_programs_are_never_called_corrupt(operations in operations(), step in 1..20usize, threads in 1..4usize) {
        let mut child = Child::start(Linkage::Dynamic);
        let mut heaps = warm(&mut child);
        for (i, part) in operations.chunks(step).enumerate() {
            child.run(&script(part, threads));
            match i % 5 {
                // A request that is committed early.
                3 => {
                    child.snapshot();
                    heaps.unchecked(child.changed());
                }
                _ => {
                    let last = part.last().map_or(0, |operation| operation.1 % threads);
                    let checked = check(&mut heaps, &mut child, last);
                    prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
                    heaps.committed();
                }
            }
        }
        prop_assert!(heaps.heaps.values().all(|heap| !heap.left_out));
    }

    #[test]
    fn an_overwritten_header_is_found(operations in operations(), which in any::<prop::sample::Index>(), threads in 1..3usize, byte in 1..=255u8) {
        let mut child = Child::start(Linkage::Dynamic);
        let mut heaps = warm(&mut child);
        child.run(&script(&operations, threads));
        let checked = check(&mut heaps, &mut child, 0);
        prop_assert!(checked.is_ok(), "{}", checked.unwrap_err());
        heaps.committed();
        // A chunk with a mapping of its own has nothing after it.
        let mut slots: Vec<_> = (0..96).map(|slot| child.slot(slot)).collect();
        slots.retain(|(address, usable)| *usable > 0 && child.peek(address - 8) & layout::MAPPED == 0);
        let (address, usable) = slots[which.index(slots.len())];
        // Sixteen bytes: no field of this content is a size.
        child.poke(address + usable, &[byte; 16]);
        prop_assert!(check(&mut heaps, &mut child, 0).is_err(), "the chunk after {address:#x} of {usable:#x} bytes");
    }

    #[test]
    fn any_memory_is_looked_at_in_bounded_time(seed in any::<u64>(), words in 1..400usize) {
        let mut child = Child::start(Linkage::Dynamic);
        let mut heaps = warm(&mut child);
        let mut state = seed | 1;
        let mut random = || { state ^= state << 13; state ^= state >> 7; state ^= state << 17; state };
        let range = child.brk();
        let mut snapshot = child.snapshot();
        for i in 0..words {
            let target = match i % 3 { 0 => heaps.main + random() % 2200, _ => range.start() + random() % range.len() };
            let value = match random() % 4 { 0 => random(), 1 => range.start() + random() % range.len(), 2 => random() % 4096, _ => heaps.main + random() % 2200 };
            child::write(&mut snapshot, target & !7, &value.to_le_bytes());
        }
        heaps.refresh(&snapshot, range);
        let pages = child.pages(&snapshot);
        let result = heaps.check(&snapshot, child.thread(0), pages);
        if let Err(corruption) = result {
            let _ = heaps.was_corrupt(&snapshot, &corruption, child.thread(0));
            heaps.leave_out(&corruption);
        }
        let _ = find(&snapshot, child.data());
    }
}
