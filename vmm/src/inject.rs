//! Faults made on purpose, to see a server recover that has no command to crash itself.

use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use recovery::OriginKind;
use thiserror::Error;

/// Corrupt the instruction pointer during a chosen request, or during the server's own work after it.
#[derive(Debug, Clone)]
pub struct Injection {
    /// The request is one whose input contains these bytes.
    pub matching: Vec<u8>,
    /// How many system calls the domain makes after its input arrived before it is struck.
    pub after: u64,
    /// Not the request itself is struck, but what comes after it with this origin.
    pub origin: Option<OriginKind>,
    /// How often to strike; none: always.
    pub times: Option<u64>,
    progress: Arc<Progress>,
}

#[derive(Debug, Default)]
struct Progress {
    /// The request has been seen.
    armed: AtomicBool,
    struck: AtomicU64,
}

/// A specification that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
#[error(
    "`{0}` is not of the form `rip:match=TEXT[,after=CALLS][,origin=timer|internal][,times=N]`"
)]
pub struct BadInjection(String);

/// The form that [`Injection::from_str`] reads.
impl std::fmt::Display for Injection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let matching = String::from_utf8_lossy(&self.matching);
        write!(f, "rip:match={matching},after={}", self.after)?;
        if let Some(origin) = self.origin {
            write!(f, ",origin={origin}")?;
        }
        if let Some(times) = self.times {
            write!(f, ",times={times}")?;
        }
        Ok(())
    }
}

impl FromStr for Injection {
    type Err = BadInjection;

    fn from_str(text: &str) -> Result<Injection, BadInjection> {
        let bad = || BadInjection(text.to_owned());
        let mut injection = Injection {
            matching: Vec::new(),
            after: 0,
            origin: None,
            times: None,
            progress: Arc::default(),
        };
        for part in text.strip_prefix("rip:").ok_or_else(bad)?.split(',') {
            match part.split_once('=').ok_or_else(bad)? {
                ("match", value) => injection.matching = value.as_bytes().to_vec(),
                ("after", value) => injection.after = value.parse().map_err(|_| bad())?,
                ("times", value) => injection.times = Some(value.parse().map_err(|_| bad())?),
                ("origin", "timer") => injection.origin = Some(OriginKind::Timer),
                ("origin", "internal") => injection.origin = Some(OriginKind::Internal),
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
    /// Whether a domain with this origin and input that has made `calls` system calls is to be struck now.
    pub fn strikes(&self, origin: OriginKind, input: &[u8], calls: u64) -> bool {
        let matches = || {
            input
                .windows(self.matching.len())
                .any(|w| w == self.matching)
        };
        let chosen = match self.origin {
            None => calls == self.after && matches(),
            Some(wanted) => {
                if !self.progress.armed.load(Ordering::Relaxed) {
                    self.progress.armed.store(matches(), Ordering::Relaxed);
                }
                self.progress.armed.load(Ordering::Relaxed)
                    && origin == wanted
                    && calls == self.after
            }
        };
        chosen
            && self
                .times
                .is_none_or(|times| self.progress.struck.fetch_add(1, Ordering::Relaxed) < times)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use OriginKind::{Stream, Timer};

    #[test]
    fn specifications_are_read_and_refused() {
        let parsed: Injection = "rip:match=boom,after=2".parse().unwrap();
        assert!(parsed.strikes(Stream, b"set boom", 2) && !parsed.strikes(Stream, b"set boom", 1));
        assert!(!parsed.strikes(Stream, b"bo", 2));
        for text in [
            "rip:match=boom,after=2",
            "rip:match=boom,after=0,origin=timer,times=2",
        ] {
            assert_eq!(text.parse::<Injection>().unwrap().to_string(), text);
        }
        for bad in [
            "",
            "rip:",
            "rip:match=",
            "rip:after=1",
            "rip:match=x,after=y",
            "rip:match=x,origin=moon",
            "rsp:match=x",
        ] {
            assert!(bad.parse::<Injection>().is_err(), "{bad}");
        }
    }

    #[test]
    fn work_of_another_origin_is_struck_after_the_request_and_so_many_times() {
        let injection: Injection = "rip:match=boom,origin=timer,times=2".parse().unwrap();
        assert!(!injection.strikes(Timer, b"", 0));
        assert!(!injection.strikes(Stream, b"boom", 0));
        assert!(injection.strikes(Timer, b"", 0));
        assert!(!injection.strikes(Timer, b"", 1));
        assert!(injection.strikes(Timer, b"", 0));
        assert!(!injection.strikes(Timer, b"", 0));
    }
}
