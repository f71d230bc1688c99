//! Repeat offenders: inputs that have crashed the server before are refused before they reach it.
//!
//! A pure state machine over the exact bytes of an input: nothing is normalised, nothing is guessed, and only
//! inputs that can be kept whole are learned, so that a refusal is never about other bytes than those that
//! crashed. An input is refused once it has crashed the server [`CRASHES_TO_LEARN`] times at the same site,
//! with no success in between. It may be innocent all the same: what it tripped over may have been somebody
//! else's doing, and be gone by now. So now and then one is let through as a trial. If that ends well, the
//! input is cleared, and cannot be learned again until that is forgotten too.

mod shared;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use crate::event::FaultKind;

pub use self::shared::{Lessons, SharedOffenders};

/// Bytes of the longest input that can be learned.
pub const INPUT_LIMIT: usize = 4096;

/// Inputs that are remembered at most; past it, the one that was not seen for longest is forgotten.
pub const INPUTS_LIMIT: usize = 256;

/// Crashes of the same input at the same site before it is refused.
pub const CRASHES_TO_LEARN: u32 = 2;

/// How long an input is refused before the first trial; each failed trial doubles it.
pub const FIRST_TRIAL: Duration = Duration::from_secs(5);

/// The longest time between two trials.
pub const LAST_TRIAL: Duration = Duration::from_secs(300);

/// Refusals of one input are told at most this often.
pub const TELL_EVERY: Duration = Duration::from_secs(1);

/// Where an input has crashed the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Site {
    /// What went wrong.
    pub kind: FaultKind,
    /// The faulting instruction.
    pub rip: u64,
}

/// What becomes of an input that has arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// It is given to the server.
    Deliver,
    /// The server does not get to see it.
    Refuse(Refusal),
}

/// Why an input is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Refusal {
    /// Where it crashed the server.
    pub site: Site,
    /// How often it did.
    pub crashes: u32,
    /// If this is to be told: the refusals of this input since the last time it was, this one included.
    pub told: Option<u64>,
}

#[derive(Debug)]
enum Standing {
    /// It has crashed the server, but not often enough.
    Suspected { site: Site, crashes: u32 },
    /// It is refused.
    Refused {
        site: Site,
        crashes: u32,
        trial_at: Instant,
        trial_after: Duration,
        untold: u64,
        told_at: Option<Instant>,
    },
    /// It has ended well after it had crashed.
    Cleared,
}

#[derive(Debug)]
struct Input {
    standing: Standing,
    /// When it crashed or was cleared; it is forgotten some time after that.
    since: Instant,
    /// When it was last seen in any way.
    seen: Instant,
}

/// The inputs that have crashed the server.
#[derive(Debug)]
pub struct Offenders {
    keep_for: Option<Duration>,
    /// The map's hash is keyed at random, so nobody can choose inputs that collide.
    inputs: HashMap<Box<[u8]>, Input>,
    /// How many inputs there are of each length: what cannot be in the map is not hashed.
    lengths: Box<[u16; INPUT_LIMIT + 1]>,
}

impl Offenders {
    /// None yet; each will be forgotten `keep_for` after its last crash, if that is limited.
    pub fn new(keep_for: Option<Duration>) -> Offenders {
        Offenders {
            keep_for,
            inputs: HashMap::new(),
            lengths: Box::new([0; INPUT_LIMIT + 1]),
        }
    }

    /// Whether there is nothing to look for.
    pub fn is_empty(&self) -> bool {
        self.inputs.is_empty()
    }

    /// Whether more bytes after `start` could make it an input that is refused.
    pub fn may_begin(&self, start: &[u8]) -> bool {
        let refused = |input: &Input| matches!(input.standing, Standing::Refused { .. });
        start.len() < INPUT_LIMIT
            && self.inputs.iter().any(|(bytes, input)| {
                bytes.len() > start.len() && bytes.starts_with(start) && refused(input)
            })
    }

    /// `input` has arrived for the server.
    pub fn arrived(&mut self, input: &[u8], now: Instant) -> Verdict {
        if !self.has_length(input) {
            return Verdict::Deliver;
        }
        self.expire(input, now);
        let Some(known) = self.inputs.get_mut(input) else {
            return Verdict::Deliver;
        };
        known.seen = now;
        let Standing::Refused {
            site,
            crashes,
            trial_at,
            trial_after,
            untold,
            told_at,
        } = &mut known.standing
        else {
            return Verdict::Deliver;
        };
        if now >= *trial_at {
            *trial_after = (*trial_after * 2).min(LAST_TRIAL);
            *trial_at = now + *trial_after;
            return Verdict::Deliver;
        }
        *untold = untold.saturating_add(1);
        let due = told_at.is_none_or(|at| now.saturating_duration_since(at) >= TELL_EVERY);
        let told = due.then(|| {
            *told_at = Some(now);
            std::mem::take(untold)
        });
        Verdict::Refuse(Refusal {
            site: *site,
            crashes: *crashes,
            told,
        })
    }

    /// A request that had received `input`, and nothing else, crashed at `site`.
    pub fn crashed(&mut self, input: &[u8], site: Site, now: Instant) {
        if input.is_empty() || input.len() > INPUT_LIMIT {
            return;
        }
        self.expire(input, now);
        let Some(known) = self.inputs.get_mut(input) else {
            self.make_room(now);
            let standing = Standing::Suspected { site, crashes: 1 };
            self.lengths[input.len()] += 1;
            self.inputs.insert(
                input.into(),
                Input {
                    standing,
                    since: now,
                    seen: now,
                },
            );
            return;
        };
        known.seen = now;
        match &mut known.standing {
            Standing::Suspected {
                site: last,
                crashes,
            } if *last == site => {
                *crashes += 1;
                if *crashes >= CRASHES_TO_LEARN {
                    known.standing = Standing::Refused {
                        site,
                        crashes: *crashes,
                        trial_at: now + FIRST_TRIAL,
                        trial_after: FIRST_TRIAL,
                        untold: 0,
                        told_at: None,
                    };
                }
            }
            Standing::Suspected {
                site: last,
                crashes,
            } => (*last, *crashes) = (site, 1),
            // A failed trial.
            Standing::Refused {
                site: last,
                crashes,
                ..
            } => (*last, *crashes) = (site, crashes.saturating_add(1)),
            Standing::Cleared => return,
        }
        known.since = now;
    }

    /// A request that had received `input`, and nothing else, ended well.
    pub fn succeeded(&mut self, input: &[u8], now: Instant) {
        if !self.has_length(input) {
            return;
        }
        self.expire(input, now);
        if let Some(known) = self.inputs.get_mut(input) {
            if !matches!(known.standing, Standing::Cleared) {
                known.standing = Standing::Cleared;
                known.since = now;
            }
            known.seen = now;
        }
    }

    /// Whether it matters that `input` ended well.
    fn is_accused(&self, input: &[u8]) -> bool {
        let known = self.inputs.get(input);
        known.is_some_and(|known| !matches!(known.standing, Standing::Cleared))
    }

    fn has_length(&self, input: &[u8]) -> bool {
        self.lengths.get(input.len()).is_some_and(|n| *n > 0)
    }

    fn is_old(&self, known: &Input, now: Instant) -> bool {
        let age = now.saturating_duration_since(known.since);
        self.keep_for.is_some_and(|keep_for| age >= keep_for)
    }

    fn expire(&mut self, input: &[u8], now: Instant) {
        let old = |known: &Input| self.is_old(known, now);
        if self.inputs.get(input).is_some_and(old) {
            self.remove(input);
        }
    }

    fn make_room(&mut self, now: Instant) {
        if self.inputs.len() < INPUTS_LIMIT {
            return;
        }
        // One that has expired has also not been seen for long, or its expiry is still to be noticed.
        let key = |known: &Input| (!self.is_old(known, now), known.seen);
        let first = self.inputs.iter().min_by_key(|(_, known)| key(known));
        if let Some(bytes) = first.map(|(bytes, _)| bytes.clone()) {
            self.remove(&bytes);
        }
    }

    fn remove(&mut self, input: &[u8]) {
        if self.inputs.remove(input).is_some() {
            self.lengths[input.len()] -= 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn site(rip: u64) -> Site {
        Site {
            kind: FaultKind::NullRead,
            rip,
        }
    }

    fn is_refused(offenders: &mut Offenders, input: &[u8], now: Instant) -> bool {
        offenders.arrived(input, now) != Verdict::Deliver
    }

    /// One that refuses `input`.
    fn learned(input: &[u8], now: Instant) -> Offenders {
        let mut offenders = Offenders::new(Some(HOUR));
        for _ in 0..CRASHES_TO_LEARN {
            offenders.crashed(input, site(1), now);
        }
        offenders
    }

    #[test]
    fn the_second_crash_at_the_same_site_teaches() {
        let now = Instant::now();
        let mut offenders = Offenders::new(Some(HOUR));
        assert!(!is_refused(&mut offenders, b"boom", now));
        offenders.crashed(b"boom", site(1), now);
        assert!(!is_refused(&mut offenders, b"boom", now));
        offenders.crashed(b"boom", site(2), now);
        assert!(!is_refused(&mut offenders, b"boom", now), "another site");
        offenders.crashed(b"boom", site(2), now);
        let refusal = Refusal {
            site: site(2),
            crashes: 2,
            told: Some(1),
        };
        assert_eq!(offenders.arrived(b"boom", now), Verdict::Refuse(refusal));
        for other in [&b"boo"[..], b"boom ", b"Boom", b"", &[b'x'; 5000]] {
            assert!(!is_refused(&mut offenders, other, now), "{other:?}");
        }
    }

    #[test]
    fn what_cannot_be_kept_whole_is_not_learned() {
        let now = Instant::now();
        let longest = [b'x'; INPUT_LIMIT];
        assert!(is_refused(&mut learned(&longest, now), &longest, now));
        let longer = [b'x'; INPUT_LIMIT + 1];
        assert!(!is_refused(&mut learned(&longer, now), &longer, now));
        assert!(learned(b"", now).is_empty());
    }

    #[test]
    fn a_success_clears_and_the_cleared_cannot_be_learned() {
        let now = Instant::now();
        let mut offenders = Offenders::new(Some(HOUR));
        offenders.crashed(b"exec", site(1), now);
        offenders.succeeded(b"exec", now);
        for _ in 0..5 {
            offenders.crashed(b"exec", site(1), now);
        }
        assert!(!is_refused(&mut offenders, b"exec", now));
        // Until that is forgotten too.
        let later = now + HOUR;
        offenders.crashed(b"exec", site(1), later);
        offenders.crashed(b"exec", site(1), later);
        assert!(is_refused(&mut offenders, b"exec", later));
    }

    #[test]
    fn trials_come_ever_later_and_end_with_a_success() {
        let start = Instant::now();
        let mut offenders = learned(b"boom", start);
        let mut now = start;
        let mut after = FIRST_TRIAL;
        for _ in 0..8 {
            assert!(is_refused(
                &mut offenders,
                b"boom",
                now + after - Duration::from_millis(1)
            ));
            now += after;
            assert!(
                !is_refused(&mut offenders, b"boom", now),
                "a trial after {after:?}"
            );
            offenders.crashed(b"boom", site(1), now);
            assert!(is_refused(&mut offenders, b"boom", now));
            after = (after * 2).min(LAST_TRIAL);
        }
        now += after;
        assert!(!is_refused(&mut offenders, b"boom", now));
        offenders.succeeded(b"boom", now);
        assert!(!is_refused(&mut offenders, b"boom", now));
    }

    #[test]
    fn it_is_forgotten_some_time_after_its_last_crash() {
        let now = Instant::now();
        let mut offenders = Offenders::new(Some(Duration::from_secs(3)));
        offenders.crashed(b"boom", site(1), now);
        offenders.crashed(b"boom", site(1), now + Duration::from_secs(2));
        let almost = now + Duration::from_millis(4999);
        assert!(is_refused(&mut offenders, b"boom", almost));
        assert!(!is_refused(
            &mut offenders,
            b"boom",
            now + Duration::from_secs(5)
        ));
        assert!(offenders.is_empty());
        assert_eq!(offenders.lengths[4], 0);
    }

    #[test]
    fn without_a_limit_it_is_never_forgotten() {
        let now = Instant::now();
        let mut offenders = Offenders::new(None);
        offenders.crashed(b"boom", site(1), now);
        let later = now + 10_000 * HOUR;
        offenders.crashed(b"boom", site(1), later);
        assert!(is_refused(&mut offenders, b"boom", later));
    }

    #[test]
    fn refusals_are_told_once_a_second() {
        let now = Instant::now();
        let mut offenders = learned(b"boom", now);
        let mut told = |at: Duration| match offenders.arrived(b"boom", now + at) {
            Verdict::Refuse(refusal) => refusal.told,
            Verdict::Deliver => panic!("delivered"),
        };
        assert_eq!(told(Duration::ZERO), Some(1));
        for i in 1..100 {
            assert_eq!(told(Duration::from_millis(i)), None);
        }
        assert_eq!(told(TELL_EVERY), Some(100));
    }

    #[test]
    fn the_start_of_a_refused_input_is_known() {
        let now = Instant::now();
        let offenders = learned(b"boom", now);
        assert!(offenders.may_begin(b"bo") && offenders.may_begin(b""));
        assert!(!offenders.may_begin(b"boom") && !offenders.may_begin(b"ba"));
    }

    #[test]
    fn a_flood_of_others_makes_room_for_itself() {
        let now = Instant::now();
        let mut offenders = learned(b"boom", now);
        for i in 0..10_000u32 {
            let at = now + Duration::from_micros(u64::from(i));
            offenders.crashed(&i.to_ne_bytes().repeat(2), site(1), at);
            // Those that are still seen stay.
            assert!(is_refused(&mut offenders, b"boom", at), "{i}");
        }
        assert_eq!(offenders.inputs.len(), INPUTS_LIMIT);
    }

    /// What the model keeps of an input: crashes at the same site in a row, and whether it was cleared.
    #[derive(Default)]
    struct Model {
        site: u64,
        in_a_row: u32,
        cleared: bool,
    }

    proptest! {
        /// Nothing is refused that has not crashed twice in a row at one site, or that has ended well since.
        #[test]
        fn nothing_innocent_is_refused(
            steps in prop::collection::vec((0u8..3, 0u8..4, 0u64..2), 0..200),
        ) {
            let now = Instant::now();
            let mut offenders = Offenders::new(Some(HOUR));
            let mut models: [Model; 4] = Default::default();
            for (step, input, rip) in steps {
                let model = &mut models[usize::from(input)];
                let bytes = vec![input; usize::from(input) % 2 + 1];
                match step {
                    0 => {
                        offenders.crashed(&bytes, site(rip), now);
                        // Once refused, later sites do not matter.
                        if model.in_a_row < CRASHES_TO_LEARN && model.site != rip {
                            model.in_a_row = 0;
                        }
                        model.site = rip;
                        model.in_a_row += 1;
                    }
                    1 => {
                        offenders.succeeded(&bytes, now);
                        model.cleared |= model.in_a_row > 0;
                    }
                    _ => {}
                }
                let guilty = model.in_a_row >= CRASHES_TO_LEARN && !model.cleared;
                prop_assert_eq!(is_refused(&mut offenders, &bytes, now), guilty);
            }
        }

        /// The table and the count by length stay in step, and bounded.
        #[test]
        fn the_table_is_bounded(inputs in prop::collection::vec((1usize..40, any::<u8>(), 0u64..5), 0..1500)) {
            let start = Instant::now();
            let mut offenders = Offenders::new(Some(Duration::from_millis(700)));
            for (n, (len, byte, rip)) in inputs.into_iter().enumerate() {
                let now = start + Duration::from_millis(n as u64);
                offenders.crashed(&vec![byte; len], site(rip), now);
                offenders.arrived(&vec![byte; len / 2], now);
            }
            prop_assert!(offenders.inputs.len() <= INPUTS_LIMIT);
            let counted: usize = offenders.lengths.iter().map(|n| usize::from(*n)).sum();
            prop_assert_eq!(counted, offenders.inputs.len());
        }
    }
}
