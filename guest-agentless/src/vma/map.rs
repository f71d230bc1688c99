//! The mappings of one address space, ordered by address.

use std::collections::BTreeMap;

use super::gaps::{Gaps, Wanted};
use super::{Protection, Vma};
use crate::{Errno, GuestRange, PAGE_SIZE};

/// Mappings that do not overlap.
///
/// Neighbours that differ in nothing but their addresses are joined, as Linux does. Ranges are given in
/// whole pages: a caller answers `EINVAL` to the guest for anything else before it comes here.
#[derive(Debug, Clone)]
pub struct VmaMap {
    /// By start address; no empty ranges.
    vmas: BTreeMap<u64, Vma>,
    /// What lies between them.
    gaps: Gaps,
}

/// There is a mapping already where one was to be inserted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a mapping at {existing:?} is in the way")]
pub struct Overlap {
    /// The first one in the way.
    pub existing: GuestRange,
}

impl Default for VmaMap {
    fn default() -> VmaMap {
        VmaMap::new()
    }
}

impl VmaMap {
    /// An empty address space.
    pub fn new() -> VmaMap {
        VmaMap {
            vmas: BTreeMap::new(),
            gaps: Gaps::new(),
        }
    }

    /// The mappings, lowest address first.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = &Vma> {
        self.vmas.values()
    }

    /// How many mappings there are.
    pub fn len(&self) -> usize {
        self.vmas.len()
    }

    /// Whether nothing is mapped.
    pub fn is_empty(&self) -> bool {
        self.vmas.is_empty()
    }

    /// The mapping that holds `address`.
    pub fn find(&self, address: u64) -> Option<&Vma> {
        let (_, vma) = self.vmas.range(..=address).next_back()?;
        vma.range.contains(address).then_some(vma)
    }

    /// The mappings that share at least a byte with `range`, lowest first, each as a whole.
    pub fn overlapping(&self, range: GuestRange) -> impl DoubleEndedIterator<Item = &Vma> {
        // The one that begins below may reach into the range.
        let first = match self.vmas.range(..=range.start()).next_back() {
            Some((start, vma)) if vma.range.end() > range.start() => *start,
            _ => range.start(),
        };
        let end = if range.is_empty() { first } else { range.end() };
        self.vmas.range(first..end).map(|(_, vma)| vma)
    }

    /// Whether every byte of `range` is mapped.
    pub fn is_covered(&self, range: GuestRange) -> bool {
        let mut covered = range.start();
        for vma in self.overlapping(range) {
            if vma.range.start() > covered {
                return false;
            }
            covered = vma.range.end();
        }
        covered >= range.end()
    }

    /// Adds a mapping where there is none. An empty one is nothing.
    pub fn insert(&mut self, vma: Vma) -> Result<(), Overlap> {
        if let Some(existing) = self.overlapping(vma.range).next() {
            return Err(Overlap {
                existing: existing.range,
            });
        }
        if !vma.range.is_empty() {
            self.gaps.take(self.gap_around(vma.range), vma.range);
            self.insert_joined(vma);
        }
        Ok(())
    }

    /// Removes what `range` holds, cutting mappings at its edges, and returns the pieces.
    pub fn remove(&mut self, range: GuestRange) -> Vec<Vma> {
        let starts = self.starts_in(range);
        let mut pieces = Vec::with_capacity(starts.len());
        for start in starts {
            if let Some(piece) = self.cut_out(start, range) {
                self.gaps.release(self.gap_around(piece.range), piece.range);
                pieces.push(piece);
            }
        }
        pieces
    }

    /// Changes the protection of `range` and returns the pieces as they were, for [`VmaMap::restore`].
    ///
    /// `ENOMEM` if part of it is not mapped. In that case nothing has changed, whereas Linux changes what
    /// lies before the first hole: a caller has to come here before it asks the host.
    pub fn protect(
        &mut self,
        range: GuestRange,
        protection: Protection,
    ) -> Result<Vec<Vma>, Errno> {
        if !self.is_covered(range) {
            return Err(Errno::ENOMEM);
        }
        // All are taken out before the first goes back, which may join with what follows it.
        let starts = self.starts_in(range);
        let old: Vec<Vma> = starts
            .into_iter()
            .filter_map(|start| self.cut_out(start, range))
            .collect();
        for piece in &old {
            self.insert_joined(piece.with_protection(protection));
        }
        Ok(old)
    }

    /// Puts back pieces that [`VmaMap::remove`] or [`VmaMap::protect`] returned, in place of what is
    /// there now.
    pub fn restore(&mut self, pieces: impl IntoIterator<Item = Vma>) {
        for piece in pieces.into_iter().filter(|piece| !piece.range.is_empty()) {
            self.remove(piece.range);
            self.gaps.take(self.gap_around(piece.range), piece.range);
            self.insert_joined(piece);
        }
    }

    /// The start of `len` unmapped bytes in `window`, a multiple of `align` (a power of two): the
    /// highest such place if `top_down`, else the lowest. Never the page at address zero.
    pub fn find_gap(
        &self,
        window: GuestRange,
        len: u64,
        align: u64,
        top_down: bool,
    ) -> Option<u64> {
        let len = len.max(1).checked_next_multiple_of(PAGE_SIZE)?;
        let align = align.max(PAGE_SIZE);
        if !align.is_power_of_two() {
            return None;
        }
        self.gaps.find(Wanted { len, align, window }, top_down)
    }

    /// What is unmapped around `range`, in which nothing is mapped; with `range`.
    fn gap_around(&self, range: GuestRange) -> GuestRange {
        let below = self.vmas.range(..range.start()).next_back();
        let above = self.vmas.range(range.end()..).next();
        GuestRange::from_bounds(
            below.map_or(0, |(_, vma)| vma.range.end()),
            above.map_or(u64::MAX, |(start, _)| *start),
        )
    }

    /// The keys of the mappings that share a byte with `range`.
    fn starts_in(&self, range: GuestRange) -> Vec<u64> {
        self.overlapping(range)
            .map(|vma| vma.range.start())
            .collect()
    }

    /// Takes out what the mapping at `start` has in `range`, without a word to the gaps.
    fn cut_out(&mut self, start: u64, range: GuestRange) -> Option<Vma> {
        let vma = self.vmas.remove(&start)?;
        let below = GuestRange::from_bounds(vma.range.start(), range.start());
        let above = GuestRange::from_bounds(range.end(), vma.range.end());
        for rest in [below, above]
            .into_iter()
            .filter_map(|part| vma.clipped(part))
        {
            self.vmas.insert(rest.range.start(), rest);
        }
        vma.clipped(range)
    }

    /// Puts `vma` in its place, joined with its neighbours where they are alike.
    fn insert_joined(&mut self, mut vma: Vma) {
        let below = self.vmas.range(..vma.range.start()).next_back();
        if let Some((&start, below)) = below.filter(|(_, below)| below.joins(&vma)) {
            vma = Vma {
                range: GuestRange::from_bounds(start, vma.range.end()),
                ..below.clone()
            };
        }
        let above = self.vmas.get(&vma.range.end());
        if let Some(above) = above.filter(|above| vma.joins(above)) {
            let end = above.range.end();
            self.vmas.remove(&vma.range.end());
            vma.range = GuestRange::from_bounds(vma.range.start(), end);
        }
        self.vmas.insert(vma.range.start(), vma);
    }
}
