//! Guest addresses with checked arithmetic.

use std::fmt;

/// Bytes in a page.
pub const PAGE_SIZE: u64 = 4096;

/// A guest virtual address. It comes from the guest, so nothing about it can be taken for granted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct GuestVa(pub u64);

/// The number of a page: its address divided by [`PAGE_SIZE`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct PageNumber(pub u64);

/// A half-open range of guest addresses; `start <= end` always.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct GuestRange {
    start: u64,
    end: u64,
}

impl GuestVa {
    /// The page that holds this address.
    pub fn page(self) -> PageNumber {
        PageNumber(self.0 / PAGE_SIZE)
    }

    /// Whether this address is the first of a page.
    pub fn is_page_aligned(self) -> bool {
        self.0.is_multiple_of(PAGE_SIZE)
    }

    /// This address moved up by `bytes`, unless it overflows.
    pub fn checked_add(self, bytes: u64) -> Option<GuestVa> {
        self.0.checked_add(bytes).map(GuestVa)
    }
}

impl fmt::Debug for GuestVa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

impl PageNumber {
    /// The first address of the page.
    pub fn address(self) -> GuestVa {
        GuestVa(self.0.wrapping_mul(PAGE_SIZE))
    }
}

impl GuestRange {
    /// The range of `len` bytes from `start`, unless it overflows.
    pub fn new(start: GuestVa, len: u64) -> Option<GuestRange> {
        let end = start.0.checked_add(len)?;
        Some(GuestRange {
            start: start.0,
            end,
        })
    }

    /// The range from `start` up to but without `end`; empty when `end` is not above `start`.
    pub fn from_bounds(start: u64, end: u64) -> GuestRange {
        GuestRange {
            start,
            end: end.max(start),
        }
    }

    /// The first address.
    pub fn start(self) -> u64 {
        self.start
    }

    /// The first address after the range.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Bytes in the range.
    pub fn len(self) -> u64 {
        self.end - self.start
    }

    /// Whether the range holds no byte.
    pub fn is_empty(self) -> bool {
        self.start == self.end
    }

    /// Whether `address` lies in the range.
    pub fn contains(self, address: u64) -> bool {
        self.start <= address && address < self.end
    }

    /// Whether all of `other` lies in the range.
    pub fn encloses(self, other: GuestRange) -> bool {
        self.start <= other.start && other.end <= self.end
    }

    /// What both ranges hold, unless that is nothing.
    pub fn intersection(self, other: GuestRange) -> Option<GuestRange> {
        let (start, end) = (self.start.max(other.start), self.end.min(other.end));
        (start < end).then_some(GuestRange { start, end })
    }

    /// The smallest range of whole pages that encloses this one, unless it overflows.
    pub fn to_pages(self) -> Option<GuestRange> {
        let end = self.end.checked_next_multiple_of(PAGE_SIZE)?;
        Some(GuestRange {
            start: self.start & !(PAGE_SIZE - 1),
            end,
        })
    }

    /// The pages that the range touches.
    pub fn pages(self) -> impl DoubleEndedIterator<Item = PageNumber> + Clone {
        let first = self.start / PAGE_SIZE;
        let end = if self.is_empty() {
            first
        } else {
            (self.end - 1) / PAGE_SIZE + 1
        };
        (first..end).map(PageNumber)
    }
}

impl fmt::Debug for GuestRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}..{:#x}", self.start, self.end)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_that_overflows_is_none() {
        assert_eq!(GuestRange::new(GuestVa(u64::MAX - 5), 10), None);
        assert!(GuestRange::new(GuestVa(u64::MAX), 0).is_some());
    }

    #[test]
    fn pages_cover_partial_ends() {
        let pages = |start, len| {
            let range = GuestRange::new(GuestVa(start), len).unwrap();
            range.pages().map(|p| p.0).collect::<Vec<_>>()
        };
        assert_eq!(pages(4095, 2), [0, 1]);
        assert_eq!(pages(4096, 4096), [1]);
        assert_eq!(pages(4100, 0), [] as [u64; 0]);
        assert_eq!(pages(u64::MAX - 1, 1), [u64::MAX / 4096]);
    }
}
