//! The property that matters most: after an abandoned request, every byte of the guest's writable
//! memory is what it was at the checkpoint, and so is what the kernel knows of the process.
//!
//! Random requests do everything that a server may do to its memory, and then crash. The seeds are a
//! fixed list and some new ones; `VMSRS_AUDIT_SEED` runs one seed alone, or all from one up to another (`5..900`),
//! however long that takes.

use std::{
    env, io,
    sync::atomic::{AtomicU64, Ordering},
    thread,
    time::{Duration, Instant, SystemTime},
};

use serde_json::Value;
use vmsrs_tests::{
    Launch, Monitored,
    audit::{self, CRASHES, Client, Ending, Healthy, Run, sets},
    free_port, guest, kvm_case,
    load::{Load, Random},
};

/// Variable with the only seed to run, or the first and the one behind the last.
const SEED: &str = "VMSRS_AUDIT_SEED";
const FIXED_SEEDS: u64 = 60;
const NEW_SEEDS: u64 = 20;
/// Longest time for the seeds of one test; a slow machine runs fewer of them.
const TIME: Duration = Duration::from_secs(20);
const PATIENCE: Duration = Duration::from_secs(20);
/// Operations in one request, at most.
const OPERATIONS: u64 = 25;

fn start(arguments: &[&str]) -> Monitored {
    start_with(&["--audit"], arguments)
}

fn start_with(options: &[&str], arguments: &[&str]) -> Monitored {
    let program = guest::server("random-server").unwrap();
    let port = free_port().unwrap();
    let mut command = vec![program.into_os_string()];
    command.extend(arguments.iter().map(Into::into));
    command.push(port.to_string().into());
    let launch = Launch::monitored(command).unwrap().options(options);
    launch.patience(PATIENCE).start(port).unwrap()
}

/// The seeds to run, in order.
fn seeds() -> Vec<u64> {
    if let Ok(seeds) = env::var(SEED) {
        let number = |text: &str| text.parse::<u64>().expect("a seed is a number");
        return match seeds.split_once("..") {
            Some((first, end)) => (number(first)..number(end)).collect(),
            None => vec![number(&seeds)],
        };
    }
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    let first = u64::from(now.unwrap().subsec_nanos()) << 8;
    (0..FIXED_SEEDS).chain(first..first + NEW_SEEDS).collect()
}

fn crash_of(random: &mut Random) -> Ending {
    Ending::Crash(CRASHES[random.below(CRASHES.len() as u64) as usize])
}

/// What one seed does to a server: requests that leave it in some state, then one that crashes.
/// Fails with what the crash has left behind.
fn leaves_no_trace(server: &Monitored, watcher: &mut Client, seed: u64) -> Result<(), String> {
    let text = |error: io::Error| error.to_string();
    let mut random = Random::new(seed);
    let mut builder = Client::connect(server.port(), PATIENCE).map_err(text)?;
    for set in [sets::UNDONE, sets::ALL] {
        let count = random.below(OPERATIONS) as u32;
        let end = Ending::Reply;
        let run = Run {
            seed: seed * 4,
            count,
            sets: set,
            end,
        };
        builder.run(run).map_err(text)?;
    }
    drop(builder);

    let before = watcher.state().map_err(text)?;
    let known = server.events().map_err(text)?.len();
    let mut crasher = Client::connect(server.port(), PATIENCE).map_err(text)?;
    let count = 1 + random.below(OPERATIONS) as u32;
    let run = Run {
        seed: seed * 4 + 1,
        count,
        sets: sets::UNDONE,
        end: crash_of(&mut random),
    };
    if random.below(3) == 0 {
        // What the monitor did for a wait is part of the checkpoint of what comes after it.
        let count = 1 + random.below(4) as u32;
        let prefix = Run {
            seed: seed * 4 + 2,
            count,
            sets: sets::BOUNDARY,
            end: Ending::Nothing,
        };
        crasher.send(prefix).map_err(text)?;
    }
    crasher.crash(run).map_err(text)?;
    let after = watcher.state().map_err(text)?;
    let names = watcher.names(run).map_err(text)?;

    let problem = |what: String| Err(format!("{what}\nafter {run}: {names}"));
    if let Some(difference) = audit::difference(&before, &after) {
        return problem(format!("the kernel's view has changed:\n{difference}"));
    }
    // A thread of the monitor's own writes them.
    let deadline = Instant::now() + PATIENCE;
    let mut events = server.events().map_err(text)?;
    while events.len() <= known && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(5));
        events = server.events().map_err(text)?;
    }
    match &events[known.min(events.len())..] {
        [event] if event.event == "recovered" => Ok(()),
        others => problem(format!("not recovered: {others:#?}")),
    }
}

/// Ends the server; its counters.
fn finish(mut server: Monitored) -> Value {
    let status = server.terminate().unwrap();
    assert_eq!(status.code(), Some(0), "{}", server.output_tail());
    let stats = server.stats().unwrap();
    assert_eq!(
        stats["audit"]["mismatches"],
        0,
        "memory differs from the checkpoint:\n{}",
        server.output_tail()
    );
    stats
}

#[test]
fn an_abandoned_request_leaves_no_trace() {
    kvm_case("an_abandoned_request_leaves_no_trace");
    leaves_no_trace_for(start(&[]), TIME);
}

/// Every write set is hidden and restored piece by piece.
#[test]
fn a_hidden_write_set_leaves_no_trace() {
    kvm_case("a_hidden_write_set_leaves_no_trace");
    let options = ["--audit", "--restore-at-once", "0"];
    leaves_no_trace_for(start_with(&options, &[]), TIME / 2);
}

fn leaves_no_trace_for(server: Monitored, time: Duration) {
    let mut watcher = Client::connect(server.port(), PATIENCE).unwrap();
    let begin = Instant::now();
    let mut crashes = 0;
    for seed in seeds() {
        if begin.elapsed() > time && env::var_os(SEED).is_none() {
            break;
        }
        crashes += 1;
        let reproduce = format!("{SEED}={seed}, or after the seeds before it");
        if let Err(problem) = leaves_no_trace(&server, &mut watcher, seed) {
            panic!("{reproduce}: {problem}");
        }
        let output = server.output();
        assert!(!output.contains("audit:"), "{reproduce}: {output}");
    }
    let stats = finish(server);
    println!("{crashes} crashes: {}", stats["domains"]);
    assert_eq!(stats["audit"]["checks"].as_u64(), Some(crashes));
}

#[test]
fn other_clients_of_a_threaded_server_notice_nothing() {
    kvm_case("other_clients_of_a_threaded_server_notice_nothing");
    const CRASHERS: u64 = 2;
    /// On a slow machine it takes longer.
    const ENOUGH: u64 = 20;
    let server = start(&["-t", "3", "-m", "4"]);
    let port = server.port();
    let load = Load::start::<Healthy>(port, 4, PATIENCE);
    let crashes = AtomicU64::new(0);
    let end = Instant::now() + TIME / 2;
    thread::scope(|scope| {
        for crasher in 0..CRASHERS {
            let crashes = &crashes;
            scope.spawn(move || {
                let mut random = Random::new(1000 + crasher);
                while Instant::now() < end || crashes.load(Ordering::Relaxed) < ENOUGH {
                    let run = Run {
                        seed: random.below(1 << 32),
                        count: random.below(OPERATIONS) as u32,
                        sets: sets::UNDONE,
                        end: crash_of(&mut random),
                    };
                    let done = Client::connect(port, PATIENCE).and_then(|c| c.crash(run));
                    if let Err(error) = done {
                        panic!("{run}: {error}");
                    }
                    crashes.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    let outcome = load.finish();
    assert_eq!(
        outcome.problems,
        Vec::<String>::new(),
        "{}",
        server.output_tail()
    );
    let events = server.events().unwrap();
    let stats = finish(server);
    println!(
        "{} requests, {:?} crashes: {}",
        outcome.requests, crashes, stats["domains"]
    );
    assert!(stats["audit"]["checks"].as_u64() >= Some(10));
    for event in events.iter().filter(|event| event.text("signal").is_some()) {
        // A thread that kept the others waiting was suspended, and says so.
        let suspended = event
            .text("reason")
            .is_some_and(|reason| reason.contains("suspended"));
        assert!(event.event == "recovered" || suspended, "{event:#?}");
    }
    assert!(outcome.requests > 0);
}
