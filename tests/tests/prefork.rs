//! Several processes, one truth: what one process of a server has told a client is what every other process and every file
//! says afterwards, with and without crashes. `tests/programs/prefork_order.c` keeps each fact in two places.
//!
//! `VMSRS_PREFORK_SEED=N` runs with one seed.

use std::{
    collections::BTreeMap,
    env,
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    path::Path,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(30);
const CLIENTS: u64 = 4;
const OBJECTS: u64 = 12;
/// Steps after which a request can crash; from the last one on its answer may have left.
const STEPS: u64 = 6;
const TIME: Duration = Duration::from_secs(3);

/// A small generator: the seed says everything.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> Client {
        Client(BufReader::new(net::connect(port, PATIENCE).unwrap()))
    }

    /// The line that is answered, or nothing if the connection ends.
    fn ask(&mut self, request: &str) -> Option<String> {
        self.0.get_mut().write_all(request.as_bytes()).ok()?;
        let mut line = String::new();
        self.0.read_line(&mut line).ok()?;
        line.ends_with('\n').then(|| line.trim().to_owned())
    }
}

/// What clients know of one run.
#[derive(Default)]
struct Known {
    /// The numbers that were answered, by object.
    numbers: BTreeMap<u64, Vec<u64>>,
    crashes: usize,
}

/// Asks for `TIME`; one request in `crash_one_in` crashes.
fn load(port: u16, mut random: Random, crash_one_in: Option<u64>, known: &Mutex<Known>) {
    let begun = Instant::now();
    let mut client = Client::connect(port);
    while begun.elapsed() < TIME {
        let object = random.below(OBJECTS);
        let crash = match crash_one_in {
            Some(limit) if random.below(limit) == 0 => 1 + random.below(STEPS),
            _ => 0,
        };
        let answer = client.ask(&format!("{object} {crash}\n"));
        match (&answer, crash) {
            (Some(answer), 0 | STEPS) => {
                let number = answer.parse().unwrap_or_else(|_| panic!("{answer}"));
                let mut known = known.lock().unwrap();
                known.numbers.entry(object).or_default().push(number);
            }
            (None, 1..) => {}
            other => panic!("object {object}: {other:?}"),
        }
        if crash != 0 {
            known.lock().unwrap().crashes += 1;
            client = Client::connect(port);
        }
    }
}

fn run(directory: &Path, seed: u64, crash_one_in: Option<u64>) {
    let port = free_port().unwrap();
    let program = guest::program("prefork_order").unwrap();
    let mut args = vec![program.into_os_string()];
    args.extend([port.to_string(), CLIENTS.to_string(), seed.to_string()].map(Into::into));
    args.push(directory.as_os_str().to_owned());
    args.extend(crash_one_in.map(|_| "undoable".into()));
    let mut server = Launch::monitored(args).unwrap().start(port).unwrap();
    let known = Mutex::new(Known::default());
    thread::scope(|scope| {
        for number in 1..=CLIENTS {
            let random = Random(seed * 1000 + number);
            let known = &known;
            scope.spawn(move || load(port, random, crash_one_in, known));
        }
    });
    let known = known.into_inner().unwrap();
    let counts = Client::connect(port).ask("-1 0\n").unwrap();
    let counts: Vec<u64> = counts.split(' ').map(|n| n.parse().unwrap()).collect();
    let mut total = 0;
    for (object, count) in counts.iter().enumerate() {
        let numbers = known.numbers.get(&(object as u64));
        let mut numbers = numbers.cloned().unwrap_or_default();
        numbers.sort_unstable();
        let all: Vec<u64> = (0..*count).collect();
        assert_eq!(numbers, all, "seed {seed}, object {object}");
        total += count;
    }
    let recovered = server.await_events("recovered", known.crashes).unwrap();
    assert_eq!(recovered.len(), known.crashes, "seed {seed}");
    let worse = ["degraded", "escalated", "restarted"];
    let events = server.events().unwrap();
    let worse = events.iter().find(|e| worse.contains(&e.event.as_str()));
    assert!(worse.is_none(), "seed {seed}: {worse:?}");
    println!("seed {seed}: {total} answers, {} crashes", known.crashes);
    assert!(server.terminate().is_ok(), "{}", server.output_tail());
}

fn seeds(crash_one_in: Option<u64>) {
    let given = env::var("VMSRS_PREFORK_SEED").ok();
    let given = given.map(|seed| vec![seed.parse().unwrap()]);
    let now = std::process::id().into();
    for seed in given.unwrap_or_else(|| vec![1, 2, now]) {
        let directory = tempfile::tempdir().unwrap();
        println!("VMSRS_PREFORK_SEED={seed}");
        run(directory.path(), seed, crash_one_in);
    }
}

#[test]
fn what_one_process_has_answered_is_what_all_others_find() {
    kvm_case("what_one_process_has_answered_is_what_all_others_find");
    seeds(None);
}

#[test]
fn crashes_are_undone_before_any_other_process_sees_them() {
    kvm_case("crashes_are_undone_before_any_other_process_sees_them");
    seeds(Some(20));
}
