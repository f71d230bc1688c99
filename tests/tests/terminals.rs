//! Programs that make terminals: what runs in them and what is seen from outside is what it is natively.

use std::{
    fs,
    path::Path,
    process::{Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use vmsrs_tests::{kvm_case, run};

const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn script() {
    kvm_case("script");
    let shown = "tty >/dev/null && stty size && stty -a | grep -c isig; exit 5";
    let ended = run::same(&["script", "-q", "-e", "-c", shown, "/dev/null"], b"");
    let (code, out) = (ended.code(), ended.out());
    assert_eq!((code, out.as_str()), (5, "0 0\r\n1\r\n"), "{ended}");
}

/// A client of the tmux server at `socket`; what it says and whether it succeeds.
fn tmux(socket: &Path, words: &[&str]) -> (bool, String) {
    let mut command = Command::new("timeout");
    command.args(["30", "tmux", "-S"]).arg(socket).args(words);
    let output = command.output().expect("tmux is installed");
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    (output.status.success(), text)
}

fn said(socket: &Path, words: &[&str]) -> String {
    let (succeeded, text) = tmux(socket, words);
    assert!(succeeded, "{words:?}: {text}");
    text
}

fn await_line(socket: &Path, line: &str) {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let screen = said(socket, &["capture-pane", "-p"]);
        if screen.lines().any(|shown| shown == line) {
            return;
        }
        assert!(Instant::now() < deadline, "no {line:?} in {screen:?}");
        thread::sleep(Duration::from_millis(20));
    }
}

/// What a session of tmux shows; one of its clients crashes the server if `crashes`.
fn session(mut start: Command, socket: &Path, crashes: bool) -> Vec<String> {
    let new = ["-f", "/dev/null", "-S"];
    start.args(new).arg(socket);
    start.args(["new", "-d", "-n", "one", "-x", "80", "-y", "24", "cat"]);
    // The monitor of the server that stays keeps standard error open.
    start
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let status = start.status().expect("tmux starts");
    assert!(status.success(), "{status:?}");
    let mut shown = Vec::new();
    said(socket, &["send-keys", "some words", "Enter"]);
    // Once as echo, once by `cat`.
    let deadline = Instant::now() + PATIENCE;
    while said(socket, &["capture-pane", "-p"])
        .matches("some words")
        .count()
        < 2
    {
        assert!(Instant::now() < deadline, "cat does not answer");
        thread::sleep(Duration::from_millis(20));
    }
    if crashes {
        let (succeeded, text) = tmux(socket, &["display-message", "-p", "crash-this"]);
        assert!(!succeeded, "a request that crashes was answered: {text}");
    }
    shown.push(said(socket, &["capture-pane", "-p"]));
    said(socket, &["new-window", "-n", "two", "stty size; exec cat"]);
    await_line(socket, "24 80");
    said(socket, &["resize-window", "-x", "60", "-y", "20"]);
    let format = "#{window_name} #{window_width} #{window_height}";
    shown.push(said(socket, &["list-windows", "-F", format]));
    said(socket, &["send-keys", "-t", "two", "C-d"]);
    let deadline = Instant::now() + PATIENCE;
    while said(socket, &["list-windows"]).lines().count() > 1 {
        assert!(Instant::now() < deadline, "the window does not end");
        thread::sleep(Duration::from_millis(20));
    }
    shown.push(said(socket, &["capture-pane", "-p"]));
    said(socket, &["kill-server"]);
    shown
}

#[test]
fn tmux_keeps_its_windows_over_a_crash() {
    kvm_case("tmux_keeps_its_windows_over_a_crash");
    let dir = tempfile::tempdir().unwrap();
    let native = session(Command::new("tmux"), &dir.path().join("native"), false);
    let events = dir.path().join("events");
    let mut monitored = run::vmsrs(["run", "--events"]).unwrap();
    monitored
        .arg(&events)
        .arg("--report-dir")
        .arg(dir.path().join("reports"));
    monitored.args(["--inject", "abort:match=crash-this,times=1", "--", "tmux"]);
    let shown = session(monitored, &dir.path().join("monitored"), true);
    assert_eq!(shown, native);
    let events = fs::read_to_string(&events).unwrap();
    let recovered = events.matches("\"event\":\"recovered\"").count();
    assert_eq!(recovered, 1, "{events}");
}
