//! What one process of a server learns, all of them know: a client's second attempt may reach another worker.

use std::time::{Duration, Instant};

use super::{INPUT_LIMIT, Offenders, Site, Verdict};
use crate::broadcast::{Broadcast, Reader};
use crate::event::FaultKind;

/// Bytes of a message before its input: what has happened, the kind of the fault, the instruction.
const HEAD: usize = 16;

/// What the processes of a server tell each other about inputs.
pub type Lessons = Broadcast<64, { (HEAD + INPUT_LIMIT) / 8 }>;

/// The inputs that have crashed any process of the server.
#[derive(Debug)]
pub struct SharedOffenders {
    offenders: Offenders,
    reader: Reader,
}

impl SharedOffenders {
    /// None yet; each will be forgotten `keep_for` after its last crash, if that is limited.
    pub fn new(keep_for: Option<Duration>) -> SharedOffenders {
        SharedOffenders {
            offenders: Offenders::new(keep_for),
            reader: Reader::default(),
        }
    }

    /// What is known by now.
    pub fn known(&mut self, lessons: &Lessons, now: Instant) -> &mut Offenders {
        while let Some(message) = lessons.receive(&mut self.reader, now) {
            match decode(&message) {
                Some((Some(site), input)) => self.offenders.crashed(input, site, now),
                Some((None, input)) => self.offenders.succeeded(input, now),
                None => {}
            }
        }
        &mut self.offenders
    }

    /// See [`Offenders::arrived`].
    pub fn arrived(&mut self, lessons: &Lessons, input: &[u8], now: Instant) -> Verdict {
        self.known(lessons, now).arrived(input, now)
    }

    /// See [`Offenders::crashed`].
    pub fn crashed(&mut self, lessons: &Lessons, input: &[u8], site: Site, now: Instant) {
        if (1..=INPUT_LIMIT).contains(&input.len()) {
            lessons.send(&encode(Some(site), input));
        }
        self.known(lessons, now);
    }

    /// See [`Offenders::succeeded`].
    pub fn succeeded(&mut self, lessons: &Lessons, input: &[u8], now: Instant) {
        if self.known(lessons, now).is_accused(input) {
            lessons.send(&encode(None, input));
            self.known(lessons, now);
        }
    }
}

/// A crash at a site, or a success.
fn encode(crash: Option<Site>, input: &[u8]) -> Vec<u8> {
    let number = |kind| FaultKind::ALL.iter().position(|other| *other == kind);
    let kind = crash.and_then(|site| number(site.kind));
    let kind = kind.map_or(0, |number| number as u64 + 1);
    let mut message = Vec::with_capacity(HEAD + input.len());
    message.extend(kind.to_ne_bytes());
    message.extend(crash.map_or(0, |site| site.rip).to_ne_bytes());
    message.extend(input);
    message
}

fn decode(message: &[u8]) -> Option<(Option<Site>, &[u8])> {
    let (kind, rest) = message.split_first_chunk()?;
    let (rip, input) = rest.split_first_chunk()?;
    let rip = u64::from_ne_bytes(*rip);
    let site = match u64::from_ne_bytes(*kind) {
        0 => None,
        number => Some(Site {
            kind: *FaultKind::ALL.get(usize::try_from(number - 1).ok()?)?,
            rip,
        }),
    };
    Some((site, input))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As it is when a server begins: zero.
    fn lessons() -> Box<Lessons> {
        Lessons::new()
    }

    const SITE: Site = Site {
        kind: FaultKind::NullRead,
        rip: 7,
    };

    #[test]
    fn two_workers_that_crash_once_each_both_refuse() {
        let (lessons, now) = (lessons(), Instant::now());
        let hour = Some(Duration::from_secs(3600));
        let mut workers = [SharedOffenders::new(hour), SharedOffenders::new(hour)];
        for worker in &mut workers {
            assert_eq!(worker.arrived(&lessons, b"boom", now), Verdict::Deliver);
            worker.crashed(&lessons, b"boom", SITE, now);
        }
        for worker in &mut workers {
            let verdict = worker.arrived(&lessons, b"boom", now);
            assert!(matches!(verdict, Verdict::Refuse(refusal) if refusal.crashes == 2));
            assert_eq!(worker.arrived(&lessons, b"fine", now), Verdict::Deliver);
        }
        workers[0].succeeded(&lessons, b"boom", now);
        assert_eq!(workers[1].arrived(&lessons, b"boom", now), Verdict::Deliver);
    }

    #[test]
    fn the_longest_input_fits() {
        let (lessons, now) = (lessons(), Instant::now());
        let mut offenders = SharedOffenders::new(None);
        for _ in 0..2 {
            offenders.crashed(&lessons, &[1; INPUT_LIMIT], SITE, now);
        }
        let verdict = offenders.arrived(&lessons, &[1; INPUT_LIMIT], now);
        assert_ne!(verdict, Verdict::Deliver);
    }
}
