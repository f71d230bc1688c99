//! The invariant, on random programs against a simulated machine: after an abandon, memory is what it was
//! at the last commit, byte for byte.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::pages::REGION;
use super::*;

/// Page numbers end here; only every [`STRIDE`]th is used, so that there are several regions.
const PAGES: u64 = 24 * STRIDE;
const STRIDE: u64 = 100;
/// Pages below this number had content of their own when they were mapped (a file's), the others not.
const FILE_PAGES: u64 = 8 * STRIDE;
/// Pages below this number are of shared mappings: they show three pages of memory, at two addresses each unless a
/// domain maps them otherwise.
const SHARED_PAGES: u64 = 6 * STRIDE;

/// The page numbers from `from` up to `to` that are used.
fn pages(from: u64, to: u64) -> impl Iterator<Item = u64> {
    (from..to).step_by(STRIDE as usize)
}

fn any_page(from: u64) -> impl Strategy<Value = u64> + Clone {
    (from / STRIDE..PAGES / STRIDE).prop_map(|n| n * STRIDE)
}

/// A shared page below `end`.
fn shared_page(end: u64) -> impl Strategy<Value = u64> + Clone {
    (0..end / STRIDE).prop_map(|n| n * STRIDE)
}

/// What is seen at another address is not hidden.
fn can_hide(region: u64) -> bool {
    region * REGION >= SHARED_PAGES
}

/// Memory with write protection as KVM and guest page tables do it.
#[derive(Default)]
struct Simulated {
    memory: BTreeMap<u64, Box<PageContent>>,
    /// The page of memory that each shared page shows which is mapped.
    shown: BTreeMap<u64, u64>,
    /// How to undo what the running domain has done to shared mappings.
    journal: Vec<Inverse>,
    trapped: BTreeSet<u64>,
    /// Not write-protected, so that writes go unreported.
    open: BTreeSet<u64>,
    ring: Vec<PageNumber>,
    harvested: Vec<PageNumber>,
    /// Whether memory can be given back.
    gives_back: bool,
    /// What memory was when the domain was committed for want of room, if it was.
    committed: Option<Image>,
}

enum Inverse {
    Unmap {
        page: u64,
    },
    Remap {
        page: u64,
        place: u64,
        saved: SavedPages,
    },
}

impl Simulated {
    fn new() -> Simulated {
        let mut machine = Simulated::default();
        for page in pages(0, PAGES) {
            let mut content = PageContent::boxed();
            if page < FILE_PAGES {
                content.bytes_mut().fill((page / STRIDE) as u8 + 1);
            }
            if page < SHARED_PAGES {
                machine.shown.insert(page, page % (SHARED_PAGES / 2));
            }
            if page >= SHARED_PAGES || machine.shown[&page] == page {
                machine.memory.insert(page, content);
            }
        }
        machine
    }

    /// Maps `page`, whose page table entry is not there yet.
    fn show(&mut self, page: u64, place: u64) {
        self.shown.insert(page, place);
        self.trapped.remove(&page);
        self.open.remove(&page);
    }

    /// The page of memory that `page` shows.
    fn place(&self, page: u64) -> Option<u64> {
        match page < SHARED_PAGES {
            true => self.shown.get(&page).copied(),
            false => Some(page),
        }
    }

    fn store(&mut self, page: u64, offset: usize, value: u8) {
        if let Some(place) = self.place(page) {
            self.memory.get_mut(&place).unwrap().bytes_mut()[offset] = value;
        }
    }

    fn image(&self) -> Image {
        let pages = self.memory.iter();
        Image(
            pages
                .map(|(place, content)| (*place, content.bytes().to_vec()))
                .collect(),
        )
    }
}

/// What each page of memory holds.
#[derive(PartialEq)]
struct Image(BTreeMap<u64, Vec<u8>>);

/// A digest of each page, so that a failure can be read.
impl std::fmt::Debug for Image {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digest = |page: &Vec<u8>| page.iter().map(|b| u64::from(*b)).sum::<u64>();
        f.debug_list().entries(self.0.values().map(digest)).finish()
    }
}

impl Memory for Simulated {
    fn read(&mut self, page: PageNumber, into: &mut PageContent) -> bool {
        let Some(place) = self.place(page.0) else {
            return false;
        };
        into.clone_from(&self.memory[&place]);
        true
    }

    fn write(&mut self, page: PageNumber, from: &PageContent) -> bool {
        let Some(place) = self.place(page.0) else {
            return false;
        };
        self.memory.insert(place, Box::new(from.clone()));
        true
    }

    fn give_back(&mut self, range: GuestRange) -> bool {
        for page in range.pages() {
            assert!(self.is_zero_based(page));
            self.memory.insert(page.0, PageContent::boxed());
        }
        self.gives_back
    }
}

impl Machine for Simulated {
    fn set_writable(&mut self, page: PageNumber, writable: bool) {
        match writable {
            true => self.trapped.remove(&page.0),
            false => self.trapped.insert(page.0),
        };
    }

    fn is_zero_based(&self, page: PageNumber) -> bool {
        page.0 >= FILE_PAGES
    }

    fn is_shared(&self, page: PageNumber) -> bool {
        page.0 < SHARED_PAGES
    }

    fn harvest(&mut self, written: &mut Vec<PageNumber>) {
        self.harvested.extend(&self.ring);
        written.append(&mut self.ring);
    }

    fn reprotect(&mut self) {
        for page in self.harvested.drain(..) {
            self.open.remove(&page.0);
        }
    }
}

#[derive(Debug, Clone)]
enum Step {
    Guest {
        page: u64,
        offset: usize,
        value: u8,
    },
    Host {
        page: u64,
        offset: usize,
        value: u8,
    },
    /// KVM drops what it knows of a page, and the guest reads it.
    ReadAnew {
        page: u64,
    },
    /// Between two domains, somebody writes to the file that is mapped.
    Others {
        page: u64,
        offset: usize,
        value: u8,
    },
    Commit {
        /// All pages are trapped then.
        trap: bool,
    },
    Abandon,
    /// The domain maps a page of shared memory, where nothing is.
    Map {
        page: u64,
        place: u64,
    },
    /// The domain unmaps a shared page.
    Unmap {
        page: u64,
    },
    /// Some regions are hidden, the others are restored at once.
    Postpone {
        hidden: u8,
    },
    Harvest,
    /// The host writes the result of the call with which the next domain begins.
    Result {
        page: u64,
        offset: usize,
        value: u8,
    },
    /// The domain replaces a mapping and is then abandoned or committed.
    Replace {
        page: u64,
        abandon: bool,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let write = (any_page(0), 0..4096usize, any::<u8>());
    prop_oneof![
        6 => write.clone().prop_map(|(page, offset, value)| Step::Guest { page, offset, value }),
        4 => (shared_page(SHARED_PAGES), 0..4096usize, any::<u8>())
            .prop_map(|(page, offset, value)| Step::Guest { page, offset, value }),
        2 => write.clone().prop_map(|(page, offset, value)| Step::Result { page, offset, value }),
        2 => (shared_page(SHARED_PAGES), 0..4096usize, any::<u8>())
            .prop_map(|(page, offset, value)| Step::Others { page, offset, value }),
        4 => write.prop_map(|(page, offset, value)| Step::Host { page, offset, value }),
        3 => any_page(0).prop_map(|page| Step::ReadAnew { page }),
        2 => any::<bool>().prop_map(|trap| Step::Commit { trap }),
        2 => Just(Step::Abandon),
        2 => shared_page(SHARED_PAGES).prop_map(|page| Step::Unmap { page }),
        2 => (shared_page(SHARED_PAGES), shared_page(SHARED_PAGES / 2))
            .prop_map(|(page, place)| Step::Map { page, place }),
        2 => any::<u8>().prop_map(|hidden| Step::Postpone { hidden }),
        1 => Just(Step::Harvest),
        1 => (any_page(FILE_PAGES), any::<bool>())
            .prop_map(|(page, abandon)| Step::Replace { page, abandon }),
    ]
}

fn guest_write(
    tracker: &mut Tracker,
    machine: &mut Simulated,
    page: u64,
    offset: usize,
    value: u8,
) {
    let number = PageNumber(page);
    if machine.place(page).is_none() {
        return;
    }
    tracker.restore_region(machine, page / REGION);
    // What the page tables say may be out of date: then the fault only brings them up to date.
    if tracker.is_writable(number, machine.is_zero_based(number)) {
        machine.trapped.remove(&page);
    }
    if machine.trapped.contains(&page) {
        if tracker.first_write(machine, number) == FirstWrite::NoRoom {
            commit_for_room(tracker, machine);
            assert_eq!(tracker.first_write(machine, number), FirstWrite::Taken);
        }
        assert!(!machine.trapped.contains(&page));
    }
    if machine.open.insert(page) {
        machine.ring.push(number);
    }
    machine.store(page, offset, value);
}

/// Under nested paging KVM maps a page that the host can write as writable on any access, whatever the guest's
/// own page tables say, and reports it as written at once.
fn read_anew(tracker: &mut Tracker, machine: &mut Simulated, page: u64) {
    if machine.place(page).is_none() {
        return;
    }
    tracker.restore_region(machine, page / REGION);
    machine.open.insert(page);
    machine.ring.push(PageNumber(page));
}

fn host_write(tracker: &mut Tracker, machine: &mut Simulated, page: u64) {
    if machine.place(page).is_none() {
        return;
    }
    tracker.restore_region(machine, page / REGION);
    if tracker
        .host_write(machine, one_page(page))
        .stopped
        .is_some()
    {
        commit_for_room(tracker, machine);
        assert_eq!(tracker.host_write(machine, one_page(page)).stopped, None);
    }
}

fn commit_for_room(tracker: &mut Tracker, machine: &mut Simulated) {
    restored(tracker, machine);
    commit(tracker, machine);
    machine.committed = Some(machine.image());
}

fn commit(tracker: &mut Tracker, machine: &mut Simulated) {
    tracker.commit(machine);
    for inverse in machine.journal.drain(..) {
        if let Inverse::Remap { saved, .. } = inverse {
            tracker.drop_saved(saved);
        }
    }
}

/// Maps a page of shared memory.
fn map(tracker: &mut Tracker, machine: &mut Simulated, page: u64, place: u64) {
    if machine.shown.contains_key(&page) {
        return;
    }
    tracker.forget(machine, one_page(page));
    machine.show(page, place);
    machine.trapped.insert(page);
    machine.journal.push(Inverse::Unmap { page });
}

/// Unmaps a shared page.
fn unmap(tracker: &mut Tracker, machine: &mut Simulated, page: u64) {
    let Some(place) = machine.shown.get(&page).copied() else {
        return;
    };
    let saved = tracker.save(machine, one_page(page));
    machine.shown.remove(&page);
    machine.journal.push(Inverse::Remap { page, place, saved });
}

/// Undoes what the domain has done to shared mappings, last to first.
fn undo_mappings(tracker: &mut Tracker, machine: &mut Simulated) {
    while let Some(inverse) = machine.journal.pop() {
        match inverse {
            Inverse::Unmap { page } => {
                let early = tracker.restore_shared(machine, one_page(page));
                assert!(early.lost.is_empty());
                tracker.forget(machine, one_page(page));
                machine.shown.remove(&page);
            }
            Inverse::Remap { page, place, saved } => {
                machine.show(page, place);
                tracker.put_back(machine, saved);
                if !tracker.is_writable(PageNumber(page), false) {
                    machine.trapped.insert(page);
                }
            }
        }
    }
}

/// Restores all that waits, and says whether memory is what it should be then.
fn restored(tracker: &mut Tracker, machine: &mut Simulated) -> Image {
    while let Some(region) = tracker.next_waiting() {
        assert_eq!(tracker.restore_region(machine, region).lost, 0);
    }
    assert_eq!(tracker.waiting_pages(), 0);
    machine.image()
}

fn one_page(page: u64) -> GuestRange {
    GuestRange::from_bounds(page * 4096, (page + 1) * 4096)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn abandon_restores_every_byte(
        before in prop::collection::vec((any_page(0), 0..4096usize, any::<u8>(), any::<bool>()), 0..12),
        steps in prop::collection::vec(step(), 1..120),
        limit in 0..10usize,
        gives_back in any::<bool>(),
        room in prop_oneof![Just(u64::MAX), 1..12u64],
    ) {
        let mut machine = Simulated { gives_back, ..Simulated::new() };
        let mut tracker = Tracker { active_limit: limit, ..Tracker::new() };
        for (page, offset, value, by_host) in before {
            if by_host {
                host_write(&mut tracker, &mut machine, page);
                machine.store(page, offset, value);
            } else {
                guest_write(&mut tracker, &mut machine, page, offset, value);
            }
        }
        tracker.set_shadow_limit(room.saturating_mul(4096));
        tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
        let mut committed = machine.image();
        for step in steps {
            // The last step may have committed for want of room, and then gone on.
            if let Some(image) = machine.committed.take() {
                committed = image;
            }
            match step {
                Step::Guest { page, offset, value } => {
                    guest_write(&mut tracker, &mut machine, page, offset, value);
                }
                Step::ReadAnew { page } => read_anew(&mut tracker, &mut machine, page),
                Step::Host { page, offset, value } => {
                    host_write(&mut tracker, &mut machine, page);
                    machine.store(page, offset, value);
                }
                Step::Result { page, offset, value } => {
                    commit(&mut tracker, &mut machine);
                    host_write(&mut tracker, &mut machine, page);
                    machine.store(page, offset, value);
                    tracker.settle(&mut machine);
                    restored(&mut tracker, &mut machine);
                    committed = machine.image();
                    machine.committed = None;
                }
                Step::Others { page, offset, value } => {
                    restored(&mut tracker, &mut machine);
                    commit(&mut tracker, &mut machine);
                    machine.store(page, offset, value);
                    tracker.settle(&mut machine);
                    committed = machine.image();
                    machine.committed = None;
                }
                Step::Harvest => tracker.note_written(&mut machine),
                Step::Commit { trap } => {
                    commit(&mut tracker, &mut machine);
                    tracker.settle(&mut machine);
                    if trap {
                        tracker.trap_all(&mut machine);
                    }
                    if tracker.waiting_pages() == 0 {
                        committed = machine.image();
                        continue;
                    }
                    // What waits is not in memory yet: only the rest of it is known to be right.
                    let image = std::mem::replace(&mut committed, machine.image());
                    let waiting: Vec<u64> = tracker.waiting_regions().collect();
                    for (place, content) in image.0 {
                        if waiting.contains(&(place / REGION)) {
                            committed.0.insert(place, content);
                        }
                    }
                }
                Step::Postpone { hidden } => {
                    undo_mappings(&mut tracker, &mut machine);
                    tracker.close_write_set(&mut machine);
                    let regions = tracker.active_regions().iter().copied();
                    let hidden = regions.filter(|r| can_hide(*r) && hidden >> (r % 8) & 1 == 1).collect();
                    let (outcome, _) = tracker.postpone(&mut machine, &hidden, |_, _| {});
                    prop_assert!(outcome.lost.is_empty());
                    tracker.settle(&mut machine);
                }
                Step::Abandon => {
                    undo_mappings(&mut tracker, &mut machine);
                    let outcome = tracker.abandon(&mut machine, |_, _| {});
                    prop_assert!(outcome.lost.is_empty());
                    prop_assert_eq!(&restored(&mut tracker, &mut machine), &committed);
                    tracker.settle(&mut machine);
                }
                Step::Map { page, place } => map(&mut tracker, &mut machine, page, place),
                Step::Unmap { page } => unmap(&mut tracker, &mut machine, page),
                Step::Replace { page, abandon } => {
                    if !machine.journal.is_empty() {
                        continue;
                    }
                    restored(&mut tracker, &mut machine);
                    let old = machine.memory[&page].clone();
                    let was_open = machine.open.contains(&page);
                    let saved = tracker.save(&mut machine, one_page(page));
                    machine.memory.insert(page, PageContent::boxed());
                    machine.trapped.remove(&page);
                    machine.open.remove(&page);
                    guest_write(&mut tracker, &mut machine, page, 7, 7);
                    machine.committed = None;
                    if abandon {
                        machine.memory.insert(page, old);
                        tracker.put_back(&mut machine, saved);
                        if !tracker.is_writable(PageNumber(page), true) {
                            machine.trapped.insert(page);
                        }
                        if !was_open {
                            // The mapping came back protected, as KVM does with one it has not seen.
                            machine.open.remove(&page);
                        }
                        tracker.abandon(&mut machine, |_, _| {});
                        prop_assert_eq!(&machine.image(), &committed);
                    } else {
                        tracker.drop_saved(saved);
                        commit(&mut tracker, &mut machine);
                        committed = machine.image();
                    }
                }
            }
        }
        if let Some(image) = machine.committed.take() {
            committed = image;
        }
        undo_mappings(&mut tracker, &mut machine);
        tracker.abandon(&mut machine, |_, _| {});
        prop_assert_eq!(&restored(&mut tracker, &mut machine), &committed);
    }
}

#[test]
fn a_large_write_set_is_trapped_rather_than_copied() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker {
        active_limit: 4,
        ..Tracker::new()
    };
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    for page in pages(FILE_PAGES, PAGES) {
        guest_write(&mut tracker, &mut machine, page, 0, 1);
    }
    let committed = tracker.commit(&mut machine);
    assert_eq!((committed.copied, committed.reprotected), (0, true));
    assert_eq!(tracker.shadow_bytes(), 0);
    assert_eq!(
        machine.trapped.len() as u64,
        PAGES / STRIDE,
        "the file's pages and the written ones"
    );
}

#[test]
fn when_all_pages_are_trapped_each_first_write_exits() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker::new();
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    for page in pages(SHARED_PAGES, PAGES) {
        guest_write(&mut tracker, &mut machine, page, 0, 1);
        tracker.commit(&mut machine);
    }
    tracker.trap_all(&mut machine);
    assert_eq!(tracker.shadow_bytes(), 0);
    assert_eq!(machine.trapped.len() as u64, PAGES / STRIDE);
    let before = machine.image();
    guest_write(&mut tracker, &mut machine, FILE_PAGES, 0, 2);
    assert_eq!(tracker.active_count(), 1);
    tracker.abandon(&mut machine, |_, _| {});
    assert_eq!(machine.image(), before);
}

#[test]
fn pages_written_since_they_were_mapped_are_known() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker::new();
    // Before it is armed, between, and in the running domain.
    guest_write(&mut tracker, &mut machine, 3 * STRIDE, 0, 1);
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    guest_write(&mut tracker, &mut machine, 7 * STRIDE, 0, 1);
    tracker.commit(&mut machine);
    guest_write(&mut tracker, &mut machine, 20 * STRIDE, 0, 1);
    tracker.note_written(&mut machine);
    let known = |tracker: &Tracker, from: u64, to: u64| -> Vec<u64> {
        let range = GuestRange::from_bounds(from * STRIDE * 4096, to * STRIDE * 4096);
        let pages = tracker.written_since_mapped(range);
        pages.map(|page| page.0 / STRIDE).collect()
    };
    assert_eq!(known(&tracker, 0, 24), [3, 7, 20]);
    assert_eq!(known(&tracker, 4, 20), [7]);
    assert_eq!(known(&tracker, 0, u64::MAX / STRIDE / 4096), [3, 7, 20]);
    let written = |page: u64| tracker.is_in_write_set(PageNumber(page * STRIDE));
    assert_eq!([written(3), written(20)], [false, true]);
    tracker.forget(&mut machine, one_page(7 * STRIDE));
    assert_eq!(known(&tracker, 0, 24), [3, 20]);
}

#[test]
fn forgetting_a_range_frees_its_shadows() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker::new();
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    guest_write(&mut tracker, &mut machine, STRIDE, 0, 1);
    tracker.commit(&mut machine);
    assert_eq!(tracker.shadow_bytes(), 4096);
    tracker.forget(&mut machine, one_page(STRIDE));
    assert_eq!(tracker.shadow_bytes(), 0);
    assert_eq!(tracker.active_pages().count(), 0);
}

/// Maps a page anew in place of what is there.
fn map_anew(machine: &mut Simulated, page: u64) {
    machine.memory.insert(page, PageContent::boxed());
    machine.trapped.remove(&page);
    machine.open.remove(&page);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    /// Whatever domains do, commit and abandon after the image was taken: it comes back byte for byte, again
    /// and again, and domains afterwards are undone as ever.
    #[test]
    fn the_image_comes_back_byte_for_byte(
        before in prop::collection::vec((any_page(0), 0..4096usize, any::<u8>()), 0..12),
        lives in prop::collection::vec(prop::collection::vec(step(), 0..60), 1..4),
        limit in 0..10usize,
        gives_back in any::<bool>(),
        room in prop_oneof![Just(u64::MAX), 1..12u64],
    ) {
        let mut machine = Simulated { gives_back, ..Simulated::new() };
        let mut tracker = Tracker { active_limit: limit, ..Tracker::new() };
        for (page, offset, value) in before {
            guest_write(&mut tracker, &mut machine, page, offset, value);
        }
        tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
        let mapped = vec![GuestRange::from_bounds(0, PAGES * 4096)];
        tracker.set_shadow_limit(room.saturating_mul(4096));
        let shared = GuestRange::from_bounds(0, SHARED_PAGES * 4096);
        tracker.take_image(mapped.clone(), vec![shared], u64::MAX);
        let own = |mut image: Image| Image(image.0.split_off(&SHARED_PAGES));
        let image = own(machine.image());
        for steps in lives {
            let mut committed = machine.image();
            let mut aside = Vec::new();
            for step in steps {
                // The last step may have committed for want of room, and then gone on.
                if let Some(image) = machine.committed.take() {
                    committed = image;
                }
                match step {
                    Step::Guest { page, offset, value } => {
                        guest_write(&mut tracker, &mut machine, page, offset, value);
                    }
                    Step::ReadAnew { page } => read_anew(&mut tracker, &mut machine, page),
                    Step::Host { page, offset, value } => {
                        host_write(&mut tracker, &mut machine, page);
                        machine.store(page, offset, value);
                    }
                    Step::Result { page, offset, value } => {
                        restored(&mut tracker, &mut machine);
                        tracker.commit(&mut machine);
                        host_write(&mut tracker, &mut machine, page);
                        machine.store(page, offset, value);
                        tracker.settle(&mut machine);
                        committed = machine.image();
                        machine.committed = None;
                    }
                    Step::Others { page, offset, value } => {
                        restored(&mut tracker, &mut machine);
                        tracker.commit(&mut machine);
                        machine.store(page, offset, value);
                        tracker.settle(&mut machine);
                        committed = machine.image();
                        machine.committed = None;
                    }
                    Step::Harvest => tracker.note_written(&mut machine),
                    Step::Commit { .. } => {
                        restored(&mut tracker, &mut machine);
                        tracker.commit(&mut machine);
                        committed = machine.image();
                    }
                    Step::Map { .. } | Step::Unmap { .. } => {}
                    Step::Abandon => {
                        tracker.abandon(&mut machine, |_, _| {});
                        prop_assert_eq!(&restored(&mut tracker, &mut machine), &committed);
                    }
                    Step::Postpone { hidden } => {
                        tracker.close_write_set(&mut machine);
                        let regions = tracker.active_regions().iter().copied();
                        let hidden = regions.filter(|r| can_hide(*r) && hidden >> (r % 8) & 1 == 1).collect();
                        tracker.postpone(&mut machine, &hidden, |_, _| {});
                    }
                    Step::Replace { page, abandon } => {
                        restored(&mut tracker, &mut machine);
                        let old = machine.memory[&page].clone();
                        let saved = tracker.save(&mut machine, one_page(page));
                        map_anew(&mut machine, page);
                        guest_write(&mut tracker, &mut machine, page, 7, 7);
                        if abandon {
                            map_anew(&mut machine, page);
                            machine.memory.insert(page, old);
                            tracker.put_back(&mut machine, saved);
                            if !tracker.is_writable(PageNumber(page), true) {
                                machine.trapped.insert(page);
                            }
                            tracker.abandon(&mut machine, |_, _| {});
                            prop_assert_eq!(&machine.image(), &committed);
                        } else {
                            match saved.is_of_image() {
                                true => aside.push((page, old, tracker.keep_for_image(saved))),
                                false => tracker.drop_saved(saved),
                            }
                            tracker.commit(&mut machine);
                            committed = machine.image();
                        }
                    }
                }
            }
            // A restart.
            restored(&mut tracker, &mut machine);
            machine.committed = None;
            tracker.abandon(&mut machine, |_, _| {});
            prop_assert!(tracker.has_image());
            for (page, old, parts) in aside {
                tracker.forget(&mut machine, one_page(page));
                map_anew(&mut machine, page);
                machine.memory.insert(page, old);
                for part in parts {
                    tracker.put_back(&mut machine, part);
                }
                if !tracker.is_writable(PageNumber(page), page >= FILE_PAGES) {
                    machine.trapped.insert(page);
                }
            }
            let done = tracker.restore_image(&mut machine, mapped.clone());
            prop_assert_eq!(done.lost, 0);
            prop_assert_eq!(&own(machine.image()), &image);
            // Nothing is open that the tracker would not hear of.
            for page in pages(0, PAGES) {
                let writable = tracker.is_writable(PageNumber(page), page >= FILE_PAGES);
                prop_assert!(writable || machine.trapped.contains(&page), "page {}", page);
            }
        }
    }
}

#[test]
fn an_image_past_its_limit_is_given_up() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker::new();
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    let mapped = vec![GuestRange::from_bounds(0, PAGES * 4096)];
    tracker.take_image(mapped, Vec::new(), 2 * 4096);
    guest_write(&mut tracker, &mut machine, 0, 0, 9);
    tracker.commit(&mut machine);
    assert!(tracker.has_image() && tracker.image_bytes() > 4096);
    guest_write(&mut tracker, &mut machine, STRIDE, 0, 9);
    tracker.commit(&mut machine);
    assert!(!tracker.has_image());
    assert_eq!(tracker.image_lost(), Some(ImageLost::Limit));
    assert_eq!(tracker.image_bytes(), 0);
}

#[test]
fn an_image_whose_mapping_is_gone_for_good_is_given_up() {
    let mut machine = Simulated::new();
    let mut tracker = Tracker::new();
    tracker.arm(&mut machine, pages(0, PAGES).map(PageNumber));
    tracker.take_image(vec![one_page(1)], Vec::new(), u64::MAX);
    tracker.forget(&mut machine, one_page(2));
    assert!(tracker.has_image());
    tracker.forget(&mut machine, one_page(1));
    assert_eq!(tracker.image_lost(), Some(ImageLost::Unmapped));
}
