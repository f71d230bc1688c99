//! The thread that keeps a clock page current.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use super::host;
use super::page::{Birth, Coarse, Mapping, Published};
use super::track::{Line, Track, ns_to_ticks};

/// Time between updates: doubles from the first to the last, because the first rates are rough.
const FIRST_UPDATE: Duration = Duration::from_millis(2);
const LAST_UPDATE: Duration = Duration::from_millis(100);

/// What a page starts from: the rates, and the lines as published.
#[derive(Debug)]
pub(super) struct Calibration {
    mono: Track,
    raw: Track,
    published: Published,
}

impl Calibration {
    /// From the page's making to now. A clock that stood still for that long (none does) gets the nominal
    /// rate of one nanosecond per tick and is steered from there.
    pub(super) fn first(birth: Birth) -> Self {
        let mono_now = host::point(libc::CLOCK_MONOTONIC);
        let raw_now = host::point(libc::CLOCK_MONOTONIC_RAW);
        let track = |from, to| {
            Track::new(from, to).unwrap_or_else(|| Track::resume(to, 1 << super::track::MULT_SHIFT))
        };
        let mono = track(birth.mono, mono_now);
        let raw = track(birth.raw, raw_now);
        let line = |point: super::track::Point, track: &Track| Line {
            tsc_base: point.tsc,
            base_ns: point.ns,
            mult: track.mult(),
        };
        let tick = host::clock_ns(libc::CLOCK_MONOTONIC_COARSE);
        let published = Published {
            mono: line(mono_now, &mono),
            raw: line(raw_now, &raw),
            realtime_offset: host::offset_bounds(libc::CLOCK_REALTIME).middle(),
            boottime_offset: host::offset_bounds(libc::CLOCK_BOOTTIME).middle(),
            tai_offset: host::offset_bounds(libc::CLOCK_TAI).middle(),
            coarse: Coarse {
                anchor_ns: tick,
                floor_ns: tick,
                step_ns: host::resolution_ns(libc::CLOCK_MONOTONIC_COARSE),
            },
            resolution_ns: host::resolution_ns(libc::CLOCK_MONOTONIC),
        };
        Self {
            mono,
            raw,
            published,
        }
    }

    /// Publishes lines that continue the last ones and meet the host's clocks after `horizon`.
    pub(super) fn publish(&mut self, page: &Mapping, horizon: Duration) {
        let horizon = ns_to_ticks(
            u64::try_from(horizon.as_nanos()).unwrap_or(u64::MAX),
            self.mono.mult(),
        );
        let mono = self.mono.steer(&self.published.mono, horizon);
        let raw = self.raw.steer(&self.published.raw, horizon);
        let old = self.published;
        let tick = host::clock_ns(libc::CLOCK_MONOTONIC_COARSE);
        let realtime_offset = host::offset_bounds(libc::CLOCK_REALTIME).refine(old.realtime_offset);
        let boottime_offset = host::offset_bounds(libc::CLOCK_BOOTTIME).refine(old.boottime_offset);
        let tai_offset = host::offset_bounds(libc::CLOCK_TAI).refine(old.tai_offset);
        let published = &mut self.published;
        page.publish(|tsc| {
            *published = Published {
                mono: old.mono.switch(tsc, mono),
                raw: old.raw.switch(tsc, raw),
                realtime_offset,
                boottime_offset,
                tai_offset,
                coarse: Coarse {
                    anchor_ns: tick,
                    floor_ns: old.coarse.at(old.mono.at(tsc)),
                    ..old.coarse
                },
                ..old
            };
            *published
        });
    }

    /// Takes new points of the host's clocks into the rates.
    pub(super) fn observe(&mut self) {
        self.mono.observe(host::point(libc::CLOCK_MONOTONIC));
        self.raw.observe(host::point(libc::CLOCK_MONOTONIC_RAW));
    }
}

/// The running thread; stopped and joined on drop.
#[derive(Debug)]
pub(super) struct Keeper {
    thread: Option<JoinHandle<()>>,
    /// Nothing is ever sent: closing it is the signal.
    stop: Option<Sender<()>>,
}

impl Keeper {
    /// Publishes the first lines, then starts the thread. There must be no other keeper of the page.
    pub(super) fn start(page: Arc<Mapping>, mut calibration: Calibration) -> io::Result<Self> {
        calibration.publish(&page, FIRST_UPDATE);
        let (stop, stopped) = mpsc::channel();
        let thread = crate::host::with_signals_blocked(|| {
            thread::Builder::new()
                .name("vmsrs-clock".into())
                .spawn(move || keep(&page, calibration, &stopped))
        })?;
        Ok(Self {
            thread: Some(thread),
            stop: Some(stop),
        })
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            // It does not panic, and if it did its message has been printed.
            let _ = thread.join();
        }
    }
}

fn keep(page: &Mapping, mut calibration: Calibration, stopped: &Receiver<()>) {
    let mut interval = FIRST_UPDATE;
    while stopped.recv_timeout(interval) == Err(RecvTimeoutError::Timeout) {
        interval = (interval * 2).min(LAST_UPDATE);
        calibration.observe();
        calibration.publish(page, interval);
    }
}
