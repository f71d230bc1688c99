//! A histogram of fixed size that any number of threads may record into.
//!
//! Log-linear: values below 64 have a bucket each, and every further power of two is split into 32 buckets, so
//! a quantile is within 1/64 of the value. Minimum and maximum are exact.

use std::sync::atomic::{AtomicU64, Ordering};

/// Buckets for each power of two, as a power of two.
const SUB_BITS: u32 = 5;
const SUB: usize = 1 << SUB_BITS;

/// Enough buckets for every `u64`.
const BUCKETS: usize = bucket(u64::MAX) + 1;

/// The bucket of `value`: its exponent, and below it the top `SUB_BITS + 1` bits.
const fn bucket(value: u64) -> usize {
    let shift = (u64::BITS - value.leading_zeros()).saturating_sub(SUB_BITS + 1);
    shift as usize * SUB + (value >> shift) as usize
}

/// The middle of the values in the bucket `index`.
fn middle(index: usize) -> u64 {
    let shift = (index / SUB).saturating_sub(1);
    let low = ((index - shift * SUB) as u64) << shift;
    low + ((1u64 << shift) >> 1)
}

/// The histogram.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; BUCKETS],
    min: AtomicU64,
    max: AtomicU64,
}

/// What a [`Histogram`] says about the values recorded in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Summary {
    /// How many values.
    pub count: u64,
    /// The smallest.
    pub min: u64,
    /// At least half of the values are no larger than this one.
    pub median: u64,
    /// The largest.
    pub max: u64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self {
            buckets: std::array::from_fn(|_| AtomicU64::new(0)),
            min: AtomicU64::new(u64::MAX),
            max: AtomicU64::new(0),
        }
    }
}

impl Histogram {
    /// Records one value.
    pub fn record(&self, value: u64) {
        self.min.fetch_min(value, Ordering::Relaxed);
        self.max.fetch_max(value, Ordering::Relaxed);
        self.buckets[bucket(value)].fetch_add(1, Ordering::Relaxed);
    }

    /// A summary, or `None` if nothing was recorded.
    pub fn summary(&self) -> Option<Summary> {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|b| b.load(Ordering::Relaxed))
            .collect();
        let count: u64 = counts.iter().sum();
        let mut below = 0;
        let index = counts.iter().position(|n| {
            below += n;
            below > 0 && below >= count.div_ceil(2)
        })?;
        let (min, max) = (
            self.min.load(Ordering::Relaxed),
            self.max.load(Ordering::Relaxed),
        );
        Some(Summary {
            count,
            min,
            median: middle(index).clamp(min, max.max(min)),
            max,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn empty() {
        assert_eq!(Histogram::default().summary(), None);
    }

    #[test]
    fn buckets_are_contiguous() {
        assert_eq!(bucket(0), 0);
        assert_eq!(bucket(63), 63);
        assert_eq!(bucket(64), 64);
        assert_eq!(bucket(65), 64);
        assert_eq!(bucket(66), 65);
        for exponent in 1..64 {
            let power = 1u64 << exponent;
            assert_eq!(bucket(power), bucket(power - 1) + 1);
        }
        for index in 0..BUCKETS {
            assert_eq!(bucket(middle(index)), index);
        }
    }

    #[test]
    fn small_values_are_exact() {
        let histogram = Histogram::default();
        [5, 1, 9, 7, 3]
            .into_iter()
            .for_each(|v| histogram.record(v));
        let expected = Summary {
            count: 5,
            min: 1,
            median: 5,
            max: 9,
        };
        assert_eq!(histogram.summary(), Some(expected));
    }

    proptest! {
        #[test]
        fn close_to_the_sorted_values(mut values in prop::collection::vec(any::<u64>(), 1..200)) {
            // Spread the values over all magnitudes.
            values.iter_mut().for_each(|v| *v >>= *v % 64);
            let histogram = Histogram::default();
            values.iter().for_each(|v| histogram.record(*v));
            values.sort_unstable();
            let exact = values[(values.len() - 1) / 2];
            let summary = histogram.summary().unwrap();
            prop_assert_eq!(summary.count, values.len() as u64);
            prop_assert_eq!(Some(&summary.min), values.first());
            prop_assert_eq!(Some(&summary.max), values.last());
            prop_assert!(summary.median.abs_diff(exact) <= exact / 64);
        }
    }
}
