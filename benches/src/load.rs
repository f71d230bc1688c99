//! The load that a server is put under, and what its clients saw.

mod memcached;
mod redis;

use std::time::Duration;

use serde::Serialize;

use crate::{Error, server::Service};

/// What the clients saw of one kind of request.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Operation {
    /// `SET`, `GET`, ...
    pub name: String,
    /// Requests per second.
    pub throughput: f64,
    /// Median latency in milliseconds.
    pub p50_ms: f64,
    /// 99th percentile of the latency in milliseconds.
    pub p99_ms: f64,
}

/// What the clients saw.
#[derive(Clone, Debug, Serialize)]
pub struct Outcome {
    /// By the kind of request.
    pub operations: Vec<Operation>,
    /// Requests answered, those of the warm-up included.
    pub served: u64,
}

/// Puts the server on `port` under load for about `duration`, after a warm-up.
pub fn run(service: Service, port: u16, duration: Duration) -> Result<Outcome, Error> {
    match service {
        Service::Redis => redis::run(port, duration),
        Service::Memcached => memcached::run(port, duration),
    }
}

/// What the clients of `service` do, for the reader.
pub fn description(service: Service) -> &'static str {
    match service {
        Service::Redis => "`redis-benchmark -t get,set -c 50`",
        Service::Memcached => memcached::DESCRIPTION,
    }
}
