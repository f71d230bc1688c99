//! The recovery pause: one client crashes Redis again and again while another uses it.
//!
//! The user has one request under way at all times, so every crash delays one of its requests.
//! Which one, tell the clocks: the slowest of those that were under way between the moment the
//! crashing request was sent and the moment its connection was reset.

use std::{
    io,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;
use vmsrs_tests::{
    interrupt, net,
    redis::{Client, Reply, encode},
};

use crate::{
    Error,
    server::{PATIENCE, Server, Service},
    settings::{Settings, Tools},
    spread::quantile,
    variant::Variant,
};

/// Before and after each crash, so that a request of the user meets the crash and nothing else.
const BREATH: Duration = Duration::from_millis(10);

/// How long something took, in microseconds, over all crashes or requests.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Times {
    /// How many there were.
    pub count: usize,
    /// The median.
    pub median_us: u64,
    /// The 99th percentile.
    pub p99_us: u64,
    /// The longest.
    pub max_us: u64,
}

impl Times {
    fn of(mut micros: Vec<u64>) -> Option<Self> {
        micros.sort_unstable();
        Some(Self {
            count: micros.len(),
            median_us: quantile(&micros, 0.5)?,
            p99_us: quantile(&micros, 0.99)?,
            max_us: *micros.last()?,
        })
    }
}

/// What recovery costs.
#[derive(Clone, Debug, Serialize)]
pub struct Recovery {
    /// Crashes that were reported as `recovered`.
    pub recovered: usize,
    /// Crashes that were reported as `degraded` or `escalated`.
    pub not_recovered: usize,
    /// The pause that the monitor reports.
    pub pause: Times,
    /// From sending the crashing request to the reset of its connection.
    pub reset: Times,
    /// The user's requests that a crash delayed.
    pub delayed: Times,
    /// The user's other requests.
    pub undisturbed: Times,
    /// Which way this KVM enters the `syscall` stub, from the `started` event.
    pub entry_path: Option<String>,
}

/// Something that began and ended.
type Span = (Instant, Instant);

/// Crashes Redis as often as the settings say.
pub fn measure(settings: &Settings, tools: &Tools) -> Result<Recovery, Error> {
    eprintln!("recovery: {} crashes of redis-server", settings.crashes);
    let variant = Variant::ProtectOn;
    let mut server = Server::start(Service::Redis, variant, tools)?;
    let port = server.port();
    let done = AtomicBool::new(false);
    let (crashes, requests) = thread::scope(|scope| {
        let user = scope.spawn(|| use_until(port, &done));
        let crashes = crash(port, settings.crashes);
        done.store(true, Ordering::Relaxed);
        let requests = user.join().map_err(|_| "the user's thread panicked")?;
        let requests = requests.map_err(|e| format!("another client noticed a crash: {e}"));
        Ok::<_, Error>((crashes?, requests?))
    })
    .map_err(|e| format!("{e}\nits output:\n{}", server.process().output_tail()))?;
    server.stop(variant)?;

    let (delayed, undisturbed) = split(&crashes, &requests);
    let events = server.process().events()?;
    let of = |kind: &str| events.iter().filter(|e| e.event == kind).count();
    let pauses = events.iter().filter(|event| event.event == "recovered");
    let pauses = pauses.filter_map(|event| event.number("pause_us"));
    let times = |name: &str, micros: Vec<u64>| {
        Times::of(micros).ok_or_else(|| format!("no measurement of {name}"))
    };
    Ok(Recovery {
        recovered: of("recovered"),
        not_recovered: of("degraded") + of("escalated"),
        pause: times("the recovery pause", pauses.collect())?,
        reset: times("the reset", crashes.iter().map(micros).collect())?,
        delayed: times("a delayed request", delayed)?,
        undisturbed: times("an undisturbed request", undisturbed)?,
        entry_path: events
            .iter()
            .find_map(|event| event.text("entry_path"))
            .map(str::to_owned),
    })
}

/// The user: one request after the other.
fn use_until(port: u16, done: &AtomicBool) -> io::Result<Vec<Span>> {
    let mut client = Client::connect(port, PATIENCE)?;
    client.call(&["SET", "key", "value"])?;
    let mut requests = Vec::new();
    while !done.load(Ordering::Relaxed) {
        let begin = Instant::now();
        let reply = client.call(&["GET", "key"])?;
        requests.push((begin, Instant::now()));
        if reply != Reply::Bulk(b"value".to_vec()) {
            return Err(io::Error::other(format!("wrong reply: {reply:?}")));
        }
    }
    Ok(requests)
}

fn crash(port: u16, times: usize) -> Result<Vec<Span>, Error> {
    let mut crashes = Vec::new();
    for _ in 0..times {
        interrupt::check()?;
        let mut client = Client::connect(port, PATIENCE)?;
        client.call(&["PING"])?;
        // To accept a connection delays the user too, and more than a crash does.
        thread::sleep(BREATH);
        let begin = Instant::now();
        client.send(&encode(&["DEBUG", "SEGFAULT"]))?;
        match client.reply() {
            Err(error) if net::is_disconnect(&error) => crashes.push((begin, Instant::now())),
            Err(error) => return Err(format!("a crashing request: {error}").into()),
            Ok(reply) => return Err(format!("a crashing request got a reply: {reply:?}").into()),
        }
        thread::sleep(BREATH);
    }
    Ok(crashes)
}

/// The slowest request that was under way during each crash, and all requests that met no crash,
/// in microseconds. Both lists are sorted by time, and within each nothing overlaps.
fn split(crashes: &[Span], requests: &[Span]) -> (Vec<u64>, Vec<u64>) {
    let (mut delayed, mut undisturbed) = (Vec::new(), Vec::new());
    let mut requests = requests.iter().peekable();
    for crash in crashes {
        while let Some(request) = requests.next_if(|request| request.1 < crash.0) {
            undisturbed.push(micros(request));
        }
        let mut slowest = None;
        while let Some(request) = requests.next_if(|request| request.0 <= crash.1) {
            slowest = slowest.max(Some(micros(request)));
        }
        delayed.extend(slowest);
    }
    undisturbed.extend(requests.map(micros));
    (delayed, undisturbed)
}

fn micros(span: &Span) -> u64 {
    let micros = span.1.duration_since(span.0).as_micros();
    micros.try_into().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_crash_delays_the_slowest_request_under_way() {
        let zero = Instant::now();
        let spans = |list: &[(u64, u64)]| -> Vec<Span> {
            let at = |us| zero + Duration::from_micros(us);
            list.iter().map(|(a, b)| (at(*a), at(*b))).collect()
        };
        let crashes = spans(&[(100, 200), (400, 410)]);
        let requests = spans(&[
            (0, 50),
            (60, 110),
            (120, 190),
            (195, 205),
            (210, 390),
            (395, 500),
            (510, 517),
        ]);
        let (delayed, undisturbed) = split(&crashes, &requests);
        assert_eq!(delayed, [70, 105]);
        assert_eq!(undisturbed, [50, 180, 7]);
    }

    #[test]
    fn times_of_nothing_are_not_known() {
        assert!(Times::of(Vec::new()).is_none());
        let times = Times::of(vec![3, 1, 2]).unwrap();
        assert_eq!((times.count, times.median_us, times.max_us), (3, 2, 3));
    }
}
