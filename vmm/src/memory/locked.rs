//! What the guest has locked in memory (`mlock`): the kernel cannot be asked page by page.

use std::collections::BTreeMap;

use guest_agentless::GuestRange;

/// Locked ranges, which do not touch one another.
#[derive(Debug, Default)]
pub struct LockedPages {
    /// End by start.
    ranges: BTreeMap<u64, u64>,
}

impl LockedPages {
    /// The locked parts of `range`.
    pub fn within(&self, range: GuestRange) -> Vec<GuestRange> {
        self.ranges
            .range(..range.end())
            .map(|(start, end)| (*start.max(&range.start()), *end.min(&range.end())))
            .filter(|(start, end)| start < end)
            .map(|(start, end)| GuestRange::from_bounds(start, end))
            .collect()
    }

    /// Nothing of `range` is locked any more.
    pub fn remove(&mut self, range: GuestRange) {
        let touched: Vec<(u64, u64)> = self
            .ranges
            .range(..range.end())
            .filter(|(_, end)| **end > range.start())
            .map(|(start, end)| (*start, *end))
            .collect();
        for (start, end) in touched {
            self.ranges.remove(&start);
            if start < range.start() {
                self.ranges.insert(start, range.start());
            }
            if end > range.end() {
                self.ranges.insert(range.end(), end);
            }
        }
    }

    /// All of `range` is locked.
    pub fn insert(&mut self, range: GuestRange) {
        self.remove(range);
        if !range.is_empty() {
            self.ranges.insert(range.start(), range.end());
        }
    }

    /// Of `range`, exactly `parts` are locked, as before.
    pub fn put_back(&mut self, range: GuestRange, parts: &[GuestRange]) {
        self.remove(range);
        for part in parts {
            self.insert(*part);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_cut_and_put_back() {
        let range = GuestRange::from_bounds;
        let mut locked = LockedPages::default();
        locked.insert(range(0x1000, 0x5000));
        locked.insert(range(0x9000, 0xa000));
        let before = locked.within(range(0x2000, 0xb000));
        assert_eq!(before, [range(0x2000, 0x5000), range(0x9000, 0xa000)]);
        locked.remove(range(0x2000, 0x3000));
        let all = range(0, 0x10000);
        let cut = [
            range(0x1000, 0x2000),
            range(0x3000, 0x5000),
            range(0x9000, 0xa000),
        ];
        assert_eq!(locked.within(all), cut);
        locked.put_back(range(0x2000, 0xb000), &before);
        assert_eq!(
            locked.within(range(0x1000, 0x5000)),
            [range(0x1000, 0x2000), range(0x2000, 0x5000)]
        );
        assert!(locked.within(range(0x6000, 0x7000)).is_empty());
    }
}
