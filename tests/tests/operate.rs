//! What an operator sees without asking, and where it is kept: lines on standard error, events and reports of servers
//! that are started, rotated and limited as operators do.

use std::{
    fs,
    io::{Read, Write},
    path::Path,
    process::Command,
    thread,
    time::Duration,
};

use vmsrs_tests::{
    Launch, Monitored, event, free_port, kvm_case, net,
    redis::{self, Client, encode},
    run,
};

const PATIENCE: Duration = Duration::from_secs(20);

/// Sends a command that resets its connection.
fn crash(port: u16, command: &[&str]) {
    let mut stream = net::connect(port, PATIENCE).unwrap();
    stream.write_all(&encode(command)).unwrap();
    let error = stream.read(&mut [0; 16]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);
}

/// The monitor's own lines of that level.
fn lines(server: &Monitored, level: &str) -> Vec<String> {
    let output = server.output();
    let own = output
        .lines()
        .filter(|line| line.starts_with(&format!("[{level}")));
    own.map(str::to_owned).collect()
}

#[test]
fn each_new_fault_is_one_line_and_a_refused_exit_names_the_option() {
    kvm_case("each_new_fault_is_one_line_and_a_refused_exit_names_the_option");
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    for _ in 0..3 {
        crash(port, &["DEBUG", "SEGFAULT"]);
    }
    server.await_events("recovered", 3).unwrap();
    let warnings = lines(&server, "WARN");
    assert_eq!(warnings.len(), 1, "{warnings:#?}");
    assert!(warnings[0].contains("SIGSEGV") && warnings[0].contains("debugCommand"));
    assert!(warnings[0].contains("lost: this connection"));

    for _ in 0..3 {
        crash(port, &["SHUTDOWN", "NOSAVE"]);
        thread::sleep(Duration::from_millis(50));
    }
    server.await_events("recovered", 6).unwrap();
    let begun = std::time::Instant::now();
    while lines(&server, "WARN").len() < 2 && begun.elapsed() < PATIENCE {
        thread::sleep(Duration::from_millis(20));
    }
    let warnings = lines(&server, "WARN");
    assert!(warnings.len() >= 2, "{warnings:#?}");
    assert!(
        warnings[1..]
            .iter()
            .all(|line| line.contains("--allow-exit"))
    );
    let exits: Vec<_> = server.events_of("recovered").unwrap();
    let exits = exits
        .iter()
        .filter(|event| event.text("kind") == Some("exit"));
    let mut reports: Vec<_> = exits
        .map(|event| event.text("report").unwrap().to_owned())
        .collect();
    assert_eq!(reports.len(), 3);
    reports.dedup();
    assert_eq!(reports.len(), 1, "one report says it all");
    assert_eq!(server.terminate().unwrap().code(), Some(0));
    assert_eq!(lines(&server, "ERROR"), Vec::<String>::new());
}

#[test]
fn a_restart_in_place_is_an_error_that_says_what_was_lost() {
    kvm_case("a_restart_in_place_is_an_error_that_says_what_was_lost");
    // Its log is the standard error that is a file here: that is no file that a restart would contradict.
    let port = free_port().unwrap();
    let mut command = redis::command(port);
    command.extend(["--logfile", "/dev/stderr"].map(str::to_owned));
    let launch = Launch::monitored(command).unwrap();
    let launch = launch.options(["--inject", "rip:match=strike-me,origin=timer,times=2"]);
    let mut server = launch.start(port).unwrap();
    let mut client = Client::connect(port, PATIENCE).unwrap();
    assert!(client.call(&["DEBUG", "LOG", "a line"]).unwrap().is_ok());
    assert!(client.call(&["SET", "mark", "strike-me"]).unwrap().is_ok());
    let restarted = server.await_events("restarted", 1).unwrap();
    assert_eq!(restarted.len(), 1, "{:#?}", server.events());
    assert!(restarted[0].text("lost_since").is_some());
    let errors = lines(&server, "ERROR");
    assert_eq!(errors.len(), 1, "{errors:#?}");
    assert!(errors[0].contains("restarted in place") && errors[0].contains("lost: everything"));
    assert!(server.terminate().is_ok());
}

#[test]
fn a_server_that_is_given_up_says_so() {
    kvm_case("a_server_that_is_given_up_says_so");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let options = [
        "--restart",
        "off",
        "--inject",
        "rip:match=strike-me,origin=timer,times=2",
    ];
    let mut server = launch.options(options).start(port).unwrap();
    let mut client = Client::connect(port, PATIENCE).unwrap();
    assert!(client.call(&["SET", "mark", "strike-me"]).unwrap().is_ok());
    server.wait().unwrap().expect("it has ended");
    let errors = lines(&server, "ERROR");
    // What the server does about the signal may fail as well.
    let escalated = server.events_of("escalated").unwrap();
    assert_eq!(errors.len(), escalated.len(), "{errors:#?}");
    assert!(errors[0].contains("gave up") && errors[0].contains("--restart=off"));
}

#[test]
fn two_servers_in_one_file_are_told_apart_and_the_file_may_be_rotated() {
    kvm_case("two_servers_in_one_file_are_told_apart_and_the_file_may_be_rotated");
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("events");
    let mut servers: Vec<Monitored> = Vec::new();
    for _ in 0..2 {
        let port = free_port().unwrap();
        let launch = Launch::monitored(redis::command(port)).unwrap();
        servers.push(launch.events_to(path.clone()).start(port).unwrap());
    }
    let rotated = dir.path().join("events.1");
    fs::rename(&path, &rotated).unwrap();
    for server in &servers {
        crash(server.port(), &["DEBUG", "SEGFAULT"]);
    }
    for server in &mut servers {
        assert_eq!(server.terminate().unwrap().code(), Some(0));
    }
    let of_both = |path: &Path, name: &str| {
        let events = event::read(path).unwrap();
        let found = events.into_iter().filter(|event| event.event == name);
        let member = |event: &event::Event, name: &str| event.text(name).unwrap().to_owned();
        found
            .map(|event| (member(&event, "instance"), event.number("pid").unwrap()))
            .collect::<std::collections::BTreeSet<_>>()
    };
    let started = of_both(&rotated, "started");
    assert_eq!(started.len(), 2, "{started:?}");
    assert_eq!(of_both(&path, "recovered"), started);
    assert_eq!(of_both(&path, "exited"), started);
    assert_eq!(of_both(&rotated, "exited").len(), 0);
}

#[test]
fn reports_outlive_their_directory() {
    kvm_case("reports_outlive_their_directory");
    let port = free_port().unwrap();
    let mut server = Monitored::start(port, redis::command(port)).unwrap();
    fs::remove_dir_all(server.report_dir()).unwrap();
    crash(port, &["DEBUG", "SEGFAULT"]);
    let recovered = server.await_events("recovered", 1).unwrap();
    let report = recovered[0].text("report").expect("a report");
    assert!(
        server
            .report_dir()
            .join(report)
            .join("report.json")
            .is_file()
    );
    assert!(server.terminate().is_ok());
}

#[test]
fn a_server_that_became_another_user_keeps_reports() {
    kvm_case("a_server_that_became_another_user_keeps_reports");
    let id = Command::new("id").arg("-u").output().unwrap().stdout;
    if id != b"0\n" {
        return;
    }
    let port = free_port().unwrap();
    let command = [
        "setpriv",
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
    ];
    let command = command
        .map(str::to_owned)
        .into_iter()
        .chain(redis::command(port));
    let mut server = Monitored::start(port, command).unwrap();
    crash(port, &["DEBUG", "SEGFAULT"]);
    let recovered = server.await_events("recovered", 1).unwrap();
    let report = recovered[0].text("report").expect("a report");
    let mut show = run::vmsrs(["report", "--report-dir"]).unwrap();
    let listed = run::to_end(show.arg(server.report_dir()).arg("last"), b"").unwrap();
    assert!(listed.out().contains(report), "{listed}");
    assert!(listed.out().contains("debugCommand"), "{listed}");
    assert!(server.terminate().is_ok(), "{}", server.output());
}

#[test]
fn hangs_of_one_bug_have_one_report() {
    kvm_case("hangs_of_one_bug_have_one_report");
    let port = free_port().unwrap();
    let launch = Launch::monitored(redis::command(port)).unwrap();
    let launch = launch.options(["--request-timeout", "200ms"]);
    let mut server = launch.start(port).unwrap();
    for _ in 0..3 {
        crash(port, &["DEBUG", "SLEEP", "60"]);
    }
    let hangs = server.await_events("recovered", 3).unwrap();
    assert!(
        hangs
            .iter()
            .all(|event| event.text("kind") == Some("timeout"))
    );
    for member in ["fault", "report"] {
        let first = hangs[0].text(member);
        assert!(first.is_some());
        assert!(
            hangs.iter().all(|event| event.text(member) == first),
            "{hangs:#?}"
        );
    }
    assert!(server.terminate().is_ok());
}

#[test]
fn a_limit_on_files_that_is_too_low_is_an_error_with_the_number() {
    kvm_case("a_limit_on_files_that_is_too_low_is_an_error_with_the_number");
    let limited = |what: &str| {
        let script = format!("ulimit -n 64; exec \"$0\" {what}");
        let mut command = Command::new("bash");
        command
            .args(["-c", &script])
            .arg(vmsrs_tests::paths::vmsrs().unwrap());
        run::to_end(&mut command, b"").unwrap()
    };
    let ran = limited("run -- /bin/true");
    if ran.code() == 0 {
        // This user may raise the limit.
        return;
    }
    assert_eq!(ran.code(), 125);
    assert!(ran.err().contains("at least 128"), "{ran}");
    let checked = limited("check");
    assert_eq!(checked.code(), 1);
    let missing = |line: &str| line.starts_with("MISSING  open files") && line.contains("128");
    assert!(checked.out().lines().any(missing), "{checked}");
}
