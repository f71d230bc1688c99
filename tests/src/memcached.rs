//! Debian's `memcached` as a guest: how it is started, a client, and healthy load.

mod client;
mod healthy;

pub use client::Client;
pub use healthy::Healthy;

/// The command line of a `memcached` with `threads` worker threads on `port`. As root it needs a
/// user to become; `-u root` keeps it as it is, and means nothing otherwise.
pub fn command(port: u16, threads: usize) -> Vec<String> {
    let (port, threads) = (port.to_string(), threads.to_string());
    let args = [
        "memcached",
        "-l",
        "127.0.0.1",
        "-p",
        &port,
        "-U",
        "0",
        "-t",
        &threads,
        "-u",
        "root",
    ];
    args.map(str::to_owned).to_vec()
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use super::*;
    use crate::{Launch, free_port, load::Load};

    /// Native first: what the clients expect is what memcached does without the monitor.
    #[test]
    fn the_native_server_answers_as_the_models_say() {
        let port = free_port().unwrap();
        let mut server = Launch::native(command(port, 4)).start(port).unwrap();
        let load = Load::start::<Healthy>(port, 4, Duration::from_secs(10));
        thread::sleep(Duration::from_millis(300));
        let outcome = load.finish();
        assert!(
            outcome.problems.is_empty() && outcome.requests > 0,
            "{outcome:?}"
        );
        assert!(server.terminate().unwrap().success());
    }
}
