//! Limits as the user writes them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// A limit that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadLimit {
    /// Of time.
    #[error(
        "`{0}` is neither a number of seconds nor a duration such as `500ms` or `2m`, nor `off`"
    )]
    Time(String),
    /// Of memory.
    #[error("`{0}` is neither a number of bytes, which may end in K, M, G or T, nor `off`")]
    Bytes(String),
    /// Nothing could run under it.
    #[error("a limit of zero lets nothing run; `off` is no limit")]
    Zero,
}

/// A duration, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TimeLimit(pub Option<Duration>);

impl FromStr for TimeLimit {
    type Err = BadLimit;

    fn from_str(text: &str) -> Result<TimeLimit, BadLimit> {
        if text == "off" {
            return Ok(TimeLimit(None));
        }
        let seconds = text
            .parse::<f64>()
            .ok()
            .and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
        let duration = match seconds {
            Some(duration) => duration,
            None => humantime::parse_duration(text).map_err(|_| BadLimit::Time(text.to_owned()))?,
        };
        match duration.is_zero() {
            true => Err(BadLimit::Zero),
            false => Ok(TimeLimit(Some(duration))),
        }
    }
}

/// The form that [`TimeLimit::from_str`] reads.
impl fmt::Display for TimeLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(duration) => humantime::format_duration(duration).fmt(f),
            None => f.write_str("off"),
        }
    }
}

/// A number of bytes, or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ByteLimit(pub Option<u64>);

impl FromStr for ByteLimit {
    type Err = BadLimit;

    fn from_str(text: &str) -> Result<ByteLimit, BadLimit> {
        if text == "off" {
            return Ok(ByteLimit(None));
        }
        let bad = || BadLimit::Bytes(text.to_owned());
        let unit = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(unit.unwrap_or(text.len()));
        let shift = match unit {
            "" => 0,
            "k" | "K" => 10,
            "m" | "M" => 20,
            "g" | "G" => 30,
            "t" | "T" => 40,
            _ => return Err(bad()),
        };
        let number: u64 = number.parse().map_err(|_| bad())?;
        match number.checked_mul(1 << shift).ok_or_else(bad)? {
            0 => Err(BadLimit::Zero),
            bytes => Ok(ByteLimit(Some(bytes))),
        }
    }
}

/// The form that [`ByteLimit::from_str`] reads.
impl fmt::Display for ByteLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(bytes) => bytes.fmt(f),
            None => f.write_str("off"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_seconds_or_have_units() {
        let time = |text: &str| text.parse::<TimeLimit>().map(|limit| limit.0);
        assert_eq!(time("10"), Ok(Some(Duration::from_secs(10))));
        assert_eq!(time("0.5"), Ok(Some(Duration::from_millis(500))));
        assert_eq!(time("500ms"), Ok(Some(Duration::from_millis(500))));
        assert_eq!(time("2m"), Ok(Some(Duration::from_secs(120))));
        assert_eq!(time("off"), Ok(None));
        assert_eq!(time("0"), Err(BadLimit::Zero));
        for bad in ["", "-1", "nan", "inf", "5 parsecs", "1e400"] {
            assert_eq!(time(bad), Err(BadLimit::Time(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn bytes_have_suffixes() {
        let bytes = |text: &str| text.parse::<ByteLimit>().map(|limit| limit.0);
        assert_eq!(bytes("4096"), Ok(Some(4096)));
        assert_eq!(bytes("64M"), Ok(Some(64 << 20)));
        assert_eq!(bytes("2g"), Ok(Some(2 << 30)));
        assert_eq!(bytes("off"), Ok(None));
        assert_eq!(bytes("0K"), Err(BadLimit::Zero));
        for bad in ["", "M", "-1", "1.5G", "1MB", "99999999999T"] {
            assert_eq!(bytes(bad), Err(BadLimit::Bytes(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_is_what_is_read() {
        for text in ["500ms", "2m", "1h 30m", "off"] {
            let limit: TimeLimit = text.parse().unwrap();
            assert_eq!(limit.to_string().parse(), Ok(limit));
        }
        for text in ["64M", "off"] {
            let limit: ByteLimit = text.parse().unwrap();
            assert_eq!(limit.to_string().parse(), Ok(limit));
        }
    }
}
