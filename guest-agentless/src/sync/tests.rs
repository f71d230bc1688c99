use std::collections::BTreeMap;

use super::*;

const TID: u32 = 4711;
const OTHER: u32 = 4712;
const BASE: u64 = 0x1000;

type Memory = BTreeMap<u64, u32>;

fn view(memory: &Memory) -> impl Words + '_ {
    |address: u64| memory.get(&address).copied()
}

/// An object of `words` at [`BASE`].
fn memory(words: &[u32]) -> Memory {
    (BASE..).step_by(4).zip(words.iter().copied()).collect()
}

fn apply(memory: &mut Memory, release: &Release) {
    for (address, value) in &release.writes {
        memory.insert(*address, *value);
    }
}

fn held(before: &Memory, now: &Memory) -> Vec<HeldLock> {
    let changed = now.keys().filter(|at| now[at] != before[at]);
    changed
        .filter_map(|at| held_at(&view(before), &view(now), &|_| true, *at, TID))
        .collect()
}

const FREE_MUTEX: [u32; 10] = [0; 10];
const FREE_RWLOCK: [u32; 14] = [0; 14];

#[test]
fn a_mutex_is_told_by_its_owner() {
    let free = memory(&FREE_MUTEX);
    let mut now = memory(&[2, 0, TID, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(held(&free, &now), [HeldLock::Mutex(BASE)]);
    let release = release(&view(&now), HeldLock::Mutex(BASE)).unwrap();
    apply(&mut now, &release);
    assert_eq!(now, free);
    assert_eq!(release.wakes, [(BASE, 1)]);
}

#[test]
fn a_mutex_of_another_thread_or_from_before_is_not_released() {
    let free = memory(&FREE_MUTEX);
    let others = memory(&[1, 0, OTHER, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(held(&free, &others), []);
    let own = memory(&[1, 0, TID, 1, 0, 0, 0, 0, 0, 0]);
    let contended = memory(&[2, 0, TID, 1, 0, 0, 0, 0, 0, 0]);
    assert_eq!(held(&own, &contended), []);
}

#[test]
fn the_thread_number_alone_is_no_lock() {
    let zero = memory(&[0; 14]);
    let mut text = memory(&[7; 14]);
    text.insert(BASE + 8, TID);
    assert_eq!(held(&zero, &text), []);
}

#[test]
fn read_locks_are_counted_out_and_the_waiting_writer_gets_its_turn() {
    let free = memory(&FREE_RWLOCK);
    // Three readers, of which two are ours, and a writer that waits.
    let mut one_reader = free.clone();
    one_reader.insert(BASE, 1 << 3);
    let mut now = free.clone();
    now.insert(BASE, 3 << 3 | WRITE_LOCKED);
    now.insert(BASE + WRITERS_FUTEX, 1);
    let mut one_and_writer = one_reader.clone();
    one_and_writer.insert(BASE, 1 << 3 | WRITE_LOCKED);
    one_and_writer.insert(BASE + WRITERS_FUTEX, 1);
    assert_eq!(held(&one_and_writer, &now), [HeldLock::Read(BASE, 2)]);
    let mut reading = free.clone();
    reading.insert(BASE, 3 << 3);
    assert_eq!(held(&one_reader, &reading), [HeldLock::Read(BASE, 2)]);
    let first = release(&view(&now), HeldLock::Read(BASE, 2)).unwrap();
    apply(&mut now, &first);
    assert_eq!((now[&BASE], first.wakes.len()), (1 << 3 | WRITE_LOCKED, 0));
    let last = release(&view(&now), HeldLock::Read(BASE, 1)).unwrap();
    apply(&mut now, &last);
    assert_eq!(now[&BASE], WRITE_LOCKED | WRITE_PHASE);
    assert_eq!(now[&(BASE + PHASE)], 1);
    assert_eq!(last.wakes, [(BASE + PHASE, i32::MAX as u32)]);
}

#[test]
fn what_may_be_a_read_lock_is_told_by_its_shape() {
    let free = memory(&FREE_RWLOCK);
    let with = |readers| {
        let mut lock = free.clone();
        lock.insert(BASE, readers);
        lock
    };
    let left = |before, now| left_reads(&view(&with(before)), &view(&with(now)), BASE);
    assert_eq!(left(0, 2 << 3), Some(2));
    assert_eq!(left(5 << 3, 6 << 3), Some(1));
    // A number of something else.
    assert_eq!(left(0, 1), None);
    assert_eq!(left(0, 3 << 3 | WRITE_LOCKED), None);
    assert_eq!(left(0, (READS_LIMIT + 1) << 3), None);
    assert!(counts_readers(&view(&free), BASE, 1 << 3, 4 << 3));
    assert!(!counts_readers(&view(&free), BASE, 1 << 3, 9));
    assert!(!counts_readers(&view(&free), BASE + 4, 1 << 3, 4 << 3));
}

#[test]
fn a_write_lock_goes_to_the_readers_that_wait() {
    let free = memory(&FREE_RWLOCK);
    let mut now = free.clone();
    now.insert(BASE, WRITE_PHASE | WRITE_LOCKED | 2 << 3);
    now.insert(BASE + PHASE, 1 | 2);
    now.insert(BASE + WRITERS_FUTEX, 1);
    now.insert(BASE + WRITER, TID);
    assert!(held(&free, &now).contains(&HeldLock::Write(BASE)));
    let release = release(&view(&now), HeldLock::Write(BASE)).unwrap();
    apply(&mut now, &release);
    assert_eq!((now[&BASE], now[&(BASE + PHASE)]), (2 << 3, 0));
    assert_eq!(
        (now[&(BASE + WRITER)], now[&(BASE + WRITERS_FUTEX)]),
        (0, 0)
    );
}

#[test]
fn sizes_are_those_of_this_machines_glibc() {
    assert_eq!(size_of::<libc::pthread_mutex_t>(), FREE_MUTEX.len() * 4);
    assert_eq!(size_of::<libc::pthread_rwlock_t>(), FREE_RWLOCK.len() * 4);
    assert_eq!(size_of::<libc::pthread_cond_t>() as u64, COND_SIZE);
}

#[test]
fn a_waiter_is_taken_out_of_its_condition_variable() {
    // One waiter in the newest group: sequence 2, a reference to group 0 and one to the whole.
    let mut words = [0; 12];
    words[0] = 2;
    words[4] = 2;
    words[9] = 8;
    let mut now = memory(&words);
    let wait = CondWait::at(&view(&now), BASE + GROUP_SIGNALS).unwrap();
    assert_eq!(wait.address, BASE);
    assert_eq!(
        CondWait::at(&view(&memory(&[0; 12])), BASE + GROUP_SIGNALS),
        None
    );
    let release = wait.cancel(&view(&now)).unwrap();
    apply(&mut now, &release);
    assert_eq!(
        (now[&(BASE + GROUP_REFS)], now[&(BASE + COND_REFS)]),
        (0, 0)
    );
    assert_eq!(
        now[&(BASE + GROUP_SIZE)],
        u32::MAX,
        "one less when the group is closed"
    );
    assert_eq!(release.wakes.len(), 2);
}
