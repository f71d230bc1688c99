//! One table and several processes, which are threads here.

use super::*;

const KEY: PageKey = PageKey {
    device: (0, 1),
    inode: 7,
    page: 3,
};

impl Group {
    fn empty() -> Group {
        let zero = || AtomicU64::new(0);
        let slot = |_| Slot {
            device: zero(),
            inode: zero(),
            page: zero(),
            owner: AtomicU32::new(0),
            others: Party::default(),
            waiting: Party::default(),
            mixed: AtomicBool::new(false),
            noted: Default::default(),
            replaced: Default::default(),
            added: [const { AtomicU64::new(0) }; WORDS],
        };
        Group {
            lock: AtomicU32::new(0),
            slots: [0; SLOTS].map(slot),
        }
    }
}

fn table<const GROUPS: usize>() -> &'static Table<GROUPS> {
    Box::leak(Box::new(Table {
        groups: [0; GROUPS].map(|_| Group::empty()),
        awaited: AwaitedWords([const { AtomicU64::new(0) }; _]),
    }))
}

fn two() -> (Claims, Claims) {
    let one = Claims::new(table::<4>(), 1, |_| true);
    (one, one.for_child(2))
}

fn sum(word: usize, added: u64) -> Change {
    Change {
        word,
        added,
        is_sum: true,
    }
}

fn words(list: &[usize]) -> Words {
    let mut words = Words::NONE;
    list.iter().for_each(|word| words.insert(*word));
    words
}

/// What others have added to the words of a claimed page; none if that is not known.
fn added(claims: Claims, key: PageKey) -> Option<Vec<(usize, u64)>> {
    claims.undo(&[key], |noted| {
        let noted = noted[0].as_ref().unwrap();
        let words = (0..WORDS).map(|word| (word, noted.added(word)));
        (!noted.is_mixed()).then(|| words.filter(|(_, added)| *added != 0).collect())
    })
}

#[test]
fn who_comes_second_notes_its_words() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(one.claim(KEY, true, || false), Claim::Owned);
    assert_eq!(two.claim(KEY, false, || true), Claim::Others);
    for _ in 0..2 {
        assert!(two.note(KEY, &words(&[0, 63, 64, 511])));
        two.done(KEY, [sum(0, 1), sum(511, 1u64.wrapping_neg())]);
    }
    assert_eq!(added(one, KEY).unwrap(), [(0, 2), (511, u64::MAX - 1)]);
    one.release(KEY);
    assert!(!two.note(KEY, &words(&[1])));
    assert_eq!(two.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(added(two, KEY).unwrap(), []);
}

#[test]
fn a_page_is_not_claimed_while_somebody_may_write_what_he_has_noted() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(two.note(KEY, &words(&[5])));
    one.release(KEY);
    assert_eq!(one.claim(KEY, false, || true), Claim::Others);
    assert!(one.note(KEY, &words(&[6])));
    two.done(KEY, []);
    one.done(KEY, []);
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
}

#[test]
fn what_is_not_told_apart_is_said_until_the_next_claim() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(two.note_all(KEY));
    assert_eq!(added(one, KEY), None);
    two.done(KEY, []);
    assert_eq!(added(one, KEY), None);
    one.release(KEY);
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(added(one, KEY).unwrap(), []);
}

#[test]
fn an_undo_waits_for_who_is_writing_but_not_for_ever() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(two.note(KEY, &words(&[5])));
    assert_eq!(added(one, KEY), None);
    thread::scope(|scope| {
        scope.spawn(|| {
            thread::sleep(Duration::from_millis(1));
            two.done(KEY, [sum(5, 7)]);
        });
        // It is only waited for so long.
        let told = std::iter::repeat_with(|| added(one, KEY)).find_map(|told| told);
        assert_eq!(told.unwrap(), [(5, 7)]);
    });
}

#[test]
fn who_waits_is_seen_by_whoever_writes_the_page() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(!one.is_awaited(KEY));
    assert!(two.begin_wait(KEY));
    assert!(one.is_awaited(KEY));
    one.release(KEY);
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(one.is_awaited(KEY));
    two.end_wait(KEY);
    assert!(!one.is_awaited(KEY));
    one.release(KEY);
    assert!(two.begin_wait(KEY) && one.is_awaited(KEY));
}

#[test]
fn what_was_replaced_is_told_from_sums() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    let replaced = Change {
        is_sum: false,
        ..sum(70, 9)
    };
    assert!(two.note(KEY, &words(&[5, 70])));
    two.done(KEY, [sum(5, 1), replaced, sum(70, 1)]);
    let told = |claims: Claims| {
        claims.undo(&[KEY], |noted| {
            let noted = noted[0].as_ref().unwrap();
            [5, 6, 70].map(|word| noted.is_sum(word))
        })
    };
    assert_eq!(told(one), [true, true, false]);
    one.release(KEY);
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(told(one), [true; 3]);
}

#[test]
fn words_that_are_waited_for_are_remembered() {
    let (one, two) = two();
    assert!(!two.was_awaited(KEY, 5));
    one.note_awaited(KEY, 5);
    assert!(two.was_awaited(KEY, 5));
    assert!(!two.was_awaited(KEY, 6) && !two.was_awaited(PageKey { page: 4, ..KEY }, 5));
}

#[test]
fn what_is_not_claimed_is_not_undone() {
    let (one, two) = two();
    assert!(one.undo(&[KEY], |noted| noted[0].is_none()));
    assert_eq!(two.claim(KEY, false, || true), Claim::Owned);
    assert!(one.undo(&[KEY], |noted| noted[0].is_none()));
    one.release(KEY);
    assert_eq!(two.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(one.claim(KEY, false, || true), Claim::Others);
}

#[test]
fn pages_that_find_no_slot_are_unknown_until_one_is_free() {
    let one = Claims::new(table::<1>(), 1, |_| true);
    let two = one.for_child(2);
    let key = |page| PageKey { page, ..KEY };
    for page in 0..SLOTS as u64 {
        assert_eq!(one.claim(key(page), false, || true), Claim::Owned);
    }
    assert_eq!(two.claim(key(100), false, || true), Claim::Unknown);
    one.release(key(2));
    assert_eq!(two.claim(key(100), false, || true), Claim::Owned);
}

#[test]
fn the_dead_own_nothing() {
    let one = Claims::new(table::<4>(), 1, |pid| pid != 2);
    let two = one.for_child(2);
    assert_eq!(two.claim(KEY, false, || true), Claim::Owned);
    std::mem::forget(two.lock(two.group(KEY).unwrap()));
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
}

/// Writers of one counter and one word each, who give up every other round: what is left is what they have kept.
#[test]
fn writers_at_the_same_time_undo_their_own_writes_only() {
    static PAGE: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
    const COUNTER: usize = 100;
    let get = |word: usize| PAGE[word].load(Ordering::SeqCst);
    let work = |claims: Claims, own: usize| {
        let mut kept = 0;
        for round in 0..20_000u64 {
            let gives_up = round % 2 == 0;
            let write = || {
                PAGE[own].fetch_add(1, Ordering::SeqCst);
                PAGE[COUNTER].fetch_add(1, Ordering::SeqCst);
            };
            let mut base = Vec::new();
            let keep = || {
                base = (0..WORDS).map(get).collect();
                true
            };
            if claims.claim(KEY, false, keep) == Claim::Owned {
                write();
                let is_undone = gives_up
                    && claims.undo(&[KEY], |noted| {
                        let noted = noted[0].as_ref().unwrap();
                        // The other one may not have run for longer than it is waited for.
                        if noted.is_mixed() {
                            return false;
                        }
                        for (word, base) in base.iter().enumerate() {
                            let without = base.wrapping_add(noted.added(word));
                            PAGE[word].store(without, Ordering::SeqCst);
                        }
                        true
                    });
                claims.release(KEY);
                kept += u64::from(!is_undone);
            } else if claims.note(KEY, &words(&[own, COUNTER])) {
                write();
                claims.done(KEY, [sum(own, 1), sum(COUNTER, 1)]);
                if gives_up && claims.note(KEY, &words(&[own, COUNTER])) {
                    PAGE[own].fetch_sub(1, Ordering::SeqCst);
                    PAGE[COUNTER].fetch_sub(1, Ordering::SeqCst);
                    let less = 1u64.wrapping_neg();
                    claims.done(KEY, [sum(own, less), sum(COUNTER, less)]);
                    continue;
                }
                kept += 1;
            }
        }
        kept
    };
    let (first, second) = two();
    let (a, b) = thread::scope(|scope| {
        let one = scope.spawn(|| work(first, 10));
        let two = scope.spawn(|| work(second, 11));
        (one.join().unwrap(), two.join().unwrap())
    });
    assert_eq!((get(10), get(11), get(COUNTER)), (a, b, a + b));
}

#[test]
fn who_was_killed_leaves_nothing_behind() {
    // Even numbers are alive.
    let one = Claims::new(table::<1>(), 2, |pid| pid.is_multiple_of(2));
    let (other, dead) = (one.for_child(4), one.for_child(3));
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    for _ in 0..2 {
        assert!(dead.note(KEY, &words(&[1])));
    }
    assert!(other.note(KEY, &words(&[2])));
    other.done(KEY, [sum(2, 1)]);
    assert_eq!(
        added(one, KEY),
        None,
        "what it did to its words is not known"
    );
    one.release(KEY);
    assert_eq!(other.claim(KEY, false, || true), Claim::Owned);
    assert_eq!(added(other, KEY), Some(vec![]));
    other.release(KEY);

    assert!(dead.begin_wait(KEY) && !one.is_awaited(KEY));
    assert!(one.begin_wait(KEY) && dead.begin_wait(KEY) && one.is_awaited(KEY));
    one.end_wait(KEY);
    assert!(!one.is_awaited(KEY));
}

#[test]
fn slots_of_the_dead_are_used_again() {
    let one = Claims::new(table::<1>(), 2, |pid| pid.is_multiple_of(2));
    let dead = one.for_child(3);
    let key = |page| PageKey { page, ..KEY };
    for page in 0..SLOTS as u64 {
        match page % 2 {
            0 => assert_eq!(dead.claim(key(page), false, || true), Claim::Owned),
            _ => assert!(dead.begin_wait(key(page))),
        }
    }
    for page in 0..SLOTS as u64 {
        assert_eq!(one.claim(key(100 + page), false, || true), Claim::Owned);
    }
    assert_eq!(one.claim(key(200), false, || true), Claim::Unknown);
}

#[test]
fn more_than_are_known_by_their_numbers_are_counted() {
    let one = Claims::new(table::<1>(), 2, |_| true);
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    let others: Vec<_> = (0..KNOWN as u32 + 3)
        .map(|n| one.for_child(10 + n))
        .collect();
    for other in &others {
        assert!(other.note(KEY, &words(&[5])));
    }
    one.release(KEY);
    for other in &others {
        assert_eq!(one.claim(KEY, false, || true), Claim::Others);
        other.done(KEY, [sum(5, 1)]);
    }
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
}

#[test]
fn a_page_of_one_who_had_the_same_number_is_claimed_anew() {
    let (one, two) = two();
    assert_eq!(one.claim(KEY, false, || true), Claim::Owned);
    assert!(two.note(KEY, &words(&[5])));
    two.done(KEY, [sum(5, 1)]);
    assert_eq!(added(one, KEY), Some(vec![(5, 1)]));
    // Killed, and its number given to another.
    let mut is_kept = false;
    let keep = || {
        is_kept = true;
        true
    };
    assert_eq!(one.claim(KEY, false, keep), Claim::Owned);
    assert!(is_kept);
    assert_eq!(added(one, KEY), Some(vec![]));
}
