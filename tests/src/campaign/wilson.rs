//! How sure a share is, given how many were counted.

use serde::{Deserialize, Serialize};

/// The 97.5th percentile of the normal distribution: 95 % lie within this many deviations.
const DEVIATIONS: f64 = 1.959_963_984_540_054;

/// A range that the true share lies in, with 95 % confidence.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Interval {
    /// The lower bound, from 0 to 1.
    pub low: f64,
    /// The upper bound, from 0 to 1.
    pub high: f64,
}

impl Interval {
    /// The score interval of Wilson (1927) for `k` of `n`. It is sound for small numbers and for
    /// shares near 0 and 1, where the usual `p ± 2σ` claims to know everything.
    pub fn wilson(k: u64, n: u64) -> Self {
        if n == 0 {
            return Self {
                low: 0.0,
                high: 1.0,
            };
        }
        let (share, n) = (k as f64 / n as f64, n as f64);
        let squared = DEVIATIONS * DEVIATIONS;
        let scale = 1.0 + squared / n;
        let middle = (share + squared / (2.0 * n)) / scale;
        let variance = share * (1.0 - share) / n + squared / (4.0 * n * n);
        let half = DEVIATIONS * variance.sqrt() / scale;
        Self {
            low: (middle - half).clamp(0.0, share),
            high: (middle + half).clamp(share, 1.0),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn intervals_are_those_of_the_books() {
        let cases = [
            (0, 0, 0.0, 1.0),
            (10, 10, 0.7225, 1.0),
            (0, 10, 0.0, 0.2775),
            (81, 263, 0.2553, 0.3662),
            (1, 2, 0.0945, 0.9055),
            (999_990, 1_000_000, 0.999_981_6, 0.999_994_6),
        ];
        for (k, n, low, high) in cases {
            let interval = Interval::wilson(k, n);
            let digits = if n > 1000 { 1e-7 } else { 5.1e-5 };
            assert!((interval.low - low).abs() < digits, "{k}/{n}: {interval:?}");
            assert!(
                (interval.high - high).abs() < digits,
                "{k}/{n}: {interval:?}"
            );
        }
    }

    #[test]
    fn the_share_itself_is_within() {
        for n in 1..60 {
            for k in 0..=n {
                let (interval, share) = (Interval::wilson(k, n), k as f64 / n as f64);
                assert!(interval.low <= share && share <= interval.high, "{k}/{n}");
                assert!(interval.low >= 0.0 && interval.high <= 1.0, "{k}/{n}");
            }
        }
    }
}
