//! What clients say and hear.

use std::{
    fs,
    io::{self, Read, Write},
    path::Path,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use crate::net::{self, Stream};

const PATIENCE: Duration = Duration::from_secs(20);
/// How often a client of IMAP tries to log in.
const LOGINS: u32 = 10;
/// How long it waits in between.
const AFTER_FAILURE: Duration = Duration::from_millis(50);

/// What every web server has at `/page.txt`. HAProxy takes up to 16 KiB.
pub fn page() -> String {
    (0..1500).map(|n| format!("line {n}\n")).collect()
}

fn unexpected(what: &str, got: &[u8]) -> io::Error {
    let got = String::from_utf8_lossy(&got[..got.len().min(300)]).into_owned();
    io::Error::other(format!("{what}: {got:?}"))
}

fn connect(port: u16) -> io::Result<Stream> {
    net::connect_to(&port.into(), PATIENCE)
}

/// A request for [`page`], over a connection of its own: one that is kept may be closed by a server that reloads.
pub fn http(port: u16, tag: &str) -> io::Result<()> {
    let mut stream = connect(port)?;
    let request = format!("GET /page.txt?{tag} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    stream.write_all(request.as_bytes())?;
    let mut got = Vec::new();
    let head = loop {
        if let Some(at) = got.windows(4).position(|four| four == b"\r\n\r\n") {
            break at + 4;
        }
        receive(&mut stream, &mut got)?;
    };
    let text = String::from_utf8_lossy(&got[..head]).to_ascii_lowercase();
    let length = text
        .lines()
        .find_map(|line| line.strip_prefix("content-length:"));
    let length: usize = length
        .and_then(|length| length.trim().parse().ok())
        .ok_or_else(|| unexpected("no length", &got))?;
    while got.len() < head + length {
        receive(&mut stream, &mut got)?;
    }
    match text.contains(" 200 ok") && got[head..] == *page().as_bytes() {
        true => Ok(()),
        false => Err(unexpected("not the page", &got)),
    }
}

fn receive(stream: &mut Stream, into: &mut Vec<u8>) -> io::Result<()> {
    let mut part = [0; 16 << 10];
    match stream.read(&mut part)? {
        0 => Err(unexpected("the connection has ended after", into)),
        n => {
            into.extend_from_slice(&part[..n]);
            Ok(())
        }
    }
}

/// Subscribes to a topic of its own, publishes something there, and gets it.
pub fn mqtt(port: u16, tag: &str) -> io::Result<()> {
    fn packet(kind: u8, parts: &[&[u8]]) -> Vec<u8> {
        let body = parts.concat();
        [&[kind, body.len() as u8], &body[..]].concat()
    }
    fn text(text: &str) -> Vec<u8> {
        [&(text.len() as u16).to_be_bytes(), text.as_bytes()].concat()
    }
    let mut stream = connect(port)?;
    let mut exchange = |say: &[u8], hear: &[u8]| -> io::Result<()> {
        stream.write_all(say)?;
        let mut got = Vec::new();
        while got.len() < hear.len() {
            receive(&mut stream, &mut got)?;
        }
        match got == hear {
            true => Ok(()),
            false => Err(unexpected("another packet", &got)),
        }
    };
    let hello = packet(0x10, &[&text("MQTT"), &[4, 2, 0, 60], &text(tag)]);
    exchange(&hello, &[0x20, 2, 0, 0])?;
    exchange(
        &packet(0x82, &[&[0, 1], &text(tag), &[0]]),
        &[0x90, 3, 0, 1, 0],
    )?;
    let message = packet(0x30, &[&text(tag), b"message for ", tag.as_bytes()]);
    exchange(&message, &message)?;
    exchange(&[0xe0, 0], &[])
}

/// A request for the page as a web server asks PHP for it (the FastCGI specification).
pub fn fastcgi(port: u16, tag: &str) -> io::Result<()> {
    const BEGIN: u8 = 1;
    const END: u8 = 3;
    const PARAMETERS: u8 = 4;
    const INPUT: u8 = 5;
    const OUTPUT: u8 = 6;
    fn record(kind: u8, body: &[u8]) -> Vec<u8> {
        let length = (body.len() as u16).to_be_bytes();
        [&[1, kind, 0, 1, length[0], length[1], 0, 0], body].concat()
    }
    fn parameter(name: &str, value: &str) -> Vec<u8> {
        let lengths = [name.len() as u8, value.len() as u8];
        [&lengths, name.as_bytes(), value.as_bytes()].concat()
    }
    let mut stream = connect(port)?;
    let parameters = [
        parameter("SCRIPT_FILENAME", "/page.php"),
        parameter("REQUEST_METHOD", "GET"),
        parameter("QUERY_STRING", tag),
    ];
    let request = [
        // As a responder, and not to be kept.
        record(BEGIN, &[0, 1, 0, 0, 0, 0, 0, 0]),
        record(PARAMETERS, &parameters.concat()),
        record(PARAMETERS, &[]),
        record(INPUT, &[]),
    ];
    stream.write_all(&request.concat())?;
    let (mut got, mut output) = (Vec::new(), Vec::new());
    loop {
        let header = up_to(&mut stream, &mut got, 8)?;
        let length = u16::from_be_bytes([header[4], header[5]]) as usize;
        let body = up_to(&mut stream, &mut got, length + header[6] as usize)?;
        match header[1] {
            OUTPUT => output.extend_from_slice(&body[..length]),
            END => break,
            _ => return Err(unexpected("another record", &body)),
        }
    }
    match output.ends_with(format!("\r\n\r\n{}", page()).as_bytes()) {
        true => Ok(()),
        false => Err(unexpected("not the page", &output)),
    }
}

/// The next `length` bytes; `got` has what came behind them.
fn up_to(stream: &mut Stream, got: &mut Vec<u8>, length: usize) -> io::Result<Vec<u8>> {
    while got.len() < length {
        receive(stream, got)?;
    }
    Ok(got.drain(..length).collect())
}

/// Logs in, looks into an empty mailbox, and logs out.
pub fn imap(port: u16, tag: &str) -> io::Result<()> {
    let log_in = || -> io::Result<Stream> {
        let mut stream = connect(port)?;
        answered(&mut stream, "", "*")?;
        answered(&mut stream, "in LOGIN ada secret\r\n", "in")?;
        Ok(stream)
    };
    // Natively, too, Dovecot loses and refuses logins while it reloads.
    let again = || log_in().inspect_err(|_| thread::sleep(AFTER_FAILURE));
    let logged_in = (1..LOGINS).find_map(|_| again().ok());
    let mut stream = logged_in.map_or_else(log_in, Ok)?;
    answered(&mut stream, &format!("{tag} SELECT INBOX\r\n"), tag)?;
    answered(&mut stream, "out LOGOUT\r\n", "out")
}

/// The IMAP server answers that it is well; what it says before that is about the mailbox.
fn answered(stream: &mut Stream, say: &str, tag: &str) -> io::Result<()> {
    stream.write_all(say.as_bytes())?;
    let mut got = Vec::new();
    loop {
        receive(stream, &mut got)?;
        let text = String::from_utf8_lossy(&got);
        let answer = text.split_inclusive('\n').next_back();
        match answer.and_then(|answer| answer.strip_prefix(tag)) {
            Some(answer) if answer.starts_with(" OK") && answer.ends_with('\n') => return Ok(()),
            Some(answer) if answer.ends_with('\n') => return Err(unexpected(say, &got)),
            _ => {}
        }
    }
}

/// Logs in as a guest.
pub fn ftp(port: u16, tag: &str) -> io::Result<()> {
    let mut stream = connect(port)?;
    let mut exchange = |say: &str, hear: &str| -> io::Result<()> {
        stream.write_all(say.as_bytes())?;
        let mut got = Vec::new();
        while !got.ends_with(b"\n") {
            receive(&mut stream, &mut got)?;
        }
        match got.starts_with(hear.as_bytes()) {
            true => Ok(()),
            false => Err(unexpected(say, &got)),
        }
    };
    exchange("", "220")?;
    exchange("USER anonymous\r\n", "331")?;
    exchange(&format!("PASS {tag}\r\n"), "230")?;
    exchange("PWD\r\n", "257")?;
    exchange("SIZE page.txt\r\n", &format!("213 {}", page().len()))?;
    exchange("QUIT\r\n", "221")
}

/// A query of PostgreSQL (its documentation, "Frontend/Backend Protocol").
pub fn postgresql(port: u16, tag: &str) -> io::Result<()> {
    let mut stream = connect(port)?;
    let mut got = Vec::new();
    let startup = b"\0\x03\0\0user\0postgres\0database\0postgres\0\0";
    stream.write_all(&(startup.len() as u32 + 4).to_be_bytes())?;
    stream.write_all(startup)?;
    until_ready(&mut stream, &mut got)?;
    let query = format!("select 'query of ' || '{tag}', count(*) from pg_class\0");
    stream.write_all(b"Q")?;
    stream.write_all(&(query.len() as u32 + 4).to_be_bytes())?;
    stream.write_all(query.as_bytes())?;
    until_ready(&mut stream, &mut got)?;
    let wanted = format!("query of {tag}");
    match got
        .windows(wanted.len())
        .any(|part| part == wanted.as_bytes())
    {
        true => stream.write_all(b"X\0\0\0\x04"),
        false => Err(unexpected("another answer", &got)),
    }
}

/// Reads messages up to ReadyForQuery; `got` has them all.
fn until_ready(stream: &mut Stream, got: &mut Vec<u8>) -> io::Result<()> {
    got.clear();
    let mut at = 0;
    loop {
        while got.len() < at + 5 {
            receive(stream, got)?;
        }
        let (kind, length) = (got[at], &got[at + 1..at + 5]);
        let length = u32::from_be_bytes([length[0], length[1], length[2], length[3]]) as usize;
        while got.len() < at + 1 + length {
            receive(stream, got)?;
        }
        match kind {
            b'Z' => return Ok(()),
            b'E' => return Err(unexpected("an error", got)),
            _ => at += 1 + length,
        }
    }
}

/// A query of MariaDB, which asks for no password (its documentation, "Client/Server Protocol").
pub fn mariadb(port: u16, tag: &str) -> io::Result<()> {
    let mut stream = connect(port)?;
    let mut got = Vec::new();
    let packet = |stream: &mut Stream, got: &mut Vec<u8>| -> io::Result<Vec<u8>> {
        let head = up_to(stream, got, 4)?;
        let length = u32::from_le_bytes([head[0], head[1], head[2], 0]);
        up_to(stream, got, length as usize)
    };
    packet(&mut stream, &mut got)?;
    // Protocol 4.1 and secure connections; 16 MiB; UTF-8; no password.
    let mut login = vec![0x00, 0x82, 0x00, 0x00, 0, 0, 0, 1, 33];
    login.extend([0; 23]);
    login.extend(b"root\0\0");
    let say = |stream: &mut Stream, number: u8, body: &[u8]| -> io::Result<()> {
        let length = (body.len() as u32).to_le_bytes();
        stream.write_all(&[&length[..3], &[number], body].concat())
    };
    say(&mut stream, 1, &login)?;
    let welcome = packet(&mut stream, &mut got)?;
    if welcome.first() != Some(&0) {
        return Err(unexpected("not let in", &welcome));
    }
    let query = format!("\x03select concat('query of ', '{tag}')");
    say(&mut stream, 0, query.as_bytes())?;
    let wanted = format!("query of {tag}");
    // The number of columns, the column, the end of columns, the row.
    for _ in 0..4 {
        let part = packet(&mut stream, &mut got)?;
        if part.first() == Some(&0xff) {
            return Err(unexpected("an error", &part));
        }
        if part.ends_with(wanted.as_bytes()) && !part.starts_with(b"\x03def") {
            return say(&mut stream, 0, &[1]);
        }
    }
    Err(unexpected("no row", &got))
}

/// A session of one of three kinds, by the last digit of the tag. A tag that is to crash is said where it is not encrypted yet.
pub fn ssh(dir: &Path, port: u16, tag: &str) -> io::Result<()> {
    let path = |name: &str| dir.join(name).display().to_string();
    let page_path = path("www/page.txt");
    let client = |program: &str, port_option: &str| {
        let mut command = Command::new("timeout");
        command.args(["60", program, "-F", "none", "-i", &path("user")]);
        for option in [
            "StrictHostKeyChecking=no",
            "UserKnownHostsFile=/dev/null",
            "LogLevel=error",
        ] {
            command.args(["-o", option]);
        }
        command.args([port_option, &port.to_string()]);
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    };
    let digit = tag
        .bytes()
        .last()
        .filter(u8::is_ascii_digit)
        .unwrap_or(b'0')
        % 3;
    let (mut command, input, wanted) = match digit {
        _ if tag.contains("crash") => return ssh_banner(port, tag),
        0 => {
            let mut command = client("ssh", "-p");
            command.args(["root@127.0.0.1", &format!("cat {page_path}")]);
            (command, String::new(), page())
        }
        1 => {
            let mut command = client("ssh", "-p");
            command.args([
                "-tt",
                "root@127.0.0.1",
                "test -t 0 && stty rows 7 columns 70 && stty size && read x && echo said $x",
            ]);
            (command, format!("{tag}\n"), format!("said {tag}"))
        }
        _ => {
            let mut command = client("sftp", "-P");
            command.args(["-q", "-b", "-", "root@127.0.0.1"]);
            let put = format!("put {page_path} {}\nls -1 {}\n", path(tag), path(tag));
            (command, put, path(tag))
        }
    };
    let mut running = command.spawn()?;
    if let Some(mut stdin) = running.stdin.take() {
        stdin.write_all(input.as_bytes())?;
    }
    let output = running.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    let is_right = match digit {
        0 => text == wanted,
        1 => text.contains("7 70") && text.contains(&wanted),
        _ => text.contains(&wanted) && fs::read_to_string(path(tag))? == page(),
    };
    match output.status.success() && is_right {
        true => Ok(()),
        false => Err(io::Error::other(format!("{digit}: {output:?}"))),
    }
}

/// A client's first words, and the server's.
fn ssh_banner(port: u16, tag: &str) -> io::Result<()> {
    let mut stream = connect(port)?;
    stream.write_all(format!("SSH-2.0-{tag}\r\n").as_bytes())?;
    let mut got = Vec::new();
    // Its version, and then what it can do.
    while got.len() < 100 {
        receive(&mut stream, &mut got)?;
    }
    Ok(())
}
