//! Every system call whose effects the table says can be undone: a request that makes it and then crashes
//! leaves nothing of it in the state that the kernel reports.
//!
//! The guest, `tests/guest/effects-server`, knows one or more ways to make each call. Each is made twice: by
//! a request that crashes, after which the state has to be what it was, and by one that ends well, after
//! which it has to be another, so that the first check cannot pass for want of an effect.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, BufRead, BufReader, Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use guest_agentless::{
    ioctl,
    syscall::{Effect, Support, table},
};
use vmsrs_tests::{Launch, Monitored, audit, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);

/// A connection to the guest.
struct Client(BufReader<TcpStream>);

impl Client {
    fn connect(server: &Monitored) -> Client {
        Client(BufReader::new(
            net::connect(server.port(), PATIENCE).unwrap(),
        ))
    }

    fn send(&mut self, line: &str) {
        self.0.get_mut().write_all(line.as_bytes()).unwrap();
    }

    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    fn text(&mut self, request: &str) -> String {
        self.send(request);
        let len = self.line().unwrap().parse().unwrap();
        let mut text = vec![0; len];
        self.0.read_exact(&mut text).unwrap();
        String::from_utf8_lossy(&text).into_owned()
    }

    /// The state but for the connections of the test itself.
    fn state(&mut self) -> String {
        self.text("STATE")
    }
}

/// One way to make a call.
struct Case {
    call: String,
    variant: String,
    visible: bool,
}

fn cases(client: &mut Client) -> Vec<Case> {
    let list = client.text("LIST");
    let case = |line: &str| {
        let mut words = line.split(' ').map(str::to_owned);
        let mut next = || words.next().expect("a name, a variant, flags");
        Case {
            call: next(),
            variant: next(),
            visible: next() == "0",
        }
    };
    list.lines().map(case).collect()
}

fn start() -> Monitored {
    let program = guest::server_with_fixtures("effects-server").unwrap();
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap();
    // The image of a restart would keep files open that the guest has closed.
    let launch = launch.patience(PATIENCE).options(["--restart", "off"]);
    launch.start(port).unwrap()
}

/// The monitor's own descriptors, which are above all that the guest has.
fn own_descriptors(server: &Monitored) -> usize {
    let names = fs::read_dir(format!("/proc/{}/fd", server.pid())).unwrap();
    let numbers =
        names.filter_map(|entry| entry.unwrap().file_name().to_str()?.parse::<u32>().ok());
    numbers.filter(|number| *number > 1000).count()
}

/// The calls of the table whose effects are undone.
fn undone() -> BTreeSet<&'static str> {
    let rows = table::AREAS.iter().flat_map(|area| area.rows);
    rows.filter(|row| row.support != Support::Refused)
        .filter(|row| {
            matches!(
                row.effect,
                Effect::Held
                    | Effect::Deferred
                    | Effect::Compensated
                    | Effect::DeferredWrite
                    | Effect::Consuming
            )
        })
        .map(|row| row.name)
        .collect()
}

/// The requests of `ioctl` whose effects are undone: each has a variant of its name.
fn undone_requests() -> Vec<String> {
    let rows = ioctl::GROUPS.iter().flat_map(|group| group.rows);
    rows.filter(|row| row.effect == Effect::Compensated)
        .map(|row| row.name.to_lowercase())
        .collect()
}

#[test]
fn every_call_that_can_be_undone_is_undone() {
    kvm_case("every_call_that_can_be_undone_is_undone");
    let mut server = start();
    let mut watcher = Client::connect(&server);
    let cases = cases(&mut watcher);
    let covered: BTreeSet<&str> = cases.iter().map(|case| case.call.as_str()).collect();
    let missing: Vec<_> = undone()
        .into_iter()
        .filter(|name| !covered.contains(name))
        .collect();
    assert!(missing.is_empty(), "calls without a case: {missing:?}");
    let has_case = |name: &String| {
        let mut requests = cases.iter().filter(|case| case.call == "ioctl");
        requests.any(|case| case.variant == *name)
    };
    let requests = undone_requests();
    let missing: Vec<_> = requests.iter().filter(|name| !has_case(name)).collect();
    assert!(missing.is_empty(), "requests without a case: {missing:?}");

    let mut problems = Vec::new();
    let mut before = watcher.state();
    let own = own_descriptors(&server);
    assert!(own > 0);
    for Case {
        call,
        variant,
        visible,
    } in &cases
    {
        let known = server.events().unwrap().len();
        let mut crasher = Client::connect(&server);
        crasher.send(&format!("CALL {call} {variant} crash"));
        match crasher.line() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionReset => {}
            other => problems.push(format!("{call} {variant}: {other:?} instead of a reset")),
        }
        let after = watcher.state();
        if let Some(difference) = audit::difference(&before, &after) {
            problems.push(format!("{call} {variant} is not undone:\n{difference}"));
        }
        let deadline = Instant::now() + PATIENCE;
        let mut events = server.events().unwrap();
        while events.len() <= known && Instant::now() < deadline {
            thread::sleep(Duration::from_millis(5));
            events = server.events().unwrap();
        }
        match &events[known.min(events.len())..] {
            [event] if event.event == "recovered" => {}
            others => problems.push(format!("{call} {variant}: {others:#?}")),
        }
        watcher.send(&format!("CALL {call} {variant} reply"));
        match watcher.line() {
            Ok(reply) if reply == "ok" => {}
            other => problems.push(format!("{call} {variant}: {other:?}")),
        }
        before = watcher.state();
        if *visible && before == after {
            problems.push(format!("{call} {variant} changes nothing"));
        }
    }
    // The ends of the last connections are seen to for a while.
    let deadline = Instant::now() + PATIENCE;
    while own_descriptors(&server) > own && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(50));
    }
    assert!(
        own_descriptors(&server) <= own,
        "the monitor leaks descriptors"
    );
    let status = server.terminate().unwrap();
    let stats = server.stats().unwrap();
    println!("{} cases of {} calls, {status}", cases.len(), covered.len());
    assert!(problems.is_empty(), "{}", problems.join("\n"));
    assert_eq!(stats["domains"]["abandoned"], cases.len());
    assert!(cases.len() > 100);
}
