//! The columns of a table of counts, for every format.

use crate::campaign::{
    funnel::{Funnel, ServerFunnel},
    rate::Rate,
};

/// What the first column is called.
pub(super) const FIRST: &str = "class";

/// A column: its title, and what it shows.
pub(super) type Column = (&'static str, fn(&Funnel) -> String);

/// The columns after the first.
pub(super) const COLUMNS: [Column; 16] = [
    ("trials", |f| f.trials.to_string()),
    ("injected", |f| f.injected.to_string()),
    ("activated", |f| f.activated.to_string()),
    ("manifested", |f| f.manifested.to_string()),
    ("detected", |f| f.detected.to_string()),
    ("recovered", |f| f.recovered.to_string()),
    ("and correct", |f| f.correct.to_string()),
    ("degraded", |f| f.degraded.to_string()),
    ("escalated", |f| f.escalated.to_string()),
    ("undetected", |f| f.undetected.to_string()),
    ("latent", |f| f.latent.to_string()),
    ("dead", |f| f.dead.to_string()),
    ("survival", |f| f.survival.to_string()),
    ("with latent", |f| f.survival_with_latent.to_string()),
    ("silent corruption", |f| {
        Rate::new(f.silent, f.injected).counted()
    }),
    ("pause: median, p99", |f| {
        let pause = (f.pause.median_us, f.pause.p99_us);
        let (Some(median), Some(p99)) = pause else {
            return "–".to_owned();
        };
        format!("{median} µs, {p99} µs")
    }),
];

/// What the counts mean, for the reader of a table.
pub(super) const LEGEND: &str = "Manifested: without the monitor, the server died or hung. \
     Survival: recovered, and every healthy client saw what it should, of the manifested faults \
     that were detected before the struck request had ended; with latent: of all detected. \
     Silent corruption: wrong data of which the monitor said nothing, of all injected faults. \
     Ranges are 95 % Wilson intervals.";

/// The rows of the table of one server: each class, and all of them.
pub(super) fn rows(server: &ServerFunnel) -> impl Iterator<Item = (&str, &Funnel)> {
    let classes = server.classes.iter();
    let classes = classes.map(|class| (class.class.as_str(), &class.funnel));
    classes.chain([("total", &server.total)])
}
