//! What to inject and where, as the user writes it: `WHAT[=HOW]:WHERE=VALUE[,WHERE=VALUE...]`
//! (`docs/fault-injection.md`).

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use guest_agentless::Errno;
use recovery::OriginKind;
use thiserror::Error;

/// An injection: what, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// What is done to the guest.
    pub what: What,
    /// Which requests are struck.
    pub who: Who,
    /// Where in the request.
    pub point: Point,
    /// How often; none: whenever it applies.
    pub times: Option<u64>,
    /// What all choices are made from.
    pub seed: u64,
}

/// What is done to the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum What {
    /// The instruction pointer is overwritten.
    Rip(Wild),
    /// A register that holds a pointer is overwritten.
    Pointer(Corruption),
    /// A return address on the stack is overwritten.
    Return,
    /// A stack protector's canary is changed.
    Canary,
    /// The header of a chunk of glibc's heap is changed.
    Heap,
    /// One bit of memory is flipped.
    Flip(Memory),
    /// An allocation fails.
    Alloc,
    /// A system call fails with this error, or with any.
    Syscall(Option<Errno>),
    /// The request calls `abort`.
    Abort,
    /// The request never ends, in code.
    Loop,
    /// The request allocates memory without end.
    Eat,
    /// The request takes a mutex and never comes back.
    Hold,
}

/// Where a wild instruction pointer points.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wild {
    /// To address 0.
    Null,
    /// To any address.
    Garbage,
    /// To data.
    Heap,
}

/// What a corrupted pointer becomes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Corruption {
    /// One of its bits is another.
    Bit,
    /// An address where nothing is mapped.
    Unmapped,
}

/// Which memory is hit by a bit flip.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Memory {
    /// A page that the request has written.
    Written,
    /// Code that the request is about to execute.
    Code,
    /// Data that the request has not written.
    Shared,
}

/// Which requests are struck.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Who {
    /// Those with these bytes in their input.
    pub matching: Vec<u8>,
    /// The one with this number among those, from 1.
    pub nth: Option<u64>,
    /// Each with this probability.
    pub probability: Option<f64>,
    /// Not the request itself, but what comes after it with this origin.
    pub origin: Option<OriginKind>,
}

/// Where in the request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Point {
    /// At a system call, after so many others since its input arrived.
    Calls(u64),
    /// As soon as it has written so many pages.
    Pages(u64),
    /// When it enters this function.
    Symbol(String),
    /// At this time since the start of the server, whichever request runs then or begins next.
    Time(Duration),
}

/// A specification that cannot be read.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum BadSpec {
    /// The first word.
    #[error(
        "`{0}` is no fault; there are rip[=null|garbage|heap], pointer=bit|unmapped, return, canary, heap, \
         flip=written|code|shared, alloc, syscall=ERRNO|any, abort, loop, eat, hold"
    )]
    What(String),
    /// Something after it.
    #[error(
        "`{0}` says not where; there are match=TEXT, nth=N, probability=P, origin=timer|internal, \
         after=CALLS, pages=N, symbol=FUNCTION, at=DURATION, times=N, seed=N"
    )]
    Where(String),
    /// A value.
    #[error("`{0}`: {1}")]
    Value(String, &'static str),
    /// No request is named.
    #[error(
        "which request? Say match=TEXT, nth=N, probability=P or at=DURATION, as in `abort:nth=100`"
    )]
    NoRequest,
    /// More than one place.
    #[error("only one of after=, pages=, symbol= and at= can be given")]
    TwoPoints,
    /// A place for what has its own.
    #[error(
        "`{0}` waits for the functions that it is about: pages=, symbol= and at= do not go with it"
    )]
    OwnPlace(What),
}

impl What {
    /// Whether the guest's very next step is the fault.
    pub fn is_immediate(self) -> bool {
        matches!(self, What::Rip(_) | What::Abort | What::Loop | What::Eat)
    }
}

impl FromStr for What {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<What, BadSpec> {
        Ok(match text {
            "rip" | "rip=null" => What::Rip(Wild::Null),
            "rip=garbage" => What::Rip(Wild::Garbage),
            "rip=heap" => What::Rip(Wild::Heap),
            "pointer=bit" => What::Pointer(Corruption::Bit),
            "pointer=unmapped" => What::Pointer(Corruption::Unmapped),
            "return" => What::Return,
            "canary" => What::Canary,
            "heap" => What::Heap,
            "flip=written" => What::Flip(Memory::Written),
            "flip=code" => What::Flip(Memory::Code),
            "flip=shared" => What::Flip(Memory::Shared),
            "alloc" => What::Alloc,
            "syscall=any" => What::Syscall(None),
            "abort" => What::Abort,
            "loop" => What::Loop,
            "eat" => What::Eat,
            "hold" => What::Hold,
            other => {
                let name = other
                    .strip_prefix("syscall=")
                    .ok_or_else(|| BadSpec::What(other.into()))?;
                let error = Errno::from_name(name)
                    .ok_or_else(|| BadSpec::Value(other.into(), "no such error"))?;
                What::Syscall(Some(error))
            }
        })
    }
}

/// The form that [`What::from_str`] reads.
impl fmt::Display for What {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            What::Rip(Wild::Null) => "rip=null",
            What::Rip(Wild::Garbage) => "rip=garbage",
            What::Rip(Wild::Heap) => "rip=heap",
            What::Pointer(Corruption::Bit) => "pointer=bit",
            What::Pointer(Corruption::Unmapped) => "pointer=unmapped",
            What::Return => "return",
            What::Canary => "canary",
            What::Heap => "heap",
            What::Flip(Memory::Written) => "flip=written",
            What::Flip(Memory::Code) => "flip=code",
            What::Flip(Memory::Shared) => "flip=shared",
            What::Alloc => "alloc",
            What::Syscall(None) => "syscall=any",
            What::Syscall(Some(error)) => return write!(f, "syscall={}", error.name()),
            What::Abort => "abort",
            What::Loop => "loop",
            What::Eat => "eat",
            What::Hold => "hold",
        })
    }
}

impl FromStr for Spec {
    type Err = BadSpec;

    fn from_str(text: &str) -> Result<Spec, BadSpec> {
        let (what, places) = text.split_once(':').unwrap_or((text, ""));
        let mut who = Who::default();
        let (mut point, mut times, mut seed) = (None, None, 0);
        for part in places.split(',').filter(|part| !part.is_empty()) {
            let (name, value) = part
                .split_once('=')
                .ok_or_else(|| BadSpec::Where(part.into()))?;
            let at = match name {
                "match" => {
                    who.matching = value.as_bytes().to_vec();
                    None
                }
                "nth" => {
                    who.nth = Some(number(part, value)?).filter(|nth| *nth > 0);
                    None
                }
                "probability" => {
                    who.probability = Some(probability(part, value)?);
                    None
                }
                "origin" => {
                    who.origin = Some(match value {
                        "timer" => OriginKind::Timer,
                        "internal" => OriginKind::Internal,
                        _ => return Err(BadSpec::Value(part.into(), "neither timer nor internal")),
                    });
                    None
                }
                "after" => Some(Point::Calls(number(part, value)?)),
                "pages" => Some(Point::Pages(number(part, value)?)),
                "symbol" if !value.is_empty() => Some(Point::Symbol(value.into())),
                "at" => Some(Point::Time(humantime::parse_duration(value).map_err(
                    |_| BadSpec::Value(part.into(), "not a duration such as 2s or 500ms"),
                )?)),
                "times" => {
                    times = Some(number(part, value)?);
                    None
                }
                "seed" => {
                    seed = number(part, value)?;
                    None
                }
                _ => return Err(BadSpec::Where(part.into())),
            };
            if at.is_some() && std::mem::replace(&mut point, at).is_some() {
                return Err(BadSpec::TwoPoints);
            }
        }
        let what: What = what.parse()?;
        let is_own = matches!(what, What::Alloc | What::Hold);
        if is_own && !matches!(point, None | Some(Point::Calls(_))) {
            return Err(BadSpec::OwnPlace(what));
        }
        let timed = matches!(point, Some(Point::Time(_)));
        if who.matching.is_empty() && who.nth.is_none() && who.probability.is_none() && !timed {
            return Err(BadSpec::NoRequest);
        }
        Ok(Spec {
            what,
            times: times.or((timed || who.nth.is_some()).then_some(1)),
            who,
            point: point.unwrap_or(Point::Calls(0)),
            seed,
        })
    }
}

/// The form that [`Spec::from_str`] reads.
impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut places = Vec::new();
        let who = &self.who;
        if !who.matching.is_empty() {
            places.push(format!("match={}", String::from_utf8_lossy(&who.matching)));
        }
        if let Some(nth) = who.nth {
            places.push(format!("nth={nth}"));
        }
        if let Some(probability) = who.probability {
            places.push(format!("probability={probability}"));
        }
        places.push(match &self.point {
            Point::Calls(calls) => format!("after={calls}"),
            Point::Pages(pages) => format!("pages={pages}"),
            Point::Symbol(name) => format!("symbol={name}"),
            Point::Time(time) => format!(
                "at={}",
                humantime::format_duration(*time)
                    .to_string()
                    .replace(' ', "")
            ),
        });
        if let Some(origin) = who.origin {
            places.push(format!("origin={origin}"));
        }
        if let Some(times) = self.times {
            places.push(format!("times={times}"));
        }
        if self.seed != 0 {
            places.push(format!("seed={}", self.seed));
        }
        write!(f, "{}:{}", self.what, places.join(","))
    }
}

fn number(part: &str, value: &str) -> Result<u64, BadSpec> {
    let number = value.parse();
    number.map_err(|_| BadSpec::Value(part.into(), "not a whole number"))
}

fn probability(part: &str, value: &str) -> Result<f64, BadSpec> {
    let probability = value.parse().ok().filter(|p| (0.0..=1.0).contains(p));
    probability.ok_or_else(|| BadSpec::Value(part.into(), "not a number from 0 to 1"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read_again() {
        for text in [
            "rip=null:match=boom,after=2",
            "rip=heap:match=boom,after=0,origin=timer,times=2",
            "pointer=bit:nth=17,pages=3,times=1,seed=9",
            "flip=code:probability=0.01,symbol=memcpy",
            "syscall=ENOSPC:match=x,after=1",
            "syscall=any:match=x,after=1",
            "loop:at=1m2s500ms,times=1",
        ] {
            assert_eq!(text.parse::<Spec>().map(|s| s.to_string()), Ok(text.into()));
        }
        let short: Spec = "rip:match=boom".parse().unwrap();
        assert_eq!(
            (short.what, short.point),
            (What::Rip(Wild::Null), Point::Calls(0))
        );
        assert_eq!(short.times, None);
        assert_eq!("abort:nth=3".parse::<Spec>().unwrap().times, Some(1));
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_the_reason() {
        for (bad, says) in [
            ("", "`` is no fault"),
            ("rip:", "which request"),
            ("rip:match=", "which request"),
            ("rip:after=1", "which request"),
            ("rip:match=x,after=y", "`after=y`: not a whole number"),
            ("rip:match=x,origin=moon", "neither timer nor internal"),
            ("rip:match=x,symbol=", "says not where"),
            ("rip:match=x,after=1,pages=2", "only one of"),
            ("rip:probability=2", "from 0 to 1"),
            ("rip:nth=0", "which request"),
            ("rip:at=soon", "not a duration"),
            ("hold:match=x,pages=1", "waits for the functions"),
            ("rsp:match=x", "`rsp` is no fault"),
            ("syscall=EWHAT:match=x", "no such error"),
        ] {
            let error = bad.parse::<Spec>().unwrap_err().to_string();
            assert!(error.contains(says), "{bad}: {error}");
        }
    }
}
