//! Following a host clock with a line over the TSC: pure arithmetic, no clock is read here.
//!
//! A [`Track`] estimates the clock's rate from points (TSC, nanoseconds). [`Track::steer`] says how the
//! next [`Line`] has to run to meet the clock at the next update, starting from where the present line
//! is, so that the published time is continuous.

/// Nanoseconds in a second.
pub(super) const NSEC_PER_SEC: u64 = 1_000_000_000;

/// A rate is nanoseconds per tick with this many fractional bits (`CLOCK_MULT_SHIFT` in the C header).
pub(super) const MULT_SHIFT: u32 = 48;

/// A line further behind the clock than this jumps (the machine was suspended or migrated) instead of
/// running faster.
const JUMP_NS: i64 = 1_000_000;

/// Correction of the rate, as a share of it: 1/64 closes a gap of `JUMP_NS` in some 64 ms.
const MAX_FASTER: u64 = 64;
/// A line that is ahead cannot jump back; it runs at half the rate at the slowest.
const MAX_SLOWER: u64 = 2;

/// A new point this close to its prediction belongs to the same rate: the noise of reading it.
const AGREE_NS: u64 = 200;

/// NTP changes the rate by less than 1/1024 (it may slew by 500 ppm, twice): a larger change is a jump
/// of the TSC or of the clock, not a rate.
const MAX_RATE_CHANGE: u64 = 1024;

/// A host clock's value at a TSC value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Point {
    pub(super) tsc: u64,
    pub(super) ns: u64,
}

/// `base_ns` at `tsc_base`, going on at `mult`. The vDSO computes the same.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Line {
    pub(super) tsc_base: u64,
    pub(super) base_ns: u64,
    pub(super) mult: u64,
}

impl Line {
    /// The value at `tsc`; `base_ns` before the line's start.
    pub(super) fn at(&self, tsc: u64) -> u64 {
        let ticks = tsc.wrapping_sub(self.tsc_base);
        if ticks as i64 <= 0 {
            self.base_ns
        } else {
            self.base_ns.wrapping_add(ticks_to_ns(ticks, self.mult))
        }
    }

    /// The line that continues this one at `tsc`.
    pub(super) fn switch(&self, tsc: u64, steering: Steering) -> Self {
        Self {
            tsc_base: tsc,
            base_ns: self.at(tsc).wrapping_add(steering.jump_ns),
            mult: steering.mult,
        }
    }
}

/// How the next line runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Steering {
    pub(super) mult: u64,
    /// Forward, at its start.
    pub(super) jump_ns: u64,
}

fn ticks_to_ns(ticks: u64, mult: u64) -> u64 {
    ((u128::from(ticks) * u128::from(mult)) >> MULT_SHIFT) as u64
}

/// How many ticks `ns` nanoseconds take at `mult`, at least 1.
pub(super) fn ns_to_ticks(ns: u64, mult: u64) -> u64 {
    let ticks = (u128::from(ns) << MULT_SHIFT) / u128::from(mult.max(1));
    u64::try_from(ticks).unwrap_or(u64::MAX).max(1)
}

/// The rate between two points; None unless both the TSC and the clock advanced.
fn rate(from: Point, to: Point) -> Option<u64> {
    let ticks = to.tsc.checked_sub(from.tsc).filter(|&ticks| ticks > 0)?;
    let ns = to.ns.checked_sub(from.ns).filter(|&ns| ns > 0)?;
    u64::try_from((u128::from(ns) << MULT_SHIFT) / u128::from(ticks)).ok()
}

/// True if NTP could make the one rate the other.
fn similar(rate: u64, other: u64) -> bool {
    rate.abs_diff(other) <= other / MAX_RATE_CHANGE
}

/// The estimate of one clock's rate, over a window that grows as long as the clock keeps its rate.
#[derive(Clone, Copy, Debug)]
pub(super) struct Track {
    start: Point,
    last: Point,
    mult: u64,
    /// The rate that the last point would have meant, if it was refused as a discontinuity.
    refused: Option<u64>,
}

impl Track {
    /// From two points; None if the clock or the TSC did not advance between them.
    pub(super) fn new(first: Point, second: Point) -> Option<Self> {
        let mult = rate(first, second)?;
        Some(Self {
            start: first,
            last: second,
            mult,
            refused: None,
        })
    }

    /// From one point and a rate that is known from elsewhere.
    pub(super) fn resume(point: Point, mult: u64) -> Self {
        Self {
            start: point,
            last: point,
            mult,
            refused: None,
        }
    }

    pub(super) fn mult(&self) -> u64 {
        self.mult
    }

    /// Takes a new point into the estimate.
    pub(super) fn observe(&mut self, point: Point) {
        let expected = Line {
            tsc_base: self.last.tsc,
            base_ns: self.last.ns,
            mult: self.mult,
        }
        .at(point.tsc);
        let recent = rate(self.last, point);
        let refused = self.refused.take();
        match recent {
            Some(recent) if similar(recent, self.mult) => {
                if expected.abs_diff(point.ns) > AGREE_NS {
                    // The host's rate has changed since the last point, at the latest.
                    self.start = self.last;
                }
                self.mult = rate(self.start, point).unwrap_or(recent);
            }
            // Twice in a row the same: then it was the estimate that was wrong.
            Some(recent) if refused.is_some_and(|refused| similar(recent, refused)) => {
                self.start = self.last;
                self.mult = recent;
            }
            // A discontinuity: the window starts at its far side, with the rate as it was.
            _ => {
                self.start = point;
                self.refused = recent;
            }
        }
        self.last = point;
    }

    /// How to continue `line` so that it meets the clock `horizon` ticks after the last point.
    pub(super) fn steer(&self, line: &Line, horizon: u64) -> Steering {
        // Signed: the clocks differ by little, whatever their absolute values.
        let behind_ns = self.last.ns.wrapping_sub(line.at(self.last.tsc)) as i64;
        if behind_ns > JUMP_NS {
            return Steering {
                mult: self.mult,
                jump_ns: behind_ns as u64,
            };
        }
        let correction =
            (u128::from(behind_ns.unsigned_abs()) << MULT_SHIFT) / u128::from(horizon.max(1));
        let correction = u64::try_from(correction).unwrap_or(u64::MAX);
        let mult = if behind_ns >= 0 {
            self.mult
                .saturating_add(correction.min(self.mult / MAX_FASTER))
        } else {
            self.mult - correction.min(self.mult / MAX_SLOWER)
        };
        Steering { mult, jump_ns: 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// 2.5 GHz.
    const TICKS_PER_SEC: u64 = 2_500_000_000;
    const MULT: u64 = (2 << MULT_SHIFT) / 5;

    fn seconds(n: u64, ns_per_sec: u64) -> Point {
        Point {
            tsc: 1_000_000 + n * TICKS_PER_SEC,
            ns: 5_000 + n * ns_per_sec,
        }
    }

    #[test]
    fn rate_of_two_points() {
        let track = Track::new(seconds(0, NSEC_PER_SEC), seconds(1, NSEC_PER_SEC)).unwrap();
        assert_eq!(track.mult(), MULT);
        assert!(Track::new(seconds(1, NSEC_PER_SEC), seconds(1, NSEC_PER_SEC)).is_none());
        assert_eq!(
            ns_to_ticks(NSEC_PER_SEC, (1 << MULT_SHIFT) / 4),
            4 * NSEC_PER_SEC
        );
    }

    #[test]
    fn line_starts_at_its_base() {
        let line = Line {
            tsc_base: 1000,
            base_ns: 77,
            mult: 1 << MULT_SHIFT,
        };
        assert_eq!(line.at(900), 77);
        assert_eq!(line.at(1000), 77);
        assert_eq!(line.at(1010), 87);
    }

    #[test]
    fn a_new_rate_restarts_the_window_and_a_jump_does_not_change_the_rate() {
        let mut track = Track::new(seconds(0, NSEC_PER_SEC), seconds(10, NSEC_PER_SEC)).unwrap();
        // 100 ppm faster from here on.
        let after = |n: u64| Point {
            tsc: seconds(10 + n, 0).tsc,
            ns: seconds(10, NSEC_PER_SEC).ns + n * 1_000_100_000,
        };
        track.observe(after(1));
        let faster = MULT + MULT / 10_000;
        assert!(
            track.mult().abs_diff(faster) <= MULT / 1_000_000_000,
            "{}",
            track.mult()
        );
        // The TSC jumps by an hour: no rate in that.
        track.observe(Point {
            tsc: after(2).tsc + 3600 * TICKS_PER_SEC,
            ns: after(2).ns,
        });
        assert!(track.mult().abs_diff(faster) <= MULT / 1_000_000_000);
        // The TSC starts again from zero.
        track.observe(Point {
            tsc: 10,
            ns: after(3).ns,
        });
        assert!(track.mult().abs_diff(faster) <= MULT / 1_000_000_000);
        track.observe(Point {
            tsc: 10 + TICKS_PER_SEC,
            ns: after(4).ns,
        });
        assert!(track.mult().abs_diff(faster) <= MULT / 1_000_000_000);
    }

    #[test]
    fn a_wrong_first_rate_is_found_out() {
        let mut track = Track::resume(seconds(0, NSEC_PER_SEC), MULT + MULT / 100);
        for n in 1..4 {
            track.observe(seconds(n, NSEC_PER_SEC));
        }
        assert_eq!(track.mult(), MULT);
    }

    #[test]
    fn steering_meets_the_clock_at_the_horizon() {
        let track = Track::new(seconds(0, NSEC_PER_SEC), seconds(1, NSEC_PER_SEC)).unwrap();
        let now = seconds(1, NSEC_PER_SEC);
        let horizon = TICKS_PER_SEC / 10;
        for error in [-40_000i64, -3, 0, 7, 900_000] {
            let line = Line {
                tsc_base: now.tsc,
                base_ns: now.ns.wrapping_add_signed(error),
                mult: MULT,
            };
            let next = line.switch(now.tsc, track.steer(&line, horizon));
            assert_eq!(next.at(now.tsc), line.at(now.tsc));
            assert!(
                next.at(now.tsc + horizon)
                    .abs_diff(now.ns + NSEC_PER_SEC / 10)
                    <= 1,
                "error {error}"
            );
        }
    }

    #[test]
    fn far_behind_jumps_and_far_ahead_slows_down() {
        let track = Track::new(seconds(0, NSEC_PER_SEC), seconds(1, NSEC_PER_SEC)).unwrap();
        let now = seconds(1, NSEC_PER_SEC);
        let behind = Line {
            tsc_base: now.tsc,
            base_ns: now.ns - 80_000_000,
            mult: MULT,
        };
        assert_eq!(
            track.steer(&behind, 1000),
            Steering {
                mult: MULT,
                jump_ns: 80_000_000
            }
        );
        let ahead = Line {
            tsc_base: now.tsc,
            base_ns: now.ns + 80_000_000,
            mult: MULT,
        };
        assert_eq!(
            track.steer(&ahead, 1000),
            Steering {
                mult: MULT - MULT / 2,
                jump_ns: 0
            }
        );
    }

    #[test]
    fn switching_never_steps_back() {
        // Uneven rates and errors: the value at each switch is at least the old line's.
        let mut line = Line {
            tsc_base: 0,
            base_ns: 0,
            mult: MULT,
        };
        let mut track = Track::resume(Point { tsc: 0, ns: 0 }, MULT);
        let mut point = Point { tsc: 0, ns: 0 };
        for step in 1..2000u64 {
            let ticks = 10_000 + step.wrapping_mul(2_654_435_761) % 400_000_000;
            let noise = step.wrapping_mul(40_503) % 150;
            point = Point {
                tsc: point.tsc + ticks,
                ns: point.ns + ticks_to_ns(ticks, MULT + (step % 7) * (MULT / 20_000)),
            };
            track.observe(Point {
                ns: point.ns + noise,
                ..point
            });
            let at = point.tsc + step % 5000;
            let next = line.switch(at, track.steer(&line, TICKS_PER_SEC / 10));
            assert!(next.at(at) >= line.at(at));
            assert!(next.mult > 0);
            line = next;
        }
    }
}
