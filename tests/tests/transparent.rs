//! `vmsrs run --` is a transparent prefix: arguments, environment, working directory, standard
//! streams, exit status, process id and handed-over sockets are what they are without it.

use std::{
    ffi::{OsStr, OsString},
    fs,
    io::{self, Read, Write},
    net::{TcpListener, TcpStream},
    os::{
        fd::AsRawFd,
        unix::{ffi::OsStrExt, fs::PermissionsExt, process::CommandExt},
    },
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use vmsrs_tests::{guest, kvm_case, process::Bounded, run};

fn show() -> OsString {
    guest::program("show").unwrap().into_os_string()
}

/// `show WHAT ARGS`, natively and under the monitor; its output.
fn same_show<S: AsRef<OsStr>>(args: impl IntoIterator<Item = S>) -> String {
    let mut argv = vec![show()];
    argv.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
    run::same(&argv, b"").out()
}

#[test]
fn arguments_arrive_byte_for_byte() {
    kvm_case("arguments_arrive_byte_for_byte");
    let long = "x".repeat(100_000);
    let odd = [
        OsStr::new("args"),
        OsStr::new(""),
        OsStr::new("two words"),
        OsStr::new("--protect"),
        OsStr::new("--"),
        OsStr::from_bytes(b"\xff\xfe not UTF-8"),
        OsStr::new(&long),
        OsStr::new(""),
    ];
    assert_eq!(same_show(odd).lines().count(), 7);
}

#[test]
fn options_of_the_guest_are_not_the_monitors() {
    kvm_case("options_of_the_guest_are_not_the_monitors");
    // Without `--` too: everything after the program is the program's.
    let mut command = run::vmsrs([OsStr::new("run"), &show(), OsStr::new("args")]).unwrap();
    command.args(["--events", "/nonexistent/events", "--help"]);
    let ended = run::to_end(&mut command, b"").unwrap();
    assert_eq!(
        (ended.code(), ended.out().lines().count()),
        (0, 3),
        "{ended}"
    );
}

#[test]
fn the_environment_arrives_byte_for_byte() {
    kvm_case("the_environment_arrives_byte_for_byte");
    let argv = [show(), "environment".into()];
    let environment = |mut command: Command| {
        command.env_clear();
        command.env("PATH", "/usr/bin:/bin").env("HOME", "/");
        command.env("EMPTY", "").env("EQUALS", "a=b=c");
        command.env("ODD", OsStr::from_bytes(b"\x80\xff"));
        command.env(OsStr::from_bytes(b"ODD\xfeNAME"), "value");
        run::to_end(&mut command, b"").unwrap()
    };
    let native = environment(run::native(&argv));
    let monitored = environment(run::monitored(&argv).unwrap());
    assert_eq!(
        (native.code(), native.out().lines().count()),
        (0, 6),
        "{native}"
    );
    assert_eq!(native, monitored, "{native}\n{monitored}");
}

#[test]
fn the_working_directory_is_the_callers() {
    kvm_case("the_working_directory_is_the_callers");
    let dir = tempfile::tempdir().unwrap();
    let mut command = run::monitored([show(), "cwd".into()]).unwrap();
    let ended = run::to_end(command.current_dir(dir.path()), b"").unwrap();
    assert_eq!(ended.code(), 0, "{ended}");
    assert_eq!(
        Path::new(ended.out().trim_end()),
        dir.path().canonicalize().unwrap()
    );
}

#[test]
fn a_relative_program_is_found_from_the_working_directory() {
    kvm_case("a_relative_program_is_found_from_the_working_directory");
    let program = guest::program("show").unwrap();
    let name = Path::new(".").join(program.file_name().unwrap());
    let mut command = run::monitored([name.as_os_str(), OsStr::new("executable")]).unwrap();
    let ended = run::to_end(command.current_dir(program.parent().unwrap()), b"").unwrap();
    let expected = format!(
        "{}\n{}\n",
        program.canonicalize().unwrap().display(),
        name.display()
    );
    assert_eq!((ended.code(), ended.out()), (0, expected), "{ended}");
}

#[test]
fn the_standard_streams_are_the_guests() {
    kvm_case("the_standard_streams_are_the_guests");
    let input = b"a line\n".repeat(50_000);
    let ended = run::same(&[show(), "streams".into()], &input);
    assert_eq!(
        ended.err(),
        "to the error stream\n",
        "the monitor prints nothing of its own"
    );
    assert!(ended.out().ends_with("A LINE\n"));
}

#[test]
fn a_closed_output_pipe_ends_the_guest_as_natively() {
    kvm_case("a_closed_output_pipe_ends_the_guest_as_natively");
    let mut command = run::monitored(["yes"]).unwrap();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null());
    let mut child = Bounded::spawn_group(&mut command).unwrap();
    let (_, stdout, _) = child.take_pipes();
    let mut first = [0; 4];
    stdout.unwrap().read_exact(&mut first).unwrap();
    assert_eq!(&first, b"y\ny\n");
    // The pipe is closed now; SIGPIPE ends the guest.
    let status = child
        .wait_for(run::PATIENCE)
        .unwrap()
        .expect("the guest ends");
    assert_eq!(status.code(), Some(128 + libc::SIGPIPE));
}

#[test]
fn exit_statuses_are_the_guests() {
    kvm_case("exit_statuses_are_the_guests");
    for status in ["0", "3", "125", "255"] {
        let ended = run::same(&[show(), "exit".into(), status.into()], b"");
        assert_eq!(ended.code().to_string(), status);
    }
}

#[test]
fn death_by_a_signal_is_128_and_its_number() {
    kvm_case("death_by_a_signal_is_128_and_its_number");
    for signal in [
        libc::SIGTERM,
        libc::SIGHUP,
        libc::SIGSEGV,
        libc::SIGKILL,
        libc::SIGUSR1,
    ] {
        let ended = run::same(&[show(), "raise".into(), signal.to_string().into()], b"");
        assert_eq!(ended.code(), 128 + signal);
    }
    assert_eq!(run::same(&[show(), "abort".into()], b"").code(), 134);
    assert_eq!(run::same(&["sh", "-c", "kill -TERM $$"], b"").code(), 143);
}

#[test]
fn a_program_that_a_child_executes_dies_of_its_signal() {
    kvm_case("a_program_that_a_child_executes_dies_of_its_signal");
    let text = "import subprocess; print(subprocess.run(['sh', '-c', 'kill -TERM $$']).returncode)";
    let ended = run::same(&["/usr/bin/python3", "-c", text], b"");
    assert_eq!(ended.out(), "-15\n", "{ended}");
}

#[test]
fn the_guests_process_id_is_the_monitors() {
    kvm_case("the_guests_process_id_is_the_monitors");
    let mut command = run::monitored([show(), "pid".into()]).unwrap();
    command.stdin(Stdio::null()).stdout(Stdio::piped());
    let mut child = Bounded::spawn_group(&mut command).unwrap();
    let mut out = String::new();
    let (_, stdout, _) = child.take_pipes();
    stdout.unwrap().read_to_string(&mut out).unwrap();
    assert_eq!(out, format!("{} {}\n", child.id(), std::process::id()));
}

#[test]
fn a_script_runs_by_its_interpreter() {
    kvm_case("a_script_runs_by_its_interpreter");
    let dir = tempfile::tempdir().unwrap();
    let script = dir.path().join("script");
    fs::write(
        &script,
        "#! /bin/sh -e\necho \"$0\" \"$#\" \"$2\"\nfalse\necho not reached\n",
    )
    .unwrap();
    fs::set_permissions(&script, fs::Permissions::from_mode(0o755)).unwrap();
    let ended = run::same(
        &[script.as_os_str(), OsStr::new("a"), OsStr::new("b c")],
        b"",
    );
    assert_eq!(ended.out(), format!("{} 2 b c\n", script.display()));
    assert_eq!(ended.code(), 1);
}

#[test]
fn programs_run_however_they_are_linked() {
    kvm_case("programs_run_however_they_are_linked");
    for linkage in guest::Linkage::ALL {
        let program = guest::linked("show", linkage).unwrap().into_os_string();
        let ended = run::same(&[program.clone(), "executable".into()], b"");
        let program = Path::new(&program).display();
        assert_eq!(
            ended.out(),
            format!("{program}\n{program}\n"),
            "{linkage:?}"
        );
    }
}

#[test]
fn a_socket_is_handed_over_as_by_systemd() {
    kvm_case("a_socket_is_handed_over_as_by_systemd");
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    // LISTEN_PID names the process, and exec keeps the number: sh is the monitor, and the guest.
    let program = guest::program("listen_fds").unwrap();
    let monitored = run::monitored([program.as_os_str()]).unwrap();
    let mut shell = run::native(["sh", "-c", "LISTEN_PID=$$ exec \"$@\"", "sh"]);
    shell
        .arg(monitored.get_program())
        // It serves one client and ends.
        .args(["run", "--allow-exit"])
        .args(monitored.get_args().skip(1));
    shell.env("LISTEN_FDS", "1").stdin(Stdio::null());
    let fd = listener.as_raw_fd();
    // SAFETY: the closure only duplicates a descriptor; dup2 is async-signal-safe. Where the
    // listener is descriptor 3 already, dup2 would leave it close-on-exec.
    unsafe {
        shell.pre_exec(move || {
            let done = match fd {
                3 => libc::fcntl(3, libc::F_SETFD, 0),
                fd => libc::dup2(fd, 3),
            };
            if done < 0 {
                Err(io::Error::last_os_error())
            } else {
                Ok(())
            }
        });
    }
    let mut child = Bounded::spawn_group(&mut shell).unwrap();
    let mut client = TcpStream::connect(address).unwrap();
    client
        .set_read_timeout(Some(Duration::from_secs(10)))
        .unwrap();
    client.write_all(b"hello").unwrap();
    let mut reply = Vec::new();
    client.read_to_end(&mut reply).unwrap();
    assert_eq!(reply, b"hello");
    assert_eq!(
        child
            .wait_for(run::PATIENCE)
            .unwrap()
            .and_then(|s| s.code()),
        Some(0)
    );
}

#[test]
fn signals_ignored_by_the_parent_stay_ignored() {
    kvm_case("signals_ignored_by_the_parent_stay_ignored");
    let monitored = run::monitored([show(), "ignored".into()]).unwrap();
    let mut shell = run::native(["sh", "-c", "trap '' HUP USR1; exec \"$@\"", "sh"]);
    shell
        .arg(monitored.get_program())
        .args(monitored.get_args());
    let ended = run::to_end(&mut shell, b"").unwrap();
    assert_eq!(
        (ended.code(), ended.out().as_str()),
        (0, "1\n10\n"),
        "{ended}"
    );
}

#[test]
fn fork_fails_cleanly_or_works() {
    kvm_case("fork_fails_cleanly_or_works");
    let mut command = run::monitored([show(), "fork".into()]).unwrap();
    let ended = run::to_end(&mut command, b"").unwrap();
    let expected = ["refused: ENOSYS\n", "child exited with 9\n"];
    assert!(
        ended.code() == 0 && expected.contains(&ended.out().as_str()),
        "{ended}"
    );
}
