//! nginx with one process: a master process would fork workers, which are not protected yet.

use std::{fs, io, time::Duration};

use tempfile::TempDir;

use super::{Attack, Keys, Progress, Target, first_line};
use crate::{
    campaign::{
        healthy::{Clients, web::WebClients},
        trial::{Failure, FailureKind},
    },
    load::Random,
    net::{self, Address},
};

/// Files that it serves, and the step between their lengths.
const FILES: u64 = 12;
const STEP: usize = 1700;

/// Debian's `nginx`, with files of known content.
#[derive(Debug)]
pub struct Nginx {
    dir: TempDir,
}

impl Nginx {
    /// Makes the files.
    pub fn new() -> io::Result<Nginx> {
        let dir = tempfile::Builder::new().prefix("vmsrs-nginx-").tempdir()?;
        for sub in ["www", "tmp"] {
            fs::create_dir(dir.path().join(sub))?;
        }
        for number in 0..FILES {
            fs::write(dir.path().join("www").join(name(number)), content(number))?;
        }
        Ok(Nginx { dir })
    }
}

impl Target for Nginx {
    fn name(&self) -> &'static str {
        "nginx"
    }

    fn version(&self) -> String {
        first_line("nginx", "-v")
    }

    fn command(&self, port: u16) -> Vec<String> {
        let configuration = format!(
            "daemon off; master_process off; error_log stderr crit; pid {dir}/pid;
             events {{ worker_connections 256; }}
             http {{
                 access_log off; keepalive_requests 1000000000;
                 client_body_temp_path {dir}/tmp/b; proxy_temp_path {dir}/tmp/p;
                 fastcgi_temp_path {dir}/tmp/f; uwsgi_temp_path {dir}/tmp/u; scgi_temp_path {dir}/tmp/s;
                 server {{ listen 127.0.0.1:{port}; root {dir}/www; default_type text/plain; }}
             }}",
            dir = self.dir.path().display()
        );
        let path = self.dir.path().join(format!("nginx-{port}.conf"));
        // If it cannot be written, nginx says so when it does not find it.
        let _ = fs::write(&path, configuration);
        let dir = self.dir.path().display().to_string();
        let path = path.display().to_string();
        ["nginx", "-p", &dir, "-c", &path]
            .map(str::to_owned)
            .to_vec()
    }

    /// It is stripped, so that only functions of its libraries have names.
    fn symbols(&self) -> &'static [&'static str] {
        &[
            "malloc",
            "free",
            "writev",
            "sendfile64",
            "open64",
            "posix_memalign",
        ]
    }

    fn attack(&self, random: &mut Random, tag: &str, _: (usize, u64)) -> Attack {
        let number = random.below(FILES + 2);
        let (path, status, body) = match number {
            n if n < FILES => (name(n), "200 OK", Some(content(n))),
            _ => (format!("missing-{number}"), "404 Not Found", None),
        };
        Attack {
            description: format!("GET, {status}"),
            bytes: format!("GET /{path}?{tag} HTTP/1.1\r\nHost: test\r\n\r\n").into_bytes(),
            reply: [status.as_bytes(), b"\n", &body.unwrap_or_default()].concat(),
            write: None,
            temporary: None,
        }
    }

    fn judge(&self, attack: &Attack, got: &[u8]) -> Progress {
        let status = attack.reply.iter().position(|byte| *byte == b'\n');
        let (status, body) = attack.reply.split_at(status.unwrap_or(0));
        judge(&String::from_utf8_lossy(status), &body[1..], got)
    }

    fn clients(&self) -> Box<dyn Clients> {
        Box::new(WebClients { files: FILES })
    }

    /// Every file once more, each on a connection of its own.
    fn check(&self, address: &Address, _: &Keys, patience: Duration) -> io::Result<Vec<Failure>> {
        let mut failures = Vec::new();
        for number in 0..FILES {
            let mut stream = net::connect_to(address, patience)?;
            if let Err(error) = fetch(&mut stream, number) {
                failures.push(Failure {
                    kind: FailureKind::Inconsistent,
                    detail: format!("{}: {error}", name(number)),
                });
            }
        }
        Ok(failures)
    }
}

/// The name of a file.
fn name(number: u64) -> String {
    format!("file-{number}.txt")
}

/// What is in it.
fn content(number: u64) -> Vec<u8> {
    let mut random = Random::new(number);
    let letter = |_| b'a' + random.below(26) as u8;
    (0..number as usize * STEP + 10).map(letter).collect()
}

/// Fetches a file over a connection that stays open.
///
/// # Errors
///
/// `InvalidData` if the answer is not, byte for byte, what it should be.
pub fn fetch(stream: &mut (impl io::Read + io::Write), number: u64) -> io::Result<()> {
    let request = format!("GET /{} HTTP/1.1\r\nHost: test\r\n\r\n", name(number));
    stream.write_all(request.as_bytes())?;
    let body = content(number);
    let mut got = Vec::new();
    loop {
        match judge("200 OK", &body, &got) {
            Progress::Right => return Ok(()),
            Progress::Wrong => {
                let start = String::from_utf8_lossy(&got[..got.len().min(300)]).into_owned();
                return Err(io::Error::new(
                    io::ErrorKind::InvalidData,
                    format!("{}: {} bytes: {start:?}", name(number), got.len()),
                ));
            }
            Progress::Incomplete => {}
        }
        let mut part = [0; 16 << 10];
        match stream.read(&mut part)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            n => got.extend_from_slice(&part[..n]),
        }
    }
}

/// Compares an answer: status line, the headers that must be there, none that must not, and the body.
fn judge(status: &str, body: &[u8], got: &[u8]) -> Progress {
    let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else {
        // No header is that long.
        return match got.len() < 2000 {
            true => Progress::Incomplete,
            false => Progress::Wrong,
        };
    };
    let head = String::from_utf8_lossy(&got[..end]).into_owned();
    let mut lines = head.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let Some(headers) = lines
        .map(|line| line.split_once(": "))
        .collect::<Option<std::collections::BTreeMap<_, _>>>()
    else {
        return Progress::Wrong;
    };
    let found = status.starts_with("200");
    let known = [
        "Server",
        "Date",
        "Content-Type",
        "Content-Length",
        "Last-Modified",
        "Connection",
        "ETag",
        "Accept-Ranges",
    ];
    let length: Option<usize> = headers.get("Content-Length").and_then(|n| n.parse().ok());
    let is_right = first == format!("HTTP/1.1 {status}")
        && headers.keys().all(|name| known.contains(name))
        && headers
            .get("Server")
            .is_some_and(|server| server.starts_with("nginx"))
        && headers.get("Connection") == Some(&"keep-alive")
        && headers.contains_key("Date")
        && (!found || headers.get("Content-Type") == Some(&"text/plain"))
        && (!found || headers.get("Accept-Ranges") == Some(&"bytes"))
        && (!found || length == Some(body.len()));
    let Some(length) = length.filter(|_| is_right) else {
        return Progress::Wrong;
    };
    let received = &got[end + 4..];
    let so_far = !found || body.starts_with(received);
    match received.len() {
        n if n < length && so_far => Progress::Incomplete,
        n if n == length && so_far => Progress::Right,
        _ => Progress::Wrong,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_right_to_the_last_byte_or_wrong() {
        let head = "HTTP/1.1 200 OK\r\nServer: nginx/1.22.1\r\nDate: x\r\nContent-Type: text/plain\r\n\
                    Content-Length: 3\r\nConnection: keep-alive\r\nAccept-Ranges: bytes\r\n\r\n";
        let judge = |got: &str| judge("200 OK", b"abc", got.as_bytes());
        assert_eq!(judge(&format!("{head}abc")), Progress::Right);
        assert_eq!(judge(&format!("{head}ab")), Progress::Incomplete);
        assert_eq!(judge(&head[..40]), Progress::Incomplete);
        for wrong in [
            format!("{head}abd"),
            format!("{head}abcd"),
            format!("{}abc", head.replace("200 OK", "500 Oops")),
            format!("{}abc", head.replace("Length: 3", "Length: 4")),
            format!("{}abc", head.replace("Date: x", "Fate: x")),
            format!("{}abc", head.replace("Date: x\r\n", "Date x\r\n")),
        ] {
            assert_eq!(judge(&wrong), Progress::Wrong, "{wrong}");
        }
    }
}
