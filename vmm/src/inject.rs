//! Faults made on purpose, to see a server recover that has no command to crash itself.

use std::str::FromStr;

use thiserror::Error;

/// Corrupt the instruction pointer during a chosen request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Injection {
    /// The request is one whose input contains these bytes.
    pub matching: Vec<u8>,
    /// How many system calls the request makes after its input arrived before it is struck.
    pub after: u64,
}

/// A specification that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("`{0}` is not of the form `rip:match=TEXT[,after=CALLS]`")]
pub struct BadInjection(String);

/// The form that [`Injection::from_str`] reads.
impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let matching = String::from_utf8_lossy(&self.matching);
        write!(f, "rip:match={matching},after={}", self.after)
    }
}

impl FromStr for Injection {
    type Err = BadInjection;

    fn from_str(text: &str) -> Result<Injection, BadInjection> {
        let bad = || BadInjection(text.to_owned());
        let mut injection = Injection {
            matching: Vec::new(),
            after: 0,
        };
        for part in text.strip_prefix("rip:").ok_or_else(bad)?.split(',') {
            match part.split_once('=').ok_or_else(bad)? {
                ("match", value) => injection.matching = value.as_bytes().to_vec(),
                ("after", value) => injection.after = value.parse().map_err(|_| bad())?,
                _ => return Err(bad()),
            }
        }
        match injection.matching.is_empty() {
            true => Err(bad()),
            false => Ok(injection),
        }
    }
}

impl Injection {
    /// Whether a request with this input that has made `calls` system calls is to be struck now.
    pub fn strikes(&self, input: &[u8], calls: u64) -> bool {
        calls == self.after
            && input
                .windows(self.matching.len())
                .any(|w| w == self.matching)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specifications_are_read_and_refused() {
        let parsed: Injection = "rip:match=boom,after=2".parse().unwrap();
        assert!(parsed.strikes(b"set boom", 2) && !parsed.strikes(b"set boom", 1));
        assert!(!parsed.strikes(b"bo", 2));
        assert_eq!(parsed.to_string().parse(), Ok(parsed));
        for bad in [
            "",
            "rip:",
            "rip:match=",
            "rip:after=1",
            "rip:match=x,after=y",
            "rsp:match=x",
        ] {
            assert!(bad.parse::<Injection>().is_err(), "{bad}");
        }
    }
}
