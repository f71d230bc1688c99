//! The mapping model against a naive model with one entry per page.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::*;
use crate::{Errno, GuestVa, PAGE_SIZE};

/// Pages of the test address space; the first is page zero.
const PAGES: u64 = 40;

fn pages(first: u64, count: u64) -> GuestRange {
    GuestRange::new(GuestVa(first * PAGE_SIZE), count * PAGE_SIZE).unwrap()
}

fn file(path: &str, page: u64) -> Backing {
    Backing::File(FileBacking {
        path: Arc::from(path),
        offset: page * PAGE_SIZE,
        device: (8, 1),
        inode: 42,
    })
}

/// What each page is, by number.
type Naive = BTreeMap<u64, (Protection, bool, Backing, bool)>;

fn naive(map: &VmaMap) -> Naive {
    let mut model = Naive::new();
    for vma in map.iter() {
        naive_insert(&mut model, vma);
    }
    model
}

fn naive_insert(model: &mut Naive, vma: &Vma) {
    for page in vma.range.pages() {
        let backing = vma.backing.advanced(page.address().0 - vma.range.start());
        let page_is = (vma.protection, vma.shared, backing, vma.once_writable);
        model.insert(page.0, page_is);
    }
}

fn naive_gap(
    model: &Naive,
    window: GuestRange,
    count: u64,
    align: u64,
    top_down: bool,
) -> Option<u64> {
    let fits = |first: &u64| {
        *first > 0
            && (first * PAGE_SIZE).is_multiple_of(align)
            && window.encloses(pages(*first, count))
            && (*first..first + count).all(|page| !model.contains_key(&page))
    };
    let found = if top_down {
        (0..PAGES).rev().find(fits)
    } else {
        (0..PAGES).find(fits)
    };
    found.map(|page| page * PAGE_SIZE)
}

fn check(map: &VmaMap, model: &Naive) {
    assert_eq!(naive(map), *model);
    for page in 0..PAGES {
        let found = map.find(page * PAGE_SIZE + 7);
        assert_eq!(found.is_some(), model.contains_key(&page), "page {page}");
    }
    let all: Vec<&Vma> = map.iter().collect();
    for pair in all.windows(2) {
        assert!(pair[0].range.end() <= pair[1].range.start());
        assert!(!pair[0].joins(pair[1]), "{pair:?} should be one");
    }
}

#[derive(Debug, Clone)]
enum Operation {
    Insert(Vma),
    Remove(GuestRange),
    Protect(GuestRange, Protection),
    /// Takes back the latest change of protection or removal.
    Undo,
    FindGap {
        window: GuestRange,
        count: u64,
        align: u64,
        top_down: bool,
    },
}

fn any_range() -> impl Strategy<Value = GuestRange> {
    (0..PAGES, 0..12u64).prop_map(|(first, count)| pages(first, count.min(PAGES - first)))
}

fn any_protection() -> impl Strategy<Value = Protection> {
    (0..8u64).prop_map(|bits| Protection::from_bits(bits).unwrap())
}

fn any_operation() -> impl Strategy<Value = Operation> {
    let backing = prop_oneof![
        3 => Just(Backing::Anonymous),
        3 => (0..6u64).prop_map(|page| file("/lib/a", page)),
        1 => Just(Backing::Heap),
        1 => Just(Backing::Vvar),
    ];
    let vma = (
        any_range(),
        any_protection(),
        proptest::bool::weighted(0.2),
        backing,
    )
        .prop_map(|(range, protection, shared, backing)| {
            Vma::new(range, protection, shared, backing)
        });
    let gap = (any_range(), 1..8u64, 0..3u32, any::<bool>()).prop_map(
        |(window, count, shift, top_down)| Operation::FindGap {
            window,
            count,
            align: PAGE_SIZE << shift,
            top_down,
        },
    );
    prop_oneof![
        4 => vma.prop_map(Operation::Insert),
        2 => any_range().prop_map(Operation::Remove),
        2 => (any_range(), any_protection()).prop_map(|(r, p)| Operation::Protect(r, p)),
        1 => Just(Operation::Undo),
        3 => gap,
    ]
}

proptest! {
    #[test]
    fn agrees_with_a_page_by_page_model(operations in prop::collection::vec(any_operation(), 1..60)) {
        let mut map = VmaMap::new();
        let mut model = Naive::new();
        let mut undo: Option<(Naive, Vec<Vma>)> = None;
        for operation in operations {
            match operation {
                Operation::Insert(vma) => {
                    let free = vma.range.pages().all(|page| !model.contains_key(&page.0));
                    assert_eq!(map.insert(vma.clone()).is_ok(), free);
                    if free {
                        naive_insert(&mut model, &vma);
                        undo = None;
                    }
                }
                Operation::Remove(range) => {
                    let before = model.clone();
                    model.retain(|page, _| !range.contains(page * PAGE_SIZE));
                    undo = Some((before, map.remove(range)));
                    assert_eq!(map.overlapping(range).count(), 0);
                }
                Operation::Protect(range, protection) => {
                    let covered = range.pages().all(|page| model.contains_key(&page.0));
                    assert_eq!(map.is_covered(range), covered);
                    let before = model.clone();
                    match map.protect(range, protection) {
                        Ok(old) => {
                            assert!(covered);
                            model.range_mut(range.start() / PAGE_SIZE..range.end() / PAGE_SIZE)
                                .for_each(|(_, page)| {
                                    page.0 = protection;
                                    let is_copy = !page.1 && matches!(page.2, Backing::File(_));
                                    page.3 |= is_copy && protection.is_writable();
                                });
                            undo = Some((before, old));
                        }
                        Err(errno) => {
                            assert_eq!(errno, Errno::ENOMEM);
                            assert!(!covered);
                        }
                    }
                }
                Operation::Undo => {
                    if let Some((before, pieces)) = undo.take() {
                        map.restore(pieces);
                        model = before;
                    }
                }
                Operation::FindGap { window, count, align, top_down } => {
                    let found = map.find_gap(window, count * PAGE_SIZE, align, top_down);
                    assert_eq!(found, naive_gap(&model, window, count, align, top_down));
                }
            }
            check(&map, &model);
        }
    }
}

#[test]
fn removal_cuts_mappings_and_moves_file_offsets() {
    let mut map = VmaMap::new();
    let protection = Protection::READ | Protection::EXEC;
    let vma = Vma::new(pages(10, 5), protection, false, file("/bin/x", 3));
    map.insert(vma.clone()).unwrap();

    let removed = map.remove(pages(11, 2));
    assert_eq!(
        removed,
        [Vma {
            range: pages(11, 2),
            backing: file("/bin/x", 4),
            ..vma.clone()
        }]
    );
    assert_eq!(
        map.find(14 * PAGE_SIZE)
            .unwrap()
            .file_offset(14 * PAGE_SIZE),
        Some(7 * PAGE_SIZE)
    );
    assert_eq!(map.len(), 2);

    map.restore(removed);
    assert_eq!(map.iter().collect::<Vec<_>>(), [&vma]);
}

#[test]
fn insertion_names_what_is_in_the_way() {
    let mut map = VmaMap::new();
    map.insert(Vma::anonymous(pages(5, 2), Protection::READ))
        .unwrap();
    let error = map
        .insert(Vma::anonymous(pages(1, 8), Protection::READ))
        .unwrap_err();
    assert_eq!(
        error,
        Overlap {
            existing: pages(5, 2)
        }
    );
}

#[test]
fn extreme_requests_find_no_gap() {
    let map = VmaMap::new();
    let everywhere = GuestRange::from_bounds(0, u64::MAX);
    assert_eq!(map.find_gap(everywhere, u64::MAX, PAGE_SIZE, true), None);
    assert_eq!(
        map.find_gap(everywhere, PAGE_SIZE, 3 * PAGE_SIZE, true),
        None
    );
    assert_eq!(
        map.find_gap(everywhere, PAGE_SIZE, 1 << 63, false),
        Some(1 << 63)
    );
    assert_eq!(map.find_gap(everywhere, 0, 0, false), Some(PAGE_SIZE));
}

#[test]
fn a_search_among_many_mappings_is_fast() {
    let mut map = VmaMap::new();
    for i in 0..20_000 {
        map.insert(Vma::anonymous(pages(1 + 2 * i, 1), Protection::READ))
            .unwrap();
    }
    let window = pages(0, 100_000);
    let start = std::time::Instant::now();
    for _ in 0..1000 {
        assert_eq!(
            map.find_gap(window, 2 * PAGE_SIZE, PAGE_SIZE, false),
            Some(40_000 * PAGE_SIZE)
        );
    }
    // A walk over the mappings would take seconds in a debug build.
    assert!(start.elapsed().as_millis() < 500, "{:?}", start.elapsed());
}

/// The mapping that a line of `/proc/PID/maps` shows.
fn parse_line(line: &str) -> Option<Vma> {
    let mut fields = line.splitn(6, ' ');
    let (start, end) = fields.next()?.split_once('-')?;
    let hex = |text: &str| u64::from_str_radix(text, 16).ok();
    let flags = fields.next()?;
    let offset = hex(fields.next()?)?;
    let (major, minor) = fields.next()?.split_once(':')?;
    let inode = fields.next()?.parse().ok()?;
    let name = fields.next()?.trim_start();
    let bits = flags
        .bytes()
        .take(3)
        .zip([1, 2, 4])
        .filter(|(c, _)| *c != b'-')
        .map(|(_, b)| b)
        .sum();
    let backing = match name {
        "" => Backing::Anonymous,
        "[heap]" => Backing::Heap,
        "[stack]" => Backing::Stack,
        "[vdso]" => Backing::Vdso,
        "[vvar]" => Backing::Vvar,
        path if path.starts_with('[') => return None,
        path => Backing::File(FileBacking {
            path: Arc::from(path),
            offset,
            device: (hex(major)? as u32, hex(minor)? as u32),
            inode,
        }),
    };
    Some(Vma::new(
        GuestRange::from_bounds(hex(start)?, hex(end)?),
        Protection::from_bits(bits)?,
        flags.ends_with('s'),
        backing,
    ))
}

#[test]
fn renders_what_the_kernel_renders() {
    let kernel = std::fs::read_to_string("/proc/self/maps").unwrap();
    let mut compared = 0;
    for line in kernel.lines() {
        let Some(vma) = parse_line(line) else {
            continue;
        };
        let mut map = VmaMap::new();
        map.insert(vma).unwrap();
        let mut ours = String::new();
        map.render_maps(&mut ours);
        assert_eq!(ours, format!("{line}\n"));
        compared += 1;
    }
    assert!(compared > 10);
}

#[test]
fn of_the_hosts_account_only_what_is_mapped_is_shown() {
    let mut map = VmaMap::new();
    for (first, count, bits) in [(2, 2, 5), (4, 1, 3)] {
        let protection = Protection::from_bits(bits).unwrap();
        let vma = Vma::new(pages(first, count), protection, false, file("/bin/x", 0));
        map.insert(vma).unwrap();
    }
    let host = "00001000-00005000 rw-p 00000000 00:00 0\nRss:  8 kB\nVmFlags: rd\n\
                00006000-00007000 rw-p 00000000 00:00 0  /bin/monitor\nRss:  4 kB\n";
    let mut ours = String::new();
    map.render_smaps(host, &mut ours);
    let (line, fields) = ours.split_once('\n').unwrap();
    assert!(
        line.starts_with("00002000-00005000 r-xp ") && line.ends_with(" /bin/x"),
        "{line}"
    );
    assert_eq!(fields, "Rss:  8 kB\nVmFlags: rd\n");
}
