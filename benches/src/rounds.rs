//! The rounds: in each, every server is measured in every variant, one after the other.

use std::time::{Duration, Instant};

use serde::Serialize;
use vmsrs_tests::interrupt;

use crate::{
    Error,
    counters::Counters,
    load,
    server::{Memory, Server, Service},
    settings::{Settings, Tools},
    variant::Variant,
};

/// One server in one variant in one round.
#[derive(Clone, Debug, Serialize)]
pub struct Sample {
    /// The round, from 0.
    pub round: u32,
    /// The server.
    pub service: Service,
    /// The variant.
    pub variant: Variant,
    /// Start-up times in milliseconds, of the server that stayed idle and of the one under load.
    pub startup_ms: [f64; 2],
    /// What the clients saw.
    pub outcome: load::Outcome,
    /// The processor time that the server used for a request, in microseconds.
    pub cpu_us_per_request: f64,
    /// Memory of the idle server.
    pub idle_memory: Memory,
    /// Memory at the end of the load.
    pub memory: Memory,
    /// The most that shadow pages took, in bytes.
    pub shadow_bytes: Option<u64>,
    /// What the load added to the monitor's counters.
    pub counters: Option<Counters>,
}

/// What came out of all rounds.
pub struct Measured {
    /// Rounds that were measured: fewer than asked for if the time was up.
    pub rounds: u32,
    /// All samples, in the order in which they were taken.
    pub samples: Vec<Sample>,
}

/// Measures round after round, for as long as the settings allow.
pub fn measure(settings: &Settings, tools: &Tools) -> Result<Measured, Error> {
    let begin = Instant::now();
    let (mut rounds, mut longest, mut samples) = (0, Duration::ZERO, Vec::new());
    while rounds < settings.rounds {
        if begin.elapsed() + longest > settings.time_limit {
            eprintln!("the time is up after {rounds} rounds");
            break;
        }
        let round_begin = Instant::now();
        for service in Service::ALL {
            for variant in Variant::ALL {
                interrupt::check()?;
                let what = format!(
                    "round {} of {}: {}, {}",
                    rounds + 1,
                    settings.rounds,
                    service.name(),
                    variant.label()
                );
                eprintln!("{what}");
                let sample = measure_one(service, variant, rounds, settings, tools)
                    .map_err(|e| format!("{what}: {e}"))?;
                samples.push(sample);
            }
        }
        rounds += 1;
        longest = longest.max(round_begin.elapsed());
    }
    Ok(Measured { rounds, samples })
}

fn measure_one(
    service: Service,
    variant: Variant,
    round: u32,
    settings: &Settings,
    tools: &Tools,
) -> Result<Sample, Error> {
    let mut idle = Server::start(service, variant, tools)?;
    let idle_memory = idle.memory()?;
    let idle_stats = idle.stop(variant)?;

    let mut server = Server::start(service, variant, tools)?;
    let cpu_before = server.cpu_time()?;
    let outcome = load::run(service, server.port(), settings.load)
        .map_err(|e| format!("{e}\nits output:\n{}", server.process().output_tail()))?;
    let cpu = server.cpu_time()?.saturating_sub(cpu_before);
    let memory = server.memory()?;
    let stats = server.stop(variant)?;

    let counters = idle_stats
        .zip(stats.as_ref())
        .map(|(idle, busy)| Counters::of(busy).since(&Counters::of(&idle)));
    Ok(Sample {
        round,
        service,
        variant,
        startup_ms: [idle.startup, server.startup].map(|d| d.as_secs_f64() * 1e3),
        cpu_us_per_request: cpu.as_secs_f64() * 1e6 / outcome.served as f64,
        outcome,
        idle_memory,
        memory,
        shadow_bytes: stats.and_then(|stats| stats["shadow_bytes_peak"].as_u64()),
        counters,
    })
}
