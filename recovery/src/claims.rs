//! Who writes which page of memory that several processes share, so that the writes of a request can be undone without
//! those of others.
//!
//! A table in memory that all processes of a server share, out of the guests' reach, has a slot for each page that is
//! being written. The first process to write a page *claims* it until its request ends: it writes as it likes, and what
//! differs in the end from what the page held at first is what it has written, except for what others have written
//! meanwhile. Each of these *notes* in the slot which words it is about to write, and when that is [done](Claims::done),
//! what has become of them: so the owner knows what a word would hold without it, even where both have written it, as
//! they do with counters.
//!
//! A slot stays in use for as long as anybody who has noted words may still write them; until then nobody claims the
//! page, but notes his words as well. Who cannot say which words he will write says so ([`Claims::note_all`]).
//!
//! Who waits in the middle of a request for what another process does has been seen at work: from then on he only says
//! which pages he has written ([`Claims::begin_wait`]). Whoever has written one of them too may be the one he waits for,
//! and to undo that would leave him waiting for ever.
//!
//! The table also remembers which words somebody has ever waited for ([`Claims::note_awaited`]): what these hold is no
//! number that may be added to and subtracted from.
//!
//! Slots are looked for in one group of a few, by the page. Where all of them are in use, nothing is said of the page
//! ([`Claim::Unknown`]). All that is in the table is read and written by the monitor alone; a process that was killed in
//! the middle is found out by its ID (unless more than a few have noted words of one page at the same time).

#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Bytes of a word.
pub const WORD: u64 = 8;
/// Words of a page.
pub const WORDS: usize = 512;
/// Bits of the filter of [`AwaitedWords`].
const AWAITED_BITS: usize = 1 << 16;
/// Processes of a [`Party`] that are known by their IDs.
const KNOWN: usize = 6;
/// Slots that a page may be in.
const SLOTS: usize = 8;
/// For how long a lock is waited for before it is asked whether its holder is alive.
const PATIENCE: Duration = Duration::from_millis(1);
/// For how long an undo waits for those who are writing what they have noted: one instruction, but on a busy machine they
/// may have to wait for a processor in the middle of it.
const UNDO_PATIENCE: Duration = Duration::from_millis(250);
/// How often it looks again.
const UNDO_PERIOD: Duration = Duration::from_micros(100);

/// Names a page of shared memory: of which file, and where in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageKey {
    /// Major and minor number of the device.
    pub device: (u32, u32),
    /// Inode number.
    pub inode: u64,
    /// Offset in the file, in pages.
    pub page: u64,
}

/// A set of words of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Words([u64; WORDS / 64]);

impl Words {
    /// No word.
    pub const NONE: Words = Words([0; WORDS / 64]);

    /// Adds the word with this number, if there is one.
    pub fn insert(&mut self, word: usize) {
        if let Some(bits) = self.0.get_mut(word / 64) {
            *bits |= 1 << (word % 64);
        }
    }

    /// Whether the word is in it.
    pub fn contains(&self, word: usize) -> bool {
        let bits = self.0.get(word / 64);
        bits.is_some_and(|bits| bits & 1 << (word % 64) != 0)
    }

    /// Their numbers, ascending.
    pub fn iter(&self) -> impl Iterator<Item = usize> + '_ {
        (0..WORDS).filter(|word| self.contains(*word))
    }
}

/// A page that is being written. All of it belongs to the holder of its group's lock.
#[derive(Debug)]
struct Slot {
    device: AtomicU64,
    inode: AtomicU64,
    page: AtomicU64,
    /// The process that has claimed the page, or 0.
    owner: AtomicU32,
    /// Who has noted words and is not done.
    others: Party,
    /// Who waits and has written the page before.
    waiting: Party,
    /// Whether somebody who could not say which words has written the page since the claim.
    mixed: AtomicBool,
    /// The words that others have noted since the claim.
    noted: [AtomicU64; WORDS / 64],
    /// Those of them that somebody has written otherwise than by adding.
    replaced: [AtomicU64; WORDS / 64],
    /// What they have added to each of them; zero for all other words.
    added: [AtomicU64; WORDS],
}

/// Processes; each may be among them several times. All zero is none.
#[derive(Debug, Default)]
struct Party {
    /// The IDs of some: those that were killed can be told.
    known: [AtomicU32; KNOWN],
    /// How many more.
    more: AtomicU32,
}

impl Party {
    fn join(&self, pid: u32) {
        match self.find(0) {
            Some(place) => place.store(pid, Ordering::Relaxed),
            None => drop(self.more.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn leave(&self, pid: u32) {
        match self.find(pid) {
            Some(place) => place.store(0, Ordering::Relaxed),
            None => {
                let left = self.more.load(Ordering::Relaxed).saturating_sub(1);
                self.more.store(left, Ordering::Relaxed);
            }
        }
    }

    fn find(&self, pid: u32) -> Option<&AtomicU32> {
        let mut places = self.known.iter();
        places.find(|place| place.load(Ordering::Relaxed) == pid)
    }

    fn is_empty(&self) -> bool {
        self.more.load(Ordering::Relaxed) == 0
            && self
                .known
                .iter()
                .all(|place| place.load(Ordering::Relaxed) == 0)
    }

    /// Those who are dead leave. Returns whether there were any.
    fn bury(&self, is_alive: fn(u32) -> bool) -> bool {
        let mut buried = false;
        for place in &self.known {
            let pid = place.load(Ordering::Relaxed);
            if pid != 0 && !is_alive(pid) {
                place.store(0, Ordering::Relaxed);
                buried = true;
            }
        }
        buried
    }
}

/// What somebody has done to a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Change {
    /// The number of the word in its page.
    pub word: usize,
    /// What was added to it by that, modulo 2^64.
    pub added: u64,
    /// It was done by adding, so that it does not matter in which order that and others like it were done.
    pub is_sum: bool,
}

/// Slots with one lock. All zero is a valid and empty one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Group {
    /// The process that holds the lock, or 0.
    lock: AtomicU32,
    slots: [Slot; SLOTS],
}

/// Remembers words for which somebody has waited, and may take others for such. All zero is a valid and empty one.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct AwaitedWords([AtomicU64; AWAITED_BITS / 64]);

/// The table. All zero is a valid and empty one.
#[derive(Debug)]
#[repr(C)]
pub struct Table<const GROUPS: usize> {
    /// Where pages are looked for.
    pub groups: [Group; GROUPS],
    /// Words that are waited for.
    pub awaited: AwaitedWords,
}

/// What others have written of a page since it was claimed.
#[derive(Debug)]
pub struct Noted<'a>(&'a Slot);

impl Noted<'_> {
    /// Whether that is not known.
    pub fn is_mixed(&self) -> bool {
        self.0.mixed.load(Ordering::Relaxed) || !self.0.others.is_empty()
    }

    /// What they have added to the word in all, modulo 2^64.
    pub fn added(&self, word: usize) -> u64 {
        let added = self.0.added.get(word);
        added.map_or(0, |added| added.load(Ordering::Relaxed))
    }

    /// Whether all that they have done to the word was to add to it.
    pub fn is_sum(&self, word: usize) -> bool {
        let bits = self.0.replaced.get(word / 64);
        bits.is_some_and(|bits| bits.load(Ordering::Relaxed) & 1 << (word % 64) == 0)
    }
}

/// What came of a claim.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Claim {
    /// The page is this process's until it is released.
    Owned,
    /// Another process writes it.
    Others,
    /// There is no room in the table.
    Unknown,
    /// What the page holds could not be kept.
    Failed,
}

/// The table, for one process.
#[derive(Debug, Clone, Copy)]
pub struct Claims {
    groups: &'static [Group],
    awaited: &'static AwaitedWords,
    /// Of this process.
    pid: u32,
    is_alive: fn(u32) -> bool,
}

struct Locked<'a> {
    group: &'a Group,
}

impl Drop for Locked<'_> {
    fn drop(&mut self) {
        self.group.lock.store(0, Ordering::Release);
    }
}

impl Slot {
    fn is_of(&self, key: PageKey) -> bool {
        let get = |number: &AtomicU64| number.load(Ordering::Relaxed);
        self.is_used()
            && (get(&self.device), get(&self.inode), get(&self.page))
                == (device(key), key.inode, key.page)
    }

    fn is_used(&self) -> bool {
        self.owner.load(Ordering::Relaxed) != 0
            || !self.others.is_empty()
            || !self.waiting.is_empty()
    }

    fn begin(&self, key: PageKey) {
        self.device.store(device(key), Ordering::Relaxed);
        self.inode.store(key.inode, Ordering::Relaxed);
        self.page.store(key.page, Ordering::Relaxed);
        self.clear();
    }

    /// Nobody has noted anything.
    fn clear(&self) {
        let mut words = Words::NONE;
        for (to, from) in words.0.iter_mut().zip(&self.noted) {
            *to = from.swap(0, Ordering::Relaxed);
        }
        for word in words.iter() {
            self.added[word].store(0, Ordering::Relaxed);
        }
        for bits in &self.replaced {
            bits.store(0, Ordering::Relaxed);
        }
        self.mixed.store(false, Ordering::Relaxed);
    }

    fn note(&self, words: &Words, pid: u32) {
        for (to, from) in self.noted.iter().zip(&words.0) {
            to.fetch_or(*from, Ordering::Relaxed);
        }
        self.others.join(pid);
    }

    /// Who was killed uses it no longer. What has become of the words that he had noted nobody can say.
    fn bury(&self, is_alive: fn(u32) -> bool) {
        if self.others.bury(is_alive) {
            self.mixed.store(true, Ordering::Relaxed);
        }
        self.waiting.bury(is_alive);
        let owner = self.owner.load(Ordering::Relaxed);
        if owner != 0 && !is_alive(owner) {
            self.owner.store(0, Ordering::Relaxed);
        }
    }

    fn add(&self, change: Change) {
        let mut words = Words::NONE;
        words.insert(change.word);
        let lists = [
            Some(&self.noted),
            (!change.is_sum).then_some(&self.replaced),
        ];
        for list in lists.into_iter().flatten() {
            for (to, from) in list.iter().zip(&words.0) {
                to.fetch_or(*from, Ordering::Relaxed);
            }
        }
        if let Some(added) = self.added.get(change.word) {
            added.fetch_add(change.added, Ordering::Relaxed);
        }
    }
}

fn awaited_bits(key: PageKey, word: usize) -> [usize; 2] {
    let mixed = (key.inode ^ device(key).rotate_left(20))
        .wrapping_add(key.page * WORDS as u64 + word as u64)
        .wrapping_mul(0x9e37_79b9_7f4a_7c15);
    [mixed >> 48, mixed >> 32].map(|hash| hash as usize % AWAITED_BITS)
}

fn device(key: PageKey) -> u64 {
    u64::from(key.device.0) << 32 | u64::from(key.device.1)
}

impl Claims {
    /// The `table`, for the process `pid`. `is_alive` says whether another process still is.
    pub fn new<const GROUPS: usize>(
        table: &'static Table<GROUPS>,
        pid: u32,
        is_alive: fn(u32) -> bool,
    ) -> Claims {
        Claims {
            groups: &table.groups,
            awaited: &table.awaited,
            pid,
            is_alive,
        }
    }

    /// Somebody waits for the word to change.
    pub fn note_awaited(&self, key: PageKey, word: usize) {
        for bit in awaited_bits(key, word) {
            self.awaited.0[bit / 64].fetch_or(1 << (bit % 64), Ordering::Relaxed);
        }
    }

    /// Whether somebody may have waited for the word, at any time.
    pub fn was_awaited(&self, key: PageKey, word: usize) -> bool {
        let is_set =
            |bit: usize| self.awaited.0[bit / 64].load(Ordering::Relaxed) >> (bit % 64) & 1;
        awaited_bits(key, word)
            .into_iter()
            .all(|bit| is_set(bit) == 1)
    }

    /// The same table, for a forked child.
    pub fn for_child(self, pid: u32) -> Claims {
        Claims { pid, ..self }
    }

    fn group(&self, key: PageKey) -> Option<&'static Group> {
        self.groups.get(self.number(key)?)
    }

    fn number(&self, key: PageKey) -> Option<usize> {
        // Neighbours in a file are neighbours in the table.
        let mixed = (key.inode ^ device(key)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let count = self.groups.len() as u64;
        let number = mixed.wrapping_add(key.page).checked_rem(count)?;
        Some(number as usize)
    }

    fn lock(&self, group: &'static Group) -> Locked<'static> {
        let mut since = None;
        loop {
            let taken =
                group
                    .lock
                    .compare_exchange(0, self.pid, Ordering::Acquire, Ordering::Relaxed);
            let Err(holder) = taken else {
                return Locked { group };
            };
            if since.get_or_insert_with(Instant::now).elapsed() > PATIENCE {
                since = None;
                // One thread at a time is here, so that this process is not the holder, whatever its ID.
                if holder == self.pid || !(self.is_alive)(holder) {
                    // What it held may be half done, but is only ever too much.
                    let _ = group.lock.compare_exchange(
                        holder,
                        0,
                        Ordering::Acquire,
                        Ordering::Relaxed,
                    );
                }
            }
            thread::yield_now();
        }
    }

    /// The request that runs in this process is about to write the page. `has_claimed` says whether it has claimed it before:
    /// a process that was killed may have had the same ID. If it has not, `keep` keeps what the page holds, before anybody else
    /// writes it; false if that cannot be done.
    pub fn claim(&self, key: PageKey, has_claimed: bool, keep: impl FnOnce() -> bool) -> Claim {
        let Some(group) = self.group(key) else {
            return Claim::Unknown;
        };
        let locked = self.lock(group);
        let slots = &locked.group.slots;
        let of_page = slots.iter().find(|slot| slot.is_of(key));
        if let Some(slot) = of_page {
            let owner = || slot.owner.load(Ordering::Relaxed);
            if has_claimed && owner() == self.pid {
                return Claim::Owned;
            }
            slot.bury(self.is_alive);
            if !slot.others.is_empty() || ![0, self.pid].contains(&owner()) {
                return Claim::Others;
            }
        }
        let Some(slot) = of_page.or_else(|| self.unused(slots)) else {
            return Claim::Unknown;
        };
        if !keep() {
            return Claim::Failed;
        }
        slot.begin(key);
        slot.owner.store(self.pid, Ordering::Relaxed);
        Claim::Owned
    }

    /// A slot that nobody uses. If all are in use, some of those who do may be dead.
    fn unused(&self, slots: &'static [Slot]) -> Option<&'static Slot> {
        let find = || slots.iter().find(|slot| !slot.is_used());
        find().or_else(|| {
            slots.iter().for_each(|slot| slot.bury(self.is_alive));
            find()
        })
    }

    /// This process, which has not claimed the page, is about to write these words of it, until it is [done](Self::done).
    /// False if nobody else writes the page any more, so that it can be claimed.
    pub fn note(&self, key: PageKey, words: &Words) -> bool {
        self.in_slot(key, |slot| slot.note(words, self.pid))
            .is_some()
    }

    /// Likewise, and which words it will write is not known.
    pub fn note_all(&self, key: PageKey) -> bool {
        let noted = self.in_slot(key, |slot| {
            slot.note(&Words::NONE, self.pid);
            slot.mixed.store(true, Ordering::Relaxed);
        });
        noted.is_some()
    }

    /// What this process has noted of the page last is written: what has become of the words.
    pub fn done(&self, key: PageKey, changes: impl IntoIterator<Item = Change>) {
        self.in_slot(key, |slot| {
            for change in changes {
                slot.add(change);
            }
            slot.others.leave(self.pid);
        });
    }

    /// This process, which has written the page and has not claimed it any more, waits for others until
    /// [`Claims::end_wait`]. False if there is no room to say so.
    pub fn begin_wait(&self, key: PageKey) -> bool {
        let Some(group) = self.group(key) else {
            return false;
        };
        let locked = self.lock(group);
        let slots = &locked.group.slots;
        let of_page = slots.iter().find(|slot| slot.is_of(key));
        let Some(slot) = of_page.or_else(|| self.unused(slots)) else {
            return false;
        };
        if of_page.is_none() {
            slot.begin(key);
        }
        slot.waiting.join(self.pid);
        true
    }

    /// It waits no longer.
    pub fn end_wait(&self, key: PageKey) {
        self.in_slot(key, |slot| slot.waiting.leave(self.pid));
    }

    /// Whether somebody waits who has written the page.
    pub fn is_awaited(&self, key: PageKey) -> bool {
        let is_awaited = self.in_slot(key, |slot| {
            slot.bury(self.is_alive);
            !slot.waiting.is_empty()
        });
        is_awaited == Some(true)
    }

    /// Calls `action` with the slot of the page, locked, if there is one.
    fn in_slot<T>(&self, key: PageKey, action: impl FnOnce(&Slot) -> T) -> Option<T> {
        let locked = self.lock(self.group(key)?);
        let slot = locked.group.slots.iter().find(|slot| slot.is_of(key));
        slot.map(action)
    }

    /// What others have written of pages, for `undo`, which runs while nobody else begins to write them. None for a page
    /// that this process has not claimed. They stay claimed.
    pub fn undo<T>(&self, keys: &[PageKey], undo: impl FnOnce(&[Option<Noted<'_>>]) -> T) -> T {
        let deadline = Instant::now() + UNDO_PATIENCE;
        // In one order, so that those who undo do not wait for each other.
        let groups: BTreeSet<usize> = keys.iter().filter_map(|key| self.number(*key)).collect();
        loop {
            let groups = groups.iter().filter_map(|number| self.groups.get(*number));
            let locked: Vec<_> = groups.map(|group| self.lock(group)).collect();
            let slots: Vec<Option<&Slot>> = keys.iter().map(|key| self.own_slot(*key)).collect();
            let is_settled = |slot: &&Slot| {
                slot.bury(self.is_alive);
                slot.others.is_empty() || slot.mixed.load(Ordering::Relaxed)
            };
            if slots.iter().flatten().all(is_settled) || Instant::now() > deadline {
                let noted: Vec<_> = slots.into_iter().map(|slot| slot.map(Noted)).collect();
                return undo(&noted);
            }
            drop(locked);
            thread::sleep(UNDO_PERIOD);
        }
    }

    /// The slot of a page that this process has claimed. Its group is locked.
    fn own_slot(&self, key: PageKey) -> Option<&'static Slot> {
        let mut slots = self.group(key)?.slots.iter();
        slots.find(|slot| self.owns(slot, key))
    }

    fn owns(&self, slot: &Slot, key: PageKey) -> bool {
        slot.is_of(key) && slot.owner.load(Ordering::Relaxed) == self.pid
    }

    /// The request has ended, and this process cannot write the page without a claim any more.
    pub fn release(&self, key: PageKey) {
        self.in_slot(key, |slot| {
            if self.owns(slot, key) {
                slot.owner.store(0, Ordering::Relaxed);
            }
        });
    }
}
