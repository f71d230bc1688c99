//! PostgreSQL under load from several clients: no client sees an error, and afterwards the database is sound, complete, and
//! the same after a restart.

use std::{
    fs,
    path::PathBuf,
    process::{Command, Output},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{Launch, Monitored, free_port, kvm_case, servers};

const PATIENCE: Duration = Duration::from_secs(30);
/// Seconds of each load; `VMSRS_PGBENCH_SECONDS` for more.
const SECONDS: &str = "3";

fn binaries() -> PathBuf {
    let versions = fs::read_dir("/usr/lib/postgresql").unwrap();
    versions.flatten().next().unwrap().path().join("bin")
}

/// Runs one of PostgreSQL's programs on the database of `port`.
fn client(port: u16, program: &str, args: &[&str]) -> Output {
    let mut command = Command::new(binaries().join(program));
    command.env("PGDATABASE", "postgres");
    command.args(["-h", "127.0.0.1", "-U", "postgres", "-p"]);
    command.arg(port.to_string()).args(args);
    command.output().unwrap()
}

fn checked(port: u16, program: &str, args: &[&str]) -> String {
    let output = client(port, program, args);
    let messages = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {messages}");
    assert!(
        !messages.contains("ERROR"),
        "{program} {args:?}: {messages}"
    );
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn start(database: &servers::Server) -> Monitored {
    let launch = Launch::monitored(&database.command).unwrap();
    let server = launch.patience(PATIENCE).start(database.port).unwrap();
    let begun = Instant::now();
    while !client(database.port, "pg_isready", &[]).status.success() {
        assert!(begun.elapsed() < PATIENCE, "{}", server.output_tail());
        thread::sleep(Duration::from_millis(50));
    }
    server
}

fn stop(mut server: Monitored, signal: i32) {
    server.signal(signal).unwrap();
    let ended = server.wait().unwrap();
    assert!(
        ended.is_some_and(|status| status.success()),
        "{}",
        server.output_tail()
    );
}

/// Transactions that a load of pgbench says were done.
fn done(report: &str) -> u64 {
    let line = report
        .lines()
        .find_map(|line| line.strip_prefix("number of transactions actually processed: "));
    let count = line.unwrap_or_else(|| panic!("{report}"));
    let count = count.split('/').next().unwrap_or(count);
    count.trim().parse().unwrap()
}

#[test]
fn what_clients_were_told_is_in_the_database() {
    kvm_case("what_clients_were_told_is_in_the_database");
    let port = free_port().unwrap();
    let database = (servers::recipe("postgresql").set_up)(port).unwrap();
    let script = database.dir.path().join("insert.sql");
    fs::write(&script, "insert into ext values (repeat('x', 3000));\n").unwrap();
    let script = script.display().to_string();
    let seconds = std::env::var("VMSRS_PGBENCH_SECONDS").unwrap_or_else(|_| SECONDS.into());
    let query = |query: &str| checked(port, "psql", &["-qtAc", query]);

    let server = start(&database);
    checked(port, "pgbench", &["-i", "-q", "-s", "1"]);
    query("create table ext(t text); alter table ext alter t set storage plain");
    let mut inserted = 0;
    for clients in ["2", "4", "8"] {
        let load = ["-n", "-c", clients, "-T", &seconds];
        let transfers = checked(port, "pgbench", &load);
        let inserts = checked(port, "pgbench", &[&load[..], &["-f", &script]].concat());
        inserted += done(&inserts);
        println!(
            "{clients} clients: {} and {}",
            done(&transfers),
            done(&inserts)
        );
    }
    assert_eq!(
        query("select count(*) from ext").trim(),
        inserted.to_string()
    );
    let sums = "select (select sum(abalance) from pgbench_accounts) = (select sum(tbalance) from pgbench_tellers) \
                and (select sum(tbalance) from pgbench_tellers) = (select sum(bbalance) from pgbench_branches) \
                and (select sum(delta) from pgbench_history) = (select sum(bbalance) from pgbench_branches)";
    assert_eq!(query(sums).trim(), "t");
    checked(
        port,
        "pg_amcheck",
        &["--install-missing", "--heapallindexed"],
    );
    // Each dump has a random key in it, in lines of its own.
    let dump = || {
        let text = checked(port, "pg_dump", &[]);
        let lines = text.lines().filter(|line| !line.contains("restrict "));
        lines.map(str::to_owned).collect::<Vec<String>>()
    };
    let before = dump();
    stop(server, database.stop);

    let server = start(&database);
    assert!(before == dump(), "the restart has changed the database");
    stop(server, database.stop);
}
