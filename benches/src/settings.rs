//! How much is measured.

use std::{path::PathBuf, time::Duration};

use serde::Serialize;

/// How much is measured.
#[derive(Clone, Debug, Serialize)]
pub struct Settings {
    /// Rounds asked for.
    pub rounds: u32,
    /// How long one server is under load in one round, without the warm-up.
    #[serde(skip)]
    pub load: Duration,
    /// No round starts that would end later than this after the first.
    #[serde(skip)]
    pub time_limit: Duration,
    /// Requests that crash the server, to measure the recovery pause.
    pub crashes: usize,
}

impl Settings {
    /// For figures that are worth writing down.
    pub fn full(rounds: u32, time_limit: u64) -> Self {
        Self {
            rounds,
            load: Duration::from_secs(4),
            time_limit: Duration::from_secs(time_limit),
            crashes: 200,
        }
    }

    /// Enough to see that everything works.
    pub fn quick() -> Self {
        Self {
            rounds: 1,
            load: Duration::from_secs(1),
            time_limit: Duration::from_secs(30),
            crashes: 20,
        }
    }
}

/// What the benchmark runs that is not found through `PATH`.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The monitor.
    pub vmsrs: PathBuf,
    /// Whether it was built from the working tree just now.
    pub built_here: bool,
}
