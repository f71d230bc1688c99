//! One page of a file in memory at two addresses, which is also written with `write`, and by others: a request that
//! crashes leaves nothing in it, and takes nothing from it that others have put there.
//!
//! The guest is `tests/programs/aliases.c`.

use std::{
    fs::{self, File, OpenOptions},
    io::{BufRead, BufReader, Write},
    net::TcpStream,
    os::unix::fs::FileExt,
    time::Duration,
};

use vmsrs_tests::{Launch, Monitored, free_port, guest, kvm_case, net};

const PATIENCE: Duration = Duration::from_secs(20);
const LEN: usize = 4 * 4096;

fn start() -> Monitored {
    let program = guest::program("aliases").unwrap_or_else(|error| panic!("{error}"));
    let port = free_port().unwrap();
    let command = [program.into_os_string(), port.to_string().into()];
    let launch = Launch::monitored(command).unwrap();
    let launch = launch.options(["--audit", "--restart", "off"]);
    launch.patience(PATIENCE).start(port).unwrap()
}

fn connect(server: &Monitored) -> BufReader<TcpStream> {
    BufReader::new(net::connect(server.port(), PATIENCE).unwrap())
}

/// The reply; nothing if the connection was reset.
fn ask(client: &mut BufReader<TcpStream>, line: &str) -> Option<String> {
    client.get_mut().write_all(line.as_bytes()).unwrap();
    let mut reply = String::new();
    client.read_line(&mut reply).ok().map(|_| reply)
}

/// xorshift: the same requests in every run.
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}

/// What the file has to hold, and the requests that lead to it.
struct Model {
    random: Random,
    content: Vec<u8>,
    crashed: usize,
}

impl Model {
    /// A request, and whether it crashes.
    fn request(&mut self, with_writes: bool) -> (String, bool) {
        let mut crashes = self.random.below(2) == 0;
        let mut line = String::new();
        let mut content = self.content.clone();
        for _ in 0..1 + self.random.below(5) {
            let kinds = if with_writes { b"aabbrw" } else { b"aabbra" };
            let kind = kinds[self.random.below(6) as usize];
            // Few bytes of each page, so that requests meet.
            let at = (self.random.below(4) * 4096 + self.random.below(3)) as usize;
            let value = self.random.below(256) as u8;
            line += &format!("{}{at}={value} ", char::from(kind));
            content[at] = value;
            if kind == b'w' {
                // The mappings show it at once, so it is real, and cannot be undone.
                crashes = false;
            }
        }
        if crashes {
            line += "crash";
            self.crashed += 1;
        } else {
            self.content = content;
        }
        (line, crashes)
    }

    fn run(&mut self, server: &Monitored, file: &File, with_writes: bool, count: usize) {
        let mut client = connect(server);
        for i in 0..count {
            let (line, crashes) = self.request(with_writes);
            match crashes {
                true => assert_eq!(ask(&mut connect(server), &line), None, "{i}: {line}"),
                false => assert_eq!(
                    ask(&mut client, &line).as_deref(),
                    Some("ok\n"),
                    "{i}: {line}"
                ),
            }
            let found = fs::read(server.cwd().join("shared")).unwrap();
            let differences: Vec<_> = (0..LEN)
                .filter(|at| found[*at] != self.content[*at])
                .map(|at| (at, found[at], self.content[at]))
                .collect();
            assert_eq!(differences, [], "{i}: {line}");
            if with_writes && self.random.below(3) == 0 {
                // Between two requests, somebody else.
                let at = (self.random.below(4) * 4096 + self.random.below(3)) as usize;
                let value = self.random.below(256) as u8;
                file.write_all_at(&[value], at as u64).unwrap();
                self.content[at] = value;
            }
        }
    }
}

fn check(with_writes: bool, seed: u64) {
    let mut server = start();
    let path = server.cwd().join("shared");
    let file = OpenOptions::new().write(true).open(path).unwrap();
    let mut model = Model {
        random: Random(seed),
        content: vec![0; LEN],
        crashed: 0,
    };
    model.run(&server, &file, with_writes, 300);
    server.terminate().unwrap();
    let stats = server.stats().unwrap();
    assert_eq!(server.events_of("degraded").unwrap().len(), 0);
    assert_eq!(stats["domains"]["abandoned"], model.crashed);
    assert_eq!(stats["audit"]["mismatches"], 0);
    // Pages have gone out of use and come back.
    assert!(
        stats["pages"]["reprotected"].as_u64() > Some(1),
        "{}",
        stats["pages"]
    );
}

#[test]
fn a_page_at_two_addresses_is_undone_as_one() {
    kvm_case("a_page_at_two_addresses_is_undone_as_one");
    check(false, 0x9e37_79b9_7f4a_7c15);
}

#[test]
fn what_is_written_to_a_mapped_file_is_not_taken_back() {
    kvm_case("what_is_written_to_a_mapped_file_is_not_taken_back");
    check(true, 0x2545_f491_4f6c_dd1d);
}
