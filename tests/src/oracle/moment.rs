//! Times, with a first and a last one.

use std::fmt;

/// A time in the order of a history.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Moment {
    /// Before everything.
    Start,
    /// Nanoseconds of the history's clock.
    At(u64),
    /// After everything.
    Never,
}

impl fmt::Display for Moment {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start => f.write_str("the start"),
            Self::At(nanoseconds) => {
                let microseconds = nanoseconds / 1000;
                write!(f, "{}.{:03} ms", microseconds / 1000, microseconds % 1000)
            }
            Self::Never => f.write_str("an unknown time"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_time_lies_between_the_first_and_the_last() {
        assert!(Moment::Start < Moment::At(0) && Moment::At(u64::MAX) < Moment::Never);
        assert!(Moment::At(1) < Moment::At(2));
        assert_eq!(Moment::At(12_034_567).to_string(), "12.034 ms");
    }
}
