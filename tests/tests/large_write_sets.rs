//! Requests that write much: the pause does not grow with it, and what the shadow pages may take has a limit.

use std::{
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net, talk};

const PATIENCE: Duration = Duration::from_secs(60);

struct Server {
    server: Monitored,
    client: TcpStream,
    /// Crashes whose events were seen.
    crashes: usize,
}

impl Server {
    fn start(options: &[&str], mib: u32) -> Server {
        let port = free_port().unwrap();
        let program = guest::program("large_writes").unwrap();
        let command = [
            program.into_os_string(),
            port.to_string().into(),
            mib.to_string().into(),
        ];
        let launch = Launch::monitored(command).unwrap().options(options);
        let server = launch.patience(PATIENCE).start(port).unwrap();
        let client = net::connect(port, PATIENCE).unwrap();
        Server {
            server,
            client,
            crashes: 0,
        }
    }

    fn ask(&mut self, command: &str) -> String {
        talk::ask(&mut self.client, command)
    }

    /// A request that crashes; the outcome, and the reason if there is one.
    fn crash(&mut self, command: &str) -> (String, String) {
        talk::crash(self.server.port(), command, PATIENCE);
        // Events are written behind the server's back.
        let begin = Instant::now();
        loop {
            let events = self.server.events().unwrap();
            let mut faults = events.iter().filter(|e| e.text("signal").is_some());
            let known = faults.clone().count();
            if let Some(event) = faults.next_back().filter(|_| known > self.crashes) {
                self.crashes = known;
                let reason = event.text("reason").unwrap_or_default().to_owned();
                return (event.event.clone(), reason);
            }
            assert!(
                begin.elapsed() < PATIENCE,
                "no event: {}",
                self.server.output_tail()
            );
            thread::sleep(Duration::from_millis(10));
        }
    }

    fn resident_kib(&self) -> u64 {
        self.server.resident_kib().unwrap()
    }

    fn stats(mut self) -> serde_json::Value {
        assert!(
            self.server.terminate().is_ok(),
            "{}",
            self.server.output_tail()
        );
        self.server.stats().unwrap()
    }
}

#[test]
fn a_large_write_set_is_undone_behind_everybodys_back() {
    kvm_case("a_large_write_set_is_undone_behind_everybodys_back");
    let mut server = Server::start(&[], 64);
    // Some pages with content, the others still zero.
    assert_eq!(server.ask("fill 8 7"), "ok");
    let before = server.resident_kib();
    for _ in 0..3 {
        assert_eq!(server.crash("crash 64 9").0, "recovered");
        // The first touches come before the cleaner.
        assert_eq!(server.ask("word 0"), "7");
        assert_eq!(server.ask("word 9000"), "0");
        assert_eq!(server.ask("check 8 7"), "0");
    }
    assert_eq!(server.crash("eat 64 9").0, "recovered");
    // Nobody touches the rest: the cleaner gives the memory back.
    let begin = Instant::now();
    while server.resident_kib() > before + (16 << 10) {
        assert!(begin.elapsed() < PATIENCE, "{} KiB", server.resident_kib());
        thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(server.ask("check 8 7"), "0");
    assert_eq!(server.ask("check 64 9"), (64 * 256).to_string());
    let stats = server.stats();
    let restoration = &stats["restoration"];
    assert_eq!(restoration["postponed"], 4, "{stats}");
    assert_eq!(
        (&restoration["waiting"], &restoration["lost"]),
        (&0.into(), &0.into()),
        "{stats}"
    );
    assert!(restoration["by_cleaner"].as_u64() > Some(0), "{stats}");
    assert!(restoration["on_touch"].as_u64() > Some(0), "{stats}");
}

#[test]
fn over_the_shadow_limit_requests_succeed_and_it_is_told() {
    kvm_case("over_the_shadow_limit_requests_succeed_and_it_is_told");
    let mut server = Server::start(&["--shadow-limit", "2M"], 8);
    for value in 1..4 {
        // From the second round on every page needs a shadow, four times as many as there is room for.
        assert_eq!(server.ask(&format!("fill 8 {value}")), "ok");
        assert_eq!(server.ask(&format!("check 8 {value}")), "0");
    }
    let (outcome, reason) = server.crash("crash 4 9");
    assert_eq!(outcome, "degraded");
    assert!(reason.contains("shadow"), "{reason}");
    for _ in 0..8 {
        server.ask("word 0");
    }
    // The pressure is over: a small request can be undone again.
    let kept = server.ask("word 10");
    assert_eq!(server.crash("crash 1 5").0, "recovered");
    assert_eq!(server.ask("word 10"), kept);
    let events = server.server.events().unwrap();
    let told: Vec<&str> = events
        .iter()
        .map(|event| event.event.as_str())
        .filter(|event| event.starts_with("protection-"))
        .collect();
    assert!(told.len() >= 2 && told.len().is_multiple_of(2), "{told:?}");
    for pair in told.chunks(2) {
        assert_eq!(pair, ["protection-degraded", "protection-restored"]);
    }
    let stats = server.stats();
    assert!(
        stats["shadow_bytes_peak"].as_u64() <= Some(2 << 20),
        "{stats}"
    );
    assert!(stats["shadow_evicted"].as_u64() > Some(0), "{stats}");
    assert!(
        stats["domains"]["early_committed"]["shadow_limit"].as_u64() > Some(0),
        "{stats}"
    );
}
