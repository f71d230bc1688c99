//! What memory held when the image of the process was taken.
//!
//! Nothing is copied at that moment: a page's content is kept when the page is first overwritten afterwards,
//! which the tracker learns before it happens (trapped pages) or does not need to know (pages that were zero).
//! The image holds only for addresses at which the mapping is still the one of that moment.

use std::collections::BTreeMap;

use guest_agentless::{GuestRange, PageNumber};

use super::pages::{Base, PageState, SavedPages};
use super::shadow::{Frame, PageContent, ShadowStore};
use super::{Machine, Tracker};

/// Why there is no image any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageLost {
    /// What was overwritten since has grown past the limit.
    Limit,
    /// A mapping of it has gone for good.
    Unmapped,
}

impl std::fmt::Display for ImageLost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Limit => "what it has overwritten since it began to serve exceeds --image-limit",
            Self::Unmapped => "a mapping that it had when it began to serve has gone for good",
        })
    }
}

/// What giving memory back its image did.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ImageRestored {
    /// Pages that got another content.
    pub pages: u64,
    /// Pages that could not be given their content back.
    pub lost: u64,
}

/// The content of memory at the moment of the image, as far as it has been overwritten since.
pub(super) struct ImagePages {
    /// Where the mapping is still that of the image; ascending.
    mapped: Vec<GuestRange>,
    /// What is not rolled back: shared mappings of files.
    excluded: Vec<GuestRange>,
    /// By page number; none: all zero.
    kept: BTreeMap<u64, Option<Frame>>,
    frames: ShadowStore,
    /// Bytes of mappings that were moved aside.
    aside: u64,
    limit: u64,
}

impl ImagePages {
    pub fn new(mapped: Vec<GuestRange>, excluded: Vec<GuestRange>, limit: u64) -> ImagePages {
        ImagePages {
            mapped,
            excluded,
            kept: BTreeMap::new(),
            frames: ShadowStore::default(),
            aside: 0,
            limit,
        }
    }

    /// Bytes that are kept for it.
    pub fn bytes(&self) -> u64 {
        // An entry of the map is about that large.
        const ENTRY: u64 = 32;
        self.frames.bytes() + self.aside + self.kept.len() as u64 * ENTRY
    }

    pub fn is_over_limit(&self) -> bool {
        self.bytes() > self.limit
    }

    /// Whether `page` shows a mapping of the image whose content belongs to it.
    fn holds(&self, page: PageNumber) -> bool {
        let address = page.address().0;
        let at = self.mapped.partition_point(|range| range.end() <= address);
        self.mapped
            .get(at)
            .is_some_and(|range| range.contains(address))
            && !self.excluded.iter().any(|range| range.contains(address))
    }

    /// `page` is about to get another content than `content` (none: zero). Only the first time counts.
    pub fn keep(&mut self, page: PageNumber, content: Option<&PageContent>) {
        if self.kept.contains_key(&page.0) || !self.holds(page) {
            return;
        }
        let frame = content.map(|content| {
            let frame = self.frames.allocate(page);
            self.frames.get_mut(frame).clone_from(content);
            frame
        });
        self.kept.insert(page.0, frame);
    }

    /// Counts a mapping that is kept aside with that many pages in use.
    pub fn keep_aside(&mut self, pages: u64) {
        self.aside = self.aside.saturating_add(pages.saturating_mul(4096));
    }

    /// The mappings in `range` are going: the parts of it that were the image's.
    pub fn take_out(&mut self, range: GuestRange) -> Vec<GuestRange> {
        let first = self
            .mapped
            .partition_point(|part| part.end() <= range.start());
        let end = self
            .mapped
            .partition_point(|part| part.start() < range.end());
        if first >= end {
            return Vec::new();
        }
        let (mut taken, mut rest) = (Vec::new(), Vec::new());
        for part in &self.mapped[first..end] {
            taken.extend(part.intersection(range));
            let below = GuestRange::from_bounds(part.start(), range.start().max(part.start()));
            let above = GuestRange::from_bounds(range.end().min(part.end()), part.end());
            rest.extend([below, above].into_iter().filter(|r| !r.is_empty()));
        }
        taken.retain(|part| !part.is_empty());
        self.mapped.splice(first..end, rest);
        taken
    }

    /// The mappings are back where they were.
    pub fn put_in(&mut self, parts: Vec<GuestRange>) {
        for part in parts {
            let at = self
                .mapped
                .partition_point(|other| other.start() < part.start());
            self.mapped.insert(at, part);
        }
    }

    /// Where the mapping is still that of the image.
    pub fn mapped(&self) -> &[GuestRange] {
        &self.mapped
    }

    /// All mappings are those of the image again, and none is kept aside any more.
    pub fn whole(&mut self, mapped: Vec<GuestRange>) {
        self.mapped = mapped;
        self.aside = 0;
    }

    /// Gives memory back its content. `each` is told about every page that was overwritten: whether it has
    /// a content of its own again.
    pub fn restore<M: Machine>(
        &self,
        machine: &mut M,
        mut each: impl FnMut(&mut M, PageNumber, bool),
    ) -> ImageRestored {
        let mut done = ImageRestored::default();
        let mut scratch = PageContent::boxed();
        let mut zeros: Option<GuestRange> = None;
        for (&number, frame) in &self.kept {
            let page = PageNumber(number);
            let address = page.address().0;
            match frame {
                Some(frame) => {
                    let content = self.frames.get(*frame);
                    let same =
                        machine.read(page, &mut scratch) && scratch.bytes() == content.bytes();
                    if !same {
                        count(machine.write(page, content), 1, &mut done);
                    }
                }
                // Whole ranges at a time: much of a server's memory was zero when it began to serve.
                None => {
                    zeros = match zeros {
                        Some(run) if run.end() == address => {
                            Some(GuestRange::from_bounds(run.start(), address + 4096))
                        }
                        before => {
                            clear(machine, before, &mut done);
                            Some(GuestRange::from_bounds(address, address + 4096))
                        }
                    };
                }
            }
            each(machine, page, frame.is_some());
        }
        clear(machine, zeros, &mut done);
        done
    }
}

impl Tracker {
    /// The image of the process is taken now, right after the tracker was armed: `mapped` is what it covers,
    /// `excluded` what of that is not rolled back. It is given up when it takes more than `limit` bytes.
    pub fn take_image(&mut self, mapped: Vec<GuestRange>, excluded: Vec<GuestRange>, limit: u64) {
        self.image = Some(ImagePages::new(mapped, excluded, limit));
        self.image_lost = None;
    }

    /// Whether there is an image to go back to.
    pub fn has_image(&self) -> bool {
        self.image.is_some()
    }

    /// Why the image was given up, if it was.
    pub fn image_lost(&self) -> Option<ImageLost> {
        self.image_lost
    }

    /// Gives up the image, for a reason of the caller's.
    pub fn drop_image(&mut self) {
        self.image = None;
    }

    /// Bytes that the image holds.
    pub fn image_bytes(&self) -> u64 {
        self.image.as_ref().map_or(0, ImagePages::bytes)
    }

    /// Where the mappings are still those of the image.
    pub fn image_mapped(&self) -> &[GuestRange] {
        self.image.as_ref().map_or(&[], ImagePages::mapped)
    }

    /// What was saved of a mapping that is moved aside for as long as there is an image: only what the image
    /// needs is kept, by parts of the mapping (ascending). To be put back before [`Tracker::restore_image`].
    pub fn keep_for_image(&mut self, saved: SavedPages) -> Vec<SavedPages> {
        let parts = saved.image.iter().copied();
        let mut kept: Vec<SavedPages> = parts
            .map(|part| SavedPages::new(part, Vec::new(), vec![part]))
            .collect();
        let mut count = 0;
        for (page, state) in saved.into_pages() {
            count += 1;
            // What has been written since the image was taken has its content there.
            if let Some(frame) = state.frame() {
                self.shadows.free(frame);
            }
            let part = kept
                .iter_mut()
                .find(|part| part.range().contains(page.address().0));
            if let Some(part) = part.filter(|_| state.base == Base::Itself) {
                part.add(page, state);
            }
        }
        if let Some(image) = &mut self.image {
            image.keep_aside(count);
        }
        self.limit_image();
        kept
    }

    /// All mappings are those of the image again (`mapped`): gives memory back its content, as if nothing had
    /// been written since. The running domain has been abandoned, and nothing waits to be restored.
    pub fn restore_image(
        &mut self,
        machine: &mut impl Machine,
        mapped: Vec<GuestRange>,
    ) -> ImageRestored {
        self.host_written.clear();
        self.take_harvest(machine);
        debug_assert_eq!(self.waiting_pages(), 0);
        self.trap_shared(machine);
        self.begin_epoch();
        self.cramped = false;
        self.wasted = 0;
        let Some(image) = &mut self.image else {
            return ImageRestored::default();
        };
        image.whole(mapped);
        let done = image.restore(machine, |machine, page, has_content| {
            let old = self.pages.take(page).and_then(PageState::frame);
            if let Some(frame) = old {
                self.shadows.free(frame);
            }
            if has_content {
                self.pages.set_base(page, Base::Itself);
            }
            machine.set_writable(page, !has_content);
        });
        machine.reprotect();
        done
    }

    pub(super) fn lose_image(&mut self, why: ImageLost) {
        self.image = None;
        self.image_lost = Some(why);
    }

    pub(super) fn limit_image(&mut self) {
        if self.image.as_ref().is_some_and(ImagePages::is_over_limit) {
            self.lose_image(ImageLost::Limit);
        }
    }
}

fn clear(machine: &mut impl Machine, range: Option<GuestRange>, done: &mut ImageRestored) {
    if let Some(range) = range {
        count(machine.clear(range), range.len() / 4096, done);
    }
}

fn count(succeeded: bool, pages: u64, done: &mut ImageRestored) {
    match succeeded {
        true => done.pages += pages,
        false => done.lost += pages,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(from: u64, to: u64) -> GuestRange {
        GuestRange::from_bounds(from * 4096, to * 4096)
    }

    #[test]
    fn ranges_are_taken_out_and_put_back() {
        let whole = vec![range(1, 10), range(20, 30)];
        let mut image = ImagePages::new(whole.clone(), Vec::new(), u64::MAX);
        assert_eq!(image.take_out(range(10, 20)), []);
        let taken = image.take_out(range(5, 22));
        assert_eq!(taken, [range(5, 10), range(20, 22)]);
        assert_eq!(image.mapped(), [range(1, 5), range(22, 30)]);
        assert!(image.holds(PageNumber(4)) && !image.holds(PageNumber(5)));
        image.put_in(taken);
        for page in 0..40 {
            let inside = whole.iter().any(|r| r.contains(page * 4096));
            assert_eq!(image.holds(PageNumber(page)), inside, "{page}");
        }
        let middle = image.take_out(range(23, 24));
        assert_eq!(middle, [range(23, 24)]);
        assert!(!image.holds(PageNumber(23)) && image.holds(PageNumber(24)));
    }

    #[test]
    fn only_the_first_content_counts_and_only_inside() {
        let mut image = ImagePages::new(vec![range(1, 4)], vec![range(3, 4)], 3 * 4096);
        let mut content = PageContent::boxed();
        content.bytes_mut()[0] = 1;
        image.keep(PageNumber(1), None);
        image.keep(PageNumber(1), Some(&content));
        for outside in [0, 3, 4] {
            image.keep(PageNumber(outside), Some(&content));
        }
        assert_eq!(image.kept.len(), 1);
        assert_eq!(image.kept[&1], None);
        assert!(!image.is_over_limit());
        image.keep_aside(3);
        assert!(image.is_over_limit());
    }
}
