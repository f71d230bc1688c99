//! Synchronisation objects of glibc as they lie in memory, seen from outside.
//!
//! A thread that vanishes from the middle of its work leaves locks behind. Here is what tells them: layouts and
//! protocols of `pthread_mutex_t`, `pthread_rwlock_t` and `pthread_cond_t` in glibc 2.25 to 2.41 on x86-64
//! (`sysdeps/nptl/bits/struct_mutex.h`, `struct_rwlock.h`, `nptl/pthread_rwlock_common.c`,
//! `nptl/pthread_cond_wait.c`). Every recognition is by shape, since memory has no types; it is used only on
//! words that the vanishing thread has changed itself.

/// Guest memory, read as 32-bit words at multiples of four.
pub trait Words {
    /// The word at `address`; none if it cannot be read.
    fn word(&self, address: u64) -> Option<u32>;
}

impl<F: Fn(u64) -> Option<u32>> Words for F {
    fn word(&self, address: u64) -> Option<u32> {
        self(address)
    }
}

/// Words to write, and futex words whose waiters have to be woken for it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Release {
    /// Address and value.
    pub writes: Vec<(u64, u32)>,
    /// Address, and how many of its waiters.
    pub wakes: Vec<(u64, u32)>,
}

/// A lock that a thread holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HeldLock {
    /// A mutex.
    Mutex(u64),
    /// A read-write lock, for writing.
    Write(u64),
    /// A read-write lock, for reading, so many times.
    Read(u64, u32),
}

impl HeldLock {
    /// Where it is.
    pub fn address(self) -> u64 {
        match self {
            HeldLock::Mutex(at) | HeldLock::Write(at) | HeldLock::Read(at, _) => at,
        }
    }

    /// Whether it keeps all others out, so that what it guards is nobody else's to see or to change.
    pub fn is_exclusive(self) -> bool {
        !matches!(self, HeldLock::Read(..))
    }
}

// Members of `pthread_mutex_t`.
const MUTEX_COUNT: u64 = 4;
const MUTEX_OWNER: u64 = 8;
const MUTEX_USERS: u64 = 12;
const MUTEX_KIND: u64 = 16;
/// Bits of the kind that plain mutexes have: type (2 bits), elision, process-shared.
const PLAIN_KINDS: u32 = 0x3 | 0x100 | 0x200 | 0x80;

// Members of `pthread_rwlock_t`.
const WRITERS: u64 = 4;
const PHASE: u64 = 8;
const WRITERS_FUTEX: u64 = 12;
const PADDING: u64 = 16;
const WRITER: u64 = 24;
const READER_SHIFT: u32 = 3;
const WRITE_PHASE: u32 = 1;
const WRITE_LOCKED: u32 = 2;
const READERS_WAIT: u32 = 4;
/// The bits below the number of readers.
const STATE: u32 = WRITE_PHASE | WRITE_LOCKED | READERS_WAIT;

/// Read locks of one request on one lock, at most.
const READS_LIMIT: u32 = 64;
/// Threads that may plausibly hold or wait for one mutex.
const USERS_LIMIT: u32 = 1 << 16;

/// The thread that holds the mutex whose lock word is at `address`, if it is one that somebody holds.
pub fn mutex_owner(memory: &impl Words, address: u64) -> Option<i32> {
    let owner = memory.word(address.wrapping_add(MUTEX_OWNER))?;
    is_held_mutex(memory, address).then_some(owner as i32)
}

/// Whether the word at `address` is the lock word of a mutex that somebody holds.
pub fn is_held_mutex(memory: &impl Words, address: u64) -> bool {
    let at = |offset| memory.word(address.wrapping_add(offset));
    let (Some(lock), Some(owner), Some(users), Some(kind)) =
        (at(0), at(MUTEX_OWNER), at(MUTEX_USERS), at(MUTEX_KIND))
    else {
        return false;
    };
    matches!(lock, 1 | 2)
        && kind & !PLAIN_KINDS == 0
        && (1..USERS_LIMIT).contains(&users)
        && (owner as i32) > 0
}

/// The read-write lock that the word at `address` belongs to, if it changes with the lock's state.
pub fn rwlock_around(memory: &impl Words, address: u64) -> Option<u64> {
    let members = [0, WRITERS, PHASE, WRITERS_FUTEX, WRITER];
    members
        .into_iter()
        .map(|offset| address.wrapping_sub(offset))
        .find(|lock| is_rwlock(memory, *lock))
}

/// Whether the word at `address` counts the readers of a lock, which were `before` and are `after`.
pub fn counts_readers(memory: &impl Words, address: u64, before: u32, after: u32) -> bool {
    (before ^ after) & STATE == 0 && is_rwlock(memory, address)
}

/// The addresses of the words of a read-write lock that change.
pub fn rwlock_words(lock: u64) -> [u64; 5] {
    [0, WRITERS, PHASE, WRITERS_FUTEX, WRITER].map(|offset| lock.wrapping_add(offset))
}

fn is_rwlock(memory: &impl Words, address: u64) -> bool {
    let at = |offset| memory.word(address.wrapping_add(offset));
    let zero = [PADDING, PADDING + 4, 32, 36, 40, 44];
    if !address.is_multiple_of(8) || zero.iter().any(|offset| at(*offset) != Some(0)) {
        return false;
    }
    let (Some(readers), Some(writers), Some(phase), Some(futex), Some(writer)) =
        (at(0), at(WRITERS), at(PHASE), at(WRITERS_FUTEX), at(WRITER))
    else {
        return false;
    };
    // Process-shared, and the kind.
    let constants =
        at(28).is_some_and(|shared| shared <= 1) && at(48).is_some_and(|kind| kind <= 2);
    constants
        && readers >> READER_SHIFT < USERS_LIMIT
        && writers < USERS_LIMIT
        && phase & !3 == 0
        && futex & !3 == 0
        && readers & WRITE_PHASE == phase & 1
        && (writer as i32) >= 0
        && (writer == 0 || readers & WRITE_LOCKED != 0)
}

/// The lock at or around the word at `address` that thread `tid` has taken since memory was `before`, and
/// holds `now`. `address` is a word that the thread has changed; `is_futex` tells the words for which
/// some thread has waited. A read-write lock that nobody has waited for is recognised only by its writer: it needs
/// no more than its old content. See [`left_reads`] for its readers.
pub fn held_at(
    before: &impl Words,
    now: &impl Words,
    is_futex: &impl Fn(u64) -> bool,
    address: u64,
    tid: u32,
) -> Option<HeldLock> {
    let is = now.word(address)?;
    let was = before.word(address)?;
    if is == tid && was != tid {
        let mutex = address.wrapping_sub(MUTEX_OWNER);
        if is_held_mutex(now, mutex) {
            return Some(HeldLock::Mutex(mutex));
        }
        let lock = address.wrapping_sub(WRITER);
        return is_rwlock(now, lock).then_some(HeldLock::Write(lock));
    }
    let futexes = [PHASE, WRITERS_FUTEX].map(|offset| address.wrapping_add(offset));
    if !futexes.into_iter().any(is_futex) || !is_rwlock(now, address) {
        return None;
    }
    // A writer has taken the lock as soon as this is set, although it may still wait for its phase.
    if is & !was & WRITE_LOCKED != 0 && now.word(address.wrapping_add(WRITER)) == Some(0) {
        return Some(HeldLock::Write(address));
    }
    // A reader is counted from when it begins to wait for the lock.
    reads(was, is).map(|times| HeldLock::Read(address, times))
}

/// How often a thread that has changed the word at `address` has taken a lock there for reading, if it is a
/// read-write lock. Its shape alone says so, and numbers may look like that: it is true as soon as somebody waits for
/// the lock.
pub fn left_reads(before: &impl Words, now: &impl Words, address: u64) -> Option<u32> {
    let (was, is) = (before.word(address)?, now.word(address)?);
    match counts_readers(now, address, was, is) {
        true => reads(was, is),
        false => None,
    }
}

fn reads(was: u32, is: u32) -> Option<u32> {
    let times = (is >> READER_SHIFT).wrapping_sub(was >> READER_SHIFT);
    (1..=READS_LIMIT).contains(&times).then_some(times)
}

/// What unlocks `lock` for the thread that holds it, as its own unlock would.
pub fn release(memory: &impl Words, lock: HeldLock) -> Option<Release> {
    let mut release = Release::default();
    match lock {
        HeldLock::Mutex(at) => {
            let users = memory.word(at + MUTEX_USERS)?;
            release.writes = vec![
                (at, 0),
                (at + MUTEX_COUNT, 0),
                (at + MUTEX_OWNER, 0),
                (at + MUTEX_USERS, users.saturating_sub(1)),
            ];
            release.wakes = vec![(at, 1)];
        }
        // __pthread_rwlock_wrunlock
        HeldLock::Write(at) => {
            let readers = memory.word(at)?;
            release.writes.push((at + WRITER, 0));
            release.writes.push((at + WRITERS_FUTEX, 0));
            release.wakes.push((at + WRITERS_FUTEX, 1));
            let waiting = readers >> READER_SHIFT != 0 && readers & WRITE_PHASE != 0;
            let phase = if waiting { WRITE_PHASE } else { 0 };
            release.writes.push((at, readers ^ WRITE_LOCKED ^ phase));
            if waiting {
                release.writes.push((at + PHASE, 0));
                release.wakes.push((at + PHASE, i32::MAX as u32));
            }
        }
        // __pthread_rwlock_rdunlock
        HeldLock::Read(at, times) => {
            let mut readers = memory.word(at)?.checked_sub(times << READER_SHIFT)?;
            if readers >> READER_SHIFT == 0 {
                if readers & (WRITE_LOCKED | WRITE_PHASE) == WRITE_LOCKED {
                    readers |= WRITE_PHASE;
                    release.writes.push((at + PHASE, 1));
                    release.wakes.push((at + PHASE, i32::MAX as u32));
                }
                if readers & READERS_WAIT != 0 {
                    readers &= !READERS_WAIT;
                    release.wakes.push((at, i32::MAX as u32));
                }
            }
            release.writes.push((at, readers));
        }
    }
    Some(release)
}

// Members of `pthread_cond_t`.
const COND_SIZE: u64 = 48;
const COND_SEQUENCE: u64 = 0;
const GROUP_REFS: u64 = 16;
const GROUP_SIZE: u64 = 24;
const COND_REFS: u64 = 36;
const GROUP_SIGNALS: u64 = 40;

/// A condition variable that a thread waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CondWait {
    /// The condition variable.
    pub address: u64,
    /// The group of waiters that the thread is in: 0 or 1.
    group: u64,
}

impl CondWait {
    /// The condition variable that a thread waits for at the futex word `word`, if it is one.
    pub fn at(memory: &impl Words, word: u64) -> Option<CondWait> {
        [0, 1].into_iter().find_map(|group| {
            let address = word.checked_sub(GROUP_SIGNALS + 4 * group)?;
            let at = |offset: u64| memory.word(address.wrapping_add(offset));
            // A waiter has a reference to its group and one to the whole; both count in steps.
            let waits = at(GROUP_REFS + 4 * group)? >= 2 && at(COND_REFS)? >= 8;
            let plausible = at(GROUP_SIZE)? < USERS_LIMIT && at(GROUP_SIZE + 4)? < USERS_LIMIT;
            (waits && plausible && address.is_multiple_of(8)).then_some(CondWait { address, group })
        })
    }

    /// The addresses of its words.
    pub fn words(self) -> impl Iterator<Item = u64> {
        (self.address..self.address.saturating_add(COND_SIZE)).step_by(4)
    }

    /// What takes the waiting thread out, as the cancellation of its wait would
    /// (`__condvar_cleanup_waiting`). All waiters are woken: one of them may have to take its place.
    pub fn cancel(self, memory: &impl Words) -> Option<Release> {
        let at = |offset: u64| memory.word(self.address.wrapping_add(offset));
        let newest = u64::from(at(COND_SEQUENCE)? & 1);
        let (refs, size) = (GROUP_REFS + 4 * self.group, GROUP_SIZE + 4 * self.group);
        let mut writes = vec![
            (self.address + refs, at(refs)?.saturating_sub(2)),
            (self.address + COND_REFS, at(COND_REFS)?.saturating_sub(8)),
        ];
        // The newest group counts its waiters only when it is closed, from the sequence on; one less is
        // remembered as a negative size.
        let left = at(size)?;
        if self.group == newest || left > 0 {
            writes.push((self.address + size, left.wrapping_sub(1)));
        }
        let wakes = [0, 1].map(|group| {
            let word = self.address + GROUP_SIGNALS + 4 * group;
            (word, i32::MAX as u32)
        });
        Some(Release {
            writes,
            wakes: wakes.to_vec(),
        })
    }
}

#[cfg(test)]
mod tests;
