//! Requests that wait in the middle, hold locks, and crash: `tests/programs/lock_server.c`, a thread for each
//! connection and tables that all of them share.

use std::{
    io::{self, BufRead, BufReader, Write},
    net::TcpStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{
    Launch, Monitored, free_port, guest, kvm_case,
    load::{HealthyClient, Load, Random, Surprise},
    net::{self, Address},
};

const PATIENCE: Duration = Duration::from_secs(30);
/// How long the storms last.
const STORM: Duration = Duration::from_secs(6);

fn start() -> Monitored {
    let program = guest::program("lock_server").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap();
    launch.patience(PATIENCE).start(port).unwrap()
}

/// A connection.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(port: u16) -> io::Result<Client> {
        Ok(Client(BufReader::new(net::connect(port, PATIENCE)?)))
    }

    fn send(&mut self, request: &str) -> io::Result<()> {
        self.0
            .get_mut()
            .write_all(format!("{request}\n").as_bytes())
    }

    fn reply(&mut self) -> io::Result<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line)? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            _ => Ok(line.trim_end().to_owned()),
        }
    }

    fn call(&mut self, request: &str) -> io::Result<String> {
        self.send(request)?;
        self.reply()
    }

    /// Makes a request that crashes. An error unless the connection is reset, without an answer.
    fn crash(mut self, request: &str) -> io::Result<()> {
        match self.call(request) {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
            Err(error) => Err(error),
            Ok(reply) => Err(io::Error::other(format!("{reply} to {request}"))),
        }
    }
}

/// A client that knows what every answer must be.
struct Healthy {
    client: Client,
    ident: usize,
}

impl Healthy {
    fn expect(&mut self, request: &str, reply: &str) -> Result<(), Surprise> {
        match self.client.call(request)? {
            got if got == reply => Ok(()),
            got => Err(format!("{got} instead of {reply} to {request}").into()),
        }
    }
}

impl HealthyClient for Healthy {
    fn connect(address: &Address, ident: usize, _: Duration) -> Result<Self, Surprise> {
        match address {
            Address::Tcp(port) => Ok(Self {
                client: Client::connect(*port)?,
                ident,
            }),
            Address::Unix(_) => Err("the lock server speaks TCP".into()),
        }
    }

    fn step(&mut self, random: &mut Random) -> Result<(), Surprise> {
        let number = random.below(1000);
        match random.below(5) {
            0 => self.expect(&format!("transfer {number}"), "ok"),
            1 => {
                // Keys that no crashing request uses.
                let key = 10_000 * (self.ident as u64 + 1) + number;
                self.expect(&format!("add {key}"), "ok")?;
                self.expect(&format!("remove {key}"), "1")
            }
            2 => self.expect(&format!("write {number}"), "ok"),
            3 => self.expect(&format!("read {number}"), "500"),
            _ => {
                let value = number % 100;
                self.expect(&format!("own {value}"), &value.to_string())?;
                self.expect("peek", &value.to_string())
            }
        }
    }

    fn check_all(&mut self) -> Result<(), Surprise> {
        self.expect("check", "ok")
    }
}

/// Keeps the bounded queue from staying full or empty, so that whoever waits for it goes on.
fn keep_level(port: u16, stop: &AtomicBool) -> io::Result<()> {
    let mut client = Client::connect(port)?;
    while !stop.load(Ordering::Relaxed) {
        match client.call("level")?.as_str() {
            "0" | "1" | "2" => drop(client.call("put 9")?),
            "6" | "7" | "8" => drop(client.call("take")?),
            _ => thread::sleep(Duration::from_millis(2)),
        }
    }
    Ok(())
}

/// Crashes `requests` in turn under load; every table has to pass its own check after each.
fn storm(requests: &[&str]) {
    let mut server = start();
    let port = server.port();
    let load = Load::start::<Healthy>(port, 4, PATIENCE);
    let stop = AtomicBool::new(false);
    let mut crashes = 0;
    thread::scope(|scope| {
        let level = scope.spawn(|| keep_level(port, &stop));
        let mut random = Random::new(7);
        let mut watcher = Client::connect(port).unwrap();
        let begin = Instant::now();
        while begin.elapsed() < STORM && load.is_well() {
            let request = requests[crashes % requests.len()];
            let request = format!("{request} {}", 1 + random.below(999));
            Client::connect(port).unwrap().crash(&request).unwrap();
            crashes += 1;
            assert_eq!(watcher.call("check").unwrap(), "ok", "after {request}");
        }
        stop.store(true, Ordering::Relaxed);
        level.join().unwrap().unwrap();
    });
    let outcome = load.finish();
    assert_eq!(outcome.problems, Vec::<String>::new());
    assert!(crashes >= requests.len(), "{crashes} crashes");
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let events = server.events().unwrap();
    let of = |kind: &str| events.iter().filter(|event| event.event == kind).count();
    let (recovered, degraded) = (of("recovered"), of("degraded"));
    println!(
        "{crashes} crashes, {recovered} recovered, {degraded} degraded, {} requests",
        outcome.requests
    );
    assert_eq!(recovered + degraded, crashes);
    let reasons = events.iter().filter(|event| event.event == "degraded");
    for reason in reasons.map(|event| event.text("reason").unwrap_or_default()) {
        assert!(reason.starts_with("while the request waited"), "{reason}");
    }
}

#[test]
fn a_request_that_crashes_with_a_mutex_leaves_it_free() {
    kvm_case("a_request_that_crashes_with_a_mutex_leaves_it_free");
    storm(&[
        "crash-transfer 0",
        "crash-transfer 5",
        "crash-add 0",
        "crash-add 20",
    ]);
}

#[test]
fn a_request_that_crashes_with_a_read_write_lock_leaves_it_free() {
    kvm_case("a_request_that_crashes_with_a_read_write_lock_leaves_it_free");
    storm(&[
        "crash-write 0",
        "crash-write 5",
        "crash-read 0",
        "crash-read 5",
    ]);
}

#[test]
fn a_request_that_waits_for_a_condition_and_crashes_leaves_it_working() {
    kvm_case("a_request_that_waits_for_a_condition_and_crashes_leaves_it_working");
    storm(&["crash-put 0", "crash-put 5", "crash-take 0", "crash-take 5"]);
}

#[test]
fn completed_work_that_others_have_built_on_stays() {
    kvm_case("completed_work_that_others_have_built_on_stays");
    storm(&[
        "die-add 20",
        "die-transfer 5",
        "die-write 5",
        "die-put 5",
        "die-take 5",
    ]);
}

#[test]
fn a_request_that_is_stopped_by_the_clock_in_a_critical_section_leaves_it_in_order() {
    kvm_case("a_request_that_is_stopped_by_the_clock_in_a_critical_section_leaves_it_in_order");
    storm(&["spin-transfer 150", "spin-write 150", "spin-add 150"]);
}

/// The only signal events of a server whose crashes were these.
fn outcomes(mut server: Monitored) -> Vec<(String, Option<String>)> {
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    let events = server.events().unwrap();
    let faults = events.iter().filter(|event| event.get("kind").is_some());
    faults
        .map(|event| (event.event.clone(), event.text("reason").map(str::to_owned)))
        .collect()
}

#[test]
fn what_nobody_touched_is_undone_as_a_whole() {
    kvm_case("what_nobody_touched_is_undone_as_a_whole");
    let server = start();
    let mut watcher = Client::connect(server.port()).unwrap();
    let mut crasher = Client::connect(server.port()).unwrap();
    // Its thread has started, and the others wait for requests.
    assert_eq!(crasher.call("check").unwrap(), "ok");
    assert_eq!(watcher.call("check").unwrap(), "ok");
    thread::sleep(Duration::from_millis(200));
    // Nobody else runs while it sleeps with the lock held and the transfer half done.
    crasher.crash("crash-transfer 200 33").unwrap();
    assert_eq!(watcher.call("check").unwrap(), "ok");
    assert_eq!(outcomes(server), [("recovered".to_owned(), None)]);
}

/// No writer has waited before, so that nothing but its shape tells the lock, and others hold it for reading too.
#[test]
fn a_read_lock_of_completed_work_is_released() {
    kvm_case("a_read_lock_of_completed_work_is_released");
    let server = start();
    let mut other = Client::connect(server.port()).unwrap();
    let crasher = Client::connect(server.port()).unwrap();
    assert_eq!(other.call("add 1").unwrap(), "ok");
    thread::scope(|scope| {
        let crash = scope.spawn(|| crasher.crash("within-add 300 2"));
        thread::sleep(Duration::from_millis(100));
        // They build on the list that it has added to.
        assert_eq!(other.call("add 3").unwrap(), "ok");
        assert_eq!(other.call("read 3").unwrap(), "500");
        crash.join().unwrap().unwrap();
    });
    assert_eq!(other.call("write 1").unwrap(), "ok");
    assert_eq!(other.call("check").unwrap(), "ok");
    let reason = "while the request waited others built on what it had written, which stays";
    assert_eq!(
        outcomes(server),
        [("degraded".to_owned(), Some(reason.to_owned()))]
    );
}

/// A transfer that sleeps with the lock held and the account number 1 changed, and crashes; meanwhile
/// another client makes this request. What became of the server.
fn during_a_transfer(request: &str, reply: &str) -> Vec<(String, Option<String>)> {
    let server = start();
    let port = server.port();
    let mut other = Client::connect(port).unwrap();
    assert_eq!(other.call("transfer 5").unwrap(), "ok");
    let crasher = thread::spawn(move || Client::connect(port)?.crash("crash-transfer 700 33"));
    thread::sleep(Duration::from_millis(250));
    assert_eq!(other.call(request).unwrap(), reply);
    crasher.join().unwrap().unwrap();
    assert_eq!(other.call("transfer 7").unwrap(), "ok");
    assert_eq!(other.call("check").unwrap(), "ok");
    outcomes(server)
}

/// They wait for the lock that the sleeping request holds, which lies next to what it has changed, and get it when that
/// has crashed: nobody has seen anything of it.
#[test]
fn what_others_were_kept_from_is_undone_as_a_whole() {
    kvm_case("what_others_were_kept_from_is_undone_as_a_whole");
    let outcomes = during_a_transfer("transfer 7", "ok");
    assert_eq!(outcomes, [("recovered".to_owned(), None)]);
}

#[test]
fn what_others_used_is_degraded_and_its_lock_is_released() {
    kvm_case("what_others_used_is_degraded_and_its_lock_is_released");
    let outcomes = during_a_transfer("glance 33", "ok");
    let [(event, Some(reason))] = &outcomes[..] else {
        panic!("{outcomes:?}");
    };
    assert_eq!(event, "degraded");
    assert!(reason.contains("others used"), "{reason}");
}
