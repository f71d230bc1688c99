//! A share of a count, with how sure it is.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::wilson::Interval;

/// So many of so many.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rate {
    /// How many it is true of.
    pub count: u64,
    /// Of how many.
    pub of: u64,
    /// The share, from 0 to 1; none of nothing.
    pub share: Option<f64>,
    /// The range of the true share, with 95 % confidence.
    pub interval: Interval,
}

impl Rate {
    /// The share of `count` in `of`.
    pub fn new(count: u64, of: u64) -> Self {
        Self {
            count,
            of,
            share: (of > 0).then(|| count as f64 / of as f64),
            interval: Interval::wilson(count, of),
        }
    }

    /// With the count before it, such as `0: 0.0 % (0.0–0.4)`.
    pub fn counted(&self) -> String {
        format!("{}: {self}", self.count)
    }
}

impl fmt::Display for Rate {
    /// Such as `99.6 % (99.2–99.8)`. All and nothing are written only where it is true.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(share) = self.share else {
            return f.write_str("–");
        };
        let whole = self.count == 0 || self.count == self.of;
        let shown = |digits| format!("{:.digits$}", 100.0 * share);
        let is_rounded = |digits: &usize| {
            let shown = shown(*digits).parse::<f64>();
            !whole && shown.is_ok_and(|shown| shown <= 0.0 || shown >= 100.0)
        };
        let digits = (1..6).find(|digits| !is_rounded(digits)).unwrap_or(6);
        let Interval { low, high } = self.interval;
        let (low, high) = (100.0 * low, 100.0 * high);
        write!(f, "{} % ({low:.digits$}–{high:.digits$})", shown(digits))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_a_percentage_with_its_interval() {
        let text = |count, of| Rate::new(count, of).to_string();
        assert_eq!(text(81, 263), "30.8 % (25.5–36.6)");
        assert_eq!(text(10, 10), "100.0 % (72.2–100.0)");
        assert_eq!(text(0, 0), "–");
    }

    #[test]
    fn one_failure_of_many_is_not_rounded_away() {
        let text = |count, of| Rate::new(count, of).to_string();
        assert_eq!(text(99_999, 100_000), "99.999 % (99.994–100.000)");
        assert!(text(1, 100_000).starts_with("0.001 %"));
        assert!(text(0, 100_000).starts_with("0.0 %"));
    }
}
