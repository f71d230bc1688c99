//! The write set of the running domain and the shadow pages that undo it.
//!
//! Every page that a request may write has a *base*: what it held when the last domain committed. The
//! base of a page is one of
//!
//! - *zero*: private memory that nobody has written yet; nothing is stored for it;
//! - *its own content*: the page is read-only in the guest's page tables (trapped), so the first write
//!   exits and the shadow is taken then ([`Tracker::first_write`]);
//! - *a shadow page*: a copy in the monitor's own memory.
//!
//! Pages with one of the first and last kinds are written without an exit: the machine reports the first
//! write to each since the last re-protection (KVM's dirty ring). Those pages are the *active set*. At
//! commit the shadow of each is brought up to date, at abandon each gets its base back. They stay writable
//! for many domains, since a protection fault costs as much as comparing dozens of pages; once the
//! comparisons that found nothing have cost as much as protecting all again would, that is done and the set
//! starts anew.
//!
//! Pages of shared mappings need more care, see [`shared`].
//!
//! The machine does not see what the host writes for a system call: [`Tracker::host_write`] has to be
//! called before such a write.

mod budget;
mod changed;
mod child;
mod image;
mod known;
mod pages;
mod postponed;
mod shadow;
mod shared;
#[cfg(test)]
mod tests;

use guest_agentless::{GuestRange, PAGE_SIZE, PageNumber};

pub use budget::{FirstWrite, HostWrite};
use image::ImagePages;
pub use image::{ImageLost, ImageRestored};
pub use pages::SavedPages;
use pages::{Activated, Base, PageMap, PageState};
pub use postponed::{Progress, REGION_SIZE};
pub use shadow::PageContent;
use shadow::{Frame, ShadowStore};

/// Guest memory, from whatever thread.
pub trait Memory {
    /// Copies a page out. False if it cannot be read.
    fn read(&mut self, page: PageNumber, into: &mut PageContent) -> bool;
    /// Copies a page in, whatever the guest itself may do with it. False if that cannot be done.
    fn write(&mut self, page: PageNumber, from: &PageContent) -> bool;
    /// Gives the memory of private pages that were zero before their first write back to the host: they
    /// are so again. False if that cannot be done.
    fn give_back(&mut self, range: GuestRange) -> bool;
    /// Fills pages with zeros, whatever the guest itself may do with them. False if that cannot be done.
    fn clear(&mut self, range: GuestRange) -> bool {
        self.give_back(range)
            || range
                .pages()
                .all(|page| self.write(page, PageContent::zero()))
    }
}

/// What the tracker needs from the machine. All of it concerns memory of the guest.
pub trait Machine: Memory {
    /// Makes a page writable for the guest as far as its mapping allows, or read-only. Read-only takes
    /// effect with the next [`Machine::reprotect`].
    fn set_writable(&mut self, page: PageNumber, writable: bool);
    /// Whether the page is private memory that was zero before its first write.
    fn is_zero_based(&self, page: PageNumber) -> bool;
    /// Whether the page may be in memory at another address as well, or be changed by others than the guest: a
    /// shared mapping.
    fn is_shared(&self, page: PageNumber) -> bool;
    /// Reports the pages written since the last call, each at least once since it was last protected. A page
    /// may be reported when it is read, and its next write not.
    fn harvest(&mut self, written: &mut Vec<PageNumber>);
    /// Protects all harvested pages, so that the next write to each is reported again.
    fn reprotect(&mut self);
}

/// What a commit did.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Committed {
    /// Pages that the machine or the host newly reported as written.
    pub harvested: u64,
    /// Pages compared with their shadow.
    pub compared: u64,
    /// Pages that had changed, and were copied to their shadow.
    pub copied: u64,
    /// Whether the active set was protected again.
    pub reprotected: bool,
}

/// What an abandon did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Abandoned {
    /// Pages that differed from their base, and got it back.
    pub restored: Vec<RestoredPage>,
    /// Pages that could not be given their base back: the invariant is broken.
    pub lost: Vec<PageNumber>,
}

/// A page that an abandon has restored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RestoredPage {
    /// Which.
    pub page: PageNumber,
    /// How many of its bytes differed.
    pub bytes: u32,
}

struct Active {
    page: PageNumber,
    /// Larger than that of every page that became active before; the list is in this order where there are shared pages.
    order: u64,
    frame: Option<Frame>,
    /// See [`Machine::is_shared`].
    shared: bool,
}

/// The write set and the shadow pages of one guest process.
pub struct Tracker {
    pages: PageMap,
    shadows: ShadowStore,
    active: Vec<Active>,
    /// See [`Active::order`].
    next_order: u64,
    active_limit: usize,
    /// Counts the active sets; pages of an earlier one are not active.
    epoch: u64,
    /// The regions that the active set reaches into.
    active_regions: Vec<u64>,
    waiting: postponed::Waiting,
    /// Bytes that shadows may take.
    shadow_limit: u64,
    /// There was no room for a shadow in the running domain.
    cramped: bool,
    evicted: u64,
    /// Comparisons since the last re-protection that found nothing changed.
    wasted: u64,
    armed: bool,
    /// Whether some of the active pages are of shared mappings.
    shared: bool,
    /// Other processes may be writing shared mappings: their pages are neither read nor written.
    shared_away: bool,
    /// Pages that became active since the last commit or abandon.
    written: u64,
    /// Pages that the host has written since the last commit.
    host_written: Vec<PageNumber>,
    harvest: Vec<PageNumber>,
    scratch: Box<PageContent>,
    /// What the last commit has changed, if somebody wants to know.
    changes: Option<Vec<PageNumber>>,
    image: Option<ImagePages>,
    image_lost: Option<ImageLost>,
}

impl Tracker {
    /// Active pages beyond which the set is protected again, whatever they cost.
    pub const ACTIVE_LIMIT: usize = 1024;

    /// Comparisons that cost about as much as one protection fault does:
    /// 0.1 to 0.2 µs against 7 µs on a fast machine and 26 µs on a slow one.
    const FAULT_COST: u64 = 192;

    /// A tracker that only takes note of what is written until it is armed.
    pub fn new() -> Tracker {
        Tracker {
            pages: PageMap::default(),
            shadows: ShadowStore::default(),
            active: Vec::new(),
            next_order: 0,
            active_limit: Self::ACTIVE_LIMIT,
            epoch: 1,
            active_regions: Vec::new(),
            waiting: Default::default(),
            shadow_limit: u64::MAX,
            cramped: false,
            evicted: 0,
            wasted: 0,
            shared: false,
            shared_away: false,
            armed: false,
            written: 0,
            host_written: Vec::new(),
            harvest: Vec::new(),
            scratch: PageContent::boxed(),
            changes: None,
            image: None,
            image_lost: None,
        }
    }

    /// Whether writes are tracked to be undone.
    pub fn is_armed(&self) -> bool {
        self.armed
    }

    /// Bytes of shadow pages held.
    pub fn shadow_bytes(&self) -> u64 {
        self.shadows.bytes()
    }

    /// Whether the guest may write `page` without an exit. The machine has to ask before it makes a page
    /// writable in the guest's page tables.
    pub fn is_writable(&self, page: PageNumber, zero_based: bool) -> bool {
        if !self.armed {
            return true;
        }
        match self.pages.get(page) {
            Some(state) => state.base != Base::Itself,
            None => zero_based,
        }
    }

    /// Bytes of the pages that the running domain has written, as far as they are known. Pages that were in use
    /// before it are not counted, pages that it has unmapped are: they are kept to be put back.
    pub fn written_bytes(&self) -> u64 {
        self.written * PAGE_SIZE
    }

    /// Likewise, and counts from zero again.
    pub fn take_written_bytes(&mut self) -> u64 {
        std::mem::take(&mut self.written) * PAGE_SIZE
    }

    /// Takes note of the pages that the machine has to report.
    pub fn note_written(&mut self, machine: &mut impl Machine) {
        self.take_harvest(machine);
    }

    /// Empties the dirty ring, which is full. The pages stay in the write set.
    pub fn make_room(&mut self, machine: &mut impl Machine) {
        self.take_harvest(machine);
        machine.reprotect();
    }

    /// From now on every write can be undone. `present` are the pages that the guest's page tables hold
    /// as writable; those with content of their own become trapped.
    pub fn arm(&mut self, machine: &mut impl Machine, present: impl Iterator<Item = PageNumber>) {
        self.take_harvest(machine);
        self.armed = true;
        for page in present {
            if !self.is_writable(page, machine.is_zero_based(page)) {
                machine.set_writable(page, false);
            }
        }
        machine.reprotect();
    }

    /// The guest is about to write a trapped page: takes its shadow and lets it through.
    pub fn first_write(&mut self, machine: &mut impl Machine, page: PageNumber) -> FirstWrite {
        match self.find_room(machine) {
            true => self.first_write_anyway(machine, page),
            false => FirstWrite::NoRoom,
        }
    }

    /// Likewise, whether there is room for the shadow or not.
    pub fn first_write_anyway(
        &mut self,
        machine: &mut impl Machine,
        page: PageNumber,
    ) -> FirstWrite {
        if !self.take_shadow(machine, page) {
            return FirstWrite::Unreadable;
        }
        machine.set_writable(page, true);
        // The machine need not report this write: KVM under nested paging may have reported the page when it was
        // only read, and has let writes pass since. And pages that are one in memory have to be restored in the order
        // in which their shadows were taken.
        self.activate(machine, page);
        FirstWrite::Taken
    }

    /// The host is about to write `range` on behalf of the guest. Where it stops for want of room the rest is
    /// still to be told, after a commit.
    pub fn host_write(&mut self, machine: &mut impl Machine, range: GuestRange) -> HostWrite {
        let before = self.active.len();
        let activated = |tracker: &Tracker| (tracker.active.len() - before) as u64;
        for page in range.pages() {
            if self.is_trapped(machine, page) {
                match self.first_write(machine, page) {
                    FirstWrite::Taken => {}
                    FirstWrite::NoRoom => {
                        return HostWrite {
                            activated: activated(self),
                            stopped: Some(page),
                        };
                    }
                    // A page that cannot be read cannot be written either: the call will fail on it.
                    FirstWrite::Unreadable => continue,
                }
            }
            if !self.armed {
                self.pages.set_base(page, Base::Itself);
                continue;
            }
            self.activate(machine, page);
            if self.host_written.last() != Some(&page) {
                self.host_written.push(page);
            }
        }
        HostWrite {
            activated: activated(self),
            stopped: None,
        }
    }

    fn is_trapped(&self, machine: &impl Machine, page: PageNumber) -> bool {
        self.armed && !self.is_active(page) && !self.is_writable(page, machine.is_zero_based(page))
    }

    fn is_active(&self, page: PageNumber) -> bool {
        let state = self.pages.get(page);
        state.is_some_and(|state| state.epoch == self.epoch)
    }

    /// The running domain ended well: what memory holds now is the base of the next one.
    pub fn commit(&mut self, machine: &mut impl Machine) -> Committed {
        self.commit_examined(machine, |_, _, _| {})
    }

    /// Likewise. `examine` sees each page that has changed, before and after; not those of a write set past
    /// the limit.
    pub fn commit_examined(
        &mut self,
        machine: &mut impl Machine,
        mut examine: impl FnMut(PageNumber, &PageContent, &PageContent),
    ) -> Committed {
        if !self.armed {
            return Committed::default();
        }
        self.host_written.clear();
        let harvested = self.take_harvest(machine);
        self.written = 0;
        let over = self.active.len() > self.active_limit;
        let mut copied = 0;
        let mut trapped = std::mem::take(&mut self.cramped);
        let mut changes = self.changes.take();
        changes.iter_mut().for_each(Vec::clear);
        let mut compared = 0;
        for entry in &mut self.active {
            if entry.shared && self.shared_away {
                continue;
            }
            compared += 1;
            // A page that was never shadowed, of a write set past the limit, or without room: trapping it again costs an
            // exit if it is written once more, but no memory if it is not.
            let full = self.shadows.bytes().saturating_add(4096) > self.shadow_limit;
            trapped |= full && entry.frame.is_none();
            if (over || full) && entry.frame.is_none() {
                self.pages.set_base(entry.page, Base::Itself);
                machine.set_writable(entry.page, false);
                changes.iter_mut().for_each(|list| list.push(entry.page));
                continue;
            }
            let was_zero = entry.frame.is_none();
            let frame = *entry.frame.get_or_insert_with(|| {
                let frame = self.shadows.allocate(entry.page);
                self.pages.set_base(entry.page, Base::Shadow(frame));
                frame
            });
            let shadow = self.shadows.get_mut(frame);
            let readable = machine.read(entry.page, &mut self.scratch);
            if readable && self.scratch.bytes() != shadow.bytes() {
                let before = match was_zero {
                    true => PageContent::zero(),
                    false => &*shadow,
                };
                examine(entry.page, before, &self.scratch);
                shadow.clone_from(&self.scratch);
                copied += 1;
                changes.iter_mut().for_each(|list| list.push(entry.page));
            }
        }
        self.changes = changes;
        // Protecting again costs a fault for each page that is still in use; not doing so costs a
        // comparison in every commit for each page that is not. Whoever has paid as much for the one as
        // the other would have cost is never worse off than by a factor of two.
        self.wasted += compared - copied;
        let reprotected = over || trapped || self.wasted > Self::FAULT_COST * (copied + 1);
        if reprotected {
            self.wasted = 0;
            self.deactivate_all(machine);
        }
        self.trim(machine);
        Committed {
            harvested,
            compared,
            copied,
            reprotected,
        }
    }

    /// The running domain is suspended: a commit as far as everybody else is concerned. `each` is told what it
    /// has changed: page, base, and content now. False, and nothing is done, if that is more than `limit`
    /// pages.
    pub fn suspend(
        &mut self,
        machine: &mut impl Machine,
        limit: usize,
        mut each: impl FnMut(PageNumber, &PageContent, &PageContent),
    ) -> bool {
        self.take_harvest(machine);
        let mut changed = 0;
        let away = self.shared_away;
        for entry in self.active.iter().filter(|entry| !(entry.shared && away)) {
            let base = entry
                .frame
                .map_or(PageContent::zero(), |frame| self.shadows.get(frame));
            if machine.read(entry.page, &mut self.scratch) && self.scratch.bytes() != base.bytes() {
                changed += 1;
                if changed > limit {
                    return false;
                }
                each(entry.page, base, &self.scratch);
            }
        }
        self.commit(machine);
        true
    }

    /// Gives `page` the content and the base `content`, between two domains. False if it cannot be written.
    pub fn rebase(
        &mut self,
        machine: &mut impl Machine,
        page: PageNumber,
        content: &PageContent,
    ) -> bool {
        if !machine.write(page, content) {
            return false;
        }
        match self.pages.get(page).map(|state| state.base) {
            Some(Base::Shadow(frame)) => self.shadows.get_mut(frame).clone_from(content),
            Some(Base::Itself) => {}
            None | Some(Base::Zero) => {
                let frame = self.shadows.allocate(page);
                self.shadows.get_mut(frame).clone_from(content);
                self.pages.set_base(page, Base::Shadow(frame));
                if let Some(entry) = self.active.iter_mut().rfind(|entry| entry.page == page) {
                    entry.frame = Some(frame);
                }
            }
        }
        true
    }

    /// What the host has written since the last commit belongs to the base: the results of the call that
    /// the next domain begins with. No guest code has run in between.
    pub fn settle(&mut self, machine: &mut impl Machine) {
        self.refresh_shared(machine);
        for page in std::mem::take(&mut self.host_written) {
            let state = self.pages.get(page);
            let Some(state) = state.filter(|state| state.epoch == self.epoch) else {
                continue;
            };
            let frame = state.frame().unwrap_or_else(|| self.shadows.allocate(page));
            machine.read(page, self.shadows.get_mut(frame));
            if state.frame().is_none() {
                self.pages.set_base(page, Base::Shadow(frame));
                if let Some(entry) = self.active.iter_mut().rfind(|entry| entry.page == page) {
                    entry.frame = Some(frame);
                }
            }
        }
    }

    /// The running domain is undone: every page it wrote gets its base back. `examine` sees each page's
    /// faulted content first (for the quarantine).
    pub fn abandon(
        &mut self,
        machine: &mut impl Machine,
        examine: impl FnMut(PageNumber, &PageContent),
    ) -> Abandoned {
        self.host_written.clear();
        self.take_harvest(machine);
        self.written = 0;
        self.restore_now(machine, |_| true, examine)
    }

    /// Restores those of the active pages that `which` picks.
    fn restore_now(
        &mut self,
        machine: &mut impl Machine,
        which: impl Fn(&Active) -> bool,
        mut examine: impl FnMut(PageNumber, &PageContent),
    ) -> Abandoned {
        let mut outcome = Abandoned::default();
        let many = self.active.len() > self.active_limit;
        let mut discarded = Vec::new();
        let away = self.shared_away;
        // Newest first: where two pages are one in memory, the older base is the one of the checkpoint.
        let entries = self.active.iter().rev();
        for entry in entries.filter(|entry| !(entry.shared && away) && which(entry)) {
            let base = match entry.frame {
                Some(frame) => self.shadows.get(frame),
                None => PageContent::zero(),
            };
            if !machine.read(entry.page, &mut self.scratch) {
                outcome.lost.push(entry.page);
                continue;
            }
            let bytes = self.scratch.differences(base);
            if bytes == 0 {
                continue;
            }
            examine(entry.page, &self.scratch);
            if many && entry.frame.is_none() {
                let page = entry.page;
                discarded.push(RestoredPage { page, bytes });
                continue;
            }
            match machine.write(entry.page, base) {
                true => outcome.restored.push(RestoredPage {
                    page: entry.page,
                    bytes,
                }),
                false => outcome.lost.push(entry.page),
            }
        }
        discarded.sort_unstable_by_key(|restored| restored.page);
        for run in discarded.chunk_by(|a, b| a.page.0 + 1 == b.page.0) {
            let start = run[0].page.address().0;
            let range = GuestRange::from_bounds(start, start + run.len() as u64 * PAGE_SIZE);
            let done = machine.give_back(range);
            for restored in run {
                match done || machine.write(restored.page, PageContent::zero()) {
                    true => outcome.restored.push(*restored),
                    false => outcome.lost.push(restored.page),
                }
            }
        }
        outcome
    }

    /// The mapping of `range` is gone for good, or is a new one.
    pub fn forget(&mut self, machine: &mut impl Machine, range: GuestRange) {
        self.forget_content(machine, range);
        if let Some(image) = &mut self.image
            && !image.take_out(range).is_empty()
        {
            self.lose_image(ImageLost::Unmapped);
        }
    }

    /// The pages of `range` are zero, as if nobody had ever written them.
    pub fn forget_content(&mut self, machine: &mut impl Machine, range: GuestRange) {
        self.take_harvest(machine);
        let mut was_active = false;
        for state in self.pages.remove(range).into_states() {
            was_active |= state.epoch == self.epoch;
            if let Base::Shadow(frame) = state.base {
                self.shadows.free(frame);
            }
        }
        if was_active {
            self.active
                .retain(|entry| !range.contains(entry.page.address().0));
        }
    }

    /// Takes what is known of `range` out, because the running domain replaces its mapping; to be given
    /// to [`Tracker::put_back`] if the domain is abandoned, to [`Tracker::drop_saved`] if it commits.
    pub fn save(&mut self, machine: &mut impl Machine, range: GuestRange) -> SavedPages {
        self.take_harvest(machine);
        let mut saved = self.pages.remove(range);
        if let Some(image) = &mut self.image {
            saved.image = image.take_out(range);
        }
        let gone = |entry: &mut Active| range.contains(entry.page.address().0);
        let active = self.active.extract_if(.., gone);
        saved.active = active.map(|entry| (entry.page, entry.order)).collect();
        saved
    }

    /// Undoes [`Tracker::save`]; whatever is known of the same pages now is forgotten.
    pub fn put_back(&mut self, machine: &mut impl Machine, mut saved: SavedPages) {
        self.forget(machine, saved.range());
        if let Some(image) = &mut self.image {
            image.put_in(std::mem::take(&mut saved.image));
        }
        let active = std::mem::take(&mut saved.active);
        for (page, state) in saved.into_pages() {
            self.pages.set(page, PageState { epoch: 0, ..state });
        }
        for (page, order) in active {
            self.activate_as(machine, page, order);
        }
        if self.shared {
            // What else shows the same memory may have been written since, and has a base that is less old.
            self.active.sort_by_key(|entry| entry.order);
        }
    }

    /// Releases the shadow pages of a saved range.
    pub fn drop_saved(&mut self, saved: SavedPages) {
        for state in saved.into_states() {
            if let Base::Shadow(frame) = state.base {
                self.shadows.free(frame);
            }
        }
    }

    /// Pages of the write set, as far as they are known without a harvest.
    pub fn active_pages(&self) -> impl DoubleEndedIterator<Item = PageNumber> {
        self.active.iter().map(|entry| entry.page)
    }

    fn take_harvest(&mut self, machine: &mut impl Machine) -> u64 {
        let mut harvest = std::mem::take(&mut self.harvest);
        machine.harvest(&mut harvest);
        let count = harvest.len() as u64;
        for page in harvest.drain(..) {
            if !self.armed {
                self.pages.set_base(page, Base::Itself);
            } else if self.is_writable(page, machine.is_zero_based(page)) {
                self.activate(machine, page);
            }
            // A trapped page cannot have been written: the report is of a mapping that is gone, or of a read.
        }
        self.harvest = harvest;
        count
    }

    fn activate(&mut self, machine: &impl Machine, page: PageNumber) {
        self.activate_as(machine, page, self.next_order);
        self.next_order += 1;
    }

    fn activate_as(&mut self, machine: &impl Machine, page: PageNumber, order: u64) {
        let state = match self.pages.activate(page, self.epoch) {
            Activated::Before => return,
            Activated::Now(state) => state,
            Activated::First(state) => {
                self.active_regions.push(page.0 / pages::REGION);
                state
            }
        };
        let frame = state.frame();
        let shared = machine.is_shared(page);
        self.shared |= shared;
        self.active.push(Active {
            page,
            order,
            frame,
            shared,
        });
        self.written += 1;
        if frame.is_none() {
            if let Some(image) = &mut self.image {
                image.keep(page, None);
            }
            self.limit_image();
        }
    }

    fn take_shadow(&mut self, machine: &mut impl Machine, page: PageNumber) -> bool {
        if self
            .pages
            .get(page)
            .is_some_and(|state| state.frame().is_some())
        {
            return true;
        }
        let frame = self.shadows.allocate(page);
        if !machine.read(page, self.shadows.get_mut(frame)) {
            self.shadows.free(frame);
            return false;
        }
        self.pages.set_base(page, Base::Shadow(frame));
        if let Some(image) = &mut self.image {
            image.keep(page, Some(self.shadows.get(frame)));
        }
        self.limit_image();
        true
    }

    /// Protects all pages again, between two domains: the next write to each is noticed.
    pub fn protect_all(&mut self, machine: &mut impl Machine) {
        self.take_harvest(machine);
        self.deactivate_all(machine);
    }

    fn deactivate_all(&mut self, machine: &mut impl Machine) {
        self.trap_shared(machine);
        machine.reprotect();
        self.begin_epoch();
    }

    /// No page is active any more.
    fn begin_epoch(&mut self) {
        self.epoch += 1;
        self.shared = false;
        self.active_regions.clear();
        self.active.clear();
        // One large write set is no reason to keep the room for the next one.
        self.active.shrink_to(Self::ACTIVE_LIMIT * 4);
    }
}

impl Default for Tracker {
    fn default() -> Self {
        Self::new()
    }
}
