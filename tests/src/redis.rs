//! Debian's `redis-server` as a guest: how it is started, a client, healthy load, and the scenario
//! that crashes it in every way Redis offers.

mod client;
mod crash;
mod healthy;

pub use client::{Client, Reply, encode};
pub use crash::{CrashScenario, Outcome};
pub use healthy::Healthy;

/// The command line of a `redis-server` on `port` that keeps nothing on disk and obeys `DEBUG`.
pub fn command(port: u16) -> Vec<String> {
    let port = port.to_string();
    let args = [
        "redis-server",
        "--port",
        &port,
        "--bind",
        "127.0.0.1",
        "--save",
        "",
    ];
    let rest = ["--appendonly", "no", "--enable-debug-command", "yes"];
    args.into_iter().chain(rest).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Launch, free_port};

    /// Native first: what the clients expect is what Redis does without the monitor.
    #[test]
    fn the_native_server_answers_as_the_models_say() {
        let port = free_port().unwrap();
        let server = Launch::native(command(port)).start(port).unwrap();
        let duration = Duration::from_millis(300);
        let scenario = CrashScenario {
            clients: 4,
            duration,
            crash: false,
            ..Default::default()
        };
        let outcome = scenario.run(server);
        assert!(outcome.is_good(), "{outcome}");
    }

    /// The scenario must not pass where nothing recovers.
    #[test]
    fn the_native_server_does_not_survive_a_crash() {
        let port = free_port().unwrap();
        let server = Launch::native(command(port)).start(port).unwrap();
        let duration = Duration::from_millis(300);
        let outcome = CrashScenario {
            clients: 4,
            duration,
            ..Default::default()
        }
        .run(server);
        // Its crash path tests memory first, and may still be at it when the scenario ends the server.
        let died =
            |problem: &String| problem.contains("ended by itself") || problem.contains("SIGSEGV");
        assert!(outcome.problems.iter().any(died), "{outcome}");
    }
}
